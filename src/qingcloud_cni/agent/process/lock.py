"""One agent per network namespace, by a lock on a file that only root can reach."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qingcloud_cni.agent.base import logs
from qingcloud_cni.agent.process.run_files import ensure_directory
from qingcloud_cni.core.errors import AlreadyRunning
from qingcloud_cni.posix import is_open_at

LOCKS = Path("/run/qingcloud-cni-lock")  # does not follow --run-dir: two agents with two of them share the namespace
_NAMESPACE = Path("/proc/self/ns/net")
NAME = "\0qingcloud-cni/agent"  # agents of earlier versions have this name alone; anybody can take it
TRIES, PAUSE = 5, 0.02  # seconds: an agent that starts elsewhere holds a stale file for a moment
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def agent_lock() -> Iterator["Lock"]:
    """Be the only agent of this network namespace for the block; AlreadyRunning if another is."""
    lock = Lock(LOCKS / str(_NAMESPACE.stat().st_ino))
    _remove_stale()
    try:
        with _named():
            yield lock
    finally:
        lock.release()


class Lock:
    """A file that is locked while it is open; AlreadyRunning if another process has locked it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _locked(path)

    async def restore(self) -> str | None:
        """Lock a new file if somebody removed this one, as `OwnFiles` has it."""
        if is_open_at(self._file, self._path):
            return None
        file = _locked(self._path)
        os.close(self._file)
        self._file = file
        return f"lock file {self._path}"

    def release(self) -> None:
        if is_open_at(self._file, self._path):
            self._path.unlink()
        os.close(self._file)
        with suppress(OSError):
            LOCKS.rmdir()


def _remove_stale() -> None:
    """Remove the files of agents that were killed in other namespaces."""
    for path in LOCKS.iterdir():
        with suppress(OSError):
            file = os.open(path, _OPEN & ~os.O_CREAT)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(file)


def _locked(path: Path) -> int:
    tries = TRIES
    while True:
        ensure_directory(LOCKS, "repair it, start again")
        try:
            file = os.open(path, _OPEN, 0o600)
        except FileNotFoundError:
            continue  # another agent that ended has removed the directory
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), path.lstat()):
                return file
        except BlockingIOError:
            tries -= 1
            if not tries:
                os.close(file)
                raise AlreadyRunning(
                    "another agent runs in this network namespace; `qingagent status` shows it, `qingagent stop` ends"
                    " it"
                ) from None
            time.sleep(PAUSE)
        except FileNotFoundError:
            pass
        os.close(file)  # that of an agent which ended meanwhile, or is held to be removed


@contextmanager
def _named() -> Iterator[None]:
    """Hold the abstract name too. A program without rights may hold it, so that is only worth a line in the log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as name:
        try:
            name.bind(NAME)
        except OSError as err:
            logs.write("lock.name-taken", cause=err.strerror)
        yield
