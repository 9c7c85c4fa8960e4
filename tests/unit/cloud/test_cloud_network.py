"""Proxies, private CAs and name lookups, with real servers on loopback."""

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from machines.relays import Authority, Proxy, new_authority, tls_before
from qingcloud_cni.cloud import Access, AioTransport, load_access
from qingcloud_cni.cloud.network import find_proxy
from qingcloud_cni.core.errors import CloudUnreachable, OutcomeUnknown, StartRefused

NAME = "api.cloud.example"  # no DNS server knows it
TARGET = "/iaas?access_key_id=THEKEYID&signature=abcd"
KEYS = f"qy_access_key_id: THEKEYID\nqy_secret_access_key: THESECRET\nhost: {NAME}\n"
PLAIN = (200, "application/json", b"{}")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return new_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@asynccontextmanager
async def api(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of an API that answers each request with an empty object."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as listener:
        yield listener.sockets[0].getsockname()[1]


@asynccontextmanager
async def proxy_to(port: int, monkeypatch: pytest.MonkeyPatch, *, user: str = "") -> AsyncIterator[Proxy]:
    """A proxy, in the environment, that connects to *port* whatever it is asked for."""
    listener = socket.create_server(("127.0.0.1", 0))
    credentials = f"{user}@" if user else ""
    for scheme in ("HTTP", "HTTPS"):
        monkeypatch.setenv(f"{scheme}_PROXY", f"http://{credentials}127.0.0.1:{listener.getsockname()[1]}")
    with Proxy(lambda: socket.create_connection(("127.0.0.1", port)), user).listening(listener) as proxy:
        yield proxy


def access(tmp_path: Path, text: str = "") -> Access:
    path = tmp_path / "client.yaml"
    path.touch(mode=0o600)
    path.write_text(KEYS + text)
    return load_access(path, allow_readable=False)


async def ask(given: Access) -> tuple[int, str, bytes]:
    transport = AioTransport(given)
    try:
        return await transport.send("GET", TARGET, b"", 5)
    finally:
        await transport.close()


async def test_https_goes_through_the_proxy_which_sees_a_name_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    async with api(authority.server(NAME)) as port, proxy_to(port, monkeypatch, user="u:p") as proxy:
        given = access(tmp_path, f"ca_file: {authority.file}\n")
        assert await ask(given) == PLAIN
        assert proxy.heads == [f"CONNECT {NAME}:443 HTTP/1.1"]
        assert given.route == f"https://{NAME}:443 through the proxy {given.proxy}"
        assert "u:p" not in given.route + repr(given)


async def test_plain_http_goes_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with api() as port, proxy_to(port, monkeypatch) as proxy:
        assert await ask(access(tmp_path, "protocol: http\nport: 80\n")) == PLAIN
        assert proxy.heads == [f"GET http://{NAME}{TARGET} HTTP/1.1"]


@pytest.mark.parametrize("no_proxy", ["*", NAME, ".cloud.example", "cloud.example", f"x, {NAME}:443"])
async def test_no_proxy_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    with pytest.raises(CloudUnreachable, match=f"^https://{NAME}:443 cannot be reached: the name {NAME} cannot be"):
        await ask(access(tmp_path))


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_direct"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "192.168.0.0/16,10.0.0.0/16", False),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "10.0.0.0/8", False),
        ("127.0.0.1", "", True),
        ("::1", "", True),
        ("localhost", "", True),
        ("api.cloud.example", "example.com", False),
    ],
)
def test_networks_and_loopback_need_no_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, is_direct: bool
) -> None:
    monkeypatch.setenv("https_proxy", "10.9.9.9:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (find_proxy("https", host, 443) is None) == is_direct


async def test_a_proxy_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy_to(1, monkeypatch, user="u:p"):
        url = f"http://127.0.0.1:{find_port()}"
        monkeypatch.setenv("HTTPS_PROXY", url)
        with pytest.raises(
            CloudUnreachable, match=f"through the proxy {url} cannot be reached: the proxy answered 407"
        ):
            await ask(access(tmp_path))
    with pytest.raises(CloudUnreachable, match=f"through the proxy {url} cannot be reached: .*refused"):
        await ask(access(tmp_path))


def find_port() -> int:
    """The port of the proxy in the environment."""
    proxy = find_proxy("http", NAME, 80)
    assert proxy is not None
    assert proxy.port is not None
    return proxy.port


@pytest.mark.parametrize("value", ["socks5://10.0.0.1:1080", "http://", "http://h:99999", "::"])
def test_a_proxy_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(StartRefused, match="environment variable HTTPS_PROXY: rejected: expected the URL"):
        access(tmp_path)


async def test_ssl_cert_file_adds_a_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    async with api(authority.server(NAME)) as port, proxy_to(port, monkeypatch):
        with pytest.raises(
            CloudUnreachable, match=r"its certificate is not accepted: .*; name its CA with ca_file in"
        ):
            await ask(access(tmp_path))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        assert await ask(access(tmp_path)) == PLAIN


async def test_a_certificate_of_another_name_is_refused_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    async with api(authority.server("other.example")) as port, proxy_to(port, monkeypatch):
        with pytest.raises(
            CloudUnreachable, match=f"its certificate is not accepted: .*not valid for '{NAME}'"
        ) as told:
            await ask(access(tmp_path, f"ca_file: {authority.file}\n"))
        assert "ca_file" not in str(told.value)


async def test_a_server_that_wants_a_certificate_is_told_as_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    """With TLS 1.3 the refusal comes behind the request, which is in doubt then."""
    tls = authority.server(NAME, asks_for_certificate=True)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with tls_before(listener, tls, socket.socket):
        async with proxy_to(port, monkeypatch):
            with pytest.raises(OutcomeUnknown, match=r"TLS failed: .*certificate required"):
                await ask(access(tmp_path, f"ca_file: {authority.file}\n"))


@pytest.mark.parametrize(
    ("content", "says"), [(None, "read failed: No such file"), ("words\n", "no certificate in PEM")]
)
def test_a_ca_file_that_cannot_be_trusted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, says: str
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartRefused, match=f"client.yaml: ca_file {file}: .*{says}"):
        access(tmp_path, f"ca_file: {file}\n")
    with pytest.raises(StartRefused, match="ca_file must be an absolute path"):
        access(tmp_path, "ca_file: ca.pem\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(StartRefused, match=f"environment variable SSL_CERT_FILE: {file}: .*{says}"):
        access(tmp_path)
    assert access(tmp_path, "protocol: http\n").ca_file == ""


# --- name lookups --------------------------------------------------------------------------------------


async def test_localhost_is_looked_up_as_by_the_host() -> None:
    async with api() as port:
        assert await ask(Access("k", "s", host="localhost", port=port, protocol="http")) == PLAIN


async def test_calls_at_once_share_a_lookup_which_none_of_them_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = [], threading.Event()

    def silent(host: str, *_args: object, **_options: object) -> list[object]:
        asked.append((host, threading.current_thread().daemon))
        answered.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    transport = AioTransport(Access("k", "s", host=NAME))
    try:
        calls = (transport.send("GET", TARGET, b"", 0.2) for _ in range(5))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, CloudUnreachable) for result in results)
        assert asked == [(NAME, True)]
        await transport.close()
    finally:
        answered.set()


SILENT = """
import asyncio, socket, threading
from qingcloud_cni.cloud import Access, AioTransport
from qingcloud_cni.core.errors import CloudUnreachable
socket.getaddrinfo = lambda *_args, **_options: threading.Event().wait()

async def main():
    transport = AioTransport(Access("k", "s", host="api.cloud.example"))
    try:
        await transport.send("GET", "/iaas", b"", 0.2)
    except CloudUnreachable as err:
        print(err)
    await transport.close()

asyncio.run(main())
"""


def test_a_process_ends_while_a_lookup_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be reached: the name api.cloud.example is not resolved in time" in done.stdout
