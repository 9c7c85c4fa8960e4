"""Network namespaces: open and identify them, enter them in a thread, find all reachable ones."""

import ctypes
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final, Self

from qingcloud_cni.core.errors import AbilityMissing, InvalidNetns, KernelRefused, is_shortage

CLONE_NEWNET: Final = 0x40000000
NS_GET_NSTYPE: Final = 0xB703  # _IO(0xb7, 3), Linux 4.11: the kind of namespace behind a file
OWN: Final = "/proc/thread-self/ns/net"  # /proc/self shows the main thread's
RETURN_PAUSES: Final = (0.01, 0.1, 1.0)  # seconds between tries to return after a shortage
OTHER_DIRS: Final = (Path("/run/docker/netns"),)  # mount directories of other programs

Identity = tuple[int, int]  # device and inode

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)


class NamespaceReturnFailed(RuntimeError):
    """The thread could not return to its own namespace: its calls would hit another one, so the process must end."""


class ClosesOnExit:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None: ...


class Namespace(ClosesOnExit):
    """An open network namespace; the kernel keeps it while it is open."""

    def __init__(self, fd: int) -> None:
        info = os.fstat(fd)
        self.fd = fd
        self.identity: Identity = (info.st_dev, info.st_ino)

    @classmethod
    def open(cls, path: str) -> Self:
        """Open the namespace behind *path*; InvalidNetns if *path* is not one.

        A mount point and /proc/<pid>/ns/net are files of nsfs; the plain file that an unmount leaves is not.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)  # a FIFO must not block
        except ValueError as err:
            raise InvalidNetns(f"netns {path!r}: open failed: not a path") from err
        except OSError as err:
            if is_shortage(err):
                raise KernelRefused(f"netns {path}: open failed: {err.strerror}") from err
            raise InvalidNetns(f"netns {path}: open failed: {err.strerror}") from err
        try:
            is_network = stat.S_ISREG(os.fstat(fd).st_mode) and fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
        except OSError:  # ENOTTY: not a file of nsfs
            is_network = False
        if not is_network:
            os.close(fd)
            raise InvalidNetns(f"netns {path}: open failed: not a network namespace")
        return cls(fd)

    def __repr__(self) -> str:
        return f"<Namespace {self.identity[1]} fd={self.fd}>"

    def close(self) -> None:
        """Safe to repeat."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class NetnsSwitcher:
    """Moves the thread that made it into other namespaces and back.

    A thread that it starts meanwhile would stay in the other namespace.
    """

    def __init__(self, home: str | None = None) -> None:
        """Return to the current namespace, or to the one at *home*; AbilityMissing if it cannot be entered."""
        try:
            self.home = Namespace.open(home or OWN)
        except InvalidNetns as err:
            raise AbilityMissing(f"host's network namespace: open failed: {err}") from err
        self._is_lost = False
        try:
            if home is not None:
                enter(self.home)
        except OSError as err:
            self.home.close()
            raise AbilityMissing(f"network namespaces: enter failed: {err.strerror}; run as root") from err

    @contextmanager
    def inside(self, namespace: Namespace) -> Iterator[None]:
        """Be in *namespace* during the block: the block opens its sockets and writes its /proc/sys/net."""
        if self._is_lost:
            raise NamespaceReturnFailed("kernel thread: an earlier return to the host's network namespace failed")
        try:
            enter(namespace)
        except OSError as err:
            raise KernelRefused(f"netns {namespace.identity[1]}: enter failed: {err.strerror}") from err
        try:
            yield
        finally:
            self._return()

    def _return(self) -> None:
        """Retry after a shortage of memory: nothing may happen in the wrong namespace meanwhile."""
        pauses = iter(RETURN_PAUSES)
        while True:
            try:
                return enter(self.home)
            except OSError as err:
                pause = next(pauses, None) if is_shortage(err) else None
                if pause is None:
                    self._is_lost = True
                    raise NamespaceReturnFailed(
                        f"kernel thread: return to the host's network namespace failed: {err}"
                    ) from err
                time.sleep(pause)

    def close(self) -> None:
        self.home.close()


def enter(namespace: Namespace) -> None:
    libc_call("setns", namespace.fd, CLONE_NEWNET)


def write_setting(path: str, value: bytes) -> None:
    """Write to a file below /proc/sys/net, in the calling thread's namespace."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # pathlib and text files cost more than the kernel does
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def libc_call(name: str, *args: int | bytes | None) -> None:
    """Call a function of the C library that returns 0 or sets errno; raises OSError."""
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def reachable(netns_dir: Path, paths: Iterable[str] = ()) -> Iterator[tuple[Identity, str]]:
    """Yield every reachable network namespace once, with a path: of *paths*, of mounts and of processes."""
    seen: set[Identity] = set()
    for path in chain(map(Path, paths), _paths((netns_dir, *OTHER_DIRS))):
        try:
            info = path.stat()
        except OSError as err:
            if is_shortage(err):
                raise
            continue  # removed since the listing, or of a process that ended
        identity = (info.st_dev, info.st_ino)
        if identity not in seen:
            seen.add(identity)
            yield identity, str(path)


def find(identity: Identity, netns_dir: Path) -> Namespace | None:
    """Open the namespace of this identity by any path."""
    for found, path in reachable(netns_dir):
        if found == identity and (namespace := open_if(path, identity)):
            return namespace
    return None


def leads_to(path: str, identity: Identity) -> bool:
    namespace = open_if(path, identity)
    if namespace is not None:
        namespace.close()
    return namespace is not None


def open_if(path: str, identity: Identity) -> Namespace | None:
    try:
        namespace = Namespace.open(path)
    except InvalidNetns:
        return None
    if namespace.identity == identity:
        return namespace
    namespace.close()
    return None


def _paths(dirs: Iterable[Path]) -> Iterator[Path]:
    for folder in dirs:
        if folder.is_dir():
            yield from folder.iterdir()
    yield from (process / "ns/net" for process in Path("/proc").iterdir() if process.name.isdigit())
