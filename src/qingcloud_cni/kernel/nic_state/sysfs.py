"""Settings of links that only sysfs has, read through a sysfs of one network namespace.

The mounted /sys shows the namespace in which it was mounted. fsmount(2) makes a mount that is attached nowhere
(Linux 5.2), so no mount namespace changes, and it ends with its file descriptor.
"""

import ctypes
import os
from typing import Final, Self

from qingcloud_cni.kernel.namespaces.namespaces import ClosesOnExit

FSOPEN: Final = 430  # the same numbers on every architecture
FSCONFIG: Final = 431
FSMOUNT: Final = 432
FSOPEN_CLOEXEC: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
FSMOUNT_CLOEXEC: Final = 1
BYTES: Final = 4096  # a file has one value

THREADED: Final = "threaded"  # writable only while the link has a NAPI: a veth needs GRO for one, and to be up
LINK_FILES: Final = ("gro_flush_timeout", "napi_defer_hard_irqs", THREADED)
BQL: Final = tuple(f"byte_queue_limits/{file}" for file in ("limit_max", "limit_min", "hold_time"))
QUEUE_FILES: Final = ("rps_cpus", "rps_flow_cnt", "xps_cpus", "xps_rxqs", "tx_maxrate", *BQL)
# The kernel has these also for each NAPI, where netlink changes them and the link's own file does not show it.
WRITTEN_ALWAYS: Final = LINK_FILES

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Sysfs(ClosesOnExit):
    """A sysfs with the links of the namespace in which it was made."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def mount(cls) -> Self:
        """Mount one for the calling thread's namespace; OSError without the right or before Linux 5.2."""
        context = _call(FSOPEN, b"sysfs", FSOPEN_CLOEXEC)
        try:
            _call(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
            return cls(_call(FSMOUNT, context, FSMOUNT_CLOEXEC, 0))
        finally:
            os.close(context)

    def close(self) -> None:
        os.close(self._fd)

    def settings(self, link_name: str) -> dict[str, str]:
        """The link's settings by their path below its directory; without those that it does not have."""
        with _Directory(f"class/net/{link_name}", self._fd) as link:
            files = [
                *LINK_FILES,
                *(f"queues/{queue}/{file}" for queue in link.list("queues") for file in QUEUE_FILES),
            ]
            return {file: value for file in files if (value := link.read(file)) is not None}

    def restore(self, link_name: str, file: str, value: str) -> None:
        """Write a setting of `settings` back; OSError as the kernel refuses."""
        with _Directory(f"class/net/{link_name}", self._fd) as link:
            link.write(file, value)


class _Directory(ClosesOnExit):
    def __init__(self, path: str, parent: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)

    def close(self) -> None:
        os.close(self._fd)

    def list(self, path: str) -> list[str]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            with os.scandir(fd) as entries:
                return sorted(entry.name for entry in entries)
        finally:
            os.close(fd)

    def read(self, file: str) -> str | None:
        """None if the link has no such setting; with one queue, XPS has a file that cannot be read."""
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        try:
            return os.read(fd, BYTES).decode().strip()
        except OSError:
            return None
        finally:
            os.close(fd)

    def write(self, file: str, value: str) -> None:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def _call(number: int, *args: int | bytes | None) -> int:
    result = int(_libc.syscall(number, *args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
