"""Which links are NICs of ours, and where. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from qingcloud_cni.core.nics.model import Netns, Nic
from qingcloud_cni.core.seams.kernel import Link, Survey


class Where(IntEnum):
    HOST = 0
    PARKED = 1
    ELSEWHERE = 2  # in a namespace that is neither the host's nor the parking one


@dataclass(frozen=True, slots=True)
class LinkLocation:
    """A link that is a NIC of ours, or claims to be."""

    where: Where
    link: Link
    netns: Netns | None = None  # elsewhere only

    @property
    def path(self) -> str:
        """The namespace, for messages."""
        if self.netns is not None:
            return self.netns.path
        return "the host's namespace" if self.where is Where.HOST else "the parking namespace"

    def is_in(self, netns: Netns) -> bool:
        return self.netns is not None and self.netns.is_same(netns)


LinkLocations = Mapping[str, tuple[LinkLocation, ...]]  # by NIC id; several where links claim to be the same NIC


def locate(nics: Mapping[str, Nic], survey: Survey) -> LinkLocations:
    """Return the links of *nics*, by id, that *survey* shows. A link is one NIC at most.

    In a container the recorded fingerprint decides, and a claim only for a NIC without a record. On the host and in
    the parking namespace, where no container can write, the claim decides: a NIC that was plugged in again has a new
    fingerprint.
    """
    recorded = {nic.fingerprint: nic.nic_id for nic in nics.values() if nic.fingerprint}
    found: dict[str, list[LinkLocation]] = {}
    for location in every_link(survey):
        link = location.link
        by_record, by_claim = recorded.get(link.fingerprint, ""), link.claimed_id if link.claimed_id in nics else ""
        if location.where is not Where.ELSEWHERE:
            nic_id = by_claim or by_record
        else:
            nic_id = by_record or (by_claim if by_claim and not nics[by_claim].fingerprint else "")
        if link.fingerprint and nic_id:
            found.setdefault(nic_id, []).append(location)
    return {nic_id: tuple(locations) for nic_id, locations in found.items()}


def hidden(
    nics: Mapping[str, Nic], survey: Survey, seen: LinkLocations, alias_of: Callable[[str], str]
) -> frozenset[str]:
    """Return NICs that may be in a container although they are not *seen*: their aliases are on unknown links.

    A container may have changed the MAC of a NIC of the simulator, by which the agent knows one without a record.
    The alias proves nothing, but it is a reason to wait.
    """
    known = {locations[0].link.fingerprint for locations in seen.values() if only(locations)}
    aliases = {alias_of(nic_id): nic_id for nic_id, nic in nics.items() if not nic.fingerprint}
    unknown = (n.link for n in every_link(survey) if n.netns and n.link.fingerprint not in {*known, ""})
    return frozenset(aliases[link.alias] for link in unknown if link.alias in aliases)


def every_link(survey: Survey) -> Iterable[LinkLocation]:
    yield from (LinkLocation(Where.HOST, link) for link in survey.host)
    yield from (LinkLocation(Where.PARKED, link) for link in survey.parked)
    for other in survey.elsewhere:
        yield from (LinkLocation(Where.ELSEWHERE, link, other.netns) for link in other.links)


def only(locations: tuple[LinkLocation, ...]) -> LinkLocation | None:
    """Return the link that is the NIC; None if there is none, or if several claim to be it."""
    return locations[0] if len(locations) == 1 else None
