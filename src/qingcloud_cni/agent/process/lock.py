"""One agent per network namespace: an abstract unix socket is the lock, and the kernel drops it with the process."""

import errno
import socket

from qingcloud_cni.core.errors import AlreadyRunning

_NAME = "\0qingcloud-cni/agent"  # abstract names belong to the network namespace


def take_lock() -> socket.socket:
    """Held as long as the socket is open; AlreadyRunning where another process holds it."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(_NAME)
    except OSError as err:
        lock.close()
        if err.errno != errno.EADDRINUSE:
            raise
        raise AlreadyRunning(
            "another agent runs in this network namespace; `qingagent status` shows it, `qingagent stop` ends it"
        ) from None
    return lock
