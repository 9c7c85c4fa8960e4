"""The API's replies, read field by field: a value of another type is set aside and counts as absent.

Absent are also null, "", [] and {}, for the cloud sends one for another.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from qingcloud_cni.core.nics.names import is_nic_id
from qingcloud_cni.core.seams.clock import Clock

_WHOLE = re.compile(r"-?[0-9]{1,18}")
_LONGEST_QUOTE = 60  # characters of an unusable value
SHOWN = 3600.0  # seconds for which an unusable field is shown after the reply, and not reported again

Report = Callable[[str, str], None]  # gets the field, and what is wrong with it


def parse(body: bytes) -> Mapping[str, Any] | None:
    """Return the object of a reply; None if it is not JSON, or not an object."""
    try:
        content = json.loads(body, parse_int=_bounded)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _bounded(digits: str) -> int | str:
    """An integer; the digits of one that no field can have, for Python refuses to convert very long ones."""
    return int(digits) if _WHOLE.fullmatch(digits) else digits


@dataclass(frozen=True, slots=True)
class Fields:
    """One object of a reply. *flaws* are its own unusable fields so far; *clean* masks secrets."""

    content: Mapping[str, Any]
    name: str  # of the object, for reports: "nic 52:54:..."; "" for the reply itself
    report: Report
    clean: Callable[[str], str]
    prefix: str = ""  # of its fields' names
    flaws: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            self.set_aside(name, "is not a text")
            return ""
        return "" if value is None else self.clean(str(value))

    def whole(self, name: str) -> int | None:
        value = self._value(name)
        if isinstance(value, float) and value.is_integer():
            value = f"{value:.0f}"
        if value is None or isinstance(value, int):  # true is 1
            return value if value is None else int(value)
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            return int(value)
        self.set_aside(name, "is not a whole number")
        return None

    def mac(self, name: str) -> str:
        """The id of a NIC, lower case."""
        text = self.text(name).lower()
        if text and not is_nic_id(text):
            self.set_aside(name, "is not the MAC of a NIC")
            return ""
        return text

    def address(self, name: str) -> str:
        text = self.text(name)
        try:
            return str(IPv4Address(text)) if text else ""
        except ValueError:
            self.set_aside(name, "is not an IPv4 address")
            return ""

    def seconds(self, name: str) -> float:
        """Convert 2016-12-23T13:35:56Z, with or without Z, to seconds since the epoch; 0 if malformed."""
        try:
            time = datetime.fromisoformat(self.text(name))
            return time.replace(tzinfo=time.tzinfo or UTC).timestamp()
        except (ValueError, OverflowError):
            return 0.0

    def part(self, name: str) -> "Fields":
        """The fields of an object in this one; none if it is absent."""
        value = self._value(name)
        if not isinstance(value, dict | None):
            self.set_aside(name, "is not an object")
            value = None
        return Fields(value or {}, self.name, self.report, self.clean, f"{self.prefix}{name}.", self.flaws)

    def parts(self, name: str, id_field: str) -> list["Fields"] | None:
        """The objects of a list; None if it is absent."""
        value = self._value(name)
        if not isinstance(value, list):
            if value is not None:
                self.set_aside(name, "is not a list")
            return [] if self.content.get(name) == [] else None
        return list(self._items(name, value, id_field))

    def _items(self, name: str, items: list[Any], id_field: str) -> Iterator["Fields"]:
        for number, item in enumerate(items):
            fields = item if isinstance(item, dict) else {}
            called = fields.get(id_field)
            of_list = f"{self.name} {name}[{number}]".strip()
            label = self.clean(called) if called and isinstance(called, str) else of_list
            yield Fields(fields, label, self.report, self.clean, f"{self.prefix}{name}.")

    def set_aside(self, name: str, why: str) -> None:
        field_name = f"{self.prefix}{name}"
        flaw = f"{field_name} {self._quoted(self.content.get(name))} {why}"
        self.flaws.append(flaw)
        self.report(field_name, f"{self.name}: {flaw}" if self.name else flaw)

    def _quoted(self, value: object) -> str:
        if isinstance(value, list | dict):
            return "(a list)" if isinstance(value, list) else "(an object)"
        quote = self.clean(f'"{value}"' if isinstance(value, str) else json.dumps(value))
        return quote if len(quote) <= _LONGEST_QUOTE else f"{quote[: _LONGEST_QUOTE - 1]}…"

    def _value(self, name: str) -> Any:
        value = self.content.get(name)
        return None if value in ("", [], {}) else value


@dataclass(slots=True)
class _Latest:
    text: str
    at: float  # seconds since the epoch


class SetAside:
    """The latest unusable value of each field. Bounded, as actions and fields are those that the client knows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: dict[tuple[str, str], _Latest] = {}
        self._new: asyncio.Queue[str] = asyncio.Queue()

    def report_of(self, action: str) -> Report:
        return partial(self._add, action)

    def _add(self, action: str, field: str, text: str) -> None:
        now, text = self._clock.now(), f"{action}: {text}"
        known = self._latest.get((action, field))
        if known is None or now - known.at >= SHOWN:
            self._new.put_nowait(text)
        self._latest[action, field] = _Latest(text, now)

    def current(self) -> tuple[str, ...]:
        now = self._clock.now()
        return tuple(latest.text for latest in self._latest.values() if now - latest.at < SHOWN)

    async def changes(self) -> AsyncIterator[str]:
        """Yield a field's first unusable value, and again after an hour without one."""
        while True:
            yield await self._new.get()
