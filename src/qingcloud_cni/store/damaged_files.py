"""A damaged file is kept for whoever wants to look into it, out of the way and not for ever."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from qingcloud_cni.core.errors import StoreRefused
from qingcloud_cni.posix import sync_directory

KEPT = 3  # damaged files beside the good one; the oldest goes
_PARTS = ("-wal", "-shm", "-journal", "")  # what SQLite makes beside a file; each is read with the file of its name


def set_aside(path: Path) -> Path | None:
    """Give the file, and what belongs to it, names with the time; the file's new name, or None if there was none.

    The WAL goes first: left alone it would be read into the file that comes next. Without its file it is of no use.
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
    for old in earlier(path)[:-KEPT]:
        for part in _PARTS:
            _with(old, part).unlink(missing_ok=True)
    return target if is_there else None


def state_files(path: Path) -> list[Path]:
    """Every file the store may have made at *path* and beside it, there or not."""
    return [_with(file, part) for file in (path, *earlier(path)) for part in _PARTS]


def earlier(path: Path) -> list[Path]:
    """The files that were set aside and are still there, the oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return sorted(p for p in found if not p.name.endswith(tuple(filter(None, _PARTS))))


def _with(path: Path, part: str) -> Path:
    return path.with_name(path.name + part)
