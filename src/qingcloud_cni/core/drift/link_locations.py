"""Which links are NICs of ours, and where. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.nics.names import aliased_nic
from qingcloud_cni.core.seams.kernel import Link, Survey


class Where(IntEnum):
    HOST = 0
    PARKED = 1
    ELSEWHERE = 2  # in a namespace that is neither the host's nor the parking one


class Sign(IntEnum):
    """How a link was recognised, the surer the higher."""

    ALIAS = 1  # its MAC is not one of ours
    MAC = 2
    MAC_AND_ALIAS = 3
    BURNT_IN = 4


@dataclass(frozen=True, slots=True)
class LinkLocation:
    """A link that is a NIC of ours, or claims to be."""

    where: Where
    link: Link
    sign: Sign
    netns: Netns | None = None  # elsewhere only
    is_marked: bool = False  # it has our alias: the agent moved it into a container

    @property
    def path(self) -> str:
        """The namespace, for messages."""
        if self.netns is not None:
            return self.netns.path
        return "the host's namespace" if self.where is Where.HOST else "the parking namespace"

    def is_in(self, netns: Netns) -> bool:
        return self.netns is not None and self.netns.is_same(netns)


LinkLocations = Mapping[str, tuple[LinkLocation, ...]]  # by NIC id; several where links claim to be the same NIC


def locate(nic_ids: Collection[str], survey: Survey, instance_id: str) -> LinkLocations:
    """Return the links of *nic_ids* that *survey* shows.

    A link is one NIC at most. A container with NET_ADMIN can give its NIC any MAC and alias. So a burnt-in MAC
    decides where the link has one, and an alias counts only if the MAC is not one of *nic_ids*.
    """
    found: dict[str, list[LinkLocation]] = {}
    for where, netns, link in _links(survey):
        marked = aliased_nic(link.alias, instance_id)
        nic_id, sign = _identify(link, marked, nic_ids)
        if nic_id:
            found.setdefault(nic_id, []).append(LinkLocation(where, link, sign, netns, marked == nic_id))
    return {nic_id: tuple(locations) for nic_id, locations in found.items()}


def _links(survey: Survey) -> Iterable[tuple[Where, Netns | None, Link]]:
    yield from ((Where.HOST, None, link) for link in survey.host)
    yield from ((Where.PARKED, None, link) for link in survey.parked)
    for other in survey.elsewhere:
        yield from ((Where.ELSEWHERE, other.netns, link) for link in other.links)


def _identify(link: Link, marked: str, nic_ids: Collection[str]) -> tuple[str, Sign]:
    if link.permanent_mac:
        return (link.permanent_mac, Sign.BURNT_IN) if link.permanent_mac in nic_ids else ("", Sign.BURNT_IN)
    if link.mac in nic_ids:
        return link.mac, Sign.MAC_AND_ALIAS if marked == link.mac else Sign.MAC
    return (marked, Sign.ALIAS) if marked in nic_ids else ("", Sign.ALIAS)


def surest(locations: Iterable[LinkLocation], home: Netns | None, ifindex: int = 0) -> LinkLocation | None:
    """Return the link that is the NIC; None if there is none, or several are equally sure.

    *home* and *ifindex* are recorded for the container it serves, if any.
    """

    def rank(location: LinkLocation) -> tuple[int, ...]:
        is_home = home is not None and location.is_in(home) and location.link.ifindex == ifindex
        return location.sign is Sign.BURNT_IN, is_home, location.is_marked, location.sign

    ranked = sorted(locations, key=rank, reverse=True)
    if not ranked or (len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1])):
        return None
    return ranked[0]
