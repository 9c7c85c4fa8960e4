"""Differences between table, kernel and cloud, and when one is confirmed. Pure.

One comparison proves little: lists are late, partial or empty, links are on their way, namespaces die while they are
read. So a remedy that cannot be undone waits until a later comparison shows the same difference.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

CONFIRM_SECONDS = 20.0  # between the two comparisons that confirm a difference: operations under way end meanwhile


class DifferenceKind(StrEnum):
    """The kind of a difference; a closed set for metrics."""

    # table and kernel
    TWICE = "twice"  # several links claim to be one NIC
    STRAY = "stray"  # in a container, but without an attachment
    HELD = "held"  # in use by a container that the agent does not know
    MOVED = "moved"  # its link is not in its container's namespace
    STRIPPED = "stripped"  # the container lives without its link
    SPOOFED = "spoofed"  # a link elsewhere shows its MAC or alias
    LEFT = "left"  # its container's namespace is gone without a DEL
    # table and cloud
    UNKNOWN = "unknown"  # ours in the cloud, not in the table
    YOUNG = "young"  # the same, but so new that its create may still be under way
    UNUSABLE = "unusable"  # without an address in the cloud, or with that of another NIC
    VANISHED = "vanished"  # in the table, not in the cloud
    ELSEWHERE = "elsewhere"  # attached to another instance
    UNATTACHED = "unattached"  # attached nowhere, and its link is gone
    ATTACHED = "attached"  # attached here, though the table says nowhere
    NO_LINK = "no-link"  # attached here, but without a link
    GIVEN_UP = "given-up"  # the same after REPAIRS_PER_NIC repairs
    GHOST = "ghost"  # its link is here, but it is not attached
    READDRESSED = "readdressed"  # the cloud has given it another address
    RESERVED = "reserved"  # the cloud calls it primary, though it serves a container
    RENAMED = "renamed"  # somebody changed its name: it is no longer ours
    CUT_OFF = "cut-off"  # it serves a container, but is not attached here


@dataclass(frozen=True, slots=True)
class Remedy:
    """What resolves a difference; each kind is a class of its own."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One without a *remedy* is reported only: people resolve it, or the container's end does."""

    kind: DifferenceKind
    nic_id: str
    detail: str
    subject: str = ""  # the attachment, if there is one
    remedy: Remedy | None = None
    is_harmless: bool = False  # the remedy needs no confirmation: it takes nothing away
    until: float = inf  # when time alone changes it, in seconds since the epoch

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"

    @property
    def is_settled(self) -> bool:
        """Whether its remedy resolves it at once; not where a container is concerned."""
        return self.is_harmless and not self.subject


@dataclass(frozen=True, slots=True)
class Tracked:
    """A difference that comparisons show."""

    difference: Difference
    since: float  # seconds since the epoch
    comparisons: int = 1  # that showed it, at least CONFIRM_SECONDS apart
    counted: float = 0.0  # the time of the latest of these

    @property
    def is_pending(self) -> bool:
        """Whether another comparison would confirm its remedy."""
        return self.comparisons < 2 and self.difference.remedy is not None and not self.difference.is_harmless


Known = Mapping[tuple[DifferenceKind, str], Tracked]  # by kind and NIC id


@dataclass(frozen=True, slots=True)
class Verdict:
    known: Known
    remedies: tuple[Remedy, ...]  # due now, in the order of the differences
    new: tuple[Difference, ...]  # shown for the first time
    over: tuple[Difference, ...]  # no longer shown


def track(known: Known, found: Iterable[Difference], now: float) -> Verdict:
    """Update the *known* differences with those that a comparison *found*."""
    after: dict[tuple[DifferenceKind, str], Tracked] = {}
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
            after[key] = Tracked(difference, now, 1, now)
        elif 0.0 <= now - before.counted < CONFIRM_SECONDS:
            after[key] = replace(before, difference=difference)
        else:
            after[key] = replace(before, difference=difference, comparisons=before.comparisons + 1, counted=now)
        if difference.remedy is not None and (difference.is_harmless or after[key].comparisons > 1):
            remedies.append(difference.remedy)
    over = tuple(tracked.difference for key, tracked in known.items() if key not in after)
    return Verdict(after, tuple(remedies), tuple(new), over)
