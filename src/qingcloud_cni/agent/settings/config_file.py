"""The config file: found by name, read in the format its name ends in, and checked to be flat."""

import os
from collections.abc import Iterator
from pathlib import Path

from qingcloud_cni.agent.settings.config_formats import FORMATS, Broken
from qingcloud_cni.core.errors import StartRefused

NAME = "QingAgent"
DIRECTORIES = (Path(), Path("/etc/qingcloud"))  # the working directory comes first
LARGEST = 64 * 1024  # bytes; one with every setting has about 1000


def find_configs() -> Iterator[Path]:
    """The QingAgent files that are there; the first one counts."""
    candidates = (directory / (NAME + suffix) for directory in DIRECTORIES for suffix in FORMATS)
    return (path for path in candidates if os.path.lexists(path))  # a dangling link is refused, not passed over


def find_config() -> Path | None:
    return next(find_configs(), None)


def read_config(path: Path) -> dict[str, object]:
    """Keys in lower case and their raw values; StartRefused where the file is missing, broken or not flat."""
    parse = FORMATS.get(path.suffix.lower())
    if parse is None:
        raise StartRefused(f"config file {path}: its name must end in {', '.join(FORMATS)}")
    text = _read(path)
    try:
        pairs = parse(text)
    except Broken as err:
        raise StartRefused(f"config file {path} is broken: {' '.join(str(err).split())}") from err
    except RecursionError:
        raise StartRefused(f"config file {path} is broken: it is nested too deep") from None
    keys: dict[str, object] = {}
    for key, value in pairs:
        name = key.lower()
        if name in keys:
            raise StartRefused(f"config file {path}: key {key!r} stands there twice")
        if isinstance(value, dict):
            raise StartRefused(f"config file {path}: key {key!r} holds further keys; the file is flat")
        keys[name] = value
    return keys


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as err:
        raise StartRefused(
            f"config file {path} cannot be read: {err.strerror}; mend that, or name another with --config"
        ) from err
    if len(content) > LARGEST:
        raise StartRefused(f"config file {path} is larger than {LARGEST} bytes: it is no config file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise StartRefused(f"config file {path} is broken: line {line}: it is not UTF-8") from err
