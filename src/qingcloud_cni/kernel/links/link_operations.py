"""Operations on links of NICs in namespaces: survey, park, attach, detach. They block, in one thread of their own.

One message moves a NIC between namespaces, names it and, on the way back, resets it. The kernel does the costly step
once, and a crash before or after it leaves a link that its fingerprint identifies.
"""

import errno
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from socket import socket
from typing import Final

from qingcloud_cni.core.errors import InvalidConfig, KernelRefused, LinkNotFound, NicSoiled
from qingcloud_cni.core.nics.model import Netns, Route
from qingcloud_cni.core.seams.kernel import (
    Arrival,
    Detached,
    HostMacs,
    Inspection,
    LinkOrder,
    NicRecord,
    OtherNamespace,
    PlacedLink,
    Survey,
)
from qingcloud_cni.kernel.links.gateway import GatewayLinks
from qingcloud_cni.kernel.links.link_search import LinkSearch, inspection
from qingcloud_cni.kernel.links.namespace_handles import NamespaceHandles, Unseen
from qingcloud_cni.kernel.links.nic import SPARE_NAME, make_alias, parked_name, reset_change
from qingcloud_cni.kernel.links.recognition import spoofs
from qingcloud_cni.kernel.namespaces.namespaces import (
    Identity,
    Namespace,
    open_if,
    reachable,
    write_setting,
)
from qingcloud_cni.kernel.netlink.messages import IFF_NOARP, LinkChange, LinkInfo, delete_altnames, set_link
from qingcloud_cni.kernel.netlink.routing import add_address, add_route, static_route
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused
from qingcloud_cni.kernel.nic_state.comparison import Parked
from qingcloud_cni.kernel.nic_state.description import Description
from qingcloud_cni.kernel.nic_state.states import LinkStates, Settled, strip

SETTINGS: Final = (  # for each interface given to a container
    # The kernel announces the address when the link comes up: neighbours may have it with the MAC of another NIC.
    ("/proc/sys/net/ipv4/conf/{}/arp_notify", b"1"),
    # No program waits for duplicate detection of an IPv6 address; absent if IPv6 is off.
    ("/proc/sys/net/ipv6/conf/{}/accept_dad", b"0"),
)


class LinkOperations:
    """Made and used in one thread."""

    def __init__(self, namespaces: NamespaceHandles) -> None:
        """Take over *namespaces*."""
        self._namespaces = namespaces
        with ExitStack() as undo:
            undo.callback(namespaces.close)
            self._host, self._parking = self._namespaces.host, self._namespaces.parking
            self._nics = self._namespaces.nics
            self._search = LinkSearch(self._namespaces)
            home = self._namespaces.switcher.home
            self.gateways = undo.enter_context(GatewayLinks(self._host, self._parking, home, self._nics))
            self._on_host = undo.enter_context(LinkStates(self._host, nullcontext))
            self._parked = undo.enter_context(LinkStates(self._parking, self._inside_parking))
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    def monitors(self) -> tuple[socket, socket]:
        return self._namespaces.monitors()

    def remove(self) -> None:
        self._held.close()
        self._namespaces.remove()

    def host_macs(self) -> HostMacs:
        return self._host.macs

    def reserve(self, macs: Collection[str]) -> None:
        self._host.reserve(macs)

    def restore_parking(self) -> str | None:
        return self._namespaces.restore_parking()

    def identify(self, path: str) -> Netns:
        with self._namespaces.open_container(path) as namespace:
            return Netns(path, *namespace.identity)

    def inspect(self, path: str, ifname: str, nic: NicRecord | None = None) -> Inspection:
        with self._namespaces.open_container(path) as namespace, self._namespaces.netlink_in(namespace) as inside:
            netns = Netns(path, *namespace.identity)
            link = inside.link(name=ifname)
            if link is None or link.name != ifname:  # the kernel answers to altnames too
                return Inspection(netns)
            found = inspection(netns, inside, self._nics.link(inside, link))
            found = replace(found, is_silent=bool(link.flags & IFF_NOARP))
            if nic is None:
                return found
            with LinkStates(inside, lambda: self._namespaces.switcher.inside(namespace)) as states:
                state = states.inspect(link, Description.parse(nic.plugged))
            return replace(found, differences=state.differences, programs=state.programs)

    def survey(self) -> Survey:
        return Survey(host=self._nics.shown(self._host), parked=self._nics.shown(self._parking))

    def survey_all(self, paths: Sequence[str]) -> Survey:
        """Skip namespaces that vanish meanwhile; the host comes last, since their NICs go there."""
        elsewhere: list[OtherNamespace] = []
        unseen: list[str] = []
        for identity, path in reachable(self._namespaces.netns_dir, paths):
            if identity in self._namespaces.own_identities():
                continue
            try:
                if found := self._links_at(path, identity):
                    elsewhere.append(found)
            except KernelRefused:
                unseen.append(path)
        return replace(self.survey(), elsewhere=tuple(elsewhere), is_wide=True, unseen=tuple(unseen))

    def _links_at(self, path: str, identity: Identity) -> OtherNamespace | None:
        namespace = open_if(path, identity)
        if namespace is None:
            return None
        with namespace, self._namespaces.netlink_in(namespace) as netlink:
            return OtherNamespace(Netns(path, *identity), self._nics.shown(netlink))

    def park(self, nic: NicRecord) -> Arrival:
        self._host.check(nic.mac, "park")
        arrival = self._park_link(*self._namespaces.locate(nic), nic)
        link = self._namespaces.parked(nic)
        if arrival is None or link is None:
            raise LinkNotFound(f"nic {nic.mac}: park failed: its link vanished")
        settled = self._parked.arrive(link, nic.plugged)
        return replace(arrival, plugged=settled.text(nic.plugged), soil=settled.soil)

    def parked(self, nics: Collection[NicRecord]) -> Mapping[str, Parked]:
        """The links of those of *nics* that are parked, by MAC."""
        found = {}
        for nic in nics:
            with suppress(LinkNotFound):
                found[nic.mac] = Parked(self._namespaces.parked_link(nic.mac), nic.plugged)
        return found

    def set_up(self, mac: str) -> str:
        """Set a parked link up for a probe; returns its name."""
        self._host.check(mac, "probe")
        link = self._namespaces.parked_link(mac)
        self._parking.do(set_link(link.ifindex, LinkChange(is_up=True)), f"nic {mac}: set up {link.name}")
        return link.name

    def set_down(self, mac: str) -> None:
        """Undo `set_up`, unless the link has left meanwhile."""
        with suppress(LinkNotFound):
            link = self._namespaces.parked_link(mac)
            if link.is_up:
                self._namespaces.set_down(link)

    def attach(self, order: LinkOrder) -> PlacedLink:
        self._host.check(order.mac, "attach")
        netlinks, nic = [self._parking, self._host], order.nic
        with ExitStack() as stack:
            stack.enter_context(self._nics.routers_open())  # to be able to undo, whatever descriptors are left
            try:
                netlink, link = self._namespaces.locate(nic)
                nic = self._recorded(netlink, link, nic)
                namespace = stack.enter_context(self._namespaces.open_recorded(order.netns))
                inside = stack.enter_context(self._namespaces.netlink_in(namespace))
                netlinks.append(inside)
                settled = self._settled(netlink, link, nic)
                placed = self._move_in(order, netlink, link, namespace, inside, plugged=settled.described)
                return replace(placed, arrival=Arrival(nic.fingerprint, settled.text(nic.plugged)))
            except BaseException as err:
                self._undo(nic, netlinks, err)
                raise

    def detach(self, nic: NicRecord, netns: Netns, ifindex: int) -> Detached:
        self._host.check(nic.mac, "detach")
        found: list[str] = []
        with ExitStack() as stack:
            for path, netlink, index, looking in self._search.places(nic, netns, ifindex, stack):
                known, link, seen = nic, None, list[LinkInfo]()
                with looking:
                    link = self._nics.find(netlink, nic, index)
                    if link is None and netlink in (self._host, self._parking):  # returned with a new fingerprint
                        known = replace(nic, fingerprint="")
                        link = self._nics.find(netlink, known)
                    if link is None:
                        seen = spoofs(netlink.links(), nic, index)
                if link and (arrival := self._park_link(netlink, link, known)):
                    return Detached(arrival, tuple(found))
                found += (f"{other.name} (MAC {other.mac}, index {other.ifindex}) in {path}" for other in seen)
        return Detached(spoofs=tuple(found))

    def search(self, sought: Collection[NicRecord]) -> Mapping[str, Inspection]:
        return self._search.search(sought, Unseen())

    def is_gone(self, nic: NicRecord, netns: Netns) -> bool:
        return self._search.is_gone(nic, netns)

    def _settled(self, netlink: Netlink, link: LinkInfo, nic: NicRecord) -> Settled:
        """Compare a NIC before a container gets it; NicSoiled if it is not as plugged and cannot be restored."""
        states = self._parked
        if netlink is self._host:
            self._host.check_link(link, f"nic {nic.mac}: attach")
            states = self._on_host
            strip(netlink, link, f"nic {nic.mac}")
        settled = states.arrive(link, nic.plugged)
        if settled.soil:
            raise NicSoiled(f"nic {nic.mac}: not as the cloud plugged it in: {settled.soil}")
        return settled

    def _move_in(
        self, order: LinkOrder, netlink: Netlink, link: LinkInfo, namespace: Namespace, inside: Netlink, *,
        plugged: Description | None,
    ) -> PlacedLink:  # fmt: skip
        nic, path, ifname = f"nic {order.mac}", order.netns.path, order.ifname
        self._host.check_link(link, f"{nic}: attach")
        if inside.link(name=ifname):
            raise InvalidConfig(f"ifname {ifname}: attach failed: taken in {path}")
        self._strip_altnames(netlink, link, order.mac)
        change = reset_change(link, order.mac, plugged)
        mtu = link.mtu if change.mtu is None else change.mtu
        change = replace(change, netns_fd=namespace.fd, name=ifname, alias=make_alias(order.nic.alias, mtu))
        try:
            netlink.do(set_link(link.ifindex, change), f"{nic}: move to {path} as {ifname}")
        except NetlinkRefused as err:
            if err.errno == errno.EEXIST:  # taken since the check
                raise InvalidConfig(f"ifname {ifname}: attach failed: taken in {path}") from err
            if err.errno == errno.ENODEV:
                raise LinkNotFound(str(err)) from err
            raise
        placed = inside.link(name=ifname)  # a taken index changes in the move
        if placed is None:
            raise LinkNotFound(f"{nic}: move to {path} failed: its link vanished")
        inside.do(add_address(placed.ifindex, order.address), f"{nic}: add address {order.address} in {path}")
        self._apply_settings(namespace, order)
        inside.do(set_link(placed.ifindex, LinkChange(is_up=True)), f"{nic}: set up in {path}")
        taken = inside.destinations()
        free = (route for route in order.routes if route.destination not in taken)
        routes = tuple(route for route in free if _add_route(inside, placed, route, order))
        return PlacedLink(placed.ifindex, placed.mtu, routes)

    def _apply_settings(self, namespace: Namespace, order: LinkOrder) -> None:
        with self._namespaces.switcher.inside(namespace):  # /proc/sys/net belongs to the thread's namespace
            for template, value in SETTINGS:
                setting = template.format(order.ifname)
                try:
                    write_setting(setting, value)
                except FileNotFoundError:
                    continue
                except OSError as err:
                    raise KernelRefused(f"nic {order.mac}: write {setting} failed: {err.strerror}") from err

    def _undo(self, nic: NicRecord, netlinks: Sequence[Netlink], cause: BaseException) -> None:
        """Park the NIC from one of *netlinks*; the message of a failure has *cause* as well."""
        try:
            for netlink in netlinks:
                if (link := self._nics.find(netlink, nic)) and self._park_link(netlink, link, nic):
                    return
        except KernelRefused as err:
            raise KernelRefused(f"{cause}; undo failed: {err}") from cause

    def _recorded(self, netlink: Netlink, link: LinkInfo, nic: NicRecord) -> NicRecord:
        """*nic* with the fingerprint of its *link*, if it has no record."""
        return nic if nic.fingerprint else replace(nic, fingerprint=self._nics.link(netlink, link).fingerprint)

    def _park_link(self, netlink: Netlink, link: LinkInfo, nic: NicRecord) -> Arrival | None:
        """Move *link* from *netlink* to the parking namespace and reset it; a parked one is only reset.

        None if it vanished, or if a container put another link in its place meanwhile.
        """
        self._host.check_link(link, f"nic {nic.mac}: park")
        nic = self._recorded(netlink, link, nic)
        try:
            if netlink is not self._parking:
                self._move_home(netlink, link, nic)
                parked = self._namespaces.parked(nic)
                if parked is None:
                    self._namespaces.expel(nic)
                    return None
                link = parked
            self._reset_parked(link, nic)
        except NetlinkRefused as err:
            if err.errno == errno.ENODEV:  # unplugged, or a veth whose namespace died
                return None
            raise
        return Arrival(nic.fingerprint)

    def _inside_parking(self) -> AbstractContextManager[None]:
        return self._namespaces.switcher.inside(self._namespaces.parking_ns)

    def _move_home(self, netlink: Netlink, link: LinkInfo, nic: NicRecord) -> None:
        """Move *link*; its MAC changes only once it is known to be the NIC."""
        action = f"nic {nic.mac}: park {link.name}"
        strip(netlink, link, f"nic {nic.mac}")
        self._strip_altnames(netlink, link, nic.mac)
        change = replace(
            reset_change(link, nic.mac, Description.parse(nic.plugged)),
            netns_fd=self._namespaces.parking_ns.fd,
            name=parked_name(nic.mac),
            mac=None,
        )
        try:
            netlink.do(set_link(link.ifindex, change), action)
        except NetlinkRefused as err:
            # The kernel moves first and may have rejected a later part of the message.
            if self._namespaces.parked(nic):
                return
            if err.errno != errno.EEXIST:
                raise
            netlink.do(set_link(link.ifindex, replace(change, name=SPARE_NAME)), action)

    def _reset_parked(self, link: LinkInfo, nic: NicRecord) -> None:
        """Reset a link in the parking namespace; what the driver rejects is left to the comparison."""
        action = f"nic {nic.mac}: reset {link.name}"
        self._strip_altnames(self._parking, link, nic.mac)
        change = reset_change(link, nic.mac, Description.parse(nic.plugged))
        if change.is_up is False:  # name and MAC change only while it is down
            self._parking.do(set_link(link.ifindex, LinkChange(is_up=False)), action)
        if not change:
            return
        try:
            self._parking.do(set_link(link.ifindex, change), action)
        except NetlinkRefused as err:
            if err.errno == errno.ENODEV:
                raise
            if err.errno == errno.EEXIST:
                change = replace(change, name=SPARE_NAME)
            else:
                change = LinkChange(mac=change.mac, name=change.name, alias=change.alias, is_up=change.is_up)
            self._parking.do(set_link(link.ifindex, change), action)

    def _strip_altnames(self, netlink: Netlink, link: LinkInfo, mac: str) -> None:
        """Delete the altnames: they move with the link, and one that is taken in the new namespace stops the move."""
        if link.altnames:
            netlink.do(delete_altnames(link.ifindex, link.altnames), f"nic {mac}: remove altnames of {link.name}")


def _add_route(inside: Netlink, link: LinkInfo, route: Route, order: LinkOrder) -> bool:
    """Add a route; False if another program has just added one to this destination."""
    action = f"nic {order.mac}: add route {route.dst} via {route.gw or order.ifname} in {order.netns.path}"
    try:
        inside.do(add_route(static_route(link.ifindex, route)), action)
    except NetlinkRefused as err:
        if err.errno != errno.EEXIST:
            raise
        return False
    return True
