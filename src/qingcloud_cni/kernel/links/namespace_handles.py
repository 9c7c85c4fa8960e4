"""Handles of the host's and the parking namespace, lookups of NICs in them, and visits to other namespaces."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import socket
from typing import Final

from qingcloud_cni.core.errors import AbilityMissing, InvalidNetns, KernelRefused, LinkNotFound, is_shortage
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import NicRecord
from qingcloud_cni.kernel.links.nic import is_ethernet, parked_name
from qingcloud_cni.kernel.links.recognition import Recognition
from qingcloud_cni.kernel.links.reserved import HostNetlink
from qingcloud_cni.kernel.namespaces import parking, sysctl
from qingcloud_cni.kernel.namespaces.namespaces import Identity, Namespace, NetnsSwitcher, find, open_if, reachable
from qingcloud_cni.kernel.netlink.messages import LinkChange, LinkInfo, delete_link, set_link
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused
from qingcloud_cni.kernel.netlink.watch import open_monitor

LOOPBACK: Final = 1  # its index in every namespace
PARKING_SETTINGS: Final = {  # a NIC that is up for a probe sends nothing else; absent if IPv6 is off
    f"net/ipv6/conf/{scope}/disable_ipv6": "1" for scope in ("all", "default")
}


class Unseen(list[str]):
    """Paths of namespaces that refused a look: what was not found may be there."""

    @contextmanager
    def skipping(self, path: str) -> Iterator[None]:
        """Note a namespace that refuses; a shortage is the host's, and would be met in the next one too."""
        try:
            yield
        except KernelRefused as err:
            if is_shortage(err):
                raise
            self.append(path)


class NamespaceHandles:
    """Owns the sockets to the agent's two namespaces; made and used in one thread."""

    def __init__(
        self,
        instance_id: str,
        netns_dir: Path,
        host_netns: str | None = None,
        iface: str = "",
        routers: Sequence[str] = (),
    ) -> None:
        self.netns_dir = netns_dir
        self.nics = Recognition(routers)
        self._parking_path = parking.parking_path(instance_id, netns_dir)
        with ExitStack() as undo:
            self.switcher = NetnsSwitcher(host_netns)
            undo.callback(self.switcher.close)
            self.host = undo.enter_context(HostNetlink(iface))
            self.parking_ns = undo.enter_context(parking.ensure(self._parking_path))
            with self.switcher.inside(self.parking_ns):
                self.parking = undo.enter_context(Netlink())
                sysctl.ensure(PARKING_SETTINGS)
            self._check_rights()
            self._set_all_down()
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    def monitors(self) -> tuple[socket, socket]:
        """Sockets with the link changes of the host and the parking namespace; the caller closes them."""
        host = open_monitor()
        try:
            with self.switcher.inside(self.parking_ns):
                return host, open_monitor()
        except BaseException:
            host.close()
            raise

    def restore_parking(self) -> str | None:
        """The mount's path if somebody had removed it."""
        return str(self._parking_path) if parking.restore(self._parking_path, self.parking_ns) else None

    def remove(self) -> None:
        """Remove the parking namespace; only `close` may follow."""
        self._held.close()
        parking.remove(self._parking_path)

    def locate(self, nic: NicRecord) -> tuple[Netlink, LinkInfo]:
        """The socket to the namespace of a NIC that is parked or on the host, and its link."""
        if link := self.parked(nic):
            return self.parking, link
        if link := self.nics.find(self.host, nic):
            return self.host, link
        raise LinkNotFound(f"nic {nic.mac}: find link failed: neither on the host nor in {self._parking_path}")

    def parked(self, nic: NicRecord) -> LinkInfo | None:
        """The link of a parked NIC, which usually has its name."""
        link = self.parking.link(name=parked_name(nic.mac))
        if link and nic.matches(self.nics.link(self.parking, link)):
            return link
        return self.nics.find(self.parking, nic)

    def expel(self, nic: NicRecord) -> None:
        """Delete the link that a container swapped in for the NIC while it was moved home.

        If that is another NIC of the simulator, the simulator plugs it in again.
        """
        for link in self.nics.shown(self.parking):
            if not link.fingerprint or (link.name == parked_name(nic.mac) and not nic.matches(link)):
                with suppress(NetlinkRefused):  # hardware, or the other end of a veth
                    self.parking.do(delete_link(link.ifindex), f"nic {nic.mac}: delete {link.name}")

    def parked_link(self, mac: str) -> LinkInfo:
        netlink, link = self.locate(NicRecord(mac))
        if netlink is not self.parking:
            raise LinkNotFound(f"nic {mac}: find parked link failed: it is on the host")
        return link

    def _set_all_down(self) -> None:
        """A killed agent may have left links up after a probe."""
        for link in self.parking.links():
            if is_ethernet(link) and link.is_up:
                self.set_down(link)

    def set_down(self, link: LinkInfo) -> None:
        self.parking.do(set_link(link.ifindex, LinkChange(is_up=False)), f"nic {link.mac}: set down {link.name}")

    def open_container(self, path: str) -> Namespace:
        """Open a namespace; InvalidNetns if it is one of the agent's own."""
        namespace = Namespace.open(path)
        if namespace.identity not in self.own_identities():
            return namespace
        namespace.close()
        raise InvalidNetns(f"netns {path}: open failed: belongs to the host, not to a container")

    def open_recorded(self, netns: Netns) -> Namespace:
        """Open a namespace; InvalidNetns if it is not the recorded one."""
        namespace = Namespace.open(netns.path)
        if namespace.identity == (netns.dev, netns.inode) and namespace.identity not in self.own_identities():
            return namespace
        namespace.close()
        raise InvalidNetns(f"netns {netns.path}: open failed: no longer the container's namespace")

    def find_recorded(self, netns: Netns) -> Namespace | None:
        """Open the recorded namespace by its path or any other one; None if it is unreachable."""
        identity = (netns.dev, netns.inode)
        if identity in self.own_identities():
            return None
        return open_if(netns.path, identity) or find(identity, self.netns_dir)

    def netlink_in(self, namespace: Namespace) -> Netlink:
        return Netlink.inside(self.switcher, namespace)

    def others(self, known: set[Identity], unseen: Unseen) -> Generator[tuple[Netns, Netlink], None, None]:
        """Visit every reachable namespace except the host's, the parking and the *known* ones."""
        for identity, path in reachable(self.netns_dir):
            namespace = None if identity in known | self.own_identities() else open_if(path, identity)
            if namespace is None:
                continue
            with unseen.skipping(path), namespace, self.netlink_in(namespace) as netlink:
                yield Netns(path, *identity), netlink

    def own_identities(self) -> set[Identity]:
        return {self.switcher.home.identity, self.parking_ns.identity}

    def _check_rights(self) -> None:
        try:
            self.parking.do(set_link(LOOPBACK, LinkChange(is_up=False)), "change a link")
        except NetlinkRefused as err:
            raise AbilityMissing(f"{err}; run as root") from err
