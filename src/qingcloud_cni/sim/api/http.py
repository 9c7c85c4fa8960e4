"""The simulated API on HTTP: requests to `Api`, and the admin paths on the simulator's unix socket."""

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from qingcloud_cni.sim.api.api import PATHS, Api
from qingcloud_cni.sim.api.fault_list import faults_document, read_faults
from qingcloud_cni.sim.cloud.model import Model

STATUS_PATH = "/admin/status"
FAULTS_PATH = "/admin/faults"


def make_app(api: Api) -> web.Application:
    async def serve(request: web.Request) -> web.Response:
        body = await request.read()
        reply = await api.respond(
            request.method, request.raw_path, body, is_disconnected=lambda: request.transport is None
        )
        if reply is None:
            if request.transport is not None:
                request.transport.abort()  # the client sees its connection reset
            return web.Response()  # is not sent
        return web.Response(status=reply.status, body=reply.body, headers={"Content-Type": reply.content_type})

    app = web.Application()
    for path in PATHS:
        app.router.add_get(path, serve, allow_head=False)
        app.router.add_post(path, serve)
    return app


def add_admin(app: web.Application, model: Model, status: Callable[[], dict[str, Any]]) -> None:
    """Serve the status, and the faults of *model*, beside the cloud's API."""

    async def answer_status(_request: web.Request) -> web.Response:
        return web.json_response(status())

    async def answer_faults(_request: web.Request) -> web.Response:
        return web.json_response({"faults": faults_document(model.faults, model.state.now())})

    async def replace_faults(request: web.Request) -> web.Response:
        """Replace the whole list; its time begins now. 400 and one sentence for a fault that could never strike."""
        try:
            model.set_faults(read_faults(json.loads(await request.read())))
        except (ValueError, RecursionError) as err:  # of JSON: malformed, and nested too deep
            return web.json_response({"message": str(err)}, status=400)
        return await answer_faults(request)

    app.router.add_get(STATUS_PATH, answer_status)
    app.router.add_get(FAULTS_PATH, answer_faults)
    app.router.add_post(FAULTS_PATH, replace_faults)
