"""The tables of the state file, as upgrade steps; a new file takes all of them."""

import sqlite3
import zlib
from collections.abc import Callable

from qingcloud_cni.core.errors import StartRefused

Connection = sqlite3.Connection


def checksum(*columns: str) -> int:
    """Return the checksum of a row's text. SQLite detects damage to its structure, not to contents."""
    return zlib.crc32("\0".join(columns).encode())


def upgrade(db: Connection, file: str) -> None:
    """Run the missing steps in one transaction; StartRefused if a newer program wrote the file."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StartRefused(
            f"{file} has schema {version}, and this program knows {SCHEMA_VERSION}: a newer version wrote it;"
            " run that version, or move the file away"
        )
    if version == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in STEPS[version:]:
            step(db)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _run(db: Connection, script: str) -> None:
    """Execute single statements, as `executescript` ends the transaction."""
    for statement in script.split(";"):
        if statement.strip():
            db.execute(statement)


def _to_1(db: Connection) -> None:
    _run(
        db,
        """
CREATE TABLE nics (nic_id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE attachments (network TEXT, container_id TEXT, ifname TEXT, body TEXT NOT NULL,
    PRIMARY KEY (network, container_id, ifname)) STRICT;
CREATE TABLE intents (op_id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE settings (name TEXT PRIMARY KEY, before TEXT NOT NULL) STRICT;
CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, name TEXT NOT NULL,
    nic_id TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL) STRICT
""",
    )


def _to_2(db: Connection) -> None:
    """Add checksums of rows, a count of writes, and state, job and pod of events, which we number."""
    for table, columns in SUMMED.items():
        db.execute(f"ALTER TABLE {table} ADD COLUMN sum INTEGER NOT NULL DEFAULT 0")
        names = ", ".join(columns)
        for rowid, *texts in db.execute(f"SELECT rowid, {names} FROM {table}").fetchall():
            db.execute(f"UPDATE {table} SET sum = ? WHERE rowid = ?", (checksum(*texts), rowid))
    _run(
        db,
        """
CREATE TABLE events_2 (seq INTEGER PRIMARY KEY, at REAL NOT NULL, name TEXT NOT NULL, nic_id TEXT NOT NULL,
    subject TEXT NOT NULL, detail TEXT NOT NULL, state TEXT NOT NULL, job_id TEXT NOT NULL, pod TEXT NOT NULL) STRICT;
INSERT INTO events_2 SELECT seq, at, name, nic_id, subject, detail, '', '', '' FROM events;
DROP TABLE events;
ALTER TABLE events_2 RENAME TO events;
CREATE TABLE meta (birth TEXT NOT NULL, writes INTEGER NOT NULL) STRICT;
INSERT INTO meta VALUES (hex(randomblob(8)), 0)
""",
    )


SUMMED = {  # tables with checksums, and the columns they cover
    "nics": ("nic_id", "body"),
    "attachments": ("network", "container_id", "ifname", "body"),
    "intents": ("op_id", "body"),
    "settings": ("name", "before"),
}
STEPS: tuple[Callable[[Connection], None], ...] = (_to_1, _to_2)
SCHEMA_VERSION = len(STEPS)
