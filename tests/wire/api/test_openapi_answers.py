"""The agent does what the OpenAPI document it serves says, whatever it is asked: held to it by schemathesis."""

import http.client
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
import schemathesis
import urllib3
from hypothesis import HealthCheck, given, settings
from jsonschema_rs import is_valid
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from cni.signing import SigningClient
from machines.hosts import PORT, Host, NewHost
from machines.simulator import eventually, needs_root
from qingcloud_cni.agent.api.endpoints import ENDPOINTS, LOCAL_PATHS, OPEN_PATHS
from qingcloud_cni.core.cni.protocol import LARGEST_REQUEST, VERSIONS
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root
HOSTS = 2

BASE = f"http://127.0.0.1:{PORT}"
CASES = 80  # requests tried of each kind
SHAPE = [status_code_conformance, content_type_conformance, response_schema_conformance]
CHECKS = [*SHAPE, not_a_server_error, negative_data_rejection, unsupported_method, ignored_auth]
LASTING = ("post", "/v1/drain")  # asked last: there is no way back but a restart
MODES = [
    pytest.param(endpoint, mode, id=f"{' '.join(endpoint)}-{mode.value}")
    for endpoint, described in ENDPOINTS.items()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if endpoint != LASTING and (described.asks or described.query or mode is GenerationMode.POSITIVE)
]


@pytest.fixture(scope="module")
def host(lasting_host: NewHost) -> Host:
    host = lasting_host()
    host.start(min_idle=2, max_idle=2, max_nics=4, bindaddr=f"0.0.0.0:{PORT}")
    return host


@pytest.fixture(scope="module")
def schema(host: Host) -> Any:
    loaded = schemathesis.openapi.from_dict(host.get("/v1/openapi.json"))
    loaded.validate()
    return loaded


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def bearer(host: Host) -> dict[str, str]:
    return {"Authorization": f"Bearer {host.token}"}


def held_to_it(host: Host, case: Case[Any]) -> Any:
    """Ask on the host, over TCP and signed, and check the answer; the answer."""
    return inside(host.netns, lambda: _held_to_it(case, bearer(host)))


class Signing(requests.adapters.BaseAdapter):
    """Sends a request with a bearer token over TCP as one that is signed with it."""

    def send(self, request: requests.PreparedRequest, *_args: Any, **_options: Any) -> requests.Response:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=20)
        headers = dict(request.headers)
        token = str(headers.pop("Authorization", "")).partition("Bearer ")[2]
        body = request.body.encode() if isinstance(request.body, str) else cast("bytes", request.body or b"")
        method, target = str(request.method), request.path_url
        try:
            if token and request.path_url.partition("?")[0] not in LOCAL_PATHS:
                headers |= SigningClient(connection, token).headers(method, target, body)
            connection.request(method, target, body or None, headers)
            return self._response(request, connection.getresponse())
        finally:
            connection.close()

    def _response(self, request: requests.PreparedRequest, found: http.client.HTTPResponse) -> requests.Response:
        body = found.read()
        raw = urllib3.HTTPResponse(
            io.BytesIO(body), dict(found.getheaders()), found.status, version=11, preload_content=False
        )
        return requests.adapters.HTTPAdapter().build_response(request, raw)

    def close(self) -> None: ...


def signing_session() -> requests.Session:
    session = requests.Session()
    session.mount("http://", Signing())
    return session


def call_as(host: Host, case: Case[Any], headers: dict[str, str]) -> Any:
    return inside(host.netns, lambda: case.call(base_url=BASE, headers=headers, session=signing_session()))


def _held_to_it(case: Case[Any], headers: dict[str, str]) -> Any:
    answer = case.call(base_url=BASE, headers=headers, session=signing_session())
    if answer.status_code == 200 and isinstance(case.body, dict) and case.body.get("command") != "ADD":
        assert not answer.content, "only ADD has a result"
    else:
        checks = SHAPE if _query_is_good(case, str(answer.request.url)) else CHECKS
        case.validate_response(answer, checks=checks, headers=headers)
    return answer


def _query_is_good(case: Case[Any], url: str) -> bool:
    """Whether what was sent is as described after all: a parameter that is an empty list is not sent."""
    described = {p["name"]: p["schema"] for p in case.operation.definition.raw.get("parameters", [])}
    sent = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    names = [name for name, _ in sent]
    if not described or not set(names) <= set(described) or len(set(names)) < len(names):
        return False
    return all(is_valid(described[name], _as(described[name]["type"], text)) for name, text in sent)


def _as(kind: str, text: str) -> str | int:
    return int(text) if kind == "integer" and text.isascii() and text.isdecimal() else text


# They name a container or a NIC, which hardly one generated request does.
RARELY_GOOD = {("post", "/v1/cni"), ("get", "/v1/nic-state"), ("post", "/v1/quarantine")}


@pytest.mark.parametrize(("endpoint", "mode"), MODES)
def test_every_answer_is_a_described_one(
    host: Host, schema: Any, endpoint: tuple[str, str], mode: GenerationMode
) -> None:
    method, path = endpoint
    is_varied = bool(ENDPOINTS[endpoint].asks or ENDPOINTS[endpoint].query)
    seen = set()

    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=CASES if is_varied else 3,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case[Any]) -> None:
        seen.add(_held_to_it(case, headers).status_code)

    headers = bearer(host)
    inside(host.netns, ask)
    if mode is GenerationMode.NEGATIVE or endpoint not in RARELY_GOOD:
        assert (200 if mode is GenerationMode.POSITIVE else 400) in seen
    assert seen <= {200, 400, 403}
    assert host.is_ready()
    assert host.attachments() == []
    assert "cni.bug" not in host.agent.log.read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_results_are_as_described(host: Host, schema: Any, version: str) -> None:
    container = host.container()
    body: dict[str, Any] = {
        "command": "ADD",
        "containerID": container.name,
        "netns": container.path,
        "ifname": "eth0",
        "config": host.conf(version) | {"dns": {"nameservers": ["10.96.0.10"], "options": ["ndots:5"]}},
        "timeout": 30,
    }
    cni = schema["/v1/cni"]["POST"]
    added = held_to_it(host, cni.Case(body=body, media_type="application/json"))
    assert added.status_code == 200
    assert added.json()["cniVersion"] == version
    for path in ("/v1/nics", "/v1/attachments", "/v1/status"):
        assert held_to_it(host, schema[path]["GET"].Case()).status_code == 200
    (attachment,) = host.attachments()
    assert attachment["container_id"] == container.name
    removed = held_to_it(host, cni.Case(body=body | {"command": "DEL"}, media_type="application/json"))
    assert (removed.status_code, removed.content) == (200, b"")


def test_a_request_without_access_is_rejected_in_the_described_shape(host: Host, schema: Any) -> None:
    for method, path in ENDPOINTS:
        case = schema[path][method].Case()
        for headers in (dict[str, str](), {"Authorization": "Bearer wrong"}):
            answer = call_as(host, case, headers)
            assert answer.status_code == _without_access(path), path
            case.validate_response(answer, checks=SHAPE)


def _without_access(path: str) -> int:
    return 200 if path in OPEN_PATHS else 400 if path in LOCAL_PATHS else 403


def test_a_request_too_large_is_refused_as_described(host: Host, schema: Any) -> None:
    body = {"command": "DEL", "config": {"name": "mynet", "padding": "x" * LARGEST_REQUEST}}
    answer = held_to_it(host, schema["/v1/cni"]["POST"].Case(body=body, media_type="application/json"))
    assert (answer.status_code, answer.json()["code"]) == (400, 6)


def test_an_agent_that_is_not_ready_says_so_as_described(new_host: NewHost, schema: Any, tmp_path: Path) -> None:
    host = new_host()
    access = tmp_path / "client.yaml"
    access.touch(mode=0o600)
    access.write_text("qy_access_key_id: k\nqy_secret_access_key: s\nhost: 127.0.0.1\nport: 1\nprotocol: http\n")
    agent = host.launch(QYAccessFilePath=access)
    eventually(lambda: host.socket.exists() and _answers(host), "the agent to answer")
    assert agent.is_running
    container = host.container()
    body = {"command": "ADD", "containerID": container.name, "netns": container.path, "ifname": "eth0"}
    asked: list[tuple[Callable[..., Case[Any]], dict[str, Any]]] = [
        (schema["/readyz"]["GET"].Case, {}),
        (
            schema["/v1/cni"]["POST"].Case,
            {"body": body | {"config": host.conf(), "timeout": 3}, "media_type": "application/json"},
        ),
    ]
    for make, arguments in asked:
        case = make(**arguments)
        answer = call_as(host, case, bearer(host))
        assert answer.status_code == 503, answer.text
        case.validate_response(answer, checks=SHAPE)
    assert json.loads(answer.content)["code"] == 11


def _answers(host: Host) -> bool:
    try:
        return host.ask("GET", "/healthz").status == 200
    except OSError:
        return False


def test_draining_answers_as_described(host: Host, schema: Any) -> None:
    """The last of this module."""
    method, path = LASTING
    answer = held_to_it(host, schema[path][method].Case())
    assert answer.json()["draining"]
    assert host.status()["draining"]
