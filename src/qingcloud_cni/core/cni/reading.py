"""Reading JSON that others wrote: values of the type wanted, or InvalidConfig that names key and value."""

from collections.abc import Mapping

from qingcloud_cni.core.errors import InvalidConfig


def folded(mapping: Mapping[str, object]) -> dict[str, object]:
    """The same mapping with lower-case keys; Go runtimes match keys without regard to case."""
    return {k.lower(): v for k, v in mapping.items()}


def section(where: str, value: object) -> dict[str, object]:
    """An object with its keys folded; empty where it is absent."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidConfig(f"{where} {value!r} is not an object")
    return folded(value)


def sections(where: str, value: object) -> tuple[dict[str, object], ...]:
    """A list of objects, as `section` gives each of them."""
    if not isinstance(value, list | None):
        raise InvalidConfig(f"{where} {value!r} is not a list")
    for n, entry in enumerate(value or ()):
        if not isinstance(entry, dict):
            raise InvalidConfig(f"{where}[{n}] {entry!r} is not an object")
    return tuple(folded(entry) for entry in value or ())


def text(where: str, value: object) -> str:
    """A string; empty where it is absent."""
    if value is not None and not isinstance(value, str):
        raise InvalidConfig(f"{where} {value!r} is not a string")
    return value or ""


def texts(where: str, value: object) -> tuple[str, ...]:
    """A list of strings; empty where it is absent."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidConfig(f"{where} {value!r} is not a list of strings")
    return tuple(value)


def number(where: str, value: object) -> int | None:
    """A whole number, not below 0; None where it is absent."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InvalidConfig(f"{where} {value!r} is not a whole number from 0 on")
    return value


def flag(keys: Mapping[str, object], key: str, *, default: bool, within: str = "") -> bool:
    """The truth under *key* of folded *keys*, as JSON has it or as 0.4.0 typed it: "true" or "false"."""
    value = keys.get(key.lower())
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise InvalidConfig(f"{within}{key} {value!r} is neither true nor false")
