"""POST /v1/cni: the plugin's requests, answered in the shape its version wants."""

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from aiohttp import web

from qingcloud_cni.agent import logs
from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.agent.metrics import Metrics
from qingcloud_cni.agent.phases import Phases
from qingcloud_cni.core.cni import (
    CONTAINER_ID,
    IFNAME_BYTES,
    NEWEST_VERSION,
    VERSIONS,
    Verb,
    check_key,
    network_name,
    read_config,
    render,
    render_error,
    version_of,
)
from qingcloud_cni.core.errors import (
    AgentError,
    IncompatibleVersion,
    InvalidEnvironment,
    UndecodableRequest,
    wire,
)

LONGEST_WAIT = 108.0  # seconds: the plugin's 110 for ADD less 2 (design section 4)
SPARE = 1.0  # seconds kept of the caller's time for the work after the wait for a NIC
_LATER_VERBS = frozenset({"CHECK", "GC", "STATUS"})
_NAME = f"^{CONTAINER_ID.pattern}$"
_IFNAME = r"^[^/:%\s]+$"
_CONFIG_SCHEMA = {
    "description": "the network configuration, as the runtime gave it to the plugin",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": _NAME},
        "cniVersion": {"enum": list(VERSIONS)},
        "isGateway": {"type": "boolean"},
        "ipMasq": {"type": "boolean"},
        "ipam": {"type": "object"},
        "dns": {"type": "object"},
    },
}


def _described(**schema: Any) -> msgspec.Meta:
    return msgspec.Meta(extra_json_schema=schema)


class CniRequest(msgspec.Struct, frozen=True):
    """What the plugin sends: its variables, the seconds it will wait, and stdin as it came."""

    # The schemas describe the API only: what they say is checked, with better words, when the request is served.
    command: Annotated[str, _described(enum=list(Verb))]
    container_id: Annotated[str, _described(pattern=_NAME)] = msgspec.field(name="containerID")
    ifname: Annotated[str, _described(pattern=_IFNAME, maxLength=IFNAME_BYTES)]
    config: Annotated[dict[str, object], _described(**_CONFIG_SCHEMA)]
    netns: Annotated[str, _described(description="CNI_NETNS; needed for ADD")] = ""
    args: Annotated[str, _described(description="CNI_ARGS")] = ""
    path: Annotated[str, _described(description="CNI_PATH")] = ""
    timeout: Annotated[float, _described(description="seconds the plugin waits for the answer")] = LONGEST_WAIT


_decoder = msgspec.json.Decoder(CniRequest)


class CniApi:
    def __init__(self, agent: Agent, metrics: Metrics) -> None:
        self._agent = agent
        self._metrics = metrics

    async def handle(self, http: web.Request) -> web.Response:
        """Serve one request; every failure is a CNI error object."""
        phases = Phases()
        request: CniRequest | None = None
        code, status, failure = 0, 200, ""
        try:
            request = _decode(await _body(http))
            answer = await self._serve(request, phases, lambda: http.transport is not None)
            reply = b"" if answer is None else msgspec.json.encode(answer)
        except Exception as err:  # noqa: BLE001 - a bug in a handler is answered 999 and logged (style.md)
            code, status = wire(err)
            failure = str(err) or type(err).__name__
            if not isinstance(err, AgentError):
                logs.log.exception("cni.bug")
                failure = f"internal error: {type(err).__name__}: {failure}"
            reply = msgspec.json.encode(render_error(code, failure, _answer_version(request)))
        self._report(request, code, failure, phases)
        return web.Response(body=reply, status=status, content_type="application/json")

    async def _serve(
        self, request: CniRequest, phases: Phases, is_awaited: Callable[[], bool]
    ) -> dict[str, object] | None:
        if request.command in _LATER_VERBS:
            raise IncompatibleVersion(f"CNI_COMMAND {request.command} is not supported yet; ADD, DEL and VERSION are")
        if request.command not in {Verb.ADD, Verb.DEL}:
            raise InvalidEnvironment(f"CNI_COMMAND {request.command!r} is unknown; ADD, DEL and VERSION are served")
        version = version_of(request.config)
        key = check_key(network_name(request.config), request.container_id, request.ifname)
        if request.command == Verb.DEL:
            self._agent.check_kernel_compared()
            await self._agent.attachments.delete(key, phases)
            return None
        if not request.netns:
            raise InvalidEnvironment("required environment variable CNI_NETNS is missing")
        self._agent.check_initialised()
        config = read_config(request.config)
        seconds = max(min(request.timeout, LONGEST_WAIT) - SPARE, 0.0)
        attachment, nic = await self._agent.attachments.add(
            key, request.netns, config, seconds, phases, is_awaited=is_awaited
        )
        return render(attachment, nic, version)

    def _report(self, request: CniRequest | None, code: int, failure: str, phases: Phases) -> None:
        """One line and one count per request."""
        verb = request.command if request is not None and request.command in {Verb.ADD, Verb.DEL} else "other"
        total, waits = phases.total, phases.seconds()
        self._metrics.cni_request(verb, code, total, waits)
        logs.say(
            logging.WARNING if code else logging.INFO,
            "cni.request",
            verb=verb,
            container=request.container_id if request else "",
            ifname=request.ifname if request else "",
            netns=request.netns if request else "",
            code=code,
            error=failure,
            seconds=round(total, 4),
            **{phase: round(seconds, 4) for phase, seconds in waits.items() if seconds},
        )


async def _body(http: web.Request) -> bytes:
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge as err:
        raise UndecodableRequest("the request is too large: no network configuration needs 1 MiB") from err


def _decode(body: bytes) -> CniRequest:
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as err:
        raise UndecodableRequest(f"the request cannot be read: {err}") from None


def _answer_version(request: CniRequest | None) -> str:
    config: Mapping[str, object] = request.config if request is not None else {}
    version = next((v for k, v in config.items() if k.lower() == "cniversion"), None)
    return version if isinstance(version, str) and version in VERSIONS else NEWEST_VERSION
