"""The host's and the parking namespace, held open; and the ways to NICs in these, and to all other namespaces."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import socket
from typing import Final

from qingcloud_cni.core.errors import AbilityMissing, InvalidNetns, LinkNotFound
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.kernel.links.nic import Sought, is_candidate, parked_name
from qingcloud_cni.kernel.namespaces import parking, sysctl
from qingcloud_cni.kernel.namespaces.namespaces import Identity, Namespace, Traveller, find, open_if, reachable
from qingcloud_cni.kernel.netlink.messages import LinkChange, LinkInfo, set_link
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused
from qingcloud_cni.kernel.netlink.watch import open_monitor

LOOPBACK: Final = 1  # its index in every namespace
PARKING_SETTINGS: Final = {  # a NIC that is set up for a probe says nothing but that; none where IPv6 is off
    f"net/ipv6/conf/{scope}/disable_ipv6": "1" for scope in ("all", "default")
}


class NamespaceHandles:
    """Owns the sockets to the two namespaces that are ours. To be made and used in one thread."""

    def __init__(self, instance_id: str, netns_dir: Path, host_netns: str | None = None) -> None:
        self.netns_dir = netns_dir
        self._parking_path = parking.parking_path(instance_id, netns_dir)
        with ExitStack() as undo:
            self.traveller = Traveller(host_netns)
            undo.callback(self.traveller.close)
            self.host = undo.enter_context(Netlink())
            self.parking_ns = undo.enter_context(parking.ensure(self._parking_path))
            with self.traveller.inside(self.parking_ns):
                self.parking = undo.enter_context(Netlink())
                sysctl.ensure(PARKING_SETTINGS)
            self._check_rights()
            self._set_all_down()
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    def monitors(self) -> tuple[socket, socket]:
        """Sockets that hear of link changes on the host and among the parked; the caller's to close."""
        host = open_monitor()
        try:
            with self.traveller.inside(self.parking_ns):
                return host, open_monitor()
        except BaseException:
            host.close()
            raise

    def remove(self) -> None:
        """Remove the parking namespace; only `close` may follow."""
        self._held.close()
        parking.remove(self._parking_path)

    # --- NICs at hand --------------------------------------------------------------------------------

    def at_hand(self, mac: str, alias: str = "") -> tuple[Netlink, LinkInfo]:
        """Where a NIC that is parked or on the host is, and its link."""
        link = self.parking.link(name=parked_name(mac))
        if link and link.mac == mac:
            return self.parking, link
        for place in (self.parking, self.host):
            if link := Sought(mac, alias).pick(place.links()):
                return place, link
        raise LinkNotFound(f"nic {mac}: no such link on the host or in {self._parking_path}")

    def parked(self, mac: str) -> LinkInfo:
        place, link = self.at_hand(mac)
        if place is not self.parking:
            raise LinkNotFound(f"nic {mac}: is not parked")
        return link

    def _set_all_down(self) -> None:
        """An agent that was killed may have left links up that it probed with."""
        for link in self.parking.links():
            if is_candidate(link) and link.is_up:
                self.set_down(link)

    def set_down(self, link: LinkInfo) -> None:
        self.parking.do(set_link(link.ifindex, LinkChange(is_up=False)), f"nic {link.mac}: set down {link.name}")

    # --- other namespaces ----------------------------------------------------------------------------

    def container(self, path: str) -> Namespace:
        """Open a namespace that must not be one of our own."""
        namespace = Namespace.open(path)
        if namespace.identity not in self.own():
            return namespace
        namespace.close()
        raise InvalidNetns(f"netns {path}: belongs to the host, not to a container")

    def recorded(self, netns: Netns) -> Namespace:
        """Open a namespace that must still be what was recorded."""
        namespace = Namespace.open(netns.path)
        if namespace.identity == (netns.dev, netns.inode) and namespace.identity not in self.own():
            return namespace
        namespace.close()
        raise InvalidNetns(f"netns {netns.path}: no longer the container's namespace")

    def find_recorded(self, netns: Netns) -> Namespace | None:
        """Open the recorded namespace by its path, or by any other that leads to it; None if none does."""
        identity = (netns.dev, netns.inode)
        if identity in self.own():
            return None
        return open_if(netns.path, identity) or find(identity, self.netns_dir)

    @contextmanager
    def socket_in(self, namespace: Namespace) -> Iterator[Netlink]:
        with self.traveller.inside(namespace):
            place = Netlink()
        with place:
            yield place

    def elsewhere(self, known: set[Identity]) -> Generator[tuple[Netns, Netlink], None, None]:
        """Visit every reachable namespace but the host's, the parking and the *known* ones."""
        for identity, path in reachable(self.netns_dir):
            namespace = None if identity in known | self.own() else open_if(path, identity)
            if namespace is None:
                continue
            with namespace, self.socket_in(namespace) as place:
                yield Netns(path, *identity), place

    def own(self) -> set[Identity]:
        return {self.traveller.home.identity, self.parking_ns.identity}

    def _check_rights(self) -> None:
        try:
            self.parking.do(set_link(LOOPBACK, LinkChange(is_up=False)), "change a link")
        except NetlinkRefused as err:
            raise AbilityMissing(f"links cannot be changed: {err}; root is needed") from err
