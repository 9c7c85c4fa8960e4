"""The state that a gateway's link must have on the host: what is restored, and what is an operator's. Pure.

The kernel's defaults for new links decide nothing here: a hardened host turns forwarding off, for instance.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from qingcloud_cni.kernel.links.nic import alias_mtu
from qingcloud_cni.kernel.netlink.messages import (
    IFF_NOARP,
    IFLA_MTU,
    NO_NSID,
    U32,
    LinkChange,
    LinkInfo,
    parse_u32,
)
from qingcloud_cni.kernel.nic_state.description import Description, restoring_change
from qingcloud_cni.kernel.nic_state.link_attributes import RESTORED, show, show_flags
from qingcloud_cni.kernel.nic_state.uppers import KINDS

IFF_LOWER_UP: Final = 0x10000  # it has a carrier
IFLA_BROADCAST: Final = 2
IFLA_MASTER: Final = 10
IFLA_LINKMODE: Final = 17
IFLA_PROTO_DOWN: Final = 39
ATTRIBUTES: Final = {
    IFLA_BROADCAST: b"\xff" * 6,
    IFLA_LINKMODE: b"\0",  # not dormant
    IFLA_PROTO_DOWN: b"\0",
}
SETTINGS: Final = {  # below net/ipv4/conf/<link>
    "forwarding": "1",
    "rp_filter": "2",  # loose: the main table routes the reply by another link
    "arp_announce": "2",  # ARP requests have the gateway's own address, not that of a Service
    "arp_ignore": "1",  # the link answers ARP only for its own address …
    "arp_filter": "0",  # … by whatever link the host would reach the asker …
    "proxy_arp": "0",  # … and never for addresses behind other links
    "proxy_arp_pvlan": "0",
    "arp_notify": "1",  # neighbours may have the address with another MAC
    "send_redirects": "0",  # packets leave by the NIC they came in by, on purpose
    "accept_redirects": "0",  # the router would send packets another way
}
ALL_FAULTS: Final = {  # values of net/ipv4/conf/all that win over the link's
    "arp_ignore": frozenset("8"),  # answers no ARP request
    "proxy_arp": frozenset("1"),
}


def restoring(link: LinkInfo) -> LinkChange:
    """The change that brings a gateway's link back; name, MAC, alias and up are the caller's."""
    mtu = alias_mtu(link)
    change = restoring_change(link, Description({IFLA_MTU: U32.pack(mtu), **ATTRIBUTES}))
    master = ((IFLA_MASTER, U32.pack(0)),) if _master(link) else ()
    return replace(change, mtu=mtu if mtu != link.mtu else None, attributes=change.attributes + master)


def described(link: LinkInfo, change: LinkChange) -> Iterator[str]:
    """What `restoring` changes, for people."""
    if change.mtu is not None:
        yield f"mtu {link.mtu} instead of {change.mtu}"
    if change.flag_mask:
        yield f"flags {show_flags(link.flags)} instead of {show_flags(change.flags)}"
    for number, value in change.attributes:
        was = link.attributes[number]
        name = "member of link" if number == IFLA_MASTER else RESTORED[number]
        yield f"{name} {show(number, was)} instead of {show(number, value)}"


def faults(link: LinkInfo, links: Iterable[LinkInfo], *, has_tcx: bool) -> Iterator[str]:
    """What other programs have done to a link that is up, and the agent leaves to them."""
    if not link.flags & IFF_LOWER_UP:
        yield "it has no carrier"
    yield from (f"XDP program {xdp.program} is on it" for xdp in link.xdp)
    if has_tcx:
        yield "a TCX program is on it"
    for upper in links:
        if upper.kind in KINDS and upper.peer == link.ifindex and upper.peer_nsid == NO_NSID:
            yield f"{upper.kind} {upper.name} is on it"


def shared_faults(link: LinkInfo) -> Iterator[str]:
    """The same of a NIC that the agent did not make, whose link it does not change."""
    if link.flags & IFF_NOARP:
        yield "ARP is off on it"


def _master(link: LinkInfo) -> int:
    """The index of the bridge or bond that the link belongs to; 0 without one."""
    return parse_u32(link.attributes.get(IFLA_MASTER, bytes(4)))
