"""Differences between table and kernel, and the remedy for each. Pure; the agent applies the remedies.

`link_drift` runs at every change of links, on those of the host's and the parking namespace. From a link that is
missing or appears twice it concludes something only if every namespace was read. `misplaced_links` compares the rest.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from qingcloud_cni.core.drift.differences import Difference, DifferenceKind, Remedy
from qingcloud_cni.core.drift.link_locations import LinkLocation, LinkLocations, Where, every_link, only
from qingcloud_cni.core.nics.model import Attachment, Netns, Nic, NicState
from qingcloud_cni.core.seams.kernel import Survey

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
    """The link of a NIC without an attachment is in a container."""

    path: str


LinkRemedy = Arrived | Returned | Lost | Strayed


@dataclass(frozen=True, slots=True)
class LinkDrift:
    remedies: tuple[LinkRemedy, ...] = ()
    is_unsure: bool = False  # only a survey of every namespace can tell more
    arrived: Mapping[str, str] = field(default_factory=dict)  # new fingerprints by NIC id, to be recorded first


def link_drift(
    nics: Iterable[Nic], attachments: Mapping[str, Attachment], survey: Survey, seen: LinkLocations, now: float
) -> LinkDrift:
    """Compare NICs that no link operation moves with *survey* and *seen*, its links; *attachments* are by NIC id."""
    remedies: list[LinkRemedy] = []
    arrived: dict[str, str] = {}
    is_unsure = False
    for nic in nics:
        locations = seen.get(nic.nic_id, ())
        remedy = _remedy(nic, nic.nic_id in attachments, locations, now)
        is_certain = survey.is_wide or (isinstance(remedy, Arrived | None) and len(locations) < 2)
        if remedy is not None and is_certain:
            remedies.append(remedy)
        if is_certain and (nic.state is not NicState.ASSIGNED or remedy is not None):
            arrived |= _arrival(nic, only(locations))
        is_unsure = is_unsure or not is_certain
    return LinkDrift(tuple(remedies), is_unsure, arrived)


def _arrival(nic: Nic, location: LinkLocation | None) -> dict[str, str]:
    """Return the fingerprint of a link that is where no container can write, unless it is the one recorded."""
    is_new = location is not None and location.netns is None and location.link.fingerprint != nic.fingerprint
    return {nic.nic_id: location.link.fingerprint} if location and is_new else {}


def _remedy(nic: Nic, is_attached: bool, locations: tuple[LinkLocation, ...], now: float) -> LinkRemedy | None:
    location = only(locations)
    if location is None and locations:
        return None  # several links claim to be this NIC
    where = location.where if location else None
    match nic.state:
        case NicState.ASSIGNED if is_attached and location and where is not Where.ELSEWHERE:
            return Returned(nic.nic_id, where is Where.PARKED)
        case NicState.ARRIVING if where is Where.ELSEWHERE:
            return None  # see `misplaced_links`
        case NicState.ARRIVING if where is None and now - nic.since > ARRIVAL_SECONDS:
            return Lost(nic.nic_id, f"its link did not return within {ARRIVAL_SECONDS:.0f} s")
        case state if state in _COMING and where in (Where.HOST, Where.PARKED):
            return Arrived(nic.nic_id)
        case state if state in _PARKED and where is Where.HOST:
            return Arrived(nic.nic_id)
        case state if state in _PARKED and location and where is Where.ELSEWHERE:
            return Strayed(nic.nic_id, location.path)
        case state if state in _PARKED and where is None:
            return Lost(nic.nic_id, "its link has left the parking namespace")
        case NicState.GATEWAY if where is Where.PARKED:
            return Arrived(nic.nic_id)
        case NicState.GATEWAY if where is not Where.HOST:
            detail = f"somebody moved its link to {location.path}" if location else "its link has left the host"
            return Lost(nic.nic_id, detail)
        case _:
            return None


# --- with every namespace read -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch(Remedy):
    """Move the link back from a namespace in which it serves nothing."""

    netns: Netns
    ifindex: int


class Release(Remedy):
    """The attachment is over: its namespace is gone, and no DEL came."""


def misplaced_links(
    nics: Iterable[Nic],
    attachments: Mapping[str, Attachment],
    survey: Survey,
    seen: LinkLocations,
    alias_of: Callable[[str], str],
) -> tuple[Difference, ...]:
    """Compare with a *survey* of every namespace, after the remedies of `link_drift`.

    *alias_of* returns the alias that a NIC's link has in a container, by the NIC's id.
    """
    spoofed = _spoofed(survey, seen, alias_of)
    found = []
    for nic in nics:
        attachment = attachments.get(nic.nic_id)
        difference = _compare(nic, attachment, survey, seen.get(nic.nic_id, ()))
        if difference is None and nic.nic_id in spoofed:
            subject = str(attachment.key) if attachment else ""
            difference = Difference(DifferenceKind.SPOOFED, nic.nic_id, spoofed[nic.nic_id], subject)
        if difference is not None:
            found.append(difference)
    return tuple(found)


def _compare(
    nic: Nic, attachment: Attachment | None, survey: Survey, locations: tuple[LinkLocation, ...]
) -> Difference | None:
    subject = str(attachment.key) if attachment else ""
    location = only(locations)
    if len(locations) > 1:
        found = ", ".join(f"{s.link.name} in {s.path}" for s in locations)
        return Difference(DifferenceKind.TWICE, nic.nic_id, f"several links claim to be this NIC: {found}", subject)
    if attachment is not None and nic.state is NicState.ASSIGNED:
        return _compare_attached(attachment, nic, survey, location)
    if location is None or location.netns is None:
        return None
    if nic.state is NicState.ARRIVING:
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
    if location is not None and (location.is_in(home) or location.netns is None):
        return None  # on the host: `link_drift` decides whether it has returned
    if location is not None:
        detail = f"its link is in {location.path} instead of {home.path}"
        if lives or survey.unseen:
            return Difference(DifferenceKind.MOVED, nic.nic_id, detail, subject)
        detail += ", which is gone"
        return Difference(DifferenceKind.LEFT, nic.nic_id, detail, subject, remedy=Release(nic.nic_id))
    if survey.unseen:
        return None
    if lives:
        return Difference(DifferenceKind.STRIPPED, nic.nic_id, f"{home.path} no longer has its link", subject)
    detail = f"{home.path} is gone, and its link with it"
    return Difference(DifferenceKind.LEFT, nic.nic_id, detail, subject, remedy=Release(nic.nic_id))


def _spoofed(survey: Survey, seen: LinkLocations, alias_of: Callable[[str], str]) -> dict[str, str]:
    """Describe, by NIC id, links with the MAC or alias of a NIC that is in another namespace."""
    places = {nic_id: location for nic_id, locations in seen.items() if (location := only(locations))}
    aliases = {alias_of(nic_id): nic_id for nic_id in places}
    found: dict[str, str] = {}
    for other in every_link(survey):
        for nic_id in {other.link.mac, aliases.get(other.link.alias, "")} & places.keys():
            place = places[nic_id]
            if place.link != other.link and not (place.netns and other.is_in(place.netns)):
                found[nic_id] = f"{other.link.name} in {other.path} has its MAC or alias, and is another link"
    return found
