"""Links above a NIC's: macvlan, ipvlan and vlan links survive its move, and no attribute of the NIC shows them."""

import errno
import secrets
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from qingcloud_cni.kernel.namespaces.namespaces import Namespace
from qingcloud_cni.kernel.netlink.messages import (
    IFLA_GROUP,
    NO_NSID,
    U32,
    LinkChange,
    LinkInfo,
    Request,
    add_passthru,
    delete_group,
    delete_link,
    set_link,
)
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused

KINDS: Final = frozenset({"macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"})
OCCUPIED: Final = frozenset({errno.EINVAL, errno.EBUSY})  # by a macvlan; by another kind


def above(netlink: Netlink, link: LinkInfo) -> list[LinkInfo]:
    """The links above *link* in its own namespace."""
    return [upper for upper in netlink.links() if is_above(upper, link.ifindex)]


def delete_above(netlink: Netlink, link: LinkInfo, nic: str) -> None:
    links = netlink.links()
    _delete_all(netlink, links, list(_pile(links, [link.ifindex])), nic)


def delete_from_afar(netlink: Netlink, home: Namespace, indexes: Collection[int]) -> None:
    """Delete links of another namespace that are above links of *home*, which have *indexes* there."""
    links = netlink.links()
    is_any = any(link.kind in KINDS and link.peer_nsid != NO_NSID for link in links)
    nsid = netlink.nsid_of(home.fd) if is_any else NO_NSID  # the dump has given it a number
    found = [link for link in links if is_above_from_afar(link, indexes, nsid)]
    found += _pile(links, [link.ifindex for link in found])
    _delete_all(netlink, links, found, "links above parked NICs")


def is_occupied(netlink: Netlink, link: LinkInfo) -> bool:
    """Whether a link in a namespace out of reach is above *link*: a passthru macvlan must be alone.

    The kernel does not show a vlan in this way. A kernel without macvlan shows no link at all.
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


def _pile(links: Sequence[LinkInfo], indexes: Collection[int]) -> Iterator[LinkInfo]:
    """The links above those of *indexes*, and in turn the links above them, each once."""
    while found := [link for link in links if link.peer in indexes and is_above(link, link.peer)]:
        yield from found
        indexes = {link.ifindex for link in found}


def _delete_all(netlink: Netlink, links: Sequence[LinkInfo], uppers: Sequence[LinkInfo], nic: str) -> None:
    """Delete *uppers*, some of *links*, as one link group: one by one each would cost a grace period of RCU."""
    if len(uppers) > 1:
        taken = {link.attributes.get(IFLA_GROUP) for link in links}
        group = next(value for value in iter(lambda: U32.pack(1 + secrets.randbits(30)), b"") if value not in taken)
        try:
            for upper in uppers:
                change = LinkChange(attributes=((IFLA_GROUP, group),))
                _unless_gone(netlink, set_link(upper.ifindex, change), f"{nic}: set the group of {upper.name}")
            _unless_gone(netlink, delete_group(group), f"{nic}: delete {len(uppers)} links above it")
        except NetlinkRefused:
            pass  # one by one, as far as the kernel lets us
        else:
            return
    for upper in uppers:
        _unless_gone(netlink, delete_link(upper.ifindex), f"{nic}: delete {upper.kind} {upper.name}")


def _unless_gone(netlink: Netlink, request: Request, action: str) -> None:
    try:
        netlink.do(request, action)
    except NetlinkRefused as err:
        if err.errno != errno.ENODEV:  # another one's deletion took it along
            raise
