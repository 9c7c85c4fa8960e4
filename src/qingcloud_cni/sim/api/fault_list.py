"""A list of faults as users write it: in the topology file, in a file of its own, to the admin API."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import inf
from typing import Any, TypeVar

import msgspec

from qingcloud_cni.sim.cloud.faults import Faults, check
from qingcloud_cni.sim.cloud.model import REQUIRED_PARAMS
from qingcloud_cni.sim.topology import FaultSpec, parse_duration, parse_range

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?")
_LINK_PREFIX = re.compile(r"[a-z][a-z0-9]{0,9}")  # leaves room for a number in a link's name
_PLACED = re.compile(r"(.*) - at `\$\.?(.*)`")

T = TypeVar("T")


class FaultEntry(msgspec.Struct, forbid_unknown_fields=True):
    action: str
    effect: str
    nth: int = 1
    times: int | None = None
    after: str | float = 0.0
    lasts: str | float | None = None
    chance: float = 1.0
    vxnet: str = ""
    by: str | float | None = None
    code: int = 5100
    message: str = "ServerBusy"
    name: str = "ens"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    faults: list[FaultEntry]


def read_faults(document: object) -> tuple[FaultSpec, ...]:
    """Read a list of faults, or a mapping with the one key `faults`; ValueError names the mistake.

    None (an empty file) is an empty list.
    """
    entries = [] if document is None else document
    wrapped = entries if isinstance(entries, dict) else {"faults": entries}
    try:
        return make_faults(msgspec.convert(wrapped, _File).faults)
    except msgspec.ValidationError as err:
        raise ValueError(readable(str(err))) from err


def make_faults(entries: Sequence[FaultEntry]) -> tuple[FaultSpec, ...]:
    """Read the entries of a list; ValueError names one that could never strike, and why."""
    return tuple(_make_fault(f"faults[{number}]", entry) for number, entry in enumerate(entries))


def _make_fault(key: str, entry: FaultEntry) -> FaultSpec:
    if entry.action != "*" and entry.action not in REQUIRED_PARAMS:
        raise ValueError(f"{key}.action: {entry.action!r} is neither '*' nor any of {', '.join(REQUIRED_PARAMS)}")
    try:
        entry.message.encode()
    except UnicodeEncodeError as err:  # JSON and YAML let half a surrogate pair through
        raise ValueError(f"{key}.message: {entry.message!r} is not valid UTF-8") from err
    if not _LINK_PREFIX.fullmatch(entry.name):
        raise ValueError(f"{key}.name: {entry.name!r}: up to 10 of a-z and 0-9 are allowed, a letter first")
    times = {
        "after": _read(parse_duration, entry.after, f"{key}.after"),
        "lasts": None if entry.lasts is None else _read(parse_duration, entry.lasts, f"{key}.lasts"),
        "by": None if entry.by is None else _read(parse_range, entry.by, f"{key}.by"),
    }
    spec = FaultSpec(**msgspec.structs.asdict(entry) | times)
    try:
        check(spec)
    except ValueError as err:
        raise ValueError(f"{key}: {err}") from err
    return spec


def _read(parse: Callable[[str | float], T], text: str | float, key: str) -> T:
    try:
        return parse(text)
    except ValueError as err:
        raise ValueError(f"{key}: {err}") from err


def faults_document(faults: Faults, now: float) -> list[dict[str, Any]]:
    """The list in force. *left*: calls that each fault will still strike, *ends_in*: seconds; None without limit."""
    return [
        asdict(spec)
        | {
            "times": spec.most,
            "left": faults.left(number),
            "ends_in": None if (ends := faults.ends(spec)) == inf else round(max(ends - now, 0.0), 1),
        }
        for number, spec in enumerate(faults.specs)
    ]


def readable(message: str) -> str:
    """Turn msgspec's message into `<key>: <cause>`."""
    if unknown := _UNKNOWN.fullmatch(message):
        field, key = unknown.groups()
        return f"{key}.{field}: unknown key" if key else f"{field}: unknown key"
    placed = _PLACED.fullmatch(message)
    return f"{placed[2]}: {placed[1]}" if placed else message
