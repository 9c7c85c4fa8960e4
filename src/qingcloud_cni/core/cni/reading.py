"""Readers of JSON values: each returns its type, or raises InvalidConfig naming key and value."""

from collections.abc import Mapping

from qingcloud_cni.core.errors import InvalidConfig


def folded(mapping: Mapping[str, object]) -> dict[str, object]:
    """Return the mapping with lower-case keys, as Go runtimes ignore their case."""
    return {k.lower(): v for k, v in mapping.items()}


def section(where: str, value: object) -> dict[str, object]:
    """Read an object and fold its keys; {} if absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidConfig(f"{where} {value!r} is not an object")
    return folded(value)


def sections(where: str, value: object) -> tuple[dict[str, object], ...]:
    """Read a list of objects, each as in `section`."""
    if not isinstance(value, list | None):
        raise InvalidConfig(f"{where} {value!r} is not a list")
    for n, entry in enumerate(value or ()):
        if not isinstance(entry, dict):
            raise InvalidConfig(f"{where}[{n}] {entry!r} is not an object")
    return tuple(folded(entry) for entry in value or ())


def text(where: str, value: object) -> str:
    """Read a string; "" if absent."""
    if value is not None and not isinstance(value, str):
        raise InvalidConfig(f"{where} {value!r} is not a string")
    return value or ""


def texts(where: str, value: object) -> tuple[str, ...]:
    """Read a list of strings; () if absent."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidConfig(f"{where} {value!r} is not a list of strings")
    return tuple(value)


def number(where: str, value: object) -> int | None:
    """Read an integer of at least 0; None if absent."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InvalidConfig(f"{where} {value!r} is not a whole number, 0 or more")
    return value


def flag(keys: Mapping[str, object], key: str, *, default: bool, within: str = "") -> bool:
    """Read a boolean under *key* of folded *keys*; version 0.4.0 typed some as the strings "true" and "false"."""
    value = keys.get(key.lower())
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise InvalidConfig(f"{within}{key} {value!r} is neither true nor false")
