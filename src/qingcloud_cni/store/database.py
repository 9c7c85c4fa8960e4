"""The rows on disk: one SQLite file through one connection, blocking.

Exactly one connection exists: SQLite before 3.51.3 can corrupt a WAL that two connections share, and
`locking_mode=EXCLUSIVE` enforces it.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qingcloud_cni.core.errors import StartRefused, StoreFailed
from qingcloud_cni.core.model import Attachment, AttachmentKey, Event, Intent, Nic
from qingcloud_cni.core.seams import (
    Change,
    DropAttachment,
    DropIntent,
    DropNic,
    PutAttachment,
    PutIntent,
    PutNic,
    PutSetting,
    Snapshot,
)

SCHEMA_VERSION = 1
EVENTS_KEPT = 10_000  # about 2 MB
EVENTS_TRIMMED = 1_000  # older ones go after every so many new ones
_PRAGMAS = (
    "locking_mode=EXCLUSIVE",
    "journal_mode=WAL",
    "synchronous=FULL",  # an ADD's record survives a power cut
    "wal_autocheckpoint=1000",  # pages, some 200 requests: the one whose record comes then waits for two fsyncs more
)
_OF_THE_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}  # may be over the next moment
_OF_THE_PLACE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SCHEMA = """
CREATE TABLE nics (nic_id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE attachments (network TEXT, container_id TEXT, ifname TEXT, body TEXT NOT NULL,
    PRIMARY KEY (network, container_id, ifname)) STRICT;
CREATE TABLE intents (op_id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE settings (name TEXT PRIMARY KEY, before TEXT NOT NULL) STRICT;
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, name TEXT NOT NULL,
    nic_id TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
"""


class Database:
    """Changes in, rows out. Not for two threads at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; StartRefused where it is damaged, in use or of a newer version.

        StoreFailed where the disk does not do its part.
        """
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        except sqlite3.Error as err:
            raise _unusable(path, err) from err
        try:
            self._prepare(path)
        except sqlite3.Error as err:
            self._db.close()
            raise _unusable(path, err) from err
        except StartRefused:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        for pragma in _PRAGMAS:
            self._db.execute(f"PRAGMA {pragma}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StartRefused(
                f"state file {path} has schema {version}, and this program knows {SCHEMA_VERSION}:"
                " a newer version wrote it; run that one"
            )
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")

    def load(self) -> Snapshot:
        """All rows; StartRefused where one cannot be read."""
        try:
            return Snapshot(
                nics=tuple(msgspec.json.decode(body, type=Nic) for body in self._bodies("nics")),
                attachments=tuple(msgspec.json.decode(body, type=Attachment) for body in self._bodies("attachments")),
                intents=tuple(msgspec.json.decode(body, type=Intent) for body in self._bodies("intents")),
                settings=dict(self._db.execute("SELECT name, before FROM settings ORDER BY rowid").fetchall()),
            )
        except (sqlite3.Error, msgspec.MsgspecError) as err:
            raise _unusable(self._path, err) from err

    def _bodies(self, table: str) -> list[str]:
        return [body for (body,) in self._db.execute(f"SELECT body FROM {table} ORDER BY rowid")]  # noqa: S608 - a literal of ours

    def write(self, changes: Sequence[Change]) -> None:
        """All of *changes* in one transaction, or none; StoreFailed where the disk does not do its part."""
        if not changes:
            return
        try:
            self._transact(changes)
        except sqlite3.Error as err:
            fault = _code(err)
            if fault in _OF_THE_DISK | _OF_THE_PLACE | _DAMAGE:  # anything else is a bug of ours
                raise StoreFailed(f"state file {self._path} cannot be written: {err}; {_advice(fault)}") from err
            raise

    def _transact(self, changes: Sequence[Change]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                self._apply(change)
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _apply(self, change: Change) -> None:
        execute = self._db.execute
        match change:
            case PutNic(nic):
                execute("INSERT OR REPLACE INTO nics VALUES (?, ?)", (nic.nic_id, _body(nic)))
            case DropNic(nic_id):
                execute("DELETE FROM nics WHERE nic_id = ?", (nic_id,))
            case PutAttachment(attachment):
                row = (*_columns(attachment.key), _body(attachment))
                execute("INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, ?)", row)
            case DropAttachment(key):
                execute(
                    "DELETE FROM attachments WHERE network = ? AND container_id = ? AND ifname = ?", _columns(key)
                )
            case PutIntent(intent):
                execute("INSERT OR REPLACE INTO intents VALUES (?, ?)", (intent.op_id, _body(intent)))
            case PutSetting(name, before):
                execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, before))
            case DropIntent(op_id):
                execute("DELETE FROM intents WHERE op_id = ?", (op_id,))
            case Event():
                columns = (change.at, change.name, change.nic_id, change.subject, change.detail)
                seq = execute(
                    "INSERT INTO events (at, name, nic_id, subject, detail) VALUES (?, ?, ?, ?, ?)", columns
                ).lastrowid
                if seq is not None and seq % EVENTS_TRIMMED == 0:
                    execute("DELETE FROM events WHERE seq <= ?", (seq - EVENTS_KEPT,))

    def events(self, limit: int) -> tuple[Event, ...]:
        rows = self._db.execute(
            "SELECT at, name, nic_id, subject, detail FROM events ORDER BY seq DESC LIMIT ?", (limit,)
        ).fetchall()
        return tuple(Event(*row) for row in reversed(rows))

    def close(self) -> None:
        self._db.close()


def _columns(key: AttachmentKey) -> tuple[str, str, str]:
    return key.network, key.container_id, key.ifname


def _body(row: Nic | Attachment | Intent) -> str:
    return msgspec.json.encode(row).decode()


def _code(err: Exception) -> int:
    """SQLite's code for *err*: the low byte; above it stands the finer reason."""
    return int(getattr(err, "sqlite_errorcode", 0)) & 0xFF


def _advice(fault: int) -> str:
    if fault == sqlite3.SQLITE_FULL:
        return "make room there"
    if fault in _OF_THE_DISK | _OF_THE_PLACE:
        return "mend the disk or the permissions there"
    return "move it away to begin anew from cloud and kernel"


def _unusable(path: Path, err: sqlite3.Error | msgspec.MsgspecError) -> StartRefused | StoreFailed:
    fault = _code(err)
    if fault == sqlite3.SQLITE_BUSY:
        return StartRefused(f"state file {path} is in use by another process; end that one first")
    words = f"state file {path} cannot be used: {err}; {_advice(fault)}"
    return StoreFailed(words) if fault in _OF_THE_DISK else StartRefused(words)
