"""Connections of the API on real sockets: judged, counted, served in turn, and cut off when they are slow."""

import asyncio
import gc
import logging
import secrets
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cni.signing import Signer
from machines.agents import limited_files
from qingcloud_cni.agent.api import connections
from qingcloud_cni.agent.api.connections import ALLOWANCES, MOST_ACCEPTS, Allowance, Peer, Serves
from qingcloud_cni.agent.api.endpoints import Api
from qingcloud_cni.agent.api.metrics import Metrics, MetricsPage
from qingcloud_cni.agent.api.server import Server
from qingcloud_cni.agent.api.signatures import Signatures, Tokens

TOKEN = "0123456789abcdef" * 4
ANSWER = 20.0  # seconds within which whatever must happen happens
BOTH = Serves.API | Serves.METRICS


@dataclass
class _Nothing:
    """The statistics of no agent."""


NO_STATISTICS: Any = _Nothing()


def idle_agent() -> Any:
    async def delete(*_args: object) -> None: ...

    attachments = SimpleNamespace(delete=delete)
    return SimpleNamespace(check_kernel_compared=lambda: None, attachments=attachments, statistics=None, obstacle="")


class Place:
    """A served agent: its unix socket (abstract), its TCP port on loopback, and its metrics."""

    def __init__(self) -> None:
        self.agent = idle_agent()
        config: Any = {}
        self.metrics = Metrics()
        self.api: Any = Api(self.agent, self.metrics, config, Signatures(Tokens(TOKEN)))
        self.server = Server(self.api)
        self.name = f"\0qingcloud-cni/test/{secrets.token_hex(8)}"
        self.unix, self.tcp = socket.socket(socket.AF_UNIX), socket.socket()
        self.unix.bind(self.name)
        self.tcp.bind(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        for listener in (self.unix, self.tcp):
            listener.listen(1024)

    def connect(self, *, unix: bool = False) -> socket.socket:
        if not unix:
            return socket.create_connection(("127.0.0.1", self.port))
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(self.name)
        return peer

    async def ask(self, path: str, *, unix: bool = False, token: str = "", method: str = "GET") -> bytes:
        """The bytes of an answer on a connection of its own; signed with *token* if it is given."""
        with self.connect(unix=unix) as peer:
            more = await signature(peer, token, path, method) if token else ""
            await send(peer, request(path, method=method, more=more))
            return await read_all(peer)

    def refused(self, peer: Peer) -> float:
        families = text_string_to_metric_families(_exposition(self.metrics))
        samples = [s for f in families for s in f.samples if s.name == "qingagent_connections_refused_total"]
        return next((s.value for s in samples if s.labels["peer"] == peer), 0.0)


def _exposition(metrics: Metrics) -> str:
    return metrics.render(NO_STATISTICS).decode()


@asynccontextmanager
async def serving(tcp: Serves = BOTH) -> AsyncIterator[Place]:
    place = Place()
    await place.server.begin()
    place.server.listen(place.unix, BOTH)
    place.server.listen(place.tcp, tcp)
    try:
        yield place
    finally:
        await place.server.end()


def request(path: str, *, method: str = "GET", more: str = "", body: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n{body}".encode()


async def signature(peer: socket.socket, token: str, path: str, method: str = "GET", body: str = "") -> str:
    """Ask for a challenge; the header of a request that is signed for it."""
    signer = Signer(token, peer.getsockname(), peer.getpeername())
    await send(peer, f"GET {signer.target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    said = b""
    while not said.endswith(b"]}"):
        part = await asyncio.get_running_loop().sock_recv(peer, 1 << 16)
        if not part:
            return ""
        said += part
    headers = signer.headers(said.partition(b"\r\n\r\n")[2], method, path, body.encode())
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


async def send(peer: socket.socket, data: bytes) -> None:
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(peer, data)


async def read_all(peer: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    peer.setblocking(False)
    loop, found = asyncio.get_running_loop(), b""
    async with asyncio.timeout(ANSWER):
        try:
            while part := await loop.sock_recv(peer, 1 << 16):
                found += part
        except ConnectionResetError:
            pass
    return found


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(ANSWER):
        while not is_so():
            await asyncio.sleep(0.01)


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change the allowance of a kind of peers."""

    def change(peer: Peer, connections_: int, rate: float, burst: int, patience: float) -> None:
        allowed = Allowance("", connections_, rate, burst, patience)
        monkeypatch.setattr(connections, "ALLOWANCES", {**connections.ALLOWANCES, peer: allowed})

    return change


@pytest.fixture
def from_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge TCP peers as if they were elsewhere."""
    real = connections.peer_of

    def judged(accepted: socket.socket) -> Peer:
        return Peer.SOCKET if real(accepted) is Peer.SOCKET else Peer.NETWORK

    monkeypatch.setattr(connections, "peer_of", judged)


# --- who gets what -------------------------------------------------------------------------------------


def test_the_unix_socket_has_a_share_of_its_own_and_the_network_a_small_one() -> None:
    network, limit = ALLOWANCES[Peer.NETWORK], sum(allowed.connections for allowed in ALLOWANCES.values())
    assert (network.connections, network.patience) == (16, 2.0)
    assert limit <= 1024 - 256  # a process with the usual soft limit has descriptors left for its work


async def test_a_peer_of_this_host_gets_the_api_with_the_token() -> None:
    async with serving() as place:
        assert (await place.ask("/v1/config", token=TOKEN)).startswith(b"HTTP/1.1 200 ")
        assert (await place.ask("/v1/config")).startswith(b"HTTP/1.1 403 ")
        assert (await place.ask("/v1/config", unix=True)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("from_network")
async def test_a_peer_elsewhere_gets_one_answer_then_the_connection_ends() -> None:
    async with serving() as place:
        with place.connect() as peer:
            await send(peer, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
            said = await read_all(peer)
    assert (said.count(b"HTTP/1.1 200 "), said.count(b"ok\n")) == (1, 1)


@pytest.mark.parametrize(
    "line", ["GET /healthz", "GET /v1/nics", "GET /nothing", "POST /metrics", "GET /v1/challenge?nonce=x"]
)
async def test_a_request_without_the_token_is_the_last_of_its_connection(line: str) -> None:
    async with serving() as place:
        with place.connect() as peer:
            await send(peer, f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 3)
            assert (await read_all(peer)).count(b"HTTP/1.1 ") == 1


async def test_requests_with_the_token_share_a_connection() -> None:
    async with serving() as place:
        with place.connect() as peer:
            for _ in range(3):
                more = await signature(peer, TOKEN, "/v1/openapi.json")
                await send(peer, f"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
                said = b""
                while not said.endswith(b"}"):
                    said += await asyncio.get_running_loop().sock_recv(peer, 1 << 20)
                assert said.startswith(b"HTTP/1.1 200 ")


async def test_without_metrics_an_address_serves_the_api_alone() -> None:
    async with serving(Serves.API) as place:
        for path in ("/metrics", "/healthz", "/readyz"):
            assert (await place.ask(path)).startswith(b"HTTP/1.1 403 ")
        assert (await place.ask("/healthz", token=TOKEN)).startswith(b"HTTP/1.1 200 ")
        assert (await place.ask("/healthz", unix=True)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("from_network")
async def test_without_metrics_a_peer_elsewhere_gets_nothing() -> None:
    async with serving(Serves.API) as place:
        assert await place.ask("/healthz") == b""
        assert place.refused(Peer.NETWORK) == 1


async def test_an_address_for_metrics_serves_no_api_and_no_challenge() -> None:
    async with serving(Serves.METRICS) as place:
        assert (await place.ask("/healthz")).startswith(b"HTTP/1.1 200 ")
        for path in ("/v1/config", f"/v1/challenge?nonce={'0' * 64}"):
            assert (await place.ask(path)).startswith(b"HTTP/1.1 403 ")


# --- caps and turns ------------------------------------------------------------------------------------


async def test_connections_above_the_cap_are_closed_and_the_unix_socket_still_serves() -> None:
    async with serving() as place:
        held = [place.connect() for _ in range(2 * ALLOWANCES[Peer.HOST].connections)]
        try:
            await until(lambda: place.refused(Peer.HOST) >= len(held) // 2)
            assert (await place.ask("/v1/config", unix=True)).startswith(b"HTTP/1.1 200 ")
        finally:
            for peer in held:
                peer.close()
        await until(lambda: not _is_full(place))
        assert (await place.ask("/healthz")).startswith(b"HTTP/1.1 200 ")


def _is_full(place: Place) -> bool:
    """Whether a new connection is refused."""
    before = place.refused(Peer.HOST)
    place.connect().close()
    return place.refused(Peer.HOST) > before


@pytest.mark.usefixtures("from_network")
async def test_a_crowd_elsewhere_leaves_this_hosts_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as place:
        crowd = [place.connect() for _ in range(3 * MOST_ACCEPTS)]
        try:
            await until(lambda: place.refused(Peer.NETWORK) >= len(crowd) - 16)
            monkeypatch.undo()  # from here on, peers are judged as they are
            assert (await place.ask("/v1/config", token=TOKEN)).startswith(b"HTTP/1.1 200 ")
        finally:
            for peer in crowd:
                peer.close()


async def test_connections_above_the_rate_wait_and_are_all_served(allow: Callable[..., None]) -> None:
    allow(Peer.HOST, 40, 200.0, 2, ANSWER)
    async with serving() as place:
        begun = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*[place.ask("/healthz") for _ in range(40)])
        taken = asyncio.get_running_loop().time() - begun
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert taken >= 38 / 200  # never faster than the rate; how much slower is the machine's affair


async def test_those_that_wait_are_closed_at_the_end(allow: Callable[..., None]) -> None:
    allow(Peer.HOST, 10, 0.001, 1, ANSWER)
    async with serving() as place:
        assert (await place.ask("/healthz")).startswith(b"HTTP/1.1 200 ")
        waiting = place.connect()
        await send(waiting, request("/healthz"))
        await asyncio.sleep(0)
    assert await read_all(waiting) == b""
    waiting.close()


# --- slow peers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"GET /metr",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n",
        request("/v1/cni", method="POST", more="Content-Length: 100\r\n", body="{"),
        b"GET /healthz HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=["nothing", "line", "header", "body", "upgrade"],
)
async def test_a_request_that_does_not_come_whole_is_cut_off(
    allow: Callable[..., None], part: bytes, *, unix: bool
) -> None:
    allow(Peer.SOCKET if unix else Peer.HOST, 4, 1000.0, 4, 0.2)
    async with serving() as place:
        for _ in range(3):  # more than fit at once
            peers = [place.connect(unix=unix) for _ in range(4)]
            for peer in peers:
                await send(peer, part)
            for peer in peers:
                await read_all(peer)  # ends
                peer.close()
        assert (await place.ask("/healthz", unix=unix)).startswith(b"HTTP/1.1 200 ")


async def test_a_connection_without_a_next_request_is_closed(allow: Callable[..., None]) -> None:
    allow(Peer.SOCKET, 4, 1000.0, 4, 0.2)
    async with serving() as place:
        with place.connect(unix=True) as peer:
            await send(peer, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await read_all(peer)).endswith(b"ok\n")


async def test_an_answer_that_is_not_taken_is_dropped(allow: Callable[..., None]) -> None:
    allow(Peer.SOCKET, 1, 1000.0, 4, 0.2)
    async with serving() as place:
        place.api.config = {"much": "x" * (8 << 20)}  # more than sockets hold
        with place.connect(unix=True) as peer:
            await send(peer, request("/v1/config"))
            place.api.config = {}
            async with asyncio.timeout(ANSWER):
                while not (await place.ask("/healthz", unix=True)).startswith(b"HTTP/1.1 200 "):
                    await asyncio.sleep(0.01)


async def test_a_request_that_takes_long_is_not_cut_off(allow: Callable[..., None]) -> None:
    allow(Peer.SOCKET, 4, 1000.0, 4, 0.05)
    async with serving() as place:

        async def long(*_args: object) -> None:
            await asyncio.sleep(0.5)

        place.agent.attachments.delete = long
        body = '{"command":"DEL","containerID":"c1","ifname":"eth0","config":{"name":"n","cniVersion":"1.0.0"}}'
        with place.connect(unix=True) as peer:
            length = f"Content-Length: {len(body)}\r\n"
            await send(peer, request("/v1/cni", method="POST", more=length, body=body))
            assert (await read_all(peer)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head",
    [
        "GET /healthz?" + "x" * 5_000 + " HTTP/1.1\r\n",
        "GET /healthz HTTP/1.1\r\nA: " + "x" * 5_000 + "\r\n",
        "GET /healthz HTTP/1.1\r\n" + "A: x\r\n" * 40,
    ],
    ids=["line", "field", "fields"],
)
async def test_the_header_of_a_request_is_small(head: str) -> None:
    async with serving() as place:
        with place.connect() as peer:
            await send(peer, f"{head}\r\n".encode())
            assert (await read_all(peer)).split()[1] == b"400"


# --- shortages and the log -----------------------------------------------------------------------------


async def test_requests_without_end_are_held_in_small_pieces() -> None:
    """A rejected one stays in memory until the next garbage collection, with all that was read at once."""
    heads = ("GET /metrics HTTP/1.1\r\nX: ", "POST /v1/cni HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n")
    async with serving() as place:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for head in heads * 40:
                with place.connect() as peer, suppress(ConnectionError):
                    await send(peer, head.encode() + bytes(1 << 20))
                    await read_all(peer)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert held < 80 * (1 << 18)  # it was nine times as much


async def test_a_shortage_of_descriptors_is_logged_once_and_outlived(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as place:
        peers = [place.connect(unix=bool(n % 2)) for n in range(20)]
        with limited_files(0):
            await until(lambda: bool(caplog.records))
            for _ in range(100):
                await asyncio.sleep(0)
        for peer in peers:
            await send(peer, request("/healthz"))
            assert (await read_all(peer)).startswith(b"HTTP/1.1 200 ")
            peer.close()
    assert [line.getMessage() for line in caplog.records] == ["connections.shortage"]


async def test_peers_without_rights_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as place:
        for data in (
            b"\x16\x03\x01\x02",
            b"GET / HTTP/9.9\r\n\r\n",
            b"X" * 100_000,
            b"GET /%ff HTTP/1.1\r\nA\r\n\r\n",
        ):
            for _ in range(3):
                with place.connect() as peer:
                    await send(peer, data + b"\r\n\r\n")
                    await read_all(peer)
        crowd = [place.connect() for _ in range(4 * ALLOWANCES[Peer.HOST].connections)]
        await until(lambda: place.refused(Peer.HOST) > 0)
        for peer in crowd:
            peer.close()
    assert [line.getMessage() for line in caplog.records] == ["connections.refused"]


# --- the page of metrics -------------------------------------------------------------------------------


async def test_metrics_are_rendered_once_for_all_who_ask_within_a_second() -> None:
    rendered = 0

    def statistics() -> Any:
        nonlocal rendered
        rendered += 1
        return NO_STATISTICS

    page = MetricsPage(Metrics(), statistics)
    begun = asyncio.get_running_loop().time()
    await asyncio.gather(*[page.latest() for _ in range(50)])
    await page.latest()
    seconds = asyncio.get_running_loop().time() - begun
    assert rendered <= 1 + int(seconds)
