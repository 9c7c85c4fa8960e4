"""What is done for addresses beside the verbs, in a thread of its own: no move of a link waits for it.

Closing a packet socket waits until no processor looks at it any more, and a list of many flows takes its time.
"""

import errno
import socket
from collections.abc import Collection
from contextlib import ExitStack
from typing import Final

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.seams.kernel import LinkOrder
from qingcloud_cni.kernel.links.nic import read_mark
from qingcloud_cni.kernel.namespaces.namespaces import Namespace, Traveller, open_if
from qingcloud_cni.kernel.neighbours.arp import ETH_P_ARP, announcement
from qingcloud_cni.kernel.netlink import conntrack
from qingcloud_cni.kernel.netlink.messages import LinkInfo
from qingcloud_cni.kernel.netlink.routing import get_addresses, parse_address
from qingcloud_cni.kernel.netlink.socket import Netlink

# The link, or its namespace, is no longer what it was: somebody else has it now, or nobody.
OVER: Final = frozenset({errno.ENODEV, errno.ENXIO, errno.ENETDOWN})


class Background:
    """To be made and used in one thread. Holds nothing open but the host's and the parking namespace."""

    def __init__(self, parking_path: str, host_netns: str | None = None) -> None:
        with ExitStack() as undo:
            self._traveller = Traveller(host_netns)
            undo.callback(self._traveller.close)
            self._parking_ns = undo.enter_context(Namespace.open(parking_path))
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    def flush(self, addresses: Collection[str]) -> int:
        return conntrack.forget(addresses)

    def announce(self, order: LinkOrder, ifindex: int) -> bool:
        """Tell the neighbours whose the address is, if it still is; False where there is nothing to tell any more.

        A container may have another MAC by now, or a chained plugin have given it one.
        """
        namespace = open_if(order.netns.path, (order.netns.dev, order.netns.inode))
        if namespace is None:
            return False
        with ExitStack() as stack:
            stack.enter_context(namespace)
            try:
                with self._traveller.inside(namespace):
                    inside = stack.enter_context(Netlink())
                    sender = stack.enter_context(_packet_socket(0))
                link = inside.link(ifindex=ifindex)
                if link is None or not _has(inside, link, order):
                    return False
                address = order.address.partition("/")[0]
                sender.sendto(announcement(link.mac, address), (link.name, ETH_P_ARP))
            except OSError as err:
                if err.errno in OVER:
                    return False
                raise KernelRefused(f"nic {order.mac}: announce {order.address}: {err.strerror}") from err
        return True

    def open_ear(self) -> socket.socket:
        """A socket that hears and sends ARP on every link of the parking namespace that is up."""
        try:
            with self._traveller.inside(self._parking_ns):
                return _packet_socket(ETH_P_ARP)
        except OSError as err:
            raise KernelRefused(f"open a packet socket: {err.strerror}") from err


def _has(inside: Netlink, link: LinkInfo, order: LinkOrder) -> bool:
    """Whether the link is still the NIC, up, and with its address."""
    if not link.is_up or read_mark(link.alias)[0] != order.alias:
        return False
    addresses = (parse_address(message.body) for message in inside.dump(get_addresses(), "list addresses"))
    return any(a.ifindex == link.ifindex and a.address == order.address for a in addresses)


def _packet_socket(protocol: int) -> socket.socket:
    """One that hears frames of *protocol*, none for 0; it does not block."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_PACKET, kind, socket.htons(protocol))
