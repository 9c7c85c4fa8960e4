"""The parking namespace, made as by ``ip netns add``: it outlives the agent, and ``ip netns`` lists it."""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from qingcloud_cni.core.errors import AbilityMissing, InvalidNetns, KernelRefused
from qingcloud_cni.kernel.namespaces.namespaces import CLONE_NEWNET, OWN, Namespace, leads_to, libc_call

MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SHARED: Final = 1 << 20
MNT_DETACH: Final = 2


def parking_path(instance_id: str, netns_dir: Path) -> Path:
    return netns_dir / f"qingcni-{instance_id}"


def ensure(path: Path) -> Namespace:
    """Open the parking namespace at *path*; make it if it does not exist or only its empty file does.

    AbilityMissing without the right to do so.
    """
    try:
        _make_folder(path.parent)
        with _locked(path.parent):
            _share(path.parent)
            with suppress(InvalidNetns):
                return Namespace.open(str(path))
            path.unlink(missing_ok=True)  # left by a crash between file and mount, or by a reboot
            _make(path)
            return Namespace.open(str(path))
    except OSError as err:
        if err.errno in (errno.EPERM, errno.EACCES):
            raise AbilityMissing(f"parking namespace {path}: create failed: {err.strerror}; run as root") from err
        raise AbilityMissing(f"parking namespace {path}: create failed: {err}") from err


def restore(path: Path, namespace: Namespace) -> bool:
    """Mount the open *namespace* at *path* unless it is mounted there; True if it was not.

    A mount of another namespace and a file give way; KernelRefused if a link or a directory is there.
    """
    if not path.is_symlink() and leads_to(str(path), namespace.identity):
        return False
    try:
        _make_folder(path.parent)
        with _locked(path.parent):
            _share(path.parent)
            if path.is_symlink() or path.is_dir():
                raise KernelRefused(f"parking namespace {path}: mount failed: something else is there; remove it")
            _unmount(path)
            _mount(f"/proc/thread-self/fd/{namespace.fd}", path)
    except OSError as err:
        raise KernelRefused(f"parking namespace {path}: mount failed: {err}") from err
    return True


def remove(path: Path) -> None:
    """Unmount the namespace and remove its file, if it exists.

    Hardware in it returns to the host's namespace once no process has it open.
    """
    try:
        with suppress(FileNotFoundError), _locked(path.parent):
            _unmount(path)
    except OSError as err:
        raise KernelRefused(f"parking namespace {path}: remove failed: {err}") from err


def _make_folder(folder: Path) -> None:
    """As iproute2 does it, whatever the umask."""
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o755)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude other agents and ``ip netns add``, by iproute2's own lock: nobody shares *folder* twice."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _share(folder: Path) -> None:
    """Make *folder* a shared mount, whose mounts appear in the mount namespaces of other processes."""
    try:
        libc_call("mount", b"", bytes(folder), b"none", MS_SHARED | MS_REC, None)
    except OSError as err:
        if err.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise
        libc_call("mount", bytes(folder), bytes(folder), b"none", MS_BIND | MS_REC, None)
        libc_call("mount", b"", bytes(folder), b"none", MS_SHARED | MS_REC, None)


def _unmount(path: Path) -> None:
    """Undo all mounts on *path*, and remove its file."""
    try:
        while True:
            libc_call("umount2", bytes(path), MNT_DETACH)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted, not there
            raise
    path.unlink(missing_ok=True)


def _mount(source: str, path: Path) -> None:
    """Mount a namespace at *path*, where nothing is."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    try:
        libc_call("mount", source.encode(), bytes(path), b"none", MS_BIND, None)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _make(path: Path) -> None:
    errors: list[OSError] = []

    def mount_new() -> None:
        try:
            libc_call("unshare", CLONE_NEWNET)  # the thread stays there, so it ends after this
            _mount(OWN, path)
        except OSError as err:
            errors.append(err)

    thread = threading.Thread(target=mount_new, name="parking")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
