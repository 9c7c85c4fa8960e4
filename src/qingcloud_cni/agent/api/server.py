"""The agent's HTTP server, on its unix socket and on TCP."""

import http
import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web
from aiohttp.http import HttpProcessingError

from qingcloud_cni.agent.api.access_guard import AccessGuard
from qingcloud_cni.agent.api.cni_api import read_body
from qingcloud_cni.agent.api.connections import Connection, Connections, Peer, Serves
from qingcloud_cni.agent.api.endpoints import ENDPOINTS, OPEN_PATHS, Api, error_response
from qingcloud_cni.agent.api.signatures import SignedRequest
from qingcloud_cni.core.cni.protocol import LARGEST_REQUEST
from qingcloud_cni.core.errors import AccessDenied, AgentError

LAST_REQUESTS = 2.0  # seconds for requests under way at the end; less than the process has to end
MOST_HEADERS = 32  # of a request, and LONGEST_HEADER bytes: half-sent ones are in memory
LONGEST_HEADER = 4096
_ROUTE = {"get": web.get, "post": web.post}
_SIGNED = web.RequestKey("signed", SignedRequest)
_logger = logging.getLogger("qingagent.http")  # a malformed request gets 400, and no line: anyone can send them
_logger.addFilter(lambda line: not (line.exc_info and isinstance(line.exc_info[1], HttpProcessingError)))


class Server:
    """Serves ENDPOINTS to those whom the guard admits, and the open ones to everyone."""

    def __init__(self, api: Api) -> None:
        self._guard = AccessGuard(api.signatures)
        self._refused = api.metrics.refused
        self._connections: Connections

        @web.middleware
        async def guarded(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            connection = self._connections.of(request)
            try:
                return await self._answer(request, connection, handler)
            finally:
                connection.arm()

        application = web.Application(middlewares=[guarded], client_max_size=LARGEST_REQUEST)
        application.add_routes(
            [_ROUTE[method](path, partial(found.handler, api)) for (method, path), found in ENDPOINTS.items()]
        )
        application.on_response_prepare.append(_sign)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=LAST_REQUESTS, logger=_logger, max_headers=MOST_HEADERS,
            max_line_size=LONGEST_HEADER, max_field_size=LONGEST_HEADER,
        )  # fmt: skip

    async def begin(self) -> None:
        await self._runner.setup()
        assert self._runner.server is not None
        self._connections = Connections(self._runner.server, self._refused)

    def listen(self, listener: socket.socket, serves: Serves) -> None:
        self._connections.listen(listener, serves)

    def replace(self, former: socket.socket, listener: socket.socket, serves: Serves) -> None:
        self._connections.stop(former)
        self.listen(listener, serves)

    async def end(self) -> None:
        """Stop accepting, and finish the requests under way."""
        self._connections.close()
        await self._runner.cleanup()

    async def _answer(
        self,
        request: web.Request,
        connection: Connection,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        is_open = request.path in OPEN_PATHS and Serves.METRICS in connection.serves
        response: web.StreamResponse
        try:
            if not is_open:
                await self._check(request, connection)
            request.content.on_eof(connection.disarm)
            response = await handler(request)
        except web.HTTPException as err:
            err.force_close()
            raise
        except AgentError as err:
            response = error_response(err)
        is_unknown = connection.peer is not Peer.SOCKET and _SIGNED not in request
        is_last = is_unknown and (is_open or response.status != http.HTTPStatus.OK)  # its next one waits for its turn
        if is_last or not request.content.is_eof():
            response.force_close()
        return response

    async def _check(self, request: web.Request, connection: Connection) -> None:
        if Serves.API not in connection.serves:
            raise AccessDenied(f"{request.path}: denied: this address serves {', '.join(sorted(OPEN_PATHS))} alone")
        signed = self._guard.check(request)
        if signed is not None:
            request[_SIGNED] = signed
            signed.check_body(await read_body(request))


async def _sign(request: web.Request, answer: web.StreamResponse) -> None:
    if _SIGNED in request and isinstance(answer, web.Response):
        request[_SIGNED].sign(answer)
