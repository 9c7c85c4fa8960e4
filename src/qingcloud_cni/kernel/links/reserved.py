"""The host's own links, which the agent never changes: its socket to the host's namespace refuses to."""

import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.names import is_nic_id
from qingcloud_cni.core.seams.kernel import HostMacs
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.messages import LinkInfo, Message, Request
from qingcloud_cni.kernel.netlink.routing import RTM_DELADDR, RTM_NEWADDR, TableRoute
from qingcloud_cni.kernel.netlink.socket import Netlink

RT_TABLE_MAIN: Final = 254
_CHANGES: Final = frozenset(
    {nl.RTM_NEWLINK, nl.RTM_DELLINK, nl.RTM_SETLINK, nl.RTM_DELLINKPROP, RTM_NEWADDR, RTM_DELADDR}
)
_INDEX: Final = struct.Struct("=4xi")  # of a link, in ifinfomsg and in ifaddrmsg


class HostNetlink(Netlink):
    """A socket to the host's namespace that sends no change of a reserved link.

    A link is reserved by its permanent MAC, or by its MAC if the kernel shows no permanent one.
    """

    def __init__(self, iface: str) -> None:
        self._macs: frozenset[str] = frozenset()
        self._names: dict[int, str] = {}  # of reserved links, by index
        super().__init__()
        self.macs = host_macs(super().links(), self.routes(), iface)
        self.reserve(self.macs.default_route)

    def reserve(self, macs: Collection[str]) -> None:
        """Reserve links with these MACs, and that of --iface; others are free again."""
        self._macs = self.macs.iface.union(macs)
        self.links()

    def check(self, mac: str, verb: str) -> None:
        """KernelRefused if the NIC with this id is reserved."""
        if mac in self._macs:
            raise KernelRefused(f"nic {mac}: {verb} failed: reserved, as it is the host's own NIC")

    def check_link(self, link: LinkInfo, action: str) -> None:
        """The same for a link of any namespace, under whatever MAC it runs."""
        if link.permanent_mac in self._macs:
            raise KernelRefused(f"{action} failed: {link.name} is reserved, as it is the host's own link")

    def links(self) -> tuple[LinkInfo, ...]:
        links = super().links()
        self._names = {link.ifindex: link.name for link in links if (link.permanent_mac or link.mac) in self._macs}
        return links

    def do(self, request: Request, action: str) -> list[Message]:
        if request.kind in _CHANGES:
            (ifindex,) = _INDEX.unpack_from(request.body)
            if name := self._names.get(ifindex):
                raise KernelRefused(f"{action} failed: {name} is reserved, as it is the host's own link")
        return super().do(request, action)


def host_macs(links: Collection[LinkInfo], routes: Iterable[TableRoute], iface: str) -> HostMacs:
    """Find the host's own NICs among its links."""
    by_index = {link.ifindex: link for link in links}
    own = [link for link in links if iface in (link.name, *link.altnames)]
    defaults = sorted(
        (route.priority, route.ifindex)
        for route in routes
        if route.table == RT_TABLE_MAIN and route.dst == "0.0.0.0/0" and route.ifindex in by_index
    )
    best = [by_index[ifindex] for priority, ifindex in defaults if priority == defaults[0][0]]
    on_default = {ifindex for _, ifindex in defaults}
    return HostMacs(
        iface=frozenset(_macs(own, links)),
        default_route=frozenset(_macs(best, links)),
        is_iface_default=any(link.ifindex in on_default for link in own),
    )


def local_macs() -> frozenset[str]:
    """The MACs of every link in the thread's network namespace."""
    with Netlink() as netlink:
        return frozenset(mac for link in netlink.links() for mac in (link.mac, link.permanent_mac))


def iface_macs(iface: str) -> frozenset[str]:
    """The MACs of --iface and of the links below it, in the thread's network namespace."""
    with Netlink() as netlink:
        return host_macs(netlink.links(), (), iface).iface


def _macs(own: Iterable[LinkInfo], links: Collection[LinkInfo]) -> Iterator[str]:
    """The MACs of links and of all below them: ports of a bridge or bond, the link of a vlan."""
    left, seen = list(own), set[int]()
    while left:
        link = left.pop()
        if link.ifindex in seen:
            continue
        seen.add(link.ifindex)
        yield from filter(is_nic_id, (link.mac, link.permanent_mac))
        left += [other for other in links if other.master == link.ifindex or other.ifindex == link.lower]
