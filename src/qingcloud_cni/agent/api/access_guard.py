"""Who may ask: the token file, and the peers of each listener (design section 10)."""

import hmac
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from aiohttp import web

from qingcloud_cni.core.errors import AccessDenied
from qingcloud_cni.posix import peer_credentials


class AccessGuard:
    """Decides for each request; AccessDenied says what is missing, never what the token is."""

    def __init__(self, token: str, open_paths: frozenset[str]) -> None:
        self._open_paths = open_paths
        self._expected = f"Bearer {token}".encode()

    def check(self, request: web.Request) -> None:
        if request.path in self._open_paths:
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
    uid = peer_credentials(peer).uid
    if uid not in {0, os.geteuid()}:
        raise AccessDenied(f"user {uid} may not ask; only root")
