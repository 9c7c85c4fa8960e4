"""GET /v1/openapi.json: the agent's API described from the very types it answers with."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import Meta

from qingcloud_cni import __version__
from qingcloud_cni.agent.api.access_guard import OPEN_PATHS
from qingcloud_cni.agent.api.cni_api import CniRequest
from qingcloud_cni.agent.api.plan_view import PlanView
from qingcloud_cni.agent.api.views import (
    AttachmentView,
    ConfigView,
    Count,
    EventQuery,
    EventView,
    NicView,
    ReconcileView,
    StatusView,
    TaskView,
)
from qingcloud_cni.core.errors import WIRE

_TEXT = "text/plain"
_JSON = "application/json"
_REFUSED = 403

_ABOUT = """\
Of one host's agent, for that host alone. On its unix socket only root may ask; no token is needed there. On TCP every
path below /v1 needs the token of the agent's run directory, and a connection from this very host; else the answer is
403.
"""


class CniError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error object of the CNI specification; `msg` names the thing, the wish and the obstacle."""

    cni_version: str = msgspec.field(name="cniVersion")
    code: Annotated[int, Meta(gt=0)]
    msg: Annotated[str, Meta(min_length=1)]
    details: str = ""


class CniRoute(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    dst: str
    gw: str = ""


class CniDetailedRoute(CniRoute, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Ours have no details; those of a `prevResult` may."""

    mtu: Count | None = None
    advmss: Count | None = None
    priority: Count | None = None
    table: Count | None = None
    scope: Count | None = None


class CniDns(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    nameservers: list[str] = []
    domain: str = ""
    search: list[str] = []
    options: list[str] = []


class CniInterface(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: str
    mac: str = ""
    sandbox: str = ""


class CniDetailedInterface(CniInterface, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    mtu: Count | None = None
    socket_path: str = msgspec.field(default="", name="socketPath")
    pci_id: str = msgspec.field(default="", name="pciID")


class CniAddress(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    address: str
    gateway: str = ""
    interface: Annotated[Count | None, Meta(description="index in `interfaces`")] = None


class CniFamilyAddress(CniAddress, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    version: Annotated[str, Meta(pattern="^[46]$")]


class CniResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ADD answers in the version 1.1.0."""

    cni_version: Annotated[str, Meta(pattern=r"^1\.1\.0$")] = msgspec.field(name="cniVersion")
    interfaces: list[CniDetailedInterface]
    ips: list[CniAddress]
    routes: list[CniDetailedRoute]
    dns: CniDns


class CniPlainResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ADD answers in the version 1.0.0."""

    cni_version: Annotated[str, Meta(pattern=r"^1\.0\.0$")] = msgspec.field(name="cniVersion")
    interfaces: list[CniInterface]
    ips: list[CniAddress]
    routes: list[CniRoute]
    dns: CniDns


class CniFamilyResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ADD answers in the versions 0.3.0 to 0.4.0."""

    cni_version: Annotated[str, Meta(pattern=r"^0\.(3\.[01]|4\.0)$")] = msgspec.field(name="cniVersion")
    interfaces: list[CniInterface]
    ips: list[CniFamilyAddress]
    routes: list[CniRoute]
    dns: CniDns


class CniHalf(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    ip: str
    gateway: str = ""
    routes: list[CniRoute] = []


class CniEarlyResult(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What ADD answers in the versions 0.1.0 and 0.2.0."""

    cni_version: Annotated[str, Meta(pattern=r"^0\.[12]\.0$")] = msgspec.field(name="cniVersion")
    ip4: CniHalf | None = None
    ip6: CniHalf | None = None
    dns: CniDns = CniDns()


@dataclass(frozen=True, slots=True)
class Answer:
    """*kinds* are the types it may be of, in JSON; none for text."""

    meaning: str
    kinds: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    summary: str
    answers: Mapping[int, Answer]
    asks: type | None = None  # what the request's body is
    query: type | None = None  # what its parameters are


_CNI_ANSWERS = {
    200: Answer(
        "ADD: the result, in the shape of the configuration's cniVersion. All others: nothing, the body is empty.",
        (CniResult, CniPlainResult, CniFamilyResult, CniEarlyResult),
    ),
    **{
        status: Answer("an error object; its code says more than the status", (CniError,))
        for _, status in WIRE.values()
    },
}

ENDPOINTS: Mapping[tuple[str, str], Endpoint] = MappingProxyType(
    {
        ("post", "/v1/cni"): Endpoint("Carry out a request of the plugin", _CNI_ANSWERS, CniRequest),
        ("get", "/v1/status"): Endpoint(
            "Is the agent ready, and what does it hold?", {200: Answer("", (StatusView,))}
        ),
        ("get", "/v1/nics"): Endpoint("The NICs of this host", {200: Answer("", (list[NicView],))}),
        ("get", "/v1/attachments"): Endpoint(
            "The containers that have a NIC", {200: Answer("", (list[AttachmentView],))}
        ),
        ("get", "/v1/events"): Endpoint(
            "What has happened, oldest first: the latest events, or those behind a given one",
            {
                200: Answer("those that fit", (list[EventView],)),
                400: Answer("a parameter will not do", (CniError,)),
                503: Answer("the state file does not answer", (CniError,)),
            },
            query=EventQuery,
        ),
        ("get", "/v1/tasks"): Endpoint("The periodic tasks of the agent", {200: Answer("", (list[TaskView],))}),
        ("get", "/v1/plan"): Endpoint(
            "What the pool would do now and why, and what it waits for", {200: Answer("", (PlanView,))}
        ),
        ("get", "/v1/config"): Endpoint("The settings, each with its source", {200: Answer("", (ConfigView,))}),
        ("get", "/v1/openapi.json"): Endpoint("This document", {200: Answer("", (dict[str, object],))}),
        ("post", "/v1/drain"): Endpoint(
            "Accept no new container and give back every free NIC, until the agent is restarted",
            {200: Answer("the draining has begun", (StatusView,))},
        ),
        ("post", "/v1/reconcile"): Endpoint(
            "Compare table, kernel and cloud now, and try again what was given up",
            {200: Answer("what came of it", (ReconcileView,))},
        ),
        ("get", "/healthz"): Endpoint("Does the process work?", {200: Answer("it does")}),
        ("get", "/readyz"): Endpoint(
            "Are ADDs served?", {200: Answer("they are"), 503: Answer("not yet; the text says why")}
        ),
        ("get", "/metrics"): Endpoint("Metrics for Prometheus", {200: Answer("text exposition format")}),
    }
)


def document() -> dict[str, object]:
    """The API in OpenAPI 3.1, whose schemas are those of JSON Schema 2020-12."""
    kinds: list[object] = [CniError]
    for endpoint in ENDPOINTS.values():
        kinds += [endpoint.asks] if endpoint.asks is not None else []
        kinds += [kind for answer in endpoint.answers.values() for kind in answer.kinds]
    schemas, components = msgspec.json.schema_components(
        kinds, schema_hook=_anything, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, object]] = {}
    for (method, path), endpoint in ENDPOINTS.items():
        paths.setdefault(path, {})[method] = _operation(path, endpoint, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qingagent", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "needed on TCP"}},
        },
    }


def _operation(path: str, endpoint: Endpoint, schema_of: Mapping[str, object]) -> dict[str, object]:
    is_open = path in OPEN_PATHS
    answers = dict(endpoint.answers)
    if not is_open:
        answers[_REFUSED] = Answer("who asks may not", (CniError,))
    operation: dict[str, object] = {
        "summary": endpoint.summary,
        "security": [] if is_open else [{"token": []}],
        "responses": {str(status): _response(answers[status], schema_of) for status in sorted(answers)},
    }
    if endpoint.query is not None:
        operation["parameters"] = _parameters(endpoint.query)
    if endpoint.asks is not None:
        content = {_JSON: {"schema": schema_of[repr(endpoint.asks)]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(query: type) -> list[dict[str, object]]:
    """The fields of a struct, each as a parameter of its own."""
    schema = msgspec.json.schema_components([query])[1][query.__name__]
    return [
        {"name": name, "in": "query", "description": field.pop("description"), "schema": field}
        for name, field in schema["properties"].items()
    ]


def _response(answer: Answer, schema_of: Mapping[str, object]) -> dict[str, object]:
    if not answer.kinds:
        content: dict[str, object] = {_TEXT: {"schema": {"type": "string"}}}
    else:
        schemas = [schema_of[repr(kind)] for kind in answer.kinds]
        content = {_JSON: {"schema": schemas[0] if len(schemas) == 1 else {"oneOf": schemas}}}
    return {"description": answer.meaning or "as the schema says", "content": content}


def _anything(kind: type) -> dict[str, object]:
    """The schema of what msgspec has none for: `object` is any JSON."""
    assert kind is object, kind
    return {"description": "any JSON"}
