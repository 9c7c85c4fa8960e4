"""Calls of the operating system that every part of the program may use."""

import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # flags for a directory that is not a link
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a link fails, a FIFO does not block
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


def is_private(status: os.stat_result, others: int) -> bool:
    """Whether it is ours, and nobody else has one of the rights *others*, as in a mode."""
    return status.st_uid == os.geteuid() and not status.st_mode & others
