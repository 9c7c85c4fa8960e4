"""The state file as a SQLite database, with one connection; blocking.

Exactly one connection exists: SQLite before 3.51.3 can corrupt a WAL that two connections share, and
`locking_mode=EXCLUSIVE` enforces it.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import msgspec

from qingcloud_cni.core.errors import StartRefused, StoreDamaged, StoreRefused, is_shortage
from qingcloud_cni.core.nics.changes import (
    BOOT,
    EVENT_LIMIT,
    Change,
    Drop,
    Put,
    Row,
    RowKey,
    Setting,
    Snapshot,
    key_of,
)
from qingcloud_cni.core.nics.model import Attachment, Event, Intent, Nic
from qingcloud_cni.core.nics.rows import violations
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.store.schema import SUMMED, checksum, upgrade

EVENTS_TRIMMED = 1_000  # new events between two deletes of old ones
_PRAGMAS = (
    "locking_mode=EXCLUSIVE",
    "journal_mode=WAL",
    "synchronous=FULL",  # an ADD's record survives a power cut
    "wal_autocheckpoint=1000",  # pages, some 200 requests; the request at a checkpoint waits for two more fsyncs
    "journal_size_limit=8388608",  # bytes to which a WAL that grew on a full disk is cut
)
_COLUMNS = "at, name, nic_id, subject, detail, state, job_id, pod"  # of an event, in the order of its fields
_MATCHES = """seq > :after AND :nic_id IN ('', nic_id) AND :subject IN ('', subject)
    AND :pod IN ('', pod, substr(pod, instr(pod, '/') + 1))
    AND (:name IN ('', name) OR substr(name, 1, length(:name) + 1) = :name || '.')
    AND (:container = '' OR instr(subject, '/') > 0
        AND instr(substr(subject, instr(subject, '/')), '/' || :container) = 1)"""  # network/container/ifname
_IN_USE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_REFUSED = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
    }
)
_TABLES: dict[type[Row], str] = {Nic: "nics", Attachment: "attachments", Intent: "intents", Setting: "settings"}
_Identity = tuple[int, int]  # device and inode
_Row = TypeVar("_Row", Nic, Attachment, Intent)


class Database:
    """Reads rows and writes changes. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        """Open the file; create or upgrade it if needed. Errors as of `Store.load`, or StoreDamaged."""
        if path.is_dir():
            raise StartRefused(f"{named(path)} is a directory; remove it, or use another --state-dir")
        self._path = path
        with self._translated():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            with self._translated(is_known=False):
                self._prepare()
        except BaseException:
            self._db.close()
            raise
        self._watched = str(path.parent), str(path), f"{path}-wal"
        self._opened = self._identities()

    def _prepare(self) -> None:
        self._db.text_factory = _text
        for pragma in _PRAGMAS:
            self._db.execute(f"PRAGMA {pragma}")
        upgrade(self._db, named(self._path))
        self._check()
        (last,) = self._db.execute("SELECT max(seq) FROM events").fetchone()
        # A new file continues with numbers above all of earlier files, for readers that resume after one.
        self._last_seq: int = time.time_ns() // 1_000_000 if last is None else last
        self.birth: str  # a random id of the file
        self.writes: int  # since its creation
        self.birth, self.writes = self._db.execute("SELECT birth, writes FROM meta").fetchone()

    # --- rows ----------------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """Return all rows; StoreDamaged if one is unreadable, fails its checksum, or contradicts another."""
        with self._translated(is_known=False):
            settings = {texts[0]: texts[1] for texts in self._texts("settings")}
            snapshot = Snapshot(
                nics=self._rows(Nic),
                attachments=self._rows(Attachment),
                intents=self._rows(Intent),
                boot_id=settings.pop(BOOT, ""),
                settings=settings,
            )
        if broken := violations(snapshot.nics, snapshot.attachments):
            raise StoreDamaged(f"{named(self._path)} is damaged: {broken[0]}")
        return snapshot

    def _rows(self, kind: type[_Row]) -> tuple[_Row, ...]:
        table = _TABLES[kind]
        try:
            return tuple(msgspec.json.decode(texts[-1], type=kind) for texts in self._texts(table))
        except msgspec.MsgspecError as err:
            raise StoreDamaged(f"{named(self._path)} is damaged: table {table}: {err}") from err

    def _texts(self, table: str) -> Iterator[tuple[str, ...]]:
        """Yield the rows' columns in order of insertion, with their checksums verified."""
        columns = ", ".join(SUMMED[table])
        rows = self._db.execute(f"SELECT {columns}, sum FROM {table} ORDER BY rowid")
        for *texts, expected in rows:
            if checksum(*texts) != expected:
                raise StoreDamaged(f"{named(self._path)} is damaged: table {table}: checksum of {texts[0]}")
            yield tuple(texts)

    # --- changes -------------------------------------------------------------------------------------

    def write(self, changes: Sequence[Change], *, is_all: bool = False) -> None:
        """Write as `Store.save` does; *is_all*: *changes* replace all rows."""
        if not changes and not is_all:
            return
        self.check_files()
        last = self._last_seq
        with self._translated(), self._transaction():
            for table in SUMMED if is_all else ():
                self._db.execute(f"DELETE FROM {table}")
            for change in changes:
                if isinstance(change, Event):
                    last += 1
                    self._put_event(last, change)
                else:
                    self._apply(change)
            self._db.execute("UPDATE meta SET writes = ?", (self.writes + 1,))
            if last // EVENTS_TRIMMED > self._last_seq // EVENTS_TRIMMED:
                self._db.execute("DELETE FROM events WHERE seq <= ?", (last - EVENT_LIMIT,))
        self._last_seq = last
        self.writes += 1

    def check_files(self) -> None:
        """StoreDamaged unless the paths lead to what was opened: the database and its WAL, in the same directory."""
        if self._identities() != self._opened:
            raise StoreDamaged(
                f"{named(self._path)} or its WAL differs from the one that was opened: somebody moved or removed it"
            )

    def _identities(self) -> list[_Identity | None]:
        return [_identity(path) for path in self._watched]  # before each write, so no Path is made

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # SQLite itself rolls back if the disk is full
                self._db.execute("ROLLBACK")

    def _apply(self, change: Put | Drop) -> None:
        match change:
            case Put(Setting(name, value)):
                self._put("settings", name, value)
            case Put(row):
                self._put(_TABLES[type(row)], *_columns(key_of(row)), msgspec.json.encode(row).decode())
            case Drop(kind, key):
                self._drop(_TABLES[kind], *_columns(key))

    def _put(self, table: str, *texts: str) -> None:
        marks = ", ".join("?" for _ in texts)
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks}, ?)", (*texts, checksum(*texts)))

    def _drop(self, table: str, *key: str) -> None:
        where = " AND ".join(f"{column} = ?" for column in SUMMED[table][: len(key)])
        self._db.execute(f"DELETE FROM {table} WHERE {where}", key)

    def _put_event(self, seq: int, event: Event) -> None:
        """Replace a row with the same number: a failed attempt may have written it."""
        e = event
        self._db.execute(
            f"INSERT OR REPLACE INTO events (seq, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, e.at, e.name, e.nic_id, e.subject, e.detail, e.state, e.job_id, e.pod),
        )

    def tidy(self) -> None:
        """Checkpoint the WAL and check the file; StoreRefused, StoreDamaged."""
        with self._translated():
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._check()

    def _check(self) -> None:
        (verdict,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()  # takes a millisecond
        if verdict != "ok":
            raise StoreDamaged(f"{named(self._path)} is damaged: {' '.join(verdict.split())}")

    # --- events --------------------------------------------------------------------------------------

    def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        order = "ASC" if wanted.after else "DESC"
        query = f"SELECT {_COLUMNS}, seq FROM events WHERE {_MATCHES} ORDER BY seq {order} LIMIT :limit"
        with self._translated():
            rows = self._db.execute(query, asdict(wanted)).fetchall()
        return tuple(Event(*row) for row in (rows if wanted.after else reversed(rows)))

    def close(self) -> None:
        self._db.close()

    # --- errors --------------------------------------------------------------------------------------

    @contextmanager
    def _translated(self, *, is_known: bool = True) -> Iterator[None]:
        """Translate SQLite's errors. *is_known*: the tables are ours, so a wrong statement is a bug, not damage."""
        try:
            yield
        except sqlite3.Error as err:
            code = getattr(err, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF  # the higher bits detail it
            if code in _IN_USE:
                raise StartRefused(f"{named(self._path)} is in use by another process; end that first") from err
            if code in _REFUSED:
                advice = "make room" if code == sqlite3.SQLITE_FULL else "fix the disk or its permissions"
                raise StoreRefused(f"{named(self._path)} cannot be written: {err}; {advice} there") from err
            if code in _DAMAGED or (code == sqlite3.SQLITE_ERROR and not is_known):
                raise StoreDamaged(f"{named(self._path)} is damaged: {err}") from err
            raise


def named(path: Path) -> str:
    """Return the file's name in messages."""
    return f"state file {path}"


def _text(raw: bytes) -> str:
    """Decode any bytes: checksums detect damaged rows, and events are for people."""
    return raw.decode(errors="replace")


def _identity(path: str) -> _Identity | None:
    """Of the file itself, not of one that a link leads to; None if there is none."""
    try:
        info = os.lstat(path)
    except OSError as err:
        if is_shortage(err):
            raise
        return None
    return (info.st_dev, info.st_ino)


def _columns(key: RowKey) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else (key.network, key.container_id, key.ifname)
