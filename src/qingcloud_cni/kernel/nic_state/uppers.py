"""Links above a NIC's: macvlan, ipvlan and vlan links survive its move, and no attribute of the NIC shows them."""

import errno
from collections.abc import Collection
from typing import Final

from qingcloud_cni.kernel.namespaces.namespaces import Namespace
from qingcloud_cni.kernel.netlink.messages import NO_NSID, LinkInfo, add_passthru, delete_link
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused

KINDS: Final = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"})
OCCUPIED: Final = frozenset({errno.EINVAL, errno.EBUSY})  # by a macvlan; by another kind


def above(netlink: Netlink, link: LinkInfo) -> list[LinkInfo]:
    """The links above *link* in its own namespace."""
    return [upper for upper in netlink.links() if is_above(upper, link.ifindex)]


def delete_above(netlink: Netlink, link: LinkInfo, nic: str) -> None:
    for upper in above(netlink, link):
        _delete(netlink, upper, nic)


def delete_from_afar(netlink: Netlink, home: Namespace, indexes: Collection[int]) -> None:
    """Delete links of another namespace that are above links of *home*, which have *indexes* there."""
    found = [link for link in netlink.links() if link.kind in KINDS and link.peer_nsid != NO_NSID]
    nsid = netlink.nsid_of(home.fd) if found else NO_NSID  # the dump has given it a number
    for upper in found:
        if is_above_from_afar(upper, indexes, nsid):
            _delete(netlink, upper, f"link {upper.peer}")


def is_occupied(netlink: Netlink, link: LinkInfo) -> bool:
    """Whether a link in a namespace out of reach is above *link*: a passthru macvlan must be alone.

    The kernel does not show a vlan in this way. Without macvlan in the kernel there is no such link either.
    """
    name = f"above{link.ifindex}"
    try:
        netlink.do(add_passthru(name, link.ifindex), f"add {name} on {link.name}")
    except NetlinkRefused as err:
        if err.errno == errno.EOPNOTSUPP:
            return False
        if err.errno in OCCUPIED:
            return True
        raise
    if made := netlink.link(name=name):
        netlink.do(delete_link(made.ifindex), f"delete {name}")
    return False


def is_above(upper: LinkInfo, ifindex: int) -> bool:
    """Whether *upper* is above the link of this index in its own namespace."""
    return upper.kind in KINDS and upper.peer == ifindex and upper.peer_nsid == NO_NSID


def is_above_from_afar(upper: LinkInfo, indexes: Collection[int], nsid: int) -> bool:
    """Whether *upper* is above one of these links of another namespace, whose number in its own is *nsid*."""
    return upper.kind in KINDS and upper.peer in indexes and upper.peer_nsid == nsid != NO_NSID


def _delete(netlink: Netlink, upper: LinkInfo, nic: str) -> None:
    try:
        netlink.do(delete_link(upper.ifindex), f"{nic}: delete {upper.kind} {upper.name}")
    except NetlinkRefused as err:
        if err.errno != errno.ENODEV:  # another one's deletion took it along
            raise
