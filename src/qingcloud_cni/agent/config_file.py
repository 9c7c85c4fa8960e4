"""The config file: found by name, read as YAML or JSON into flat keys."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from qingcloud_cni.core.errors import StartRefused

NAME = "QingAgent"
DIRECTORIES = (Path(), Path("/etc/qingcloud"))  # the working directory comes first


FORMATS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {".yaml": yaml.safe_load, ".yml": yaml.safe_load, ".json": json.loads}
)


def find_config() -> Path | None:
    """The first QingAgent file of a known format, if there is any."""
    candidates = (directory / (NAME + suffix) for directory in DIRECTORIES for suffix in FORMATS)
    return next((path for path in candidates if path.is_file()), None)


def read_config(path: Path) -> dict[str, object]:
    """Keys in lower case and their raw values; StartRefused where the file is missing, broken or not flat."""
    parse = FORMATS.get(path.suffix.lower())
    if parse is None:
        raise StartRefused(f"config file {path}: its name must end in {', '.join(FORMATS)}")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise StartRefused(f"config file {path} cannot be read: {err.strerror}") from err
    except (ValueError, yaml.YAMLError, RecursionError) as err:
        raise StartRefused(f"config file {path} is broken: {' '.join(str(err).split())}") from err
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise StartRefused(f"config file {path} must hold keys and values, such as `zone: pek3a`")
    keys: dict[str, object] = {}
    for key, value in content.items():
        name = str(key).lower()
        if name in keys:
            raise StartRefused(f"config file {path}: key {key!r} stands there twice")
        if isinstance(value, dict):
            raise StartRefused(f"config file {path}: key {key!r} holds further keys; the file is flat")
        keys[name] = value
    return keys
