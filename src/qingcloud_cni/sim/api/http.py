"""The simulated API on HTTP: carries requests to `Api` and its replies back."""

from aiohttp import web

from qingcloud_cni.sim.api.api import PATHS, Api


def make_app(api: Api) -> web.Application:
    """The application that serves *api*; no state of its own."""

    async def serve(request: web.Request) -> web.Response:
        body = await request.read()
        reply = await api.respond(request.method, request.raw_path, body, has_gone=lambda: request.transport is None)
        if reply is None:
            if request.transport is not None:
                request.transport.abort()  # the client sees its connection reset
            return web.Response()  # goes nowhere
        return web.Response(status=reply.status, body=reply.body, headers={"Content-Type": reply.content_type})

    app = web.Application()
    for path in PATHS:
        app.router.add_get(path, serve, allow_head=False)
        app.router.add_post(path, serve)
    return app
