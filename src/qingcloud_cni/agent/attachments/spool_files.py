"""The spool directory: the files in which the plugin keeps DELs while it cannot ask the agent.

It lies in the run directory, which is in memory on every usual host, and holds a few small files if any: it is read
in the loop's thread.
"""

import errno
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qingcloud_cni.agent.settings.values import Address
from qingcloud_cni.core.cni.protocol import LARGEST_REQUEST
from qingcloud_cni.core.cni.spool import UNIX, SpooledDel, file_name, reaches, read_spooled
from qingcloud_cni.core.errors import Unavailable, UndecodableRequest
from qingcloud_cni.core.nics.model import AttachmentKey

DRAFT_AGE = 3600.0  # seconds after which a file that is still being written is one of a plugin that was killed
UNSURE = 2.0  # seconds within which a directory may change again without another time stamp
_NO_FILE = frozenset({errno.ELOOP, errno.ENXIO})  # a link, a socket: O_NOFOLLOW and open(2) say so
Identity = tuple[int, int, int]  # of a file: device, inode, time of its last change


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A file that was read; *identity* tells whether it is still the same."""

    path: Path
    identity: Identity
    kept: SpooledDel


@dataclass(frozen=True, slots=True)
class Oddity:
    """A file that is not dealt with, by the event that tells of it; `spool.failed` may go better another time."""

    event: str
    detail: str


class SpoolFiles:
    """The files for one agent, known by its instance or by the addresses it listens at."""

    def __init__(self, directory: Path, instance_id: str, socket: Path, bindaddr: Address) -> None:
        self.directory = directory
        self._instance_id = instance_id
        self._socket = socket
        self._bindaddr = bindaddr
        self._told: dict[Path, Identity] = {}

    def stamp(self) -> int | None:
        """Another value after every change; None while that is not certain, or while there is no directory."""
        try:
            changed = self.directory.stat().st_mtime_ns
        except OSError:
            return None
        return changed if time.time_ns() - changed > UNSURE * 1e9 else None

    def find(self, key: AttachmentKey) -> SpoolFile | None:
        """The DEL that is kept for this attachment."""
        path = self.directory / file_name(key)
        try:
            self._check_directory()
            file = _read(path)
        except (OSError, Unavailable, UndecodableRequest):  # `look` deals with it
            return None
        return file if self._is_ours(file.kept) else None

    def is_there(self, file: SpoolFile) -> bool:
        """Whether it is still the one that was read: it may have been dealt with, or a later DEL has replaced it."""
        try:
            return _identity(file.path.lstat()) == file.identity
        except OSError:
            return False

    def remove(self, file: SpoolFile) -> None:
        """Unavailable where the file system does not let it go."""
        if self.is_there(file):
            try:
                file.path.unlink()
            except OSError as err:
                raise Unavailable(f"spool file {file.path} cannot be removed: {err.strerror}") from err

    def look(self) -> list[SpoolFile | Oddity]:
        """All files for this agent, and what is odd; what is odd and stays is told once.

        Unavailable where the directory cannot be used.
        """
        try:
            self._check_directory()
            paths = sorted(self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as err:
            raise Unavailable(f"spool {self.directory} cannot be read: {err.strerror}") from err
        for path in paths:
            if path.name.startswith("."):
                _remove_stale(path)
        told, self._told = self._told, {}
        found = [self._judge(path, told.get(path)) for path in paths if path.suffix == ".json"]
        return [item for item in found if item is not None]

    def _judge(self, path: Path, told: Identity | None) -> SpoolFile | Oddity | None:
        """*told* is the identity of the file of this name that was told of before."""
        try:
            file = _read(path)
        except FileNotFoundError:
            return None
        except UndecodableRequest as err:
            return self._set_aside(path, str(err))
        except OSError as err:
            if err.errno in _NO_FILE:
                return self._set_aside(path, "it is no regular file")
            return Oddity("spool.failed", f"{path} cannot be read: {err.strerror}")
        if self._is_ours(file.kept):
            return file
        self._told[path] = file.identity
        meant = file.kept.instance_id or file.kept.address
        return Oddity("spool.left", f"{path.name} is for the agent of {meant}") if file.identity != told else None

    def _set_aside(self, path: Path, why: str) -> Oddity:
        """Out of the way, for somebody to look at."""
        other = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.unreadable")
        try:
            path.rename(other)
        except OSError as err:
            return Oddity("spool.failed", f"{path}: {why}; it cannot be renamed either: {err.strerror}")
        return Oddity("spool.unreadable", f"{other}: {why}")

    def _is_ours(self, kept: SpooledDel) -> bool:
        if kept.instance_id:
            return kept.instance_id == self._instance_id
        if kept.address.startswith(UNIX):
            return os.path.realpath(kept.address.removeprefix(UNIX)) == os.path.realpath(self._socket)
        return reaches(kept.address, self._bindaddr.host, self._bindaddr.port)

    def _check_directory(self) -> None:
        """Only where others cannot write, a file is what its owner made it to be."""
        status = self.directory.stat()
        if not stat.S_ISDIR(status.st_mode) or not _is_private(status, 0o022):
            raise Unavailable(f"spool {self.directory} is not used: it must be a directory that only root may change")


def _read(path: Path) -> SpoolFile:
    """OSError or UndecodableRequest where it cannot be used."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status, 0o077):
            raise UndecodableRequest("it must be a file of root's that nobody else may use")
        if status.st_size > LARGEST_REQUEST:
            raise UndecodableRequest(f"it has more than {LARGEST_REQUEST} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            kept = read_spooled(file.read())
    finally:
        os.close(descriptor)
    if path.name != file_name(kept.key):
        raise UndecodableRequest(f"it does not have the name for {kept.key}")
    return SpoolFile(path, _identity(status), kept)


def _is_private(status: os.stat_result, others: int) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & others


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _remove_stale(draft: Path) -> None:
    with suppress(OSError):
        if time.time() - draft.lstat().st_mtime > DRAFT_AGE:
            draft.unlink()
