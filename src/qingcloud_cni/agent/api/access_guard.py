"""Who may use the API: root on the unix socket; on TCP this host, with requests signed with the token."""

import os
import socket

from aiohttp import web

from qingcloud_cni.agent.api.connections import Peer, peer_of
from qingcloud_cni.agent.api.endpoints import LOCAL_PATHS
from qingcloud_cni.agent.api.signatures import Signatures, SignedRequest
from qingcloud_cni.core.errors import AccessDenied
from qingcloud_cni.posix import peer_credentials


class AccessGuard:
    """Checks each request; AccessDenied never shows the token."""

    def __init__(self, signatures: Signatures) -> None:
        self._signatures = signatures

    def check(self, request: web.Request) -> SignedRequest | None:
        """What is to be signed in the answer; None if it needs no signature."""
        peer = request.transport.get_extra_info("socket") if request.transport is not None else None
        if peer is None:
            raise AccessDenied("connection closed")
        try:
            kind = peer_of(peer)
        except OSError:
            raise AccessDenied("connection closed") from None
        if kind is Peer.SOCKET:
            _check_uid(peer)
            return None
        if kind is Peer.NETWORK:
            raise AccessDenied(f"request from {request.remote}: denied: only this host may use the API")
        return None if request.path in LOCAL_PATHS else self._signatures.verify(request)


def _check_uid(peer: socket.socket) -> None:
    uid = peer_credentials(peer).uid
    if uid not in {0, os.geteuid()}:
        raise AccessDenied(f"user {uid}: denied: only root may use the API")
