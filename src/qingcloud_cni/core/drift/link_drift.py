"""Differences between table and kernel, and the remedy for each. Pure; the agent applies the remedies.

`link_drift` runs at every change of links, on those of the host's and the parking namespace. From a link that is
missing or appears twice it concludes something only if every namespace was read. `misplaced_links` compares the rest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qingcloud_cni.core.drift.differences import Difference, DifferenceKind, Remedy
from qingcloud_cni.core.drift.link_locations import LinkLocation, LinkLocations, Where, surest
from qingcloud_cni.core.nics.model import Attachment, Netns, Nic, NicState
from qingcloud_cni.core.seams.kernel import Link, Survey

ARRIVAL_SECONDS = 30.0  # a link that left a dead namespace is back well within this
_COMING = (NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING, NicState.MISSING)
_PARKED = (NicState.IDLE, NicState.COOLING, NicState.QUARANTINED)


class Arrived(Remedy):
    """The link is on the host, or parked although the table does not say so."""


@dataclass(frozen=True, slots=True)
class Returned(Remedy):
    """The link of an assigned NIC has left its container: the attachment is over."""

    is_parked: bool


@dataclass(frozen=True, slots=True)
class Lost(Remedy):
    """The link is nowhere it may be."""

    detail: str


@dataclass(frozen=True, slots=True)
class Strayed(Remedy):
    """The link of a NIC without an attachment is in a container, with our alias."""

    path: str


LinkRemedy = Arrived | Returned | Lost | Strayed


@dataclass(frozen=True, slots=True)
class LinkDrift:
    remedies: tuple[LinkRemedy, ...] = ()
    is_unsure: bool = False  # only a survey of every namespace can tell more


def link_drift(
    nics: Iterable[Nic], attachments: Mapping[str, Attachment], survey: Survey, seen: LinkLocations, now: float
) -> LinkDrift:
    """Compare NICs that no link operation moves with *survey* and *seen*, its links; *attachments* are by NIC id."""
    remedies: list[LinkRemedy] = []
    is_unsure = False
    for nic in nics:
        locations = seen.get(nic.nic_id, ())
        remedy = _remedy(nic, attachments.get(nic.nic_id), survey, locations, now)
        is_certain = survey.is_wide or (isinstance(remedy, Arrived | None) and len(locations) < 2)
        if remedy is not None and is_certain:
            remedies.append(remedy)
        is_unsure = is_unsure or not is_certain
    return LinkDrift(tuple(remedies), is_unsure)


def _remedy(
    nic: Nic, attachment: Attachment | None, survey: Survey, locations: tuple[LinkLocation, ...], now: float
) -> LinkRemedy | None:
    location = surest(locations, attachment.netns if attachment else None, attachment.ifindex if attachment else 0)
    if location is None and locations:
        return None  # several links claim to be this NIC
    where = location.where if location else None
    is_marked = location is not None and location.is_marked
    match nic.state:
        case NicState.ASSIGNED if location and attachment and where is not Where.ELSEWHERE:
            is_home = _unsigned_link(attachment, survey) not in (None, location.link)
            return None if is_home else Returned(nic.nic_id, where is Where.PARKED)
        case NicState.ARRIVING if where is Where.ELSEWHERE and is_marked:
            return None  # see `misplaced_links`
        case NicState.ARRIVING if where in (None, Where.ELSEWHERE) and now - nic.since > ARRIVAL_SECONDS:
            return Lost(nic.nic_id, _nowhere(location) or f"its link did not return within {ARRIVAL_SECONDS:.0f} s")
        case state if state in _COMING and where in (Where.HOST, Where.PARKED):
            return Arrived(nic.nic_id)
        case state if state in _PARKED and where is Where.HOST:
            return Arrived(nic.nic_id)
        case state if state in _PARKED and location and where is Where.ELSEWHERE and is_marked:
            return Strayed(nic.nic_id, location.path)
        case state if state in _PARKED and where is not Where.PARKED:
            return Lost(nic.nic_id, _nowhere(location) or "its link is no longer in the parking namespace")
        case NicState.GATEWAY if where is Where.PARKED:
            return Arrived(nic.nic_id)
        case NicState.GATEWAY if where is not Where.HOST:
            return Lost(nic.nic_id, _nowhere(location) or "its link is no longer on the host")
        case _:
            return None


def _nowhere(location: LinkLocation | None) -> str:
    return f"somebody moved its link to {location.path}" if location else ""


def _unsigned_link(attachment: Attachment, survey: Survey) -> Link | None:
    """Return the container's link at the recorded ifindex, unless a burnt-in MAC identifies it.

    It may be the NIC's although it shows neither MAC nor alias: the container may have changed both.
    """
    links = (link for other in survey.elsewhere if other.netns.is_same(attachment.netns) for link in other.links)
    return next((link for link in links if link.ifindex == attachment.ifindex and not link.permanent_mac), None)


# --- with every namespace read -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch(Remedy):
    """Move the link back from a namespace in which it serves nothing."""

    netns: Netns
    ifindex: int


class Release(Remedy):
    """The attachment is over: its namespace is gone, and no DEL came."""


def misplaced_links(
    nics: Iterable[Nic], attachments: Mapping[str, Attachment], survey: Survey, seen: LinkLocations
) -> tuple[Difference, ...]:
    """Compare with a *survey* of every namespace, after the remedies of `link_drift`."""
    found = (_compare(nic, attachments.get(nic.nic_id), survey, seen.get(nic.nic_id, ())) for nic in nics)
    return tuple(difference for difference in found if difference is not None)


def _compare(
    nic: Nic, attachment: Attachment | None, survey: Survey, locations: tuple[LinkLocation, ...]
) -> Difference | None:
    subject = str(attachment.key) if attachment else ""
    location = surest(locations, attachment.netns if attachment else None, attachment.ifindex if attachment else 0)
    if len(locations) > 1:
        found = ", ".join(f"{s.link.name} in {s.path}" for s in locations)
        return Difference(DifferenceKind.TWICE, nic.nic_id, f"several links claim to be this NIC: {found}", subject)
    if attachment is not None and nic.state is NicState.ASSIGNED:
        return _compare_attached(attachment, nic, survey, location)
    if location is None or location.netns is None:
        return None
    if nic.state is NicState.ARRIVING and location.is_marked:
        remedy = Fetch(nic.nic_id, location.netns, location.link.ifindex)
        detail = f"its link is in {location.path}, and serves nothing"
        return Difference(DifferenceKind.STRAY, nic.nic_id, detail, remedy=remedy)
    if nic.state is NicState.MISSING:
        detail = f"its link is in {location.path}, in use by a container that the agent does not know"
        return Difference(DifferenceKind.HELD, nic.nic_id, detail)
    return None


def _compare_attached(
    attachment: Attachment, nic: Nic, survey: Survey, location: LinkLocation | None
) -> Difference | None:
    """Compare a NIC that serves a container. While the container lives it keeps its NIC, whatever it did."""
    subject, home = str(attachment.key), attachment.netns
    lives = any(p.netns.is_same(home) for p in survey.elsewhere)
    if location is not None and location.is_in(home):
        return None
    if location is not None and location.netns is None:
        return None  # `link_drift` decides whether it has returned
    if location is not None:
        detail = f"its link is in {location.path} instead of {home.path}"
        if lives or not location.is_marked or survey.unseen:
            return Difference(DifferenceKind.MOVED, nic.nic_id, detail, subject)
        detail += ", which is gone"
        return Difference(DifferenceKind.LEFT, nic.nic_id, detail, subject, remedy=Release(nic.nic_id))
    if survey.unseen or _unsigned_link(attachment, survey) is not None:
        return None
    if lives:
        return Difference(DifferenceKind.STRIPPED, nic.nic_id, f"{home.path} no longer has its link", subject)
    detail = f"{home.path} is gone, and its link with it"
    return Difference(DifferenceKind.LEFT, nic.nic_id, detail, subject, remedy=Release(nic.nic_id))
