"""Whether somebody still waits for an answer: asked of the kernel, for the loop may not have read so far."""

import socket
from types import SimpleNamespace
from typing import cast

from aiohttp import web

from qingcloud_cni.agent.api.cni_api import is_awaited


def request(transport: object) -> web.Request:
    return cast("web.Request", SimpleNamespace(transport=transport))


def test_a_caller_is_missed_as_soon_as_it_has_gone() -> None:
    """Also while there is something to be read from it."""
    here, there = socket.socketpair()
    with here, there:
        asked = request(SimpleNamespace(get_extra_info={"socket": here}.get))
        there.sendall(b"POST /v1/cni HTTP/1.1")
        assert is_awaited(asked)
        there.close()
        assert not is_awaited(asked)


def test_a_connection_that_was_lost_has_no_caller() -> None:
    assert not is_awaited(request(None))
