"""The HTTP server on real sockets, with an agent that only counts."""

import io
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp

from qingcloud_cni.agent.api.connections import Serves
from qingcloud_cni.agent.api.endpoints import Api
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.api.server import Server
from qingcloud_cni.agent.api.signatures import Signatures, Tokens
from qingcloud_cni.core.cni.protocol import LARGEST_CONFIG, LARGEST_REQUEST
from qingcloud_cni.plugin import qingcni


async def ask(directory: Path, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    """Status and content of an answer on the unix socket."""

    async def delete(*_args: object) -> None: ...

    agent: Any = SimpleNamespace(
        check_kernel_compared=lambda: None, attachments=SimpleNamespace(delete=delete), statistics=None
    )
    unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
    unix.bind(str(directory / "agent.sock"))
    for listener in (unix, tcp):
        listener.listen()
    config: Any = {}
    server = Server(Api(agent, Metrics(), config, Signatures(Tokens("token"))))
    await server.begin()
    for listener in (unix, tcp):
        server.listen(listener, Serves.API)
    connector = aiohttp.UnixConnector(str(directory / "agent.sock"))
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://agent{path}", data=io.BytesIO(body)) as answer,
        ):
            return answer.status, await answer.text()
    finally:
        await server.end()


def deletion(size: int) -> bytes:
    """A DEL whose configuration has *size* bytes, as the plugin composes it."""
    config = b'{"name":"mynet","cniVersion":"1.0.0","padding":"%s"}'
    config %= b"x" * (size - len(config) + 2)
    assert len(config) == size
    return b'{"command":"DEL","containerID":"c1","ifname":"eth0","path":"%s","config":%s}' % (b"/" * 131_000, config)


async def test_the_largest_configuration_that_the_plugin_takes_is_served(tmp_path: Path) -> None:
    assert qingcni.MAX_BYTES == LARGEST_CONFIG
    assert await ask(tmp_path, "POST", "/v1/cni", deletion(LARGEST_CONFIG)) == (200, "")


async def test_a_larger_request_is_rejected_with_the_limit(tmp_path: Path) -> None:
    status, text = await ask(tmp_path, "POST", "/v1/cni", deletion(LARGEST_REQUEST))
    assert (status, f"more than {LARGEST_REQUEST} bytes" in text) == (400, True)
