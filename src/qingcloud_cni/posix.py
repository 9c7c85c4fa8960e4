"""Calls of the operating system that every part of the program may use."""

import os
import secrets
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qingcloud_cni.core.errors import Unavailable

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


def is_open_at(descriptor: int, path: Path) -> bool:
    """Whether *path* still leads to the open file, without following a link."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def restore_directory(path: Path) -> str | None:
    """Make *path* for this user alone if it is missing, and then return its name. Anything but a directory gives way.

    Unavailable if the path is a link, or if other users may change the directory.
    """
    try:
        if path.is_symlink():
            raise Unavailable(f"directory {path}: not used: it is a link; remove it")
        if path.is_dir():
            if not is_private(path.lstat(), 0o022):
                raise Unavailable(f"directory {path}: not used: other users may change it; correct owner and mode")
            return None
        with suppress(FileNotFoundError):
            path.rename(path.with_name(f"{path.name}.displaced-{secrets.token_hex(4)}"))
        path.mkdir(0o700, parents=True)
        path.chmod(0o700)  # whatever the umask
    except OSError as err:
        raise Unavailable(f"directory {path}: create failed: {err.strerror}; the agent retries") from err
    return f"directory {path}"


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
