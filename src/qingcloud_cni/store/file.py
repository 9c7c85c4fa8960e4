"""The state file, with the replacement of a damaged one; blocking."""

from collections.abc import Sequence
from pathlib import Path

from qingcloud_cni.core.errors import StoreDamaged, StoreRefused, Unavailable
from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.posix import restore_directory
from qingcloud_cni.store.damaged_files import set_aside
from qingcloud_cni.store.database import Database, named
from qingcloud_cni.store.write_counter import WriteCounter


class StateFile:
    """Implements `core.seams.store.Store`, without async. Not thread-safe."""

    def __init__(self, path: Path, write_counter: Path) -> None:
        self._path = path
        self._write_counter = WriteCounter(write_counter)
        self._database: Database | None = None
        self._damaged: str | None = None  # path of a damaged file that has no replacement yet

    def __str__(self) -> str:
        return named(self._path)

    def load(self) -> Snapshot:
        self.close()
        is_empty = self._path.is_file() and not self._path.stat().st_size  # SQLite takes it for a new database
        try:
            self._database = Database(self._path)
            self._write_counter.check(str(self), self._database.birth, self._database.writes)
            return Snapshot(set_aside=f"{self} was empty") if is_empty else self._database.load()
        except StoreDamaged as err:
            self.close()
            cause = f"{err}; it was renamed to {set_aside(self._path)}"
        try:
            self._database = Database(self._path)
        except StoreRefused as err:
            raise StoreRefused(f"{cause}; creating a new one failed: {err}") from err
        return Snapshot(set_aside=cause)

    def save(self, changes: Sequence[Change]) -> None:
        if self._database is None:
            raise StoreDamaged(f"{self} was damaged, and its replacement could not be written yet")
        self._database.write(changes)
        self._write_counter.note(self._database.birth, self._database.writes)

    def check_files(self) -> str | None:
        if self._database is None:
            return None
        self._database.check_files()
        return self._write_counter.restore(self._database.birth, self._database.writes)

    def replace_file(self, changes: Sequence[Change]) -> str:
        self.close()
        try:
            restore_directory(self._path.parent)
        except Unavailable as err:
            raise StoreRefused(f"{self} cannot be written: {err}") from err
        if self._damaged is None:
            self._damaged = str(set_aside(self._path) or "")
        database = Database(self._path)
        try:
            database.write(changes, is_all=True)
        except BaseException:
            database.close()
            raise
        self._database, where, self._damaged = database, self._damaged, None
        self._write_counter.note(database.birth, database.writes)
        return where

    def tidy(self) -> None:
        if self._database is not None:
            self._database.tidy()

    def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        if self._database is None:
            raise StoreRefused(f"{self} was damaged, and its replacement could not be written yet")
        return self._database.events(wanted)

    def close(self) -> None:
        self._write_counter.close()
        if self._database is not None:
            self._database.close()
            self._database = None
