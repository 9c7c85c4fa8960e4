"""Differences between table, kernel and cloud, and how much is known of each before anything is done. Pure.

One look proves little: lists are late, halved or empty, links are on their way, namespaces die while they are looked
into. So whatever cannot be taken back waits until a later look shows the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

CONFIRM_SECONDS = 20.0  # between the two looks that something grave needs: what is under way has ended by then


class DifferenceKind(StrEnum):
    """What differs, by a fixed word."""

    # table and kernel
    TWICE = "twice"  # several links claim to be one NIC
    STRAY = "stray"  # a NIC that serves nothing is in a container
    HELD = "held"  # a container that the agent does not know has it
    MOVED = "moved"  # it serves a container, and its link is in another namespace
    STRIPPED = "stripped"  # the container lives, and its link is nowhere
    LEFT = "left"  # the container's namespace is gone, and no DEL came
    # table and cloud
    UNKNOWN = "unknown"  # ours in the cloud, not in the table
    YOUNG = "young"  # the same, but so new that somebody may be just making it
    UNUSABLE = "unusable"  # the same, but without an address
    VANISHED = "vanished"  # in the table, not in the cloud
    ELSEWHERE = "elsewhere"  # attached to another instance
    UNATTACHED = "unattached"  # attached nowhere, and its link is gone
    ATTACHED = "attached"  # attached here, though the table says nowhere
    NO_LINK = "no-link"  # attached here, and its link is nowhere
    GIVEN_UP = "given-up"  # the same, and attaching it again has not helped
    GHOST = "ghost"  # its link is here, though it is not attached
    READDRESSED = "readdressed"  # the cloud has given it another address
    RENAMED = "renamed"  # its name says that it is ours no more
    CUT_OFF = "cut-off"  # it serves a container, and the cloud does not have it attached here


class Remedy:
    """What can be done about a difference; each kind is a class of its own."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """Without a *remedy* it is told and left to people, or to the container's end."""

    kind: DifferenceKind
    nic_id: str
    detail: str
    subject: str = ""  # the attachment, if there is one
    remedy: Remedy | None = None
    is_harmless: bool = False  # the remedy may come at once: it takes nothing away
    until: float = inf  # when time alone makes something else of it, in seconds since the epoch

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"

    @property
    def is_settled(self) -> bool:
        """Whether it is no more once its remedy was carried out, which it is at once; not so where a container is."""
        return self.is_harmless and not self.subject


@dataclass(frozen=True, slots=True)
class Seen:
    """A difference that is there, and since when."""

    difference: Difference
    since: float  # seconds since the epoch
    looks: int = 1  # that showed it, `CONFIRM_SECONDS` apart at least
    counted: float = 0.0  # when the latest of these was

    @property
    def is_pending(self) -> bool:
        """Whether another look would let it be cured."""
        return self.looks < 2 and self.difference.remedy is not None and not self.difference.is_harmless


Known = Mapping[tuple[DifferenceKind, str], Seen]  # by kind and NIC id


@dataclass(frozen=True, slots=True)
class Verdict:
    known: Known
    remedies: tuple[Remedy, ...]  # due now, in the order of the differences
    new: tuple[Difference, ...]  # seen for the first time
    over: tuple[Difference, ...]  # seen before, and no more


def weigh(known: Known, found: Iterable[Difference], now: float) -> Verdict:
    """What a look that showed all of *found* adds to what is *known* from those before."""
    after: dict[tuple[DifferenceKind, str], Seen] = {}
    remedies: list[Remedy] = []
    new: list[Difference] = []
    for difference in found:
        if difference.is_settled and difference.remedy is not None:
            new.append(difference)
            remedies.append(difference.remedy)
            continue
        key = (difference.kind, difference.nic_id)
        before = known.get(key)
        if before is None:
            new.append(difference)
            after[key] = Seen(difference, now, 1, now)
        elif 0.0 <= now - before.counted < CONFIRM_SECONDS:
            after[key] = replace(before, difference=difference)
        else:
            after[key] = replace(before, difference=difference, looks=before.looks + 1, counted=now)
        if difference.remedy is not None and (difference.is_harmless or after[key].looks > 1):
            remedies.append(difference.remedy)
    over = tuple(seen.difference for key, seen in known.items() if key not in after)
    return Verdict(after, tuple(remedies), tuple(new), over)
