"""The agent's HTTP server, on its unix socket and on TCP."""

import socket
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web

from qingcloud_cni.agent.api.access_guard import AccessGuard
from qingcloud_cni.agent.api.endpoints import ENDPOINTS, OPEN_PATHS, Api, error_response
from qingcloud_cni.core.cni.protocol import LARGEST_REQUEST
from qingcloud_cni.core.errors import AccessDenied

_ROUTE = {"get": web.get, "post": web.post}


class Server:
    """Serves ENDPOINTS to those whom the guard admits."""

    def __init__(self, api: Api, token: str) -> None:
        guard = AccessGuard(token, OPEN_PATHS)

        @web.middleware
        async def guarded(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            try:
                guard.check(request)
            except AccessDenied as err:
                return error_response(err)
            return await handler(request)

        application = web.Application(middlewares=[guarded], client_max_size=LARGEST_REQUEST)
        application.add_routes(
            [_ROUTE[method](path, partial(found.handler, api)) for (method, path), found in ENDPOINTS.items()]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=5.0)

    async def begin(self, *listeners: socket.socket) -> None:
        await self._runner.setup()
        for listener in listeners:
            await web.SockSite(self._runner, listener).start()

    async def end(self) -> None:
        """Stop accepting, and finish the requests under way."""
        await self._runner.cleanup()
