"""Who may ask: the token file, and the peers of each listener (design section 10)."""

import hmac
import os
import secrets
import socket
import stat
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from aiohttp import web

from qingcloud_cni.core.errors import AccessDenied, StartRefused

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})  # served to everyone who can connect
_LONGEST_TOKEN = 4096  # bytes; one of ours has 65
_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def ensure_directory(path: Path, flag: str) -> None:
    """A directory of root's own; *flag* is the one that names it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise StartRefused(f"directory {path} cannot be made: {err.strerror}; choose another {flag}") from err
    if not os.access(path, os.W_OK):
        raise StartRefused(f"directory {path} is not writable; choose another {flag} or mend its permissions")


def ensure_token(path: Path) -> str:
    """The token in *path*, made if there is none; StartRefused where others could read it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read_token(path)
    except OSError as err:
        raise StartRefused(f"token file {path} cannot be made: {err.strerror}") from err
    token = secrets.token_hex(32)
    with os.fdopen(fd, "w") as file:
        file.write(token + "\n")
    return token


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_LONGEST_TOKEN)
    except OSError as err:
        raise StartRefused(f"token file {path} cannot be read: {err.strerror}") from err
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise StartRefused(
            f"token file {path} can be read by others; remove it, and the agent makes a new one, or chmod 600 it"
        )
    token = content.decode("ascii", errors="replace").strip()
    if not token:
        raise StartRefused(f"token file {path} is empty; remove it, and the agent makes a new one")
    if not token.isascii() or not token.isprintable():
        raise StartRefused(f"token file {path} holds no token; remove it, and the agent makes a new one")
    return token


class Guard:
    """Decides for each request; AccessDenied says what is missing, never what the token is."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def check(self, request: web.Request) -> None:
        if request.path in OPEN_PATHS:
            return
        peer = request.transport.get_extra_info("socket") if request.transport is not None else None
        if peer is None:
            raise AccessDenied("the connection is gone")
        if peer.family == socket.AF_UNIX:
            _check_uid(peer)
        else:
            self._check_tcp(request, peer)

    def _check_tcp(self, request: web.Request, peer: socket.socket) -> None:
        """Only this host, and with the token: any host of the vxnet can reach a TCP port."""
        try:
            there, here = _address(peer.getpeername()), _address(peer.getsockname())
        except OSError:
            raise AccessDenied("the connection is gone") from None
        if not there.is_loopback and there != here:
            raise AccessDenied(f"requests from {there} are not served; only this host may ask")
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")  # the bytes as they came
        if not hmac.compare_digest(given, self._expected):
            raise AccessDenied("the token is missing or wrong; it is in the agent's run directory, readable by root")


def _address(name: tuple[str, int]) -> IPv4Address | IPv6Address:
    address = ip_address(name[0].partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _check_uid(peer: socket.socket) -> None:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _pid, uid, _gid = _PEER_CREDENTIALS.unpack(raw)
    if uid not in {0, os.geteuid()}:
        raise AccessDenied(f"user {uid} may not ask; only root")
