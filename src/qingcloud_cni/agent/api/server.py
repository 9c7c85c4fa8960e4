"""The agent's HTTP API, on its unix socket and on TCP."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from aiohttp import web

from qingcloud_cni import __version__
from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.agent.api.access_guard import AccessGuard
from qingcloud_cni.agent.api.cni_api import CniApi
from qingcloud_cni.agent.api.metrics import CONTENT_TYPE, Metrics
from qingcloud_cni.agent.api.openapi import document
from qingcloud_cni.agent.api.plan_view import plan_view
from qingcloud_cni.agent.api.views import (
    ConfigView,
    EventQuery,
    ReconcileView,
    attachment_views,
    difference_views,
    event_filter,
    event_views,
    nic_views,
    status_view,
    task_views,
)
from qingcloud_cni.core.cni.protocol import render_error
from qingcloud_cni.core.errors import AccessDenied, AgentError, UndecodableRequest, wire

RECONCILE_SECONDS = 20.0  # for which a request waits for its comparison; a client may wait for 30
LARGEST_REQUEST = 1024 * 1024  # bytes; a network configuration has some hundred
Query = TypeVar("Query", bound=msgspec.Struct)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Listeners:
    """Both listen already: a client that connects before the agent works waits, or is cut off if the start fails."""

    unix: socket.socket
    tcp: socket.socket


class Server:
    """Serves one agent; *config* is what it is set to, as `config_report` tells it."""

    def __init__(self, agent: Agent, metrics: Metrics, token: str, config: ConfigView) -> None:
        self._agent = agent
        self._metrics = metrics
        self._config = config
        self._runner = web.AppRunner(self._application(AccessGuard(token)), access_log=None, shutdown_timeout=5.0)

    def _application(self, guard: AccessGuard) -> web.Application:
        @web.middleware
        async def guarded(request: web.Request, handler: _Handler) -> web.StreamResponse:
            try:
                guard.check(request)
            except AccessDenied as err:
                code, status = wire(err)
                return _json(render_error(code, str(err)), status)
            return await handler(request)

        application = web.Application(middlewares=[guarded], client_max_size=LARGEST_REQUEST)
        application.add_routes(
            [
                web.post("/v1/cni", CniApi(self._agent, self._metrics).handle),
                web.get("/v1/status", self._status),
                web.get("/v1/nics", self._nics),
                web.get("/v1/attachments", self._attachments),
                web.get("/v1/events", self._events),
                web.get("/v1/tasks", self._tasks),
                web.get("/v1/plan", self._plan),
                web.get("/v1/config", self._show_config),
                web.get("/v1/openapi.json", self._describe),
                web.post("/v1/drain", self._drain),
                web.post("/v1/reconcile", self._reconcile),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._render_metrics),
            ]
        )
        return application

    async def begin(self, listeners: Listeners) -> None:
        await self._runner.setup()
        for listener in (listeners.unix, listeners.tcp):
            await web.SockSite(self._runner, listener).start()

    async def end(self) -> None:
        """Accept nothing new, let what is under way finish."""
        await self._runner.cleanup()

    async def _status(self, _request: web.Request) -> web.Response:
        return _json(status_view(self._agent, __version__, os.getpid()))

    async def _nics(self, _request: web.Request) -> web.Response:
        return _json(nic_views(self._agent))

    async def _attachments(self, _request: web.Request) -> web.Response:
        return _json(attachment_views(self._agent))

    async def _events(self, request: web.Request) -> web.Response:
        try:
            events = await self._agent.context.journal.events(event_filter(_asked(request, EventQuery)))
        except AgentError as err:
            code, status = wire(err)
            return _json(render_error(code, str(err)), status)
        return _json(event_views(events))

    async def _tasks(self, _request: web.Request) -> web.Response:
        return _json(task_views(self._agent))

    async def _plan(self, _request: web.Request) -> web.Response:
        return _json(plan_view(self._agent))

    async def _show_config(self, _request: web.Request) -> web.Response:
        return _json(self._config)

    async def _describe(self, _request: web.Request) -> web.Response:
        return _json(document())

    async def _drain(self, request: web.Request) -> web.Response:
        self._agent.pool.drain()
        return await self._status(request)

    async def _reconcile(self, _request: web.Request) -> web.Response:
        """Whatever comes of it is an answer: a cloud that is silent is no fault of the request."""
        error = ""
        try:
            await self._agent.reconciler.ask(RECONCILE_SECONDS)
        except TimeoutError:
            error = f"not over within {RECONCILE_SECONDS:.0f} s; it goes on"
        except AgentError as err:
            error = str(err)
        return _json(ReconcileView(not error, error, difference_views(self._agent)))

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Ready says that ADDs are served; an empty pool or a silent cloud later on does not change it."""
        if cause := self._agent.obstacle:
            return web.Response(text=f"not ready: {cause}\n", status=503)
        return web.Response(text="ready\n")

    async def _render_metrics(self, _request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._metrics.render)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _asked(request: web.Request, kind: type[Query]) -> Query:
    """The query of a request; UndecodableRequest says what is wrong with it."""
    given = dict(request.query)
    try:
        if len(given) < len(request.query):
            raise UndecodableRequest("a parameter is given twice")
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as err:
        raise UndecodableRequest(f"the query will not do: {err}") from None


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")
