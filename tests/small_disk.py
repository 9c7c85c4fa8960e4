"""File systems with little room, for tests: full at will."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simulator import run


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own at *place*; *size* as mount takes it."""
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place))
    try:
        yield place
    finally:
        run("umount", "--lazy", str(place))


def fill(place: Path) -> Path:
    """Take all the room there is; the file to remove again."""
    others = place / "others"
    with suppress(OSError), others.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return others
