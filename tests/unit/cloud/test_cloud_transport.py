"""AioTransport and real servers on loopback: what counts as not sent, what as lost; nothing goes twice."""

import asyncio
import socket
import ssl
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from machines.agents import limited_files
from machines.simulator import run
from qingcloud_cni.cloud import Access, AioTransport
from qingcloud_cni.core.errors import CloudUnreachable, OutcomeUnknown

TARGET = "/iaas?access_key_id=THEKEYID&nics.1=52%3A54%3A00&nic_name=a%20b%2F~&signature=abcd%2B%3D"

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A raw TCP server: *handler* gets the head of each request; *heads* keeps them."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.port = 0


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[Server, AioTransport]]:
    server = Server()
    connections: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                head = await reader.readuntil(b"\r\n\r\n")
                server.heads.append(head)
                await handler(head, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        async with reaching(access(server.port)) as transport:
            yield server, transport
    finally:
        listener.close()
        tasks = [task for task in connections if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def reaching(target: Access) -> AsyncIterator[AioTransport]:
    transport = AioTransport(target)
    try:
        yield transport
    finally:
        await transport.close()


def access(port: int, **changes: object) -> Access:
    fields: dict[str, object] = {"host": "127.0.0.1", "port": port, "protocol": "http", **changes}
    return Access("THEKEYID", "THESECRET", **fields)  # type: ignore[arg-type]


def answering(head: str, body: bytes = b"") -> Handler:
    async def handler(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return handler


async def reset(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def hang_up(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def silent(_: bytes, writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    await asyncio.Event().wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_the_target_goes_out_as_it_was_signed() -> None:
    handler = answering("HTTP/1.1 200 OK\nContent-Type: application/json\nContent-Length: 2", b"{}")
    async with serving(handler) as (server, transport):
        assert await transport.send("GET", TARGET, b"", 5) == (200, "application/json", b"{}")
        assert server.heads[0].startswith(f"GET {TARGET} HTTP/1.1\r\n".encode())
        assert b"Connection: keep-alive" not in server.heads[0]


async def test_each_call_has_a_connection_of_its_own_and_concurrent_ones_work() -> None:
    handler = answering("HTTP/1.1 200 OK\nContent-Length: 2", b"{}")
    async with serving(handler) as (server, transport):
        await asyncio.gather(*(transport.send("GET", TARGET, b"", 5) for _ in range(30)))
        assert len(server.heads) == 30


async def test_an_error_page_is_handed_on() -> None:
    handler = answering("HTTP/1.1 502 Bad Gateway\nContent-Type: text/html\nContent-Length: 6", b"<html>")
    async with serving(handler) as (_, transport):
        assert await transport.send("GET", TARGET, b"", 5) == (502, "text/html", b"<html>")


async def test_redirects_are_not_followed() -> None:
    async with serving(answering("HTTP/1.1 302 Found\nLocation: /other\nContent-Length: 0")) as (server, transport):
        status, _, _ = await transport.send("GET", TARGET, b"", 5)
        assert status == 302
        assert len(server.heads) == 1


@pytest.mark.defect("hostnic-5")
@pytest.mark.parametrize(
    ("handler", "says"),
    [
        pytest.param(reset, "", id="reset"),
        pytest.param(hang_up, "closed before an answer came", id="hang-up"),
        pytest.param(answering("HTTP/1.1 200 OK\nContent-Length: 100", b"{"), "the answer broke off", id="half"),
        pytest.param(
            answering("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"5\r\n{"), "broke off", id="half-chunk"
        ),
        pytest.param(answering("SSH-2.0-OpenSSH_9.2"), "is not HTTP", id="ssh"),
        pytest.param(silent, "no answer within 0.3 s", id="silent"),
        pytest.param(
            answering("HTTP/1.1 200 OK\nContent-Length: 17000000", b"x" * 17_000_000), "is larger than", id="huge"
        ),
    ],
)
async def test_what_was_sent_and_lost_is_in_doubt_and_went_out_once(handler: Handler, says: str) -> None:
    async with serving(handler) as (server, transport):
        with pytest.raises(OutcomeUnknown) as doubt:
            await transport.send("GET", TARGET, b"", 0.3 if handler is silent else 5)
        assert says in str(doubt.value)
        assert len(server.heads) == 1
        assert_no_secrets(doubt.value)


async def test_a_refused_connection_was_certainly_not_used() -> None:
    async with reaching(access(free_port())) as transport:
        with pytest.raises(
            CloudUnreachable, match=r"http://127.0.0.1:\d+ cannot be reached: .*[Rr]efused"
        ) as certain:
            await transport.send("GET", TARGET, b"", 5)
    assert not isinstance(certain.value, OutcomeUnknown)
    assert_no_secrets(certain.value)


async def test_an_unknown_name_was_certainly_not_reached() -> None:
    async with reaching(access(80, host="no-such-host.invalid")) as transport:
        with pytest.raises(CloudUnreachable, match=r"the name no-such-host.invalid cannot be resolved") as certain:
            await transport.send("GET", TARGET, b"", 10)
    assert not isinstance(certain.value, OutcomeUnknown)


async def test_a_connection_that_is_never_accepted_was_certainly_not_used() -> None:
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # fill the backlog: the kernel then drops further connections without a word
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        async with reaching(access(full.getsockname()[1], connection_timeout=0.3)) as transport:
            with pytest.raises(CloudUnreachable, match="no connection in time") as certain:
                await transport.send("GET", TARGET, b"", 5)
        assert not isinstance(certain.value, OutcomeUnknown)


async def test_a_server_without_tls_was_certainly_not_sent_the_request() -> None:
    async with serving(hang_up) as (server, _):
        async with reaching(access(server.port, protocol="https")) as transport:
            with pytest.raises(CloudUnreachable) as certain:
                await transport.send("GET", TARGET, b"", 0.5)
        assert not isinstance(certain.value, OutcomeUnknown)
        assert server.heads == []


async def test_a_server_that_answers_tls_in_the_clear_is_told_as_such() -> None:
    """What `protocol: https` before a port of plain HTTP comes to; OpenSSL's number for it is that of EPERM."""

    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_server(plain, "127.0.0.1", 0) as listener,
        reaching(access(listener.sockets[0].getsockname()[1], protocol="https")) as transport,
    ):
        with pytest.raises(CloudUnreachable, match="cannot be reached: TLS failed: ") as certain:
            await transport.send("GET", TARGET, b"", 5)
    assert not isinstance(certain.value, OutcomeUnknown)
    assert "not permitted" not in str(certain.value)
    assert_no_secrets(certain.value)


async def test_a_certificate_that_nobody_vouches_for_is_told_as_such(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run(*request, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as listener,
        reaching(access(listener.sockets[0].getsockname()[1], protocol="https")) as transport,
    ):
        with pytest.raises(CloudUnreachable, match="its certificate is not accepted: ") as certain:
            await transport.send("GET", TARGET, b"", 5)
    assert not isinstance(certain.value, OutcomeUnknown)
    assert_no_secrets(certain.value)


async def test_closing_an_unused_transport_is_fine() -> None:
    transport = AioTransport(access(1))
    await transport.close()
    assert "THESECRET" not in repr(transport)


def assert_no_secrets(err: BaseException) -> None:
    assert err.__context__ is None
    shown = "".join(traceback.format_exception(err)) + repr(vars(err))
    for secret in ("THEKEYID", "THESECRET", "abcd"):
        assert secret not in shown


# --- shortages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"host": "localhost"}, {"protocol": "https"}], ids=["address", "name", "tls"]
)
@pytest.mark.parametrize("spare", [0, 1])
async def test_without_descriptors_a_call_was_not_sent(changes: dict[str, object], spare: int) -> None:
    async with serving(answering("HTTP/1.1 200 OK\nContent-Length: 2", b"{}")) as (server, _):
        async with reaching(access(server.port, **changes)) as transport:
            with limited_files(spare), suppress(CloudUnreachable, OutcomeUnknown):
                await transport.send("GET", TARGET, b"", 5.0)
        async with reaching(access(server.port)) as transport:
            assert (await transport.send("GET", TARGET, b"", 5.0))[0] == 200


async def test_without_a_thread_for_its_name_a_call_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object) -> None:
        raise RuntimeError("can't start new thread")  # as CPython words it

    monkeypatch.setattr(threading, "_start_new_thread", refused)
    async with reaching(access(1, host="localhost")) as transport:
        with pytest.raises(CloudUnreachable):
            await transport.send("GET", TARGET, b"", 5.0)
