"""Differences between table and cloud, and the remedy for each. Pure; the agent applies the remedies."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qingcloud_cni.core.drift import schedule
from qingcloud_cni.core.drift.differences import Difference, DifferenceKind, Remedy
from qingcloud_cni.core.drift.link_locations import LinkLocations, Where
from qingcloud_cni.core.nics.model import Attachment, Nic, NicState
from qingcloud_cni.core.seams.cloud import PRIMARY, CloudNic, Vxnet
from qingcloud_cni.core.seams.kernel import Link

GROWN_UP = 300.0  # seconds of age from which on no create of a NIC is under way (a lost one is looked up for 30)
SETTLED = 60.0  # seconds in a state after which the cloud shows it: a link may come before its job ends
_FREE_TO_JUDGE = (NicState.IDLE, NicState.COOLING, NicState.QUARANTINED, NicState.ARRIVING, NicState.MISSING)


@dataclass(frozen=True, slots=True)
class Adopt(Remedy):
    """Take a NIC of ours into the table."""

    nic: CloudNic
    link: Link | None  # on the host


@dataclass(frozen=True, slots=True)
class Forget(Remedy):
    """The NIC is no longer ours."""

    detail: str


class Unattach(Remedy):
    """It exists but is attached nowhere: the planner attaches or deletes it."""


class Await(Remedy):
    """It is attached here: wait for its link."""


class Replug(Remedy):
    """Detach it and attach it again."""


class Renew(Remedy):
    """Its link is here, but the cloud has it attached nowhere: attach it again, or forget it."""


@dataclass(frozen=True, slots=True)
class Readdress(Remedy):
    vxnet_id: str
    address: str  # with prefix length
    gateway: str


@dataclass(frozen=True, slots=True)
class CloudFacts:
    """The cloud's complete lists, further answers on unlisted NICs, and the context to interpret them."""

    nics: Mapping[str, CloudNic]
    vxnets: Mapping[str, Vxnet]  # of our NICs, if usable
    on_host: Mapping[str, Link]  # NICs, by id
    is_whole: bool  # every namespace was read
    wall: float  # the clock by which the cloud dates NICs, in seconds since the epoch
    instance_id: str
    is_ours: Callable[[str], bool]  # by a NIC's name

    def sharing(self, nic: CloudNic) -> tuple[str, ...]:
        """The other NICs that are listed with the address of *nic*."""
        place = (nic.vxnet_id, nic.private_ip)
        return tuple(n.nic_id for n in self.nics.values() if (n.vxnet_id, n.private_ip) == place and n is not nic)


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What the table held all the time while the cloud was read."""

    nics: tuple[Nic, ...]  # unchanged meanwhile, and without an operation
    known: Collection[str]  # ids of all NICs that were in the table at any time meanwhile
    attachments: Mapping[str, Attachment]  # by NIC id
    creating: Collection[str]  # names of creates under way


def cloud_drift(held: TableFacts, view: CloudFacts, seen: LinkLocations, now: float) -> tuple[Difference, ...]:
    """Compare what is *held* with the cloud; *seen* are the locations of links in all namespaces.

    Unless every namespace could be read (`view.is_whole`), a link that was not seen proves nothing.
    """
    found = list(_unknown(held, view, now))
    for nic in held.nics:
        found += _of_nic(nic, held.attachments.get(nic.nic_id), view, seen, now)
    return tuple(found)


def unlisted(nics: Iterable[Nic], cloud: Collection[str]) -> tuple[str, ...]:
    """Return the NICs that neither list shows: of free NICs, and of those attached here."""
    return tuple(nic.nic_id for nic in nics if nic.nic_id not in cloud)


def _unknown(held: TableFacts, view: CloudFacts, now: float) -> Iterator[Difference]:
    """Yield NICs with our names that are not in the table."""
    for nic in view.nics.values():
        is_here = nic.instance_id == view.instance_id
        if nic.role or not view.is_ours(nic.name) or not (is_here or not nic.instance_id):
            continue
        if nic.nic_id in held.known or nic.name in held.creating:
            continue
        vxnet = view.vxnets.get(nic.vxnet_id)
        if vxnet is None or not vxnet.address_of(nic.private_ip):
            detail = f"it has no usable address, or its vxnet {nic.vxnet_id} has no network"
            yield Difference(DifferenceKind.UNUSABLE, nic.nic_id, detail)
        elif sharing := view.sharing(nic):
            yield _shared(nic, sharing)
        elif not is_here and (age := view.wall - nic.created) < GROWN_UP:
            detail = f"{nic.name} is attached nowhere and was created {max(age, 0.0):.0f} s ago"
            yield Difference(DifferenceKind.YOUNG, nic.nic_id, detail, until=now + GROWN_UP - age)
        else:
            detail = f"{nic.name} is {'attached here' if is_here else 'attached nowhere'}"
            remedy = Adopt(nic.nic_id, nic, view.on_host.get(nic.nic_id))
            yield Difference(DifferenceKind.UNKNOWN, nic.nic_id, detail, remedy=remedy, is_harmless=True)


def _of_nic(
    nic: Nic, attachment: Attachment | None, view: CloudFacts, seen: LinkLocations, now: float
) -> Iterator[Difference]:
    said = view.nics.get(nic.nic_id)
    is_here = said is not None and said.instance_id == view.instance_id
    subject = str(attachment.key) if attachment else ""
    if said is not None and said.role == PRIMARY:
        detail = "the cloud calls it the instance's primary NIC, though it serves a container"
        yield Difference(DifferenceKind.RESERVED, nic.nic_id, detail, subject)
        return
    if said is not None and not view.is_ours(said.name):
        detail = f"somebody renamed it to {said.name!r}"
        remedy = None if attachment else Forget(nic.nic_id, detail)
        yield Difference(DifferenceKind.RENAMED, nic.nic_id, detail, subject, remedy=remedy)
        return
    if attachment is not None:
        if not is_here and now - nic.since >= SETTLED:
            detail = f"{_said(said)}; its container has no network until it is restarted"
            yield Difference(DifferenceKind.CUT_OFF, nic.nic_id, detail, subject)
    elif said is None:
        yield _vanished(nic, seen, is_whole=view.is_whole)
    elif said.instance_id and not is_here:
        remedy = None if _is_at_hand(nic, seen) else Forget(nic.nic_id, _said(said))
        yield Difference(DifferenceKind.ELSEWHERE, nic.nic_id, _said(said), remedy=remedy)
    elif nic.nic_id in seen or view.is_whole:
        yield from (_attached_here if is_here else _attached_nowhere)(nic, seen, now)
    if said is not None and said.instance_id in ("", view.instance_id):
        yield from _address(nic, attachment, said, view)


def _said(said: CloudNic | None) -> str:
    if said is None:
        return "the cloud no longer has it"
    return f"the cloud has it attached {f'to {said.instance_id}' if said.instance_id else 'nowhere'}"


def _is_at_hand(nic: Nic, seen: LinkLocations) -> bool:
    return any(s.where is not Where.ELSEWHERE for s in seen.get(nic.nic_id, ()))


def _vanished(nic: Nic, seen: LinkLocations, *, is_whole: bool) -> Difference:
    """A link contradicts a list that does not show its NIC."""
    if nic.nic_id in seen or not is_whole:
        is_here = "is here" if nic.nic_id in seen else "may be where the agent cannot read"
        return Difference(DifferenceKind.VANISHED, nic.nic_id, f"the cloud does not show it, and its link {is_here}")
    detail = "the cloud no longer has it, and its link is nowhere"
    return Difference(DifferenceKind.VANISHED, nic.nic_id, detail, remedy=Forget(nic.nic_id, detail))


def _attached_here(nic: Nic, seen: LinkLocations, now: float) -> Iterator[Difference]:
    if nic.nic_id in seen:
        return
    if nic.state is NicState.CREATING:
        detail = "the cloud has it attached here"
        yield Difference(DifferenceKind.ATTACHED, nic.nic_id, detail, remedy=Await(nic.nic_id), is_harmless=True)
    elif nic.state is NicState.MISSING:
        detail = "the cloud has it attached here, and its link is nowhere"
        if schedule.is_given_up(nic, now):
            detail += f", though it was attached again {nic.repairs} times; no further repair for now"
            yield Difference(DifferenceKind.GIVEN_UP, nic.nic_id, detail)
        else:
            yield Difference(DifferenceKind.NO_LINK, nic.nic_id, detail, remedy=Replug(nic.nic_id))


def _attached_nowhere(nic: Nic, seen: LinkLocations, now: float) -> Iterator[Difference]:
    if nic.nic_id in seen and nic.state in (*_FREE_TO_JUDGE, NicState.GATEWAY):
        if now - nic.since < SETTLED:
            return
        detail = "the cloud has it attached nowhere, and its link is here"
        remedy = Renew(nic.nic_id) if _is_at_hand(nic, seen) else None
        yield Difference(DifferenceKind.GHOST, nic.nic_id, detail, remedy=remedy)
    elif nic.state in _FREE_TO_JUDGE:
        detail = "the cloud has it attached nowhere, and its link is gone"
        yield Difference(DifferenceKind.UNATTACHED, nic.nic_id, detail, remedy=Unattach(nic.nic_id), is_harmless=True)


def _address(nic: Nic, attachment: Attachment | None, said: CloudNic, view: CloudFacts) -> Iterator[Difference]:
    vxnet = view.vxnets.get(said.vxnet_id)
    if vxnet is None or not (address := vxnet.address_of(said.private_ip)):
        return
    if (nic.vxnet_id, nic.address, nic.gateway) == (vxnet.vxnet_id, address, vxnet.gateway):
        return
    if sharing := view.sharing(said):
        yield _shared(said, sharing)
        return
    detail = f"its address is {address} in {vxnet.vxnet_id}, no longer {nic.address}"
    if attachment is not None:
        detail += "; its container has no network until it is restarted"
    remedy = Readdress(nic.nic_id, vxnet.vxnet_id, address, vxnet.gateway)
    subject = str(attachment.key) if attachment else ""
    yield Difference(DifferenceKind.READDRESSED, nic.nic_id, detail, subject, remedy=remedy, is_harmless=True)


def _shared(said: CloudNic, sharing: tuple[str, ...]) -> Difference:
    detail = f"the cloud gives {', '.join(sharing)} its address {said.private_ip} as well"
    return Difference(DifferenceKind.UNUSABLE, said.nic_id, detail)
