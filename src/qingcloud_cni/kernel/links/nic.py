"""Rules about links: which may be NICs, their aliases, and the state of a parked one. Pure."""

import re
from dataclasses import replace
from typing import Final

from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.messages import LinkChange, LinkInfo
from qingcloud_cni.kernel.nic_state.description import Description, restoring_change

NIC_KINDS: Final = frozenset({"", "veth"})  # of hardware, of the simulator's NICs
USUAL_MTU: Final = 1500
ALIAS_BYTES: Final = 255  # IFALIASZ without its final zero byte
SPARE_NAME: Final = "qnic%d"  # for a link whose parking name is taken; the kernel numbers it
_MARK: Final = re.compile(r"(?P<alias>.*) mtu=(?P<mtu>[1-9][0-9]{0,8})", re.DOTALL)


def is_ethernet(link: LinkInfo) -> bool:
    """Whether *link* may be a NIC, or look like one."""
    is_ethernet = link.hardware == nl.ARPHRD_ETHER and not link.flags & nl.IFF_LOOPBACK
    return is_ethernet and bool(link.mac) and link.kind in NIC_KINDS


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


def reset_change(link: LinkInfo, mac: str, plugged: Description | None = None) -> LinkChange:
    """The changes that make *link* a parked NIC: down, renamed, with its MAC, as *plugged*, without alias.

    Without a description the MTU is that of the alias. Altnames need a message of their own; a move removes
    addresses, routes and qdiscs.
    """
    mtu = alias_mtu(link) if plugged is None else plugged.mtu
    name = parked_name(mac)
    return replace(
        restoring_change(link, plugged),
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
