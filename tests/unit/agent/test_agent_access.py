"""Who may ask: the token file, and requests over real sockets."""

import asyncio
import os
import resource
import secrets
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from qingcloud_cni.agent.api.access_guard import AccessGuard
from qingcloud_cni.agent.api.endpoints import OPEN_PATHS
from qingcloud_cni.agent.process.run_files import ensure_directory, ensure_token
from qingcloud_cni.core.errors import AccessDenied, AgentError, StartRefused, exit_status

TOKEN = "0123456789abcdef" * 4


# --- the token file ----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_token_is_made_for_its_owner_only(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        token = ensure_token(path)
    finally:
        os.umask(before)
    assert len(token) == 64
    assert path.read_text() == token + "\n"
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())


def test_a_token_is_used_again(path: Path) -> None:
    assert ensure_token(path) == ensure_token(path)
    path.write_text("mine\n")
    assert ensure_token(path) == "mine"


def test_two_tokens_differ(tmp_path: Path) -> None:
    assert ensure_token(tmp_path / "a") != ensure_token(tmp_path / "b")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o777])
def test_a_token_that_others_can_read_or_change_is_refused_and_kept(path: Path, mode: int) -> None:
    path.write_text("mine\n")
    path.chmod(mode)
    with pytest.raises(StartRefused, match="others can read it; remove it, and the agent writes a new one"):
        ensure_token(path)
    assert path.read_text() == "mine\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_token_of_another_user_is_refused(path: Path) -> None:
    path.write_text("mine\n")
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(StartRefused, match="others can read it"):
        ensure_token(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n"])
def test_an_empty_token_file_is_replaced(path: Path, content: bytes) -> None:
    """An earlier version left one where it was killed, or the disk was full, between creating and writing it."""
    path.write_bytes(content)
    path.chmod(0o600)
    token = ensure_token(path)
    assert (len(token), path.read_text()) == (64, token + "\n")
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full_leaves_no_token_file(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(AgentError, match=r"token file .*: write failed: File too large") as failed:
            ensure_token(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert exit_status(failed.value) == 1, "a later start may succeed"
    assert list(path.parent.iterdir()) == []
    assert len(ensure_token(path)) == 64


@pytest.mark.parametrize("content", [b"t\xf6ken\n", b"\xff\xfe"])
def test_a_token_that_is_no_text_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StartRefused, match="holds no token; remove it"):
        ensure_token(path)


def test_a_place_that_cannot_hold_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="write failed: No such file or directory"):
        ensure_token(tmp_path / "none" / "token")
    with pytest.raises(StartRefused, match="read failed: Is a directory"):
        ensure_token(tmp_path)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StartRefused, match="read failed: No such file or directory"):
        ensure_token(dangling)
    assert not (tmp_path / "nowhere").exists()


def test_directories_are_made_for_their_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    ensure_directory(directory, "--run-dir")
    ensure_directory(directory, "--run-dir")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StartRefused, match=f"directory {place}: creation failed: .*; choose another --run-dir"):
            ensure_directory(place, "--run-dir")


# --- requests ----------------------------------------------------------------------------------------

Served = tuple[str, int]  # socket (an abstract one: no permissions stand before it), TCP port on loopback


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    guard = AccessGuard(TOKEN, OPEN_PATHS)

    async def answer(request: web.Request) -> web.Response:
        try:
            guard.check(request)
        except AccessDenied as err:
            return web.Response(status=403, text=str(err))
        return web.Response(text="served")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    name = f"\0qingcloud-cni/test/{secrets.token_hex(8)}"
    await web.UnixSite(runner, name).start()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = next(a[1] for a in runner.addresses if isinstance(a, tuple))
    yield name, port
    await runner.cleanup()


async def ask(place: str | int, path: str = "/v1/cni", *headers: bytes, method: str = "POST") -> tuple[int, str]:
    """Status and body of a request whose headers go out byte for byte; over TCP where *place* is a port."""
    if isinstance(place, int):
        reader, writer = await asyncio.open_connection("127.0.0.1", place)
    else:
        reader, writer = await asyncio.open_unix_connection(place)
    head = [f"{method} {path} HTTP/1.1".encode(), b"Host: x", b"Connection: close", b"Content-Length: 0", *headers]
    writer.write(b"\r\n".join(head) + b"\r\n\r\n")
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    top, _, body = reply.partition(b"\r\n\r\n")
    return int(top.split()[1]), body.decode()


def bearer(token: str) -> bytes:
    return f"Authorization: Bearer {token}".encode()


async def test_the_unix_socket_needs_no_token(served: Served) -> None:
    assert await ask(served[0]) == (200, "served")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_the_unix_socket_is_for_root_only(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        os.seteuid(65534)
        try:
            peer.connect(served[0])  # the kernel notes who connects
        finally:
            os.seteuid(0)
        reader, writer = await asyncio.open_unix_connection(sock=peer)
        writer.write(b"GET /v1/nics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        reply = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert reply.startswith(b"HTTP/1.1 403 ")
    assert reply.endswith(b"user 65534: denied: only root may use the API")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_tcp_needs_the_token_for_reads_too(served: Served, method: str) -> None:
    status, said = await ask(served[1], "/v1/nics", method=method)
    assert (status, said.partition(";")[0]) == (403, "the token is missing or wrong")
    assert await ask(served[1], "/v1/nics", bearer(TOKEN), method=method) == (200, "served")


@pytest.mark.parametrize(
    "header",
    [
        bearer(TOKEN[:-1]),
        bearer(TOKEN + "0"),
        bearer(TOKEN.upper()),
        bearer(""),
        f"Authorization: {TOKEN}".encode(),
        f"Authorization: Basic {TOKEN}".encode(),
        f"X-Token: {TOKEN}".encode(),
        b"Authorization: Bearer \xff\xfe",
        "Authorization: Bearer tökén".encode(),
    ],
)
async def test_a_wrong_token_is_refused_and_never_shown(served: Served, header: bytes) -> None:
    status, said = await ask(served[1], "/v1/cni", header)
    assert status == 403
    assert TOKEN[:8] not in said.lower()


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_open_paths_are_for_everyone(served: Served, path: str) -> None:
    assert await ask(served[1], path, method="GET") == (200, "served")


@pytest.mark.parametrize("path", ["/healthz/", "/v1/../healthz", "/metrics/x", "//healthz", "/", "/HEALTHZ"])
async def test_nothing_beside_them_is(served: Served, path: str) -> None:
    assert (await ask(served[1], path, method="GET"))[0] == 403
