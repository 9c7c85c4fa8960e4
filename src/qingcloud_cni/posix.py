"""Calls of the operating system that every part of the program may use."""

import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

_UCRED = struct.Struct("3i")  # struct ucred


class PeerCredentials(NamedTuple):
    pid: int
    uid: int
    gid: int


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """Of the process at the other end of a unix socket, as the kernel recorded them."""
    return PeerCredentials._make(
        _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )


def sync_directory(path: Path) -> None:
    """Return once the names in *path* are on disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
