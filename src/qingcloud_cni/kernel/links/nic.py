"""What makes a link a NIC, by which signs it is found again, and how it looks while it is parked. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qingcloud_cni.core.seams.kernel import Link
from qingcloud_cni.kernel.netlink.messages import (
    ARPHRD_ETHER,
    IFF_ALLMULTI,
    IFF_LOOPBACK,
    IFF_PROMISC,
    LinkChange,
    LinkInfo,
)

NIC_KINDS: Final = frozenset({"", "veth"})  # hardware has no kind; the simulator's NICs are veths
USUAL_MTU: Final = 1500
ALIAS_BYTES: Final = 255  # IFALIASZ less its final zero byte
SPARE_NAME: Final = "qnic%d"  # the kernel counts; for a link whose own parking name is taken
_MARK: Final = re.compile(r"(?P<alias>.*) mtu=(?P<mtu>[1-9][0-9]{0,8})", re.DOTALL)


def is_candidate(link: LinkInfo) -> bool:
    """Whether a link may be a NIC at all."""
    is_ethernet = link.hardware == ARPHRD_ETHER and not link.flags & IFF_LOOPBACK
    return is_ethernet and bool(link.mac) and link.kind in NIC_KINDS


def plain(link: LinkInfo) -> Link:
    alias, _ = read_mark(link.alias)
    return Link(link.mac, link.name, link.ifindex, link.is_up, alias, link.mtu, link.permanent_mac)


def candidates(links: Iterable[LinkInfo]) -> tuple[Link, ...]:
    return tuple(plain(link) for link in links if is_candidate(link))


def parked_name(mac: str) -> str:
    """The name of a parked NIC: its own among all NICs, and short enough for an interface."""
    return "q" + mac.replace(":", "")


# --- the alias ---------------------------------------------------------------------------------------


def mark(alias: str, mtu: int) -> str:
    """The alias to write on a link that leaves parking with *mtu*.

    A container may change the MTU, and the agent may be another process by the time the NIC comes back, so an
    unusual one is noted on the link itself; *alias* gives way to it where both are too long.
    """
    note = "" if mtu == USUAL_MTU else f" mtu={mtu}"
    room = ALIAS_BYTES - len(note)
    return alias.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore") + note


def read_mark(text: str) -> tuple[str, int | None]:
    """The alias and the MTU that `mark` wrote; no MTU where nothing was written."""
    if found := _MARK.fullmatch(text):
        return found["alias"], int(found["mtu"])
    return text, USUAL_MTU if text else None


# --- finding it again --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sought:
    """A NIC, by all that may be known of its link. *alias* must be no other NIC's, in any namespace."""

    mac: str
    alias: str = ""
    ifindex: int = 0  # in the namespace recorded for it

    def is_surely(self, link: LinkInfo) -> bool:
        """Whether MAC, burnt-in MAC or alias say that *link* is the NIC: enough in whichever namespace it is."""
        if not is_candidate(link):
            return False
        return self.mac in (link.mac, link.permanent_mac) or self._is_marked(link)

    def is_perhaps(self, link: LinkInfo) -> bool:
        """Whether *link*, in the recorded namespace, can be the NIC although MAC and alias were both changed.

        To be asked only when no link is surely the NIC. Hardware shows its burnt-in MAC, so it is never mistaken.
        """
        return link.ifindex == self.ifindex and is_candidate(link) and not link.permanent_mac

    def pick(self, links: Iterable[LinkInfo]) -> LinkInfo | None:
        """The link that is surely the NIC; where several are, the one with most signs of it."""
        found = [link for link in links if self.is_surely(link)]
        return max(found, key=self._signs, default=None)

    def _signs(self, link: LinkInfo) -> tuple[bool, bool, bool]:
        return link.ifindex == self.ifindex, self._is_marked(link), link.mac == self.mac

    def _is_marked(self, link: LinkInfo) -> bool:
        if not self.alias or not link.alias:
            return False
        mtu = read_mark(link.alias)[1] or USUAL_MTU
        return link.alias == mark(self.alias, mtu)


# --- how it is parked --------------------------------------------------------------------------------


def resetting(link: LinkInfo, mac: str, mtu: int | None = None) -> LinkChange:
    """What must change for *link* to look as a parked NIC does: down, nameless to others, as it came.

    *mtu* is the one it came with, if that is known; else the alias tells. Altnames take a message of their own;
    addresses, routes and qdiscs go with the move.
    """
    if mtu is None:
        mtu = _noted_mtu(link)
    name = parked_name(mac)
    return LinkChange(
        mac=mac if link.mac != mac else None,
        mtu=mtu if mtu != link.mtu else None,
        name=name if link.name != name else None,
        alias="" if link.alias else None,
        is_up=False if link.is_up else None,
        is_calm=bool(link.flags & (IFF_PROMISC | IFF_ALLMULTI)),
    )


def _noted_mtu(link: LinkInfo) -> int:
    """The MTU its alias tells of, as far as the device can have it: a container may have written anything there."""
    noted = read_mark(link.alias)[1]
    low, high = link.mtu_range
    return link.mtu if noted is None or noted < low or (high and noted > high) else noted
