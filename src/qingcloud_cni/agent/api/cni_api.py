"""POST /v1/cni: serves the plugin's requests, in the shape of their CNI version."""

import select
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from aiohttp import web

from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.base import logs
from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.base.phases import Phases
from qingcloud_cni.core import errors
from qingcloud_cni.core.cni import network_config, protocol
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.cni.results import check_extensible, extended, render, result_of
from qingcloud_cni.core.events import Level
from qingcloud_cni.core.nics.model import AttachmentKey
from qingcloud_cni.core.text import check_plain

LONGEST_WAIT: Mapping[Verb, float] = MappingProxyType(  # seconds: 2 less than the plugin waits
    {Verb.ADD: 108.0, Verb.DEL: 48.0, Verb.CHECK: 48.0, Verb.GC: 23.0, Verb.STATUS: 1.0}
)
SPARE = 1.0  # seconds of the caller's time reserved for the work after a wait
_NAME = f"^{protocol.IDENTIFIER.pattern}$"
_CONTAINER_ID = f"^({protocol.IDENTIFIER.pattern})?$"
_IFNAME = r"^[^/:%\s]*$"
_CONFIG_SCHEMA = {
    "description": "the network configuration of the runtime, unchanged",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": _NAME},
        "cniVersion": {"enum": list(protocol.VERSIONS)},
        "isGateway": {"type": "boolean"},
        "ipMasq": {"type": "boolean"},
        "ipam": {"type": "object"},
        "dns": {"type": "object"},
        "args": {"type": "object"},
        "runtimeConfig": {"type": "object"},
        "prevResult": {"type": "object"},
        network_config.VALID_KEYS[0]: {"type": ["array", "null"], "items": {"type": "object"}},
    },
}


def _described(**schema: Any) -> msgspec.Meta:
    return msgspec.Meta(extra_json_schema=schema)


class CniRequest(msgspec.Struct, frozen=True):
    """The plugin's variables, the seconds it waits, and its stdin unchanged."""

    # The schemas describe the API only. Serving the request checks the same, with better messages.
    command: Annotated[str, _described(enum=list(Verb))]
    container_id: Annotated[
        str, _described(pattern=_CONTAINER_ID, description="CNI_CONTAINERID; empty for GC and STATUS")
    ] = msgspec.field(name="containerID")
    ifname: Annotated[
        str,
        _described(
            pattern=_IFNAME, maxLength=protocol.IFNAME_BYTES, description="CNI_IFNAME; empty for GC and STATUS"
        ),
    ]
    config: Annotated[dict[str, object], _described(**_CONFIG_SCHEMA)]
    netns: Annotated[str, _described(description="CNI_NETNS; required for ADD and CHECK")] = ""
    args: Annotated[str, _described(description="CNI_ARGS")] = ""
    path: Annotated[str, _described(description="CNI_PATH")] = ""
    timeout: Annotated[float, _described(description="seconds the plugin waits")] = LONGEST_WAIT[Verb.ADD]


_decoder = msgspec.json.Decoder(CniRequest)


class CniApi:
    def __init__(self, agent: Agent, metrics: Metrics) -> None:
        self._agent = agent
        self._metrics = metrics

    async def handle(self, http: web.Request) -> web.Response:
        """Answer one request; a failure with a CNI error object."""
        phases = Phases()
        request: CniRequest | None = None
        code, status, failure = 0, 200, ""
        try:
            request = _decode(await read_body(http))
            answer = await self.serve(request, phases, lambda: is_awaited(http))
            reply = b"" if answer is None else msgspec.json.encode(answer)
        except Exception as err:  # noqa: BLE001 - a bug is logged and answered with 999
            code, status = errors.wire(err)
            failure = str(err) or type(err).__name__
            if not isinstance(err, errors.AgentError):
                logs.bug()
                failure = f"internal error: {type(err).__name__}: {failure}"
            reply = msgspec.json.encode(protocol.render_error(code, failure, _answer_version(request)))
        self._report(request, code, failure, phases)
        return web.Response(body=reply, status=status, content_type="application/json")

    async def serve(
        self, request: CniRequest, phases: Phases, is_awaited: Callable[[], bool]
    ) -> dict[str, object] | None:
        verb = protocol.known_verb(request.command)
        version, network = protocol.version_of(request.config), protocol.network_name(request.config)
        protocol.check_allowed(verb, version)
        seconds = max(min(request.timeout, LONGEST_WAIT[verb]) - SPARE, 0.0)
        call = CniCall(verb, seconds, phases=phases, is_awaited=is_awaited)
        if verb is Verb.GC or verb is Verb.STATUS:
            protocol.check_names(request.container_id, request.ifname)
            if verb is Verb.GC:
                await self._collect(request, network, call)
            else:
                self._check_status()
            return None
        key = protocol.check_key(network, request.container_id, request.ifname)
        if verb is Verb.ADD:
            return await self._add(request, key, version, call)
        if verb is Verb.CHECK:
            await self._check(request, key, call)
        else:
            self._agent.check_kernel_compared()
            await self._agent.attachments.delete(key, call, request.netns)
        return None

    async def _add(self, request: CniRequest, key: AttachmentKey, version: str, call: CniCall) -> dict[str, object]:
        _check_netns(request)
        self._agent.check_initialised()
        check_plain({"CNI_NETNS": request.netns, "CNI_IFNAME": request.ifname})
        config = network_config.read_config(request.config, request.args)
        check_plain(config.workload.names())
        if config.previous is not None:
            check_extensible(config.previous, key.ifname, version)
        attachment, nic = await self._agent.attachments.add(key, request.netns, config, call)
        own = result_of(attachment, nic)
        return render(own if config.previous is None else extended(config.previous, own), version)

    async def _check(self, request: CniRequest, key: AttachmentKey, call: CniCall) -> None:
        _check_netns(request)
        previous = network_config.read_previous(request.config)
        if previous is None:
            raise errors.InvalidConfig(
                f"CHECK of {key}: prevResult, the result of its ADD, is missing in the configuration"
            )
        self._agent.check_kernel_compared()
        await self._agent.attachments.check(key, request.netns, previous, call)

    async def _collect(self, request: CniRequest, network: str, call: CniCall) -> None:
        if network_config.is_gc_disabled(request.config):
            return
        valid = network_config.valid_attachments(request.config, network)
        self._agent.check_kernel_compared()
        if valid is None:  # from cnitool; an error would stop the whole list
            self._agent.context.note_and_push("gc.without-list", subject=network)
        else:
            await self._agent.attachments.collect(network, valid, call)

    def _check_status(self) -> None:
        """Ignores an empty pool, a quota and a drain: the runtime would declare the node broken."""
        try:
            self._agent.check_initialised()
        except errors.NotInitialised as err:
            raise errors.CannotServe(str(err)) from err

    def _report(self, request: CniRequest | None, code: int, failure: str, phases: Phases) -> None:
        """Log and count the request. containerd asks for STATUS every few seconds, so a success is at debug."""
        seen = request or CniRequest("other", "", "", {})
        verb = seen.command if seen.command in set(Verb) else "other"
        total, waits = phases.total, phases.seconds()
        self._metrics.cni_request(verb, code, total, waits)
        usual = Level.DEBUG if verb == Verb.STATUS else None
        logs.write(
            "cni.request", level=Level.WARN if code else usual, verb=verb, container=seen.container_id,
            ifname=seen.ifname, netns=seen.netns, code=code, error=failure, seconds=round(total, 4),
            **{phase: round(seconds, 4) for phase, seconds in waits.items() if seconds},
        )  # fmt: skip


def _check_netns(request: CniRequest) -> None:
    if not request.netns:
        raise errors.InvalidEnvironment("required environment variable CNI_NETNS is missing")


def is_awaited(http: web.Request) -> bool:
    """Whether the caller is still connected, by the kernel, which knows before the loop does."""
    if http.transport is None:
        return False
    poll = select.poll()
    poll.register(http.transport.get_extra_info("socket"), select.POLLRDHUP)
    return not poll.poll(0)


async def read_body(http: web.Request) -> bytes:
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge as err:
        raise errors.UndecodableRequest(f"request: too large: more than {protocol.LARGEST_REQUEST} bytes") from err


def _decode(body: bytes) -> CniRequest:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as err:  # the latter if it is nested too deeply
        raise errors.UndecodableRequest(f"request: decode failed: {err}") from None


def _answer_version(request: CniRequest | None) -> str:
    config: Mapping[str, object] = request.config if request is not None else {}
    version = next((v for k, v in config.items() if k.lower() == "cniversion"), None)
    return version if isinstance(version, str) and version in protocol.VERSIONS else protocol.NEWEST_VERSION
