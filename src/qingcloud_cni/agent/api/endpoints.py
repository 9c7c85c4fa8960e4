"""Every endpoint of the HTTP API: handler, answers and access rule. Routes, OpenAPI and documentation follow."""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import msgspec
from aiohttp import web

from qingcloud_cni import __version__
from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.agent.api import views
from qingcloud_cni.agent.api.cni_api import CniApi, CniRequest
from qingcloud_cni.agent.api.metrics import CONTENT_TYPE, Metrics, MetricsPage
from qingcloud_cni.agent.api.openapi import CNI_ANSWERS, Answer, CniError, Operation, document
from qingcloud_cni.agent.api.plan_view import PlanView, plan_view
from qingcloud_cni.agent.api.signatures import ChallengeQuery, ChallengeView, Signatures
from qingcloud_cni.core.cni.protocol import render_error
from qingcloud_cni.core.errors import AgentError, InvalidConfig, UndecodableRequest, wire
from qingcloud_cni.core.nics.model import Nic
from qingcloud_cni.core.text import escaped

RECONCILE_SECONDS = 20.0  # for which a request waits for its comparison; a client may wait for 30
Query = TypeVar("Query", bound=msgspec.Struct)


class Api:
    """Serves the requests for one agent; *config* is its `config_report`.

    *port_obstacle* tells why the agent does not listen on TCP.
    """

    def __init__(
        self,
        agent: Agent,
        metrics: Metrics,
        config: views.ConfigView,
        signatures: Signatures,
        port_obstacle: Callable[[], str] = lambda: "",
    ) -> None:
        self.signatures = signatures
        self.port_obstacle = port_obstacle
        self.agent = agent
        self.metrics = metrics
        self.page = MetricsPage(metrics, agent.statistics)
        self.config = config
        self.cni = CniApi(agent, metrics)


Handler = Callable[[Api, web.Request], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Operation):
    handler: Handler


def json_response(content: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")


def error_response(err: AgentError) -> web.Response:
    code, status = wire(err)
    return json_response(render_error(code, str(err)), status)


def _status(api: Api) -> views.StatusView:
    return views.status_view(api.agent, __version__, os.getpid(), api.port_obstacle())


async def _cni(api: Api, request: web.Request) -> web.Response:
    return await api.cni.handle(request)


async def _events(api: Api, request: web.Request) -> web.Response:
    events = await api.agent.context.journal.events(views.event_filter(_query(request, views.EventQuery)))
    return json_response(msgspec.convert(events, list[views.EventView], from_attributes=True))


async def _challenge(api: Api, request: web.Request) -> web.Response:
    return json_response(api.signatures.challenge(request, _query(request, ChallengeQuery).nonce))


async def _drain(api: Api, _request: web.Request) -> web.Response:
    api.agent.pool.drain()
    return json_response(_status(api))


def _nic(api: Api, request: web.Request) -> Nic:
    """The NIC that a request is about; InvalidConfig if the agent has no such NIC."""
    nic_id = _query(request, views.NicQuery).nic.lower()
    if nic_id not in api.agent.context.table.nics:
        raise InvalidConfig(f"nic {nic_id}: not found: the agent has no such NIC; see qingagent nics")
    return api.agent.context.table.nics[nic_id]


async def _quarantine(api: Api, request: web.Request) -> web.Response:
    try:
        nic = _nic(api, request)
        api.agent.pool.quarantine(nic)
    except AgentError as err:
        return error_response(err)
    return json_response(next(view for view in views.nics(api.agent) if view.nic_id == nic.nic_id))


async def _nic_state(api: Api, request: web.Request) -> web.Response:
    try:
        nic = _nic(api, request)
        differences = await api.agent.attachments.differences(nic)
    except AgentError as err:
        return error_response(err)
    attachment = api.agent.context.table.attachment_of(nic.nic_id)
    key = str(attachment.key) if attachment is not None else ""
    return json_response(views.NicStateView(nic.nic_id, key, list(differences)))


async def _reconcile(api: Api, _request: web.Request) -> web.Response:
    """Answer 200 whatever the outcome: a silent cloud is not a fault of the request."""
    error = ""
    try:
        await api.agent.reconciler.ask(RECONCILE_SECONDS)
    except TimeoutError:
        error = f"not over within {RECONCILE_SECONDS:.0f} s; it continues"
    except AgentError as err:
        error = str(err)
    return json_response(views.ReconcileView(not error, error, views.differences(api.agent)))


async def _healthz(_api: Api, _request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _readyz(api: Api, _request: web.Request) -> web.Response:
    """An empty pool, a cloud that falls silent later, or a port that others hold leaves the agent ready."""
    port = f"{cause}\n" if (cause := api.port_obstacle()) else ""
    if cause := api.agent.obstacle:
        return web.Response(text=f"not ready: {escaped(cause)}\n{port}", status=503)
    return web.Response(text=f"ready\n{port}")


async def _metrics(api: Api, _request: web.Request) -> web.Response:
    return web.Response(body=await api.page.latest(), headers={"Content-Type": CONTENT_TYPE})


def _query(request: web.Request, kind: type[Query]) -> Query:
    """The request's parameters as *kind*; UndecodableRequest if they are invalid."""
    given = dict(request.query)
    try:
        if len(given) < len(request.query):
            raise UndecodableRequest("a parameter is given twice")
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as err:
        raise UndecodableRequest(f"query rejected: {err}") from None


def _json(summary: str, view: Callable[[Api], object], kind: object, details: str = "") -> Endpoint:
    """A GET without parameters that answers with the *view* of this *kind*."""

    async def handle(api: Api, _request: web.Request) -> web.Response:
        return json_response(view(api))

    return Endpoint(summary=summary, details=details, answers={200: Answer("", (kind,))}, handler=handle)


ENDPOINTS: Mapping[tuple[str, str], Endpoint] = MappingProxyType(
    {
        ("post", "/v1/cni"): Endpoint(
            summary="Carry out a request of the plugin",
            details="ADD: a CNI result. All other verbs: an empty body. A failure: a CNI error object.",
            answers=CNI_ANSWERS,
            asks=CniRequest,
            handler=_cni,
        ),
        ("get", "/v1/status"): _json("Whether the agent is ready, and what it holds", _status, views.StatusView),
        ("get", "/v1/nics"): _json("The NICs of this host", lambda api: views.nics(api.agent), list[views.NicView]),
        ("get", "/v1/attachments"): _json(
            "The containers that have a NIC", lambda api: views.attachments(api.agent), list[views.AttachmentView]
        ),
        ("get", "/v1/events"): Endpoint(
            summary="What has happened on this host, oldest first",
            details="The latest `limit` (100) events, or with `after` the first `limit` behind that event."
            " `nic`, `container`, `pod`, `subject` and `name` filter.",
            answers={
                200: Answer("the events that match", (list[views.EventView],)),
                400: Answer("a parameter is invalid", (CniError,)),
                503: Answer("the state file does not answer", (CniError,)),
            },
            query=views.EventQuery,
            handler=_events,
        ),
        ("get", "/v1/nic-state"): Endpoint(
            summary="How a NIC differs from the state in which the cloud plugged it in",
            details="Its container, or a plugin that came later, may have changed it. The agent undoes that.",
            answers={
                200: Answer("the differences", (views.NicStateView,)),
                400: Answer("the agent has no such NIC, or the namespace of its container is gone", (CniError,)),
                500: Answer("the kernel rejects the comparison", (CniError,)),
            },
            query=views.NicQuery,
            handler=_nic_state,
        ),
        ("get", "/v1/tasks"): _json(
            "The periodic tasks of the agent", lambda api: views.tasks(api.agent), list[views.TaskView]
        ),
        ("get", "/v1/plan"): _json(
            "What the pool would do now and why, and what it waits for", lambda api: plan_view(api.agent), PlanView
        ),
        ("get", "/v1/config"): _json(
            "The settings, each with its source", lambda api: api.config, views.ConfigView, "It shows no keys."
        ),
        ("get", "/v1/openapi.json"): _json(
            "This API as an OpenAPI 3.1 document", lambda _api: document(ENDPOINTS), dict[str, object]
        ),
        ("get", "/v1/challenge"): Endpoint(
            summary="Begin a signed request over TCP",
            details="The next request on the same connection is signed with this challenge.",
            answers={
                200: Answer("the agent's part of the challenge", (ChallengeView,)),
                400: Answer("the parameter is invalid, or the connection is one of the unix socket", (CniError,)),
            },
            query=ChallengeQuery,
            is_local=True,
            handler=_challenge,
        ),
        ("post", "/v1/drain"): Endpoint(
            summary="Accept no new container and release every free NIC, until the agent is restarted",
            answers={200: Answer("draining has begun", (views.StatusView,))},
            handler=_drain,
        ),
        ("post", "/v1/quarantine"): Endpoint(
            summary="Take one NIC out of use",
            details="No container gets it any more; once it serves none, the agent detaches and deletes it.",
            answers={
                200: Answer("the NIC", (views.NicView,)),
                400: Answer("the agent has no such NIC, or it is a gateway", (CniError,)),
            },
            query=views.NicQuery,
            handler=_quarantine,
        ),
        ("post", "/v1/reconcile"): Endpoint(
            summary="Compare table, kernel and cloud now, and retry what was given up",
            details="The answer lists the differences. It comes after at most 20 s; the comparison then continues.",
            answers={200: Answer("the outcome", (views.ReconcileView,))},
            handler=_reconcile,
        ),
        ("get", "/healthz"): Endpoint(
            summary="Whether the process works", answers={200: Answer("it does")}, is_open=True, handler=_healthz
        ),
        ("get", "/readyz"): Endpoint(
            summary="Whether ADDs are served",
            details="503 before that, and while the state file cannot be written.",
            answers={200: Answer("they are"), 503: Answer("not now; the text is the cause")},
            is_open=True,
            handler=_readyz,
        ),
        ("get", "/metrics"): Endpoint(
            summary="Metrics for Prometheus",
            details="Rendered at most once a second.",
            answers={200: Answer("text exposition format")},
            is_open=True,
            handler=_metrics,
        ),
    }
)
OPEN_PATHS = frozenset(path for (_, path), endpoint in ENDPOINTS.items() if endpoint.is_open)
LOCAL_PATHS = frozenset(path for (_, path), endpoint in ENDPOINTS.items() if endpoint.is_local)
