"""Who may use the API: root on the unix socket; on TCP this host, with the token."""

import hmac
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from aiohttp import web

from qingcloud_cni.core.errors import AccessDenied
from qingcloud_cni.posix import peer_credentials


class AccessGuard:
    """Checks each request; AccessDenied never shows the token."""

    def __init__(self, token: str, open_paths: frozenset[str]) -> None:
        self._open_paths = open_paths
        self._expected = f"Bearer {token}".encode()

    def check(self, request: web.Request) -> None:
        if request.path in self._open_paths:
            return
        peer = request.transport.get_extra_info("socket") if request.transport is not None else None
        if peer is None:
            raise AccessDenied("connection closed")
        if peer.family == socket.AF_UNIX:
            _check_uid(peer)
        else:
            self._check_tcp(request, peer)

    def _check_tcp(self, request: web.Request, peer: socket.socket) -> None:
        """Any host of the vxnet can reach a TCP port, so both address and token are checked."""
        try:
            remote, local = _address(peer.getpeername()), _address(peer.getsockname())
        except OSError:
            raise AccessDenied("connection closed") from None
        if not remote.is_loopback and remote != local:
            raise AccessDenied(f"request from {remote}: denied: only this host may use the API")
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")  # the bytes on the wire
        if not hmac.compare_digest(given, self._expected):
            raise AccessDenied("the token is missing or wrong; root finds it in the agent's run directory")


def _address(name: tuple[str, int]) -> IPv4Address | IPv6Address:
    address = ip_address(name[0].partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _check_uid(peer: socket.socket) -> None:
    uid = peer_credentials(peer).uid
    if uid not in {0, os.geteuid()}:
        raise AccessDenied(f"user {uid}: denied: only root may use the API")
