"""Kinds of setting values: each parses the raw value of a flag, variable or file, or raises ValueError."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from math import isfinite
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_DIGITS = re.compile(r"[0-9]+")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True, slots=True)
class ValueKind(Generic[T]):
    """*expected* is shown in errors and documentation, *metavar* beside the flag in help."""

    metavar: str
    expected: str
    parse: Callable[[object], T]
    empty: object = ""  # the value of a setting without a default


@dataclass(frozen=True, slots=True)
class Address:
    """Where the agent listens on TCP."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError
    return str(value).strip()


def _path(value: object) -> Path:
    path = Path(_text(value))
    if "\0" in str(path):
        raise ValueError
    return path if path.is_absolute() else Path.cwd() / path


def _whole(value: object) -> int:
    text = _text(value)
    if not _DIGITS.fullmatch(text):
        raise ValueError
    return int(text)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError
    match = _DURATION.fullmatch(str(value).strip().lower())
    if match is None:
        raise ValueError
    seconds = float(match[1]) * _UNITS[match[2] or "s"]
    if not isfinite(seconds):
        raise ValueError
    return seconds


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    found = _BOOLEANS.get(str(value).strip().lower())
    if found is None:
        raise ValueError
    return found


def _texts(value: object) -> tuple[str, ...]:
    """A list, or a text split on commas; a flag may be repeated as well."""
    items: Iterable[object] = value if isinstance(value, list | tuple) else [value]
    texts = tuple(part.strip() for item in items for part in _text(item).split(",") if part.strip())
    if not texts:
        raise ValueError
    return tuple(dict.fromkeys(texts))


def _address(value: object) -> Address:
    host, colon, port = _text(value).rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not _DIGITS.fullmatch(port) or not 0 < int(port) < 65536:
        raise ValueError
    return Address(str(ip_address(host)), int(port))


def _address_or(words: tuple[str, ...]) -> Callable[[object], Address | str]:
    def parse(value: object) -> Address | str:
        word = OFF if value is False else _text(value).lower()  # YAML reads off as a boolean
        return word if word in words else _address(value)

    return parse


PATH = ValueKind("string", "a path", _path)
WHOLE = ValueKind("int", "a whole number, 0 or more", _whole)
SECONDS = ValueKind("duration", "a duration such as 30s, 10m, 500ms or a number of seconds", _seconds)
FLAG = ValueKind("bool", "true or false", _flag)
PATHS = ValueKind(
    "stringSlice", "a list of paths, or paths separated by commas", lambda value: tuple(map(_path, _texts(value))), ()
)
TEXTS = ValueKind("stringSlice", "a list, or texts separated by commas", _texts)
ADDRESS = ValueKind("string", "ADDRESS:PORT with an IP address, such as 0.0.0.0:31080", _address)
BINDADDR, OFF = "bindaddr", "off"
METRICS_ADDRESS = ValueKind(
    "string", "ADDRESS:PORT with an IP address, bindaddr, or off", _address_or((BINDADDR, OFF))
)


def matching(pattern: "re.Pattern[str]", expected: str, metavar: str = "string") -> ValueKind[str]:
    def parse(value: object) -> str:
        text = _text(value)
        if not pattern.fullmatch(text):
            raise ValueError
        return text

    return ValueKind(metavar, expected, parse)


def choice(options: Iterable[str]) -> ValueKind[str]:
    """One of *options*, in any case."""
    names = {o.lower(): o for o in options}

    def parse(value: object) -> str:
        name = names.get(_text(value).lower())
        if name is None:
            raise ValueError
        return name

    return ValueKind("string", "one of " + ", ".join(names.values()), parse)
