"""Links above a NIC's: macvlan, ipvlan and vlan links survive its move, and no attribute of the NIC shows them."""

import errno
from collections.abc import Iterable
from typing import Final

from qingcloud_cni.kernel.namespaces.namespaces import Namespace
from qingcloud_cni.kernel.netlink.messages import NO_NSID, LinkInfo, add_passthru, delete_link
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused

KINDS: Final = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"})
OCCUPIED: Final = frozenset({errno.EINVAL, errno.EBUSY})  # by a macvlan; by another kind


def delete_above(netlink: Netlink, link: LinkInfo, nic: str) -> None:
    """Delete the links above *link* in its own namespace."""
    for upper in netlink.links():
        if _is_on(upper, link.ifindex) and upper.peer_nsid == NO_NSID:
            _delete(netlink, upper, nic)


def delete_from_afar(netlink: Netlink, home: Namespace, indexes: Iterable[int]) -> None:
    """Delete links of another namespace that are above links of *home*, which have *indexes* there."""
    wanted = set(indexes)
    found = [link for link in netlink.links() if link.peer in wanted and _is_on(link, link.peer)]
    nsid = netlink.nsid_of(home.fd) if found else NO_NSID  # the dump has given it a number
    for upper in found:
        if upper.peer_nsid == nsid != NO_NSID:
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


def _is_on(upper: LinkInfo, ifindex: int) -> bool:
    return upper.kind in KINDS and upper.peer == ifindex


def _delete(netlink: Netlink, upper: LinkInfo, nic: str) -> None:
    try:
        netlink.do(delete_link(upper.ifindex), f"{nic}: delete {upper.kind} {upper.name}")
    except NetlinkRefused as err:
        if err.errno != errno.ENODEV:  # another one's deletion took it along
            raise
