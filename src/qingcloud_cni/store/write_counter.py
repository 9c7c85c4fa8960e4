"""How far a state file has come, noted in another place: a file that has lost its latest changes gives itself away.

SQLite takes a log that breaks off for one that ends there, and a copy from yesterday is a good file, too. Such a
table is right in itself and wrong about the host: a NIC would be taken from the container that got it since. The
other place is the run directory, in memory on every usual host; with a reboot, after which no container has a NIC,
it goes.
"""

import os
from contextlib import suppress
from pathlib import Path

from qingcloud_cni.core.errors import StoreDamaged

_DIGITS = 20


class WriteCounter:
    """Counts the writes of a database in a second file. Without that file it checks nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def check(self, file: str, birth: str, writes: int) -> None:
        """StoreDamaged if this file, known by its *birth*, had more *writes* already."""
        try:
            born, noted = self._path.read_text("ascii").split()
            lost = int(noted) - writes if born == birth else 0
        except (OSError, ValueError):
            return
        if lost > 0:
            raise StoreDamaged(f"{file} is damaged: its last {lost} of {noted.lstrip('0')} writes are missing")

    def note(self, birth: str, writes: int) -> None:
        """Always after the write itself is on disk, so that a kill in between is no loss."""
        with suppress(OSError):
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.pwrite(self._fd, f"{birth} {writes:0{_DIGITS}}\n".encode(), 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
