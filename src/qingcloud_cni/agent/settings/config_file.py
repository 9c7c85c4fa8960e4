"""The config file: found by name, read in the format of its suffix, and checked to be flat."""

import os
from collections.abc import Iterator
from pathlib import Path

from qingcloud_cni.agent.settings.config_formats import FORMATS, FormatError
from qingcloud_cni.core.errors import StartRefused

NAME = "QingAgent"
DIRECTORIES = (Path(), Path("/etc/qingcloud"))  # the working directory comes first
LARGEST = 64 * 1024  # bytes; a file with every setting has about 1000


def find_configs() -> Iterator[Path]:
    """The QingAgent files that exist, in the order of precedence."""
    candidates = (directory / (NAME + suffix) for directory in DIRECTORIES for suffix in FORMATS)
    return (path for path in candidates if os.path.lexists(path))  # so that a dangling link is an error


def find_config() -> Path | None:
    return next(find_configs(), None)


def read_config(path: Path) -> dict[str, object]:
    """Keys in lower case and their raw values; StartRefused if the file is missing, invalid or not flat."""
    parse = FORMATS.get(path.suffix.lower())
    if parse is None:
        raise StartRefused(f"config file {path}: its name must end in {', '.join(FORMATS)}")
    text = _read(path)
    try:
        pairs = parse(text)
    except FormatError as err:
        raise StartRefused(f"config file {path}: invalid: {' '.join(str(err).split())}") from err
    except RecursionError:
        raise StartRefused(f"config file {path}: invalid: nested too deep") from None
    keys: dict[str, object] = {}
    for key, value in pairs:
        name = key.lower()
        if name in keys:
            raise StartRefused(f"config file {path}: key {key!r} is given twice")
        if isinstance(value, dict):
            raise StartRefused(f"config file {path}: key {key!r} has a nested value; the file must be flat")
        keys[name] = value
    return keys


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as err:
        raise StartRefused(f"config file {path}: read failed: {err.strerror}; set another with --config") from err
    if len(content) > LARGEST:
        raise StartRefused(f"config file {path}: rejected: larger than {LARGEST} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise StartRefused(f"config file {path}: invalid: line {line}: not UTF-8") from err
