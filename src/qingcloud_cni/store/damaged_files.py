"""Damaged files: renamed for later examination, the oldest deleted."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from qingcloud_cni.core.errors import StoreRefused
from qingcloud_cni.posix import sync_directory

RETAINED = 3  # damaged files
_PARTS = ("-wal", "-shm", "-journal", "")  # files of a SQLite database, by suffix


def set_aside(path: Path) -> Path | None:
    """Rename the database, with the time in the name; return the new path, None if there was no file.

    The WAL goes first: SQLite would read it into the next file. Without its file it is of no use and deleted.
    """
    target = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    is_there = path.exists()
    try:
        for part in _PARTS:
            with suppress(FileNotFoundError):
                if is_there:
                    _with(path, part).rename(_with(target, part))
                else:
                    _with(path, part).unlink()
        sync_directory(path.parent)
    except OSError as err:
        raise StoreRefused(f"state file {path} is damaged and cannot be set aside: {err.strerror}") from err
    for old in earlier(path)[:-RETAINED]:
        for part in _PARTS:
            _with(old, part).unlink(missing_ok=True)
    return target if is_there else None


def state_files(path: Path) -> list[Path]:
    """Return every path at which the store may have made a file."""
    return [_with(file, part) for file in (path, *earlier(path)) for part in _PARTS]


def earlier(path: Path) -> list[Path]:
    """Return the damaged files that exist, the oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(p for p in found if not p.name.endswith(tuple(filter(None, _PARTS))))


def _with(path: Path, part: str) -> Path:
    return path.with_name(path.name + part)
