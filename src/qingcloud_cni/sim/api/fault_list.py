"""A list of faults as users write it: in the topology file, in a file of its own, over the admin API."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import inf
from typing import Any, TypeVar

import msgspec

from qingcloud_cni.sim.cloud.faults import Faults, check
from qingcloud_cni.sim.cloud.model import NEEDS
from qingcloud_cni.sim.topology.durations import parse_duration, parse_range
from qingcloud_cni.sim.topology.topology import FaultSpec

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?")
_LINK_PREFIX = re.compile(r"[a-z][a-z0-9]{0,9}")  # what can stand before a number in a link's name

T = TypeVar("T")

_PLACED = re.compile(r"(.*) - at `\$\.?(.*)`")


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
    """Take a list of faults, or a mapping with the one key `faults`; ValueError says in a sentence what is wrong.

    Nothing at all (an empty file) is an empty list.
    """
    entries = [] if document is None else document
    wrapped = entries if isinstance(entries, dict) else {"faults": entries}
    try:
        return make_faults(msgspec.convert(wrapped, _File).faults)
    except msgspec.ValidationError as err:
        raise ValueError(plainly(str(err))) from err


def make_faults(entries: Sequence[FaultEntry]) -> tuple[FaultSpec, ...]:
    """Take the entries of a list; ValueError names the one that could never strike, and why."""
    return tuple(_make_fault(f"faults[{number}]", entry) for number, entry in enumerate(entries))


def _make_fault(place: str, entry: FaultEntry) -> FaultSpec:
    if entry.action != "*" and entry.action not in NEEDS:
        raise ValueError(f"{place}.action: {entry.action!r} is neither '*' nor any of {', '.join(NEEDS)}")
    if not _is_text(entry.message):
        raise ValueError(f"{place}.message: {entry.message!r} cannot be written in an answer")
    if not _LINK_PREFIX.fullmatch(entry.name):
        raise ValueError(f"{place}.name: {entry.name!r}: up to 10 of a-z and 0-9 are allowed, a letter first")
    spec = FaultSpec(
        action=entry.action,
        effect=entry.effect,
        nth=entry.nth,
        times=entry.times,
        after=_read(parse_duration, entry.after, f"{place}.after"),
        lasts=None if entry.lasts is None else _read(parse_duration, entry.lasts, f"{place}.lasts"),
        chance=entry.chance,
        vxnet=entry.vxnet,
        by=None if entry.by is None else _read(parse_range, entry.by, f"{place}.by"),
        code=entry.code,
        message=entry.message,
        name=entry.name,
    )
    try:
        check(spec)
    except ValueError as err:
        raise ValueError(f"{place}: {err}") from err
    return spec


def _is_text(message: str) -> bool:
    """Whether UTF-8 has it: half of a surrogate pair, which JSON and YAML let through, it has not."""
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(parse: Callable[[str | float], T], text: str | float, place: str) -> T:
    try:
        return parse(text)
    except ValueError as err:
        raise ValueError(f"{place}: {err}") from err


def tell_faults(faults: Faults, now: float) -> list[dict[str, Any]]:
    """The list in force. *left*: how many calls each will still strike, *ends_in*: seconds; None without limit."""
    return [
        asdict(spec)
        | {
            "times": spec.most,
            "left": faults.left(number),
            "ends_in": None if (ends := faults.ends(spec)) == inf else round(max(ends - now, 0.0), 1),
        }
        for number, spec in enumerate(faults.specs)
    ]


def plainly(message: str) -> str:
    """Turn msgspec's words into `<key>: <what is wrong>`."""
    unknown = _UNKNOWN.fullmatch(message)
    if unknown:
        field, place = unknown.groups()
        return f"{place}.{field}: unknown key" if place else f"{field}: unknown key"
    placed = _PLACED.fullmatch(message)
    return f"{placed[2]}: {placed[1]}" if placed else message
