"""The spool directory: files of DELs that the plugin could not hand to the agent.

The run directory is usually in memory, and the files are small and few, so they are read in the loop's thread.
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
from qingcloud_cni.core.errors import Unavailable, UndecodableRequest, is_shortage
from qingcloud_cni.core.nics.model import AttachmentKey
from qingcloud_cni.posix import READ_FILE, is_private

DRAFT_AGE = 3600.0  # seconds after which the plugin that was writing a draft must have been killed
UNSURE = 2.0  # seconds within which a directory may change again with the same time stamp
_NOT_REGULAR = frozenset({errno.ELOOP, errno.ENXIO})  # open(2) of a link with O_NOFOLLOW, of a socket
Identity = tuple[int, int, int]  # of a file: device, inode, time of its last change


@dataclass(frozen=True, slots=True)
class SpoolFile:
    path: Path
    identity: Identity
    spooled: SpooledDel


@dataclass(frozen=True, slots=True)
class Oddity:
    """A file that is not carried out, with the event that reports it; one with `spool.failed` is tried again."""

    event: str
    detail: str


class SpoolFiles:
    """The files for one agent, which they name by its instance or by an address it listens at."""

    def __init__(self, directory: Path, instance_id: str, socket: Path, bindaddr: Address) -> None:
        self.directory = directory
        self._instance_id = instance_id
        self._socket = socket
        self._bindaddr = bindaddr
        self._reported: dict[Path, Identity] = {}  # files of other agents

    def stamp(self) -> int | None:
        """A value that differs after every change; None while that is not certain, or without a directory."""
        try:
            changed = self.directory.stat().st_mtime_ns
        except OSError:
            return None
        return changed if time.time_ns() - changed > UNSURE * 1e9 else None

    def find(self, key: AttachmentKey) -> SpoolFile | None:
        path = self.directory / file_name(key)
        try:
            self._check_directory()
            file = _read(path)
        except (OSError, Unavailable, UndecodableRequest) as err:  # `scan` reports it
            if is_shortage(err):  # it may be there
                raise Unavailable(f"spool file {path} cannot be read: {err}") from err
            return None
        return file if self._is_ours(file.spooled) else None

    def is_there(self, file: SpoolFile) -> bool:
        """Whether the file is the one that was read: it may be gone, or a later DEL may have replaced it."""
        try:
            return _identity(file.path.lstat()) == file.identity
        except OSError:
            return False

    def remove(self, file: SpoolFile) -> None:
        if self.is_there(file):
            try:
                file.path.unlink()
            except OSError as err:
                raise Unavailable(f"spool file {file.path} cannot be removed: {err.strerror}") from err

    def scan(self) -> list[SpoolFile | Oddity]:
        """Files for this agent, and oddities; others' files once. Unavailable if the directory is unusable."""
        try:
            self._check_directory()
            paths = sorted(self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as err:
            raise Unavailable(f"spool {self.directory} cannot be read: {err.strerror}") from err
        reported, self._reported = self._reported, {}
        found = [self._judge(path, reported.get(path)) for path in paths if path.suffix == ".json"]
        return [item for item in found if item is not None]

    def remove_drafts(self) -> None:
        """Remove the drafts of plugins that were killed."""
        with suppress(OSError, Unavailable):
            self._check_directory()
            for draft in self.directory.glob(".*"):
                if time.time() - draft.lstat().st_mtime > DRAFT_AGE:
                    draft.unlink()

    def _judge(self, path: Path, reported: Identity | None) -> SpoolFile | Oddity | None:
        """*reported* is the identity of the file of this name that was reported before."""
        try:
            file = _read(path)
        except FileNotFoundError:
            return None
        except UndecodableRequest as err:
            return self._set_aside(path, str(err))
        except OSError as err:
            if err.errno in _NOT_REGULAR:
                return self._set_aside(path, "it is not a regular file")
            return Oddity("spool.failed", f"{path} cannot be read: {err.strerror}")
        if self._is_ours(file.spooled):
            return file
        self._reported[path] = file.identity
        meant = file.spooled.instance_id or file.spooled.address
        return Oddity("spool.left", f"{path.name} is for the agent of {meant}") if file.identity != reported else None

    def _set_aside(self, path: Path, why: str) -> Oddity:
        """Rename it, so that an operator can inspect it."""
        other = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.unreadable")
        try:
            path.rename(other)
        except OSError as err:
            return Oddity("spool.failed", f"{path}: {why}; it cannot be renamed either: {err.strerror}")
        return Oddity("spool.unreadable", f"{other}: {why}")

    def _is_ours(self, spooled: SpooledDel) -> bool:
        if spooled.instance_id:
            return spooled.instance_id == self._instance_id
        if spooled.address.startswith(UNIX):
            return os.path.realpath(spooled.address.removeprefix(UNIX)) == os.path.realpath(self._socket)
        return reaches(spooled.address, self._bindaddr.host, self._bindaddr.port)

    def _check_directory(self) -> None:
        """If others could write to it, a file's owner would prove nothing."""
        status = self.directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or not is_private(status, 0o022):
            raise Unavailable(f"spool {self.directory} is not used: it must be a directory that only root may change")


def _read(path: Path) -> SpoolFile:
    """OSError or UndecodableRequest if it cannot be used."""
    descriptor = os.open(path, READ_FILE)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not is_private(status, 0o077):
            raise UndecodableRequest("it must be a file of root's that nobody else may use")
        if status.st_size > LARGEST_REQUEST:
            raise UndecodableRequest(f"it has more than {LARGEST_REQUEST} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            spooled = read_spooled(file.read())
    finally:
        os.close(descriptor)
    if path.name != file_name(spooled.key):
        raise UndecodableRequest(f"it does not have the name for {spooled.key}")
    return SpoolFile(path, _identity(status), spooled)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_mtime_ns
