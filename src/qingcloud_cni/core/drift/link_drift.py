"""Where table and kernel differ, and the remedy for each difference. Pure; the agent carries the remedies out.

`link_drift` is asked at every change of links, and knows those of the host and the parking namespace. What it would
conclude from a link that is not there, or is there twice, it concludes only from a look into every namespace.
`odd_places` is what such a look shows besides.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qingcloud_cni.core.drift.differences import Difference, DifferenceKind, Remedy
from qingcloud_cni.core.drift.link_locations import LinkLocation, LinkLocations, Where, surest
from qingcloud_cni.core.nics.model import Attachment, Netns, Nic, NicState
from qingcloud_cni.core.seams.kernel import Link, Survey

ARRIVAL_SECONDS = 30.0  # a link that left a dead namespace is back well within this (design section 3)
_COMING = (NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING, NicState.MISSING)
_PARKED = (NicState.IDLE, NicState.COOLING, NicState.QUARANTINED)


@dataclass(frozen=True, slots=True)
class Arrived:
    """The link lies on the host, or parked without the table knowing: it wants a container or the parking place."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class Returned:
    """The link of an assigned NIC has left its container: the attachment is over."""

    nic_id: str
    is_parked: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """The link is not where it should be, and nowhere else it may be."""

    nic_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Strayed:
    """The link of a NIC that serves nothing is in a container, as one that we put there."""

    nic_id: str
    path: str


LinkRemedy = Arrived | Returned | Lost | Strayed


@dataclass(frozen=True, slots=True)
class LinkDrift:
    remedies: tuple[LinkRemedy, ...] = ()
    is_unsure: bool = False  # more may be wrong than can be told without looking into every namespace


def link_drift(
    nics: Iterable[Nic], attachments: Mapping[str, Attachment], survey: Survey, seen: LinkLocations, now: float
) -> LinkDrift:
    """Compare NICs that no verb is moving with the links of *survey*, among which *seen* are theirs.

    *attachments* are by NIC id.
    """
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
    place = surest(locations, attachment.netns if attachment else None, attachment.ifindex if attachment else 0)
    if place is None and locations:
        return None  # several links claim to be this NIC
    where = place.where if place else None
    is_marked = place is not None and place.is_marked
    match nic.state:
        case NicState.ASSIGNED if place and attachment and where is not Where.ELSEWHERE:
            return None if _may_be_home(attachment, survey, place) else Returned(nic.nic_id, where is Where.PARKED)
        case NicState.ARRIVING if where is Where.ELSEWHERE and is_marked:
            return None  # see `odd_places`
        case NicState.ARRIVING if where in (None, Where.ELSEWHERE) and now - nic.since > ARRIVAL_SECONDS:
            return Lost(nic.nic_id, _nowhere(place) or f"its link has not come back within {ARRIVAL_SECONDS:.0f} s")
        case state if state in _COMING and where in (Where.HOST, Where.PARKED):
            return Arrived(nic.nic_id)
        case state if state in _PARKED and where is Where.HOST:
            return Arrived(nic.nic_id)
        case state if state in _PARKED and place and where is Where.ELSEWHERE and is_marked:
            return Strayed(nic.nic_id, place.path)
        case state if state in _PARKED and where is not Where.PARKED:
            return Lost(nic.nic_id, _nowhere(place) or "its link is in the parking namespace no longer")
        case NicState.GATEWAY if where is Where.PARKED:
            return Arrived(nic.nic_id)
        case NicState.GATEWAY if where is not Where.HOST:
            return Lost(nic.nic_id, _nowhere(place) or "its link is on the host no longer")
        case _:
            return None


def _nowhere(place: LinkLocation | None) -> str:
    return f"somebody has moved its link to {place.path}" if place else ""


def _may_be_home(attachment: Attachment, survey: Survey, place: LinkLocation) -> bool:
    """Whether the link that claims to be the NIC has it only by what anybody can set, and the real one may be home.

    That is a link at the index recorded there which shows no sign of being anything else.
    """
    home = next((p for p in survey.elsewhere if p.netns.is_same(attachment.netns)), None)
    at_index = next((link for link in home.links if link.ifindex == attachment.ifindex), None) if home else None
    return at_index is not None and at_index != place.link and not at_index.permanent_mac and bool(attachment.ifindex)


# --- what a look into every namespace shows besides --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch(Remedy):
    """Bring the link home from a namespace in which it serves nothing."""

    nic_id: str
    netns: Netns
    ifindex: int


@dataclass(frozen=True, slots=True)
class Release(Remedy):
    """The attachment is over: no DEL came, and nothing of its namespace is left."""

    nic_id: str


def odd_places(
    nics: Iterable[Nic], attachments: Mapping[str, Attachment], survey: Survey, seen: LinkLocations
) -> tuple[Difference, ...]:
    """What is not as it should be in a wide *survey*; NICs that `link_drift` has a remedy for are cured by then."""
    found = (_oddity(nic, attachments.get(nic.nic_id), survey, seen.get(nic.nic_id, ())) for nic in nics)
    return tuple(difference for difference in found if difference is not None)


def _oddity(
    nic: Nic, attachment: Attachment | None, survey: Survey, locations: tuple[LinkLocation, ...]
) -> Difference | None:
    subject = str(attachment.key) if attachment else ""
    place = surest(locations, attachment.netns if attachment else None, attachment.ifindex if attachment else 0)
    if len(locations) > 1:
        places = ", ".join(f"{s.link.name} in {s.path}" for s in locations)
        return Difference(DifferenceKind.TWICE, nic.nic_id, f"several links claim to be this NIC: {places}", subject)
    if attachment is not None and nic.state is NicState.ASSIGNED:
        return _oddity_of(attachment, nic, survey, place)
    if place is None or place.netns is None:
        return None
    if nic.state is NicState.ARRIVING and place.is_marked:
        remedy = Fetch(nic.nic_id, place.netns, place.link.ifindex)
        return Difference(
            DifferenceKind.STRAY, nic.nic_id, f"its link is in {place.path}, and serves nothing", remedy=remedy
        )
    if nic.state is NicState.MISSING:
        detail = f"its link is in {place.path}, in use by a container that the agent does not know"
        return Difference(DifferenceKind.HELD, nic.nic_id, detail)
    return None


def _oddity_of(attachment: Attachment, nic: Nic, survey: Survey, place: LinkLocation | None) -> Difference | None:
    """What is odd about a NIC that serves a container: while that lives it keeps what it has, whatever it did."""
    subject, home = str(attachment.key), attachment.netns
    lives = any(p.netns.is_same(home) for p in survey.elsewhere)
    if place is not None and place.is_in(home):
        return None
    if place is not None and place.netns is None:
        return None  # `link_drift` tells whether it has returned
    if place is not None:
        detail = f"its link is in {place.path} instead of {home.path}"
        if lives or not place.is_marked or survey.unseen:
            return Difference(DifferenceKind.MOVED, nic.nic_id, detail, subject)
        return Difference(
            DifferenceKind.LEFT, nic.nic_id, f"{detail}, which is gone", subject, remedy=Release(nic.nic_id)
        )
    if survey.unseen:
        return None
    if lives:
        if _has_unsigned(attachment, survey):
            return None
        return Difference(DifferenceKind.STRIPPED, nic.nic_id, f"{home.path} has its link no longer", subject)
    detail = f"{home.path} is gone, and its link with it"
    return Difference(DifferenceKind.LEFT, nic.nic_id, detail, subject, remedy=Release(nic.nic_id))


def _has_unsigned(attachment: Attachment, survey: Survey) -> bool:
    """Whether the container has a link at the recorded index, MAC and alias of which it may have changed."""

    def fits(link: Link) -> bool:
        return link.ifindex == attachment.ifindex and not link.permanent_mac

    return any(p.netns.is_same(attachment.netns) and any(map(fits, p.links)) for p in survey.elsewhere)
