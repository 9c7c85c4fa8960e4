"""Rules about links: which may be NICs, how one is recognized, and its state while parked. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from qingcloud_cni.core.seams.kernel import Link
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.messages import LinkChange, LinkInfo
from qingcloud_cni.kernel.nic_state.description import restoring_change

NIC_KINDS: Final = frozenset({"", "veth"})  # hardware has no kind; the simulator's NICs are veths
USUAL_MTU: Final = 1500
ALIAS_BYTES: Final = 255  # IFALIASZ without its final zero byte
SPARE_NAME: Final = "qnic%d"  # for a link whose parking name is taken; the kernel numbers it
_MARK: Final = re.compile(r"(?P<alias>.*) mtu=(?P<mtu>[1-9][0-9]{0,8})", re.DOTALL)


def is_candidate(link: LinkInfo) -> bool:
    is_ethernet = link.hardware == nl.ARPHRD_ETHER and not link.flags & nl.IFF_LOOPBACK
    return is_ethernet and bool(link.mac) and link.kind in NIC_KINDS


def to_link(link: LinkInfo) -> Link:
    alias, _ = parse_alias(link.alias)
    return Link(link.mac, link.name, link.ifindex, link.is_up, alias, link.mtu, link.permanent_mac)


def candidates(links: Iterable[LinkInfo]) -> tuple[Link, ...]:
    return tuple(to_link(link) for link in links if is_candidate(link))


def parked_name(mac: str) -> str:
    """The name of a parked NIC: unique among NICs, and short enough for an interface."""
    return "q" + mac.replace(":", "")


def make_alias(alias: str, mtu: int) -> str:
    """The alias of a link that leaves parking with *mtu*.

    A container may change the MTU, and another agent process may get the NIC back, so the alias notes an unusual MTU.
    If both are too long, *alias* is cut.
    """
    note = "" if mtu == USUAL_MTU else f" mtu={mtu}"
    room = ALIAS_BYTES - len(note)
    return alias.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore") + note


def parse_alias(text: str) -> tuple[str, int | None]:
    """The alias and MTU of `make_alias`; no MTU for an empty text."""
    if found := _MARK.fullmatch(text):
        return found["alias"], int(found["mtu"])
    return text, USUAL_MTU if text else None


@dataclass(frozen=True, slots=True)
class NicMatcher:
    """The known properties of a NIC's link. *alias* is unique among all NICs in all namespaces."""

    mac: str
    alias: str = ""
    ifindex: int = 0  # in the namespace recorded for it

    def matches(self, link: LinkInfo) -> bool:
        """Whether *link* has the NIC's MAC, permanent MAC or alias: enough in any namespace."""
        if not is_candidate(link):
            return False
        return self.mac in (link.mac, link.permanent_mac) or self._is_marked(link)

    def may_match(self, link: LinkInfo) -> bool:
        """Whether *link*, in the recorded namespace, can be the NIC although MAC and alias were both changed.

        Only for a NIC that no link `matches`. Hardware has a permanent MAC, so it is never confused.
        """
        return link.ifindex == self.ifindex and is_candidate(link) and not link.permanent_mac

    def pick(self, links: Iterable[LinkInfo]) -> LinkInfo | None:
        """The link that matches; among several the one that matches best."""
        found = [link for link in links if self.matches(link)]
        return max(found, key=self._rank, default=None)

    def _rank(self, link: LinkInfo) -> tuple[bool, bool, bool]:
        return link.ifindex == self.ifindex, self._is_marked(link), link.mac == self.mac

    def _is_marked(self, link: LinkInfo) -> bool:
        if not self.alias or not link.alias:
            return False
        mtu = parse_alias(link.alias)[1] or USUAL_MTU
        return link.alias == make_alias(self.alias, mtu)


def reset_change(link: LinkInfo, mac: str, mtu: int | None = None) -> LinkChange:
    """The changes that make *link* a parked NIC: down, renamed, with its first MAC and MTU, without alias.

    *mtu* is the first MTU if known, else that of the alias. Altnames need a message of their own; a move removes
    addresses, routes and qdiscs.
    """
    if mtu is None:
        mtu = alias_mtu(link)
    name = parked_name(mac)
    return replace(
        restoring_change(link, None),
        mac=mac if link.mac != mac else None,
        mtu=mtu if mtu != link.mtu else None,
        name=name if link.name != name else None,
        alias="" if link.alias else None,
        is_up=False if link.is_up else None,
    )


def alias_mtu(link: LinkInfo) -> int:
    """The MTU of its alias if the device supports it: a container may have written any alias."""
    noted = parse_alias(link.alias)[1]
    low, high = link.mtu_range
    return link.mtu if noted is None or noted < low or (high and noted > high) else noted
