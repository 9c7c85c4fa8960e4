"""What the owner of a running simulator may ask and set, on its unix socket."""

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from qingcloud_cni.sim.api.fault_list import read_faults, tell_faults
from qingcloud_cni.sim.cloud.model import Model

STATUS_PATH = "/admin/status"
FAULTS_PATH = "/admin/faults"


def add_admin(app: web.Application, model: Model, tell_status: Callable[[], dict[str, Any]]) -> None:
    """Serve status and faults of *model* beside the cloud's API."""

    async def answer_status(_request: web.Request) -> web.Response:
        return web.json_response(tell_status())

    async def answer_faults(_request: web.Request) -> web.Response:
        return web.json_response({"faults": tell_faults(model.faults, model.state.now())})

    async def replace_faults(request: web.Request) -> web.Response:
        """Replace the whole list; its time begins now. 400 and one sentence for what could never strike."""
        try:
            model.set_faults(read_faults(json.loads(await request.read())))
        except (ValueError, RecursionError) as err:  # no JSON is one as well, and one too deep the other
            return web.json_response({"message": str(err)}, status=400)
        return await answer_faults(request)

    app.router.add_get(STATUS_PATH, answer_status)
    app.router.add_get(FAULTS_PATH, answer_faults)
    app.router.add_post(FAULTS_PATH, replace_faults)
