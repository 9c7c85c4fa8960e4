"""Background work for addresses and parked NICs, in a thread of its own: no move of a link waits for it.

Closing a packet socket waits for all processors to leave it, a list of many flows is slow, and so is a comparison
that visits every namespace.
"""

import errno
import socket
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.seams.kernel import LinkOrder
from qingcloud_cni.kernel.namespaces.namespaces import Namespace, NetnsSwitcher, open_if
from qingcloud_cni.kernel.neighbours.arp import ETH_P_ARP, announcement_frame
from qingcloud_cni.kernel.netlink import conntrack
from qingcloud_cni.kernel.netlink.messages import LinkInfo
from qingcloud_cni.kernel.netlink.socket import Netlink
from qingcloud_cni.kernel.nic_state.comparison import Comparison, Parked
from qingcloud_cni.kernel.nic_state.states import Settled

# The link or its namespace vanished, or the link is down.
LINK_GONE: Final = frozenset({errno.ENODEV, errno.ENXIO, errno.ENETDOWN})


class Background:
    """Made and used in one thread. Keeps only the host's and the parking namespace open."""

    def __init__(self, parking_path: str, netns_dir: Path, host_netns: str | None = None) -> None:
        with ExitStack() as undo:
            self._switcher = NetnsSwitcher(host_netns)
            undo.callback(self._switcher.close)
            self._parking_ns = undo.enter_context(Namespace.open(parking_path))
            self._comparison = undo.enter_context(Comparison(self._switcher, self._parking_ns, netns_dir))
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    @property
    def lacks(self) -> tuple[str, ...]:
        return self._comparison.lacks

    def settle(self, parked: Mapping[str, Parked]) -> Mapping[str, Settled]:
        return self._comparison.settle(parked)

    def flush(self, addresses: Collection[str]) -> int:
        return conntrack.delete_flows(addresses)

    def announce(self, order: LinkOrder, ifindex: int) -> bool:
        """Announce an address to the neighbours; False if link, address or namespace are no longer as ordered.

        The MAC is the link's present one: the container or a chained plugin may have changed it.
        """
        namespace = open_if(order.netns.path, (order.netns.dev, order.netns.inode))
        if namespace is None:
            return False
        with ExitStack() as stack:
            stack.enter_context(namespace)
            try:
                with self._switcher.inside(namespace):
                    inside = stack.enter_context(Netlink())
                    sender = stack.enter_context(_packet_socket(0))
                link = inside.link(ifindex=ifindex)
                if link is None or not _has_address(inside, link, order):
                    return False
                address = order.address.partition("/")[0]
                sender.sendto(announcement_frame(link.mac, address), (link.name, ETH_P_ARP))
            except OSError as err:
                if err.errno in LINK_GONE:
                    return False
                raise KernelRefused(f"nic {order.mac}: announce {order.address} failed: {err.strerror}") from err
        return True

    def open_arp_socket(self) -> socket.socket:
        """A socket for ARP on all links of the parking namespace that are up."""
        try:
            with self._switcher.inside(self._parking_ns):
                return _packet_socket(ETH_P_ARP)
        except OSError as err:
            raise KernelRefused(f"packet socket: open failed: {err.strerror}") from err


def _has_address(inside: Netlink, link: LinkInfo, order: LinkOrder) -> bool:
    """Whether the link is up and has the address."""
    return link.is_up and any(a.ifindex == link.ifindex and a.address == order.address for a in inside.addresses())


def _packet_socket(protocol: int) -> socket.socket:
    """A non-blocking socket that receives frames of *protocol*, none for 0."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_PACKET, kind, socket.htons(protocol))
