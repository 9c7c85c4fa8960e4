"""A list of faults as users write it: in the topology file, in a file of its own, over the admin API."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from qingcloud_cni.sim.faults import Faults
from qingcloud_cni.sim.model import NEEDS
from qingcloud_cni.sim.topology import FaultSpec

_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?")
_PLACED = re.compile(r"(.*) - at `\$\.?(.*)`")


class FaultEntry(msgspec.Struct, forbid_unknown_fields=True):
    action: str
    effect: str
    nth: int = 1
    times: int = 1
    code: int = 5100
    message: str = "ServerBusy"


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
    specs = tuple(FaultSpec(**msgspec.structs.asdict(entry)) for entry in entries)
    for number, spec in enumerate(specs):
        if spec.action != "*" and spec.action not in NEEDS:
            raise ValueError(f"faults[{number}].action: {spec.action!r} is neither '*' nor any of {', '.join(NEEDS)}")
        try:
            Faults([spec])
        except ValueError as err:
            raise ValueError(f"faults[{number}]: {err}") from err
    return specs


def tell_faults(faults: Faults) -> list[dict[str, Any]]:
    """The list in force, with *left*: how many calls each will still strike."""
    return [asdict(spec) | {"left": faults.left(spec)} for spec in faults.specs]


def plainly(message: str) -> str:
    """Turn msgspec's words into `<key>: <what is wrong>`."""
    unknown = _UNKNOWN.fullmatch(message)
    if unknown:
        field, place = unknown.groups()
        return f"{place}.{field}: unknown key" if place else f"{field}: unknown key"
    placed = _PLACED.fullmatch(message)
    return f"{placed[2]}: {placed[1]}" if placed else message
