"""A count of the writes outside the state file, by which a file that lost its latest changes is detected.

SQLite accepts a truncated WAL and an old copy of the file. Such a table is consistent but wrong about the host, and
the agent would take NICs from newer containers. The count is in the run directory, usually in memory: it goes with a
reboot, after which no container has a NIC.
"""

import os
from contextlib import suppress
from pathlib import Path

from qingcloud_cni.core.errors import StoreDamaged, is_shortage
from qingcloud_cni.posix import DIRECTORY, is_open_at

_DIGITS = 20
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class WriteCounter:
    """Counts the writes of a database in a second file. Without that file nothing is checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def check(self, file: str, birth: str, writes: int) -> None:
        """StoreDamaged if the file with this *birth* had more than *writes* before."""
        try:
            born, noted = self._path.read_text("ascii").split()
            lost = int(noted) - writes if born == birth else 0
        except (OSError, ValueError) as err:
            if is_shortage(err):
                raise
            return
        if lost > 0:
            raise StoreDamaged(f"{file} is damaged: its last {lost} of {noted.lstrip('0')} writes are missing")

    def note(self, birth: str, writes: int) -> None:
        """Record the count after the write is on disk, so that a kill in between loses nothing."""
        with suppress(OSError):
            if self._fd < 0:
                self._fd = self._open()
            os.pwrite(self._fd, f"{birth} {writes:0{_DIGITS}}\n".encode(), 0)

    def restore(self, birth: str, writes: int) -> str | None:
        """Rewrite the file if somebody removed it, and then return its name."""
        is_unopened = self._fd < 0 and (not writes or self._path.exists())
        if is_unopened or is_open_at(self._fd, self._path):
            return None
        self.close()
        self.note(birth, writes)
        return f"file {self._path}" if self._fd >= 0 else None

    def _open(self) -> int:
        directory = os.open(self._path.parent, DIRECTORY)
        try:
            return os.open(self._path.name, _WRITE, 0o600, dir_fd=directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
