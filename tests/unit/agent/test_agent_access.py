"""Who may ask: requests over real sockets; over TCP they are signed, and answers too."""

import asyncio
import hashlib
import http.client
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.signing import SigningClient
from cni.signing import seal as expected_seal
from qingcloud_cni.agent.api.connections import Serves
from qingcloud_cni.agent.api.endpoints import LOCAL_PATHS, OPEN_PATHS, Api
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.api.server import Server
from qingcloud_cni.agent.api.signatures import FORMER_SECONDS, Signatures, Tokens, seal
from qingcloud_cni.plugin import qingcni

TOKEN = "0123456789abcdef" * 4
FORMER = "f" * 64

Served = tuple[str, int]  # socket (an abstract one: no permissions stand before it), TCP port on loopback
DELETION = b'{"command":"DEL","containerID":"c1","ifname":"eth0","config":{"name":"mynet"}}'
READ = "/v1/openapi.json"


class Clock:
    now = 0.0


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def served(clock: Clock) -> Iterator[Served]:
    """The server with an agent that deletes whatever it is asked to, in a thread of its own."""
    unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
    unix.bind(name := f"\0qingcloud-cni/test/{secrets.token_hex(8)}")
    tcp.bind(("127.0.0.1", 0))
    unix.listen()
    tcp.listen()
    loop, is_ready = asyncio.new_event_loop(), threading.Event()
    is_over = asyncio.Event()

    async def delete(*_args: object) -> None: ...

    async def serve() -> None:
        agent: Any = SimpleNamespace(
            check_kernel_compared=lambda: None, attachments=SimpleNamespace(delete=delete), statistics=None
        )
        config: Any = {}
        tokens = Tokens(TOKEN, FORMER, FORMER_SECONDS, lambda: clock.now)
        server = Server(Api(agent, Metrics(), config, Signatures(tokens)))
        await server.begin()
        for listener in (unix, tcp):
            server.listen(listener, Serves.API | Serves.METRICS)
        is_ready.set()
        await is_over.wait()
        await server.end()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_ready.wait(30)
    yield name, tcp.getsockname()[1]
    loop.call_soon_threadsafe(is_over.set)
    thread.join(30)
    loop.close()


Answer = tuple[int, bytes]


def ask(place: str | int, path: str = READ, *headers: bytes, method: str = "GET") -> tuple[int, str]:
    """Status and body of a request whose headers go out byte for byte; over TCP where *place* is a port."""
    family = socket.AF_INET if isinstance(place, int) else socket.AF_UNIX
    with socket.socket(family) as connection:
        connection.connect(("127.0.0.1", place) if isinstance(place, int) else place)
        head = [f"{method} {path} HTTP/1.1".encode(), b"Host: x", b"Connection: close", b"Content-Length: 0"]
        connection.sendall(b"\r\n".join([*head, *headers]) + b"\r\n\r\n")
        reply = b""
        while chunk := connection.recv(65536):
            reply += chunk
    top, _, body = reply.partition(b"\r\n\r\n")
    return int(top.split()[1]), body.decode()


class Session(SigningClient):
    """One connection over TCP."""

    def __init__(self, port: int, token: str = TOKEN) -> None:
        super().__init__(http.client.HTTPConnection("127.0.0.1", port, timeout=20), token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.connection.close()

    def send(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        self.connection.request(method, target, body or None, headers)
        found = self.connection.getresponse()
        answer = found.status, found.read()
        if headers:
            self.verify(found, answer[1])
        return answer

    def ask(self, method: str, target: str, body: bytes = b"") -> Answer:
        """A request as it should be."""
        return self.send(method, target, dict(self.headers(method, target, body)), body)


def bearer(token: str) -> bytes:
    return f"Authorization: Bearer {token}".encode()


def test_the_unix_socket_needs_no_token(served: Served) -> None:
    assert ask(served[0])[0] == 200
    assert ask(served[0], READ, bearer("anything"))[0] == 200, "clients that send one go on"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_the_unix_socket_is_for_root_only(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        os.seteuid(65534)
        try:
            peer.connect(served[0])  # the kernel notes who connects
        finally:
            os.seteuid(0)
        peer.sendall(b"GET /v1/nics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        reply = peer.recv(65536)
    assert reply.startswith(b"HTTP/1.1 403 ")
    assert b"user 65534: denied: only root may use the API" in reply


@pytest.mark.parametrize("path", sorted(OPEN_PATHS - {"/readyz", "/metrics"}))
def test_open_paths_are_for_everyone(served: Served, path: str) -> None:
    assert ask(served[1], path)[0] == 200


@pytest.mark.parametrize("path", ["/healthz/", "/v1/../healthz", "/metrics/x", "//healthz", "/", "/HEALTHZ"])
def test_nothing_beside_them_is(served: Served, path: str) -> None:
    assert ask(served[1], path)[0] == 403


@pytest.mark.parametrize(
    "header",
    [
        bearer(TOKEN),
        bearer(FORMER),
        bearer(""),
        f"Authorization: {TOKEN}".encode(),
        f"Authorization: Basic {TOKEN}".encode(),
        f"Authorization: Qingcni {TOKEN}".encode(),
        f"Authorization: Qingcni {TOKEN} {TOKEN}".encode(),
        b"Authorization: Bearer \xff\xfe",
        b"X: y",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_over_tcp_the_token_itself_is_denied_and_never_shown(served: Served, header: bytes, method: str) -> None:
    status, said = ask(served[1], READ, header, method=method)
    assert status == 403
    assert json.loads(said)["code"] == 103
    assert TOKEN[:8] not in said


# --- signed requests ---------------------------------------------------------------------------------


@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=200), st.lists(st.binary(max_size=300)))
def test_plugin_agent_and_the_standard_library_make_the_same_seal(token: str, parts: list[bytes]) -> None:
    assert seal(token, *parts) == qingcni.seal(token.encode(), *parts) == expected_seal(token, *parts)


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_different_parts_have_different_seals(one: list[bytes], other: list[bytes]) -> None:
    assert (seal(TOKEN, *one) == seal(TOKEN, *other)) == (one == other)


def test_signed_requests_are_served_and_their_answers_are_signed(served: Served) -> None:
    with Session(served[1]) as session:
        assert session.ask("GET", READ)[0] == 200
        assert session.signer.is_proved
        assert session.ask("POST", "/v1/cni", DELETION) == (200, b"")
        assert session.ask("POST", "/v1/cni", b"rubbish")[0] == 400
        assert session.ask("GET", "/v1/nowhere")[0] == 404
        assert session.ask("GET", f"{READ}?a=%20b&c")[0] == 200


def test_a_seal_serves_once_and_on_its_connection_alone(served: Served) -> None:
    with Session(served[1]) as first, Session(served[1]) as second:
        headers = dict(first.headers("POST", "/v1/cni", DELETION))
        assert second.send("POST", "/v1/cni", headers, DELETION)[0] == 403, "no challenge there"
        second.headers("POST", "/v1/cni", DELETION)
        assert second.send("POST", "/v1/cni", headers, DELETION)[0] == 403, "another challenge there"
        assert first.send("POST", "/v1/cni", headers, DELETION)[0] == 200
        assert first.send("POST", "/v1/cni", headers, DELETION)[0] == 403, "a replay"


def test_a_connection_has_one_open_challenge(served: Served) -> None:
    """And ends with the first denial: without the token nobody gets a third request out of it."""
    with Session(served[1]) as session:
        session.headers("POST", "/v1/cni", DELETION)
        assert session.headers("POST", "/v1/cni", DELETION) == {}
        assert session.connection.sock is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_changed_on_the_way_is_denied(served: Served, data: st.DataObject) -> None:
    """One of method, target, body, digest and seal is another than the signed one."""
    with Session(served[1]) as session:
        signed = ("POST", "/v1/cni", DELETION)
        scheme, digest, sealed = session.headers(*signed)["Authorization"].split()
        parts: list[Any] = [*signed, digest, sealed]
        place = data.draw(st.integers(0, 4))
        if place == 0:
            parts[0] = data.draw(st.sampled_from(["GET", "PUT", "DELETE", "PATCH"]))
        elif place == 1:
            parts[1] = data.draw(
                st.sampled_from(["/v1/drain", "/v1/cni?", "/v1/cni?x=1", "/v1/reconcile", "/v1//cni"])
            )
        elif place == 2:
            at = data.draw(st.integers(0, len(DELETION) - 1))
            parts[2] = DELETION[:at] + bytes([DELETION[at] ^ data.draw(st.integers(1, 255))]) + DELETION[at + 1 :]
        else:
            at = data.draw(st.integers(0, 63))
            other = data.draw(st.sampled_from("0123456789abcdef").filter(lambda char: char != parts[place][at]))
            parts[place] = parts[place][:at] + other + parts[place][at + 1 :]
        headers = {"Authorization": f"{scheme} {parts[3]} {parts[4]}"}
        session.connection.request(parts[0], parts[1], parts[2], headers)
        assert session.connection.getresponse().status == 403


def test_no_seal_of_the_agent_is_one_of_a_request(served: Served) -> None:
    """A stranger has the agent's proofs, and may have answers: reflected, they open nothing."""
    digest = hashlib.sha256(b"").hexdigest()
    for number in range(2):
        with Session(served[1]) as session:
            session.connection.request("GET", f"/v1/challenge?nonce={'0' * 64}")
            proofs = json.loads(session.connection.getresponse().read())["proofs"]
            assert len(proofs) == 2
            assert session.send("GET", READ, {"Authorization": f"Qingcni {digest} {proofs[number]}"})[0] == 403


def test_the_former_token_is_valid_for_110_seconds(served: Served, clock: Clock) -> None:
    clock.now = FORMER_SECONDS - 1
    with Session(served[1], FORMER) as session, Session(served[1]) as current:
        assert (session.ask("GET", READ)[0], session.signer.is_proved) == (200, True)
        headers = session.headers("GET", READ, b"")
        clock.now = FORMER_SECONDS
        assert session.send("GET", READ, headers)[0] == 403
        assert (session.ask("GET", READ)[0], session.signer.is_proved) == (403, False)
        assert current.ask("GET", READ)[0] == 200
        clock.now = 0.0


def test_a_request_that_is_passed_on_is_denied(served: Served) -> None:
    """A stranger who relays every byte between plugin and agent has other ends of the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        session = Session(listener.getsockname()[1])
        session.connection.connect()
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", served[1]), timeout=20)
        threads = [threading.Thread(target=copy, args=pair) for pair in ((near, far), (far, near))]
        for thread in threads:
            thread.start()
        assert session.ask("GET", READ)[0] == 403
        assert not session.signer.is_proved
        session.connection.close()
        for thread in threads:
            thread.join(30)
        near.close()
        far.close()


def copy(source: socket.socket, sink: socket.socket) -> None:
    while chunk := source.recv(65536):
        sink.sendall(chunk)
    sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("query", ["", "?nonce=", "?nonce=1", f"?nonce={'g' * 64}", f"?nonce={'0' * 64}&nonce=1"])
def test_a_challenge_needs_a_nonce(served: Served, query: str) -> None:
    assert ask(served[1], f"/v1/challenge{query}")[0] == 400


def test_the_unix_socket_has_no_challenges(served: Served) -> None:
    assert {"/v1/challenge"} == LOCAL_PATHS
    assert ask(served[0], f"/v1/challenge?nonce={'0' * 64}")[0] == 400
