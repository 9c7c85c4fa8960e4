"""What is done with NICs in namespaces: survey, park, attach, detach. Blocking calls for one thread of their own.

A NIC crosses namespaces in one message that also names it and, on the way home, resets it: the costly step is taken
once, and a crash before or after it leaves a link that can be told by name, alias and MAC.
"""

import errno
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Final

from qingcloud_cni.core.errors import InvalidConfig, KernelRefused, LinkNotFound
from qingcloud_cni.core.nics.model import Netns, Route
from qingcloud_cni.core.seams.kernel import Inspection, LinkOrder, OtherNamespace, PlacedLink, Survey
from qingcloud_cni.kernel.links.gateway import GatewayLinks
from qingcloud_cni.kernel.links.namespace_handles import NamespaceHandles
from qingcloud_cni.kernel.links.nic import SPARE_NAME, Sought, candidates, mark, parked_name, plain, resetting
from qingcloud_cni.kernel.namespaces.namespaces import (
    Identity,
    Namespace,
    find,
    leads_to,
    open_if,
    reachable,
    write_setting,
)
from qingcloud_cni.kernel.netlink.messages import (
    LinkChange,
    LinkInfo,
    add_address,
    add_route,
    delete_altnames,
    set_link,
)
from qingcloud_cni.kernel.netlink.routing import get_addresses, get_routes, parse_address, parse_route
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused

SETTINGS: Final = (  # for each interface given to a container
    # Announce the address when the link comes up: neighbours may remember it with the MAC of another NIC.
    ("/proc/sys/net/ipv4/conf/{}/arp_notify", b"1"),
    # Nothing ever waits for an IPv6 address to be proved unique; absent where IPv6 is off.
    ("/proc/sys/net/ipv6/conf/{}/accept_dad", b"0"),
)


class LinkOperations:
    """To be made and used in one thread."""

    def __init__(self, instance_id: str, netns_dir: Path, host_netns: str | None = None) -> None:
        self._netns_dir = netns_dir
        self._mtus: dict[str, int] = {}  # of the NICs this process has given away, as they came
        with ExitStack() as undo:
            self._places = NamespaceHandles(instance_id, netns_dir, host_netns)
            undo.callback(self._places.close)
            self._host, self._parking = self._places.host, self._places.parking
            self.gateways = undo.enter_context(GatewayLinks(self._host, self._parking, self._places.traveller.home))
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    def monitors(self) -> tuple[socket, socket]:
        return self._places.monitors()

    def remove(self) -> None:
        """Remove the parking namespace; only `close` may follow."""
        self._held.close()
        self._places.remove()

    # --- the verbs -----------------------------------------------------------------------------------

    def identify(self, path: str) -> Netns:
        with self._places.container(path) as namespace:
            return Netns(path, *namespace.identity)

    def inspect(self, path: str, ifname: str) -> Inspection:
        with self._places.container(path) as namespace, self._places.socket_in(namespace) as inside:
            netns = Netns(path, *namespace.identity)
            link = inside.link(name=ifname)
            if link is None or link.name != ifname:  # the kernel answers to altnames too
                return Inspection(netns)
            return _inspection(netns, inside, link)

    def survey(self) -> Survey:
        return Survey(host=candidates(self._host.links()), parked=candidates(self._parking.links()))

    def survey_all(self, paths: Sequence[str]) -> Survey:
        """Namespaces that go meanwhile are left out; the host comes last, where their NICs go then."""
        elsewhere: list[OtherNamespace] = []
        unseen: list[str] = []
        for identity, path in reachable(self._netns_dir, paths):
            if identity in self._places.own():
                continue
            try:
                if place := self._place_at(path, identity):
                    elsewhere.append(place)
            except KernelRefused:
                unseen.append(path)
        return replace(self.survey(), elsewhere=tuple(elsewhere), is_wide=True, unseen=tuple(unseen))

    def _place_at(self, path: str, identity: Identity) -> OtherNamespace | None:
        namespace = open_if(path, identity)
        if namespace is None:
            return None
        with namespace, self._places.socket_in(namespace) as place:
            return OtherNamespace(Netns(path, *identity), candidates(place.links()))

    def park(self, mac: str, alias: str = "") -> None:
        place, link = self._places.at_hand(mac, alias)
        if not self._bring_if_there(place, link, mac):
            raise LinkNotFound(f"nic {mac}: vanished while it was parked")

    def light(self, mac: str) -> str:
        """Set a parked link up, so that it can be heard and hear; its name."""
        link = self._places.parked(mac)
        self._parking.do(set_link(link.ifindex, LinkChange(is_up=True)), f"nic {mac}: set up {link.name}")
        return link.name

    def darken(self, mac: str) -> None:
        """Undo `light`; nothing to do where the link has left meanwhile."""
        with suppress(LinkNotFound):
            link = self._places.parked(mac)
            if link.is_up:
                self._places.set_down(link)

    def attach(self, order: LinkOrder) -> PlacedLink:
        places = [self._parking, self._host]
        with ExitStack() as stack:
            try:
                place, link = self._places.at_hand(order.mac)
                namespace = stack.enter_context(self._places.recorded(order.netns))
                inside = stack.enter_context(self._places.socket_in(namespace))
                places.append(inside)
                return self._place(order, place, link, namespace, inside)
            except BaseException as err:
                self._undo(order.mac, places, err)
                raise

    def detach(self, mac: str, netns: Netns, ifindex: int, alias: str) -> bool:
        sought = Sought(mac, alias, ifindex)
        with ExitStack() as stack:
            inside = None
            if recorded := self._places.find_recorded(netns):
                stack.enter_context(recorded)
                inside = stack.enter_context(self._places.socket_in(recorded))
                if self._bring_from(inside, sought):
                    return True
            if self._bring_from(self._host, sought) or self._bring_from(self._parking, sought):
                return True
            if self._bring_from_anywhere(sought, recorded):
                return True
            # numbers of namespaces are given anew at once: for a guess the path must speak as well
            is_the_one = leads_to(netns.path, (netns.dev, netns.inode))
            if inside is not None and is_the_one and self._bring_unsure(inside, sought):
                return True
        self._mtus.pop(mac, None)
        return False

    def search(self, sought: Mapping[str, str]) -> Mapping[str, Inspection]:
        found: dict[str, Inspection] = {}
        left = {mac: Sought(mac, alias) for mac, alias in sought.items()}
        with closing(self._places.elsewhere(set())) as visits:
            for netns, place in visits:
                links = place.links()
                for mac, nic in tuple(left.items()):
                    if link := nic.pick(links):
                        found[mac] = _inspection(netns, place, link)
                        del left[mac]
                if not left:
                    break
        return found

    def is_gone(self, mac: str, netns: Netns, alias: str) -> bool:
        recorded = (netns.dev, netns.inode)
        if leads_to(netns.path, recorded):
            return False
        if any(Sought(mac, alias).pick(place.links()) for place in (self._host, self._parking)):
            return True
        if self.search({mac: alias}):
            return False
        if found := find(recorded, self._netns_dir):  # its link may have lost every sign of what it is
            found.close()
            return False
        return True

    # --- into a container ----------------------------------------------------------------------------

    def _place(
        self, order: LinkOrder, place: Netlink, link: LinkInfo, namespace: Namespace, inside: Netlink
    ) -> PlacedLink:
        nic, path, ifname = f"nic {order.mac}", order.netns.path, order.ifname
        if inside.link(name=ifname):
            raise InvalidConfig(f"ifname {ifname}: taken in {path}")
        self._strip_altnames(place, link, order.mac)
        change = self._resetting(link, order.mac)
        mtu = self._mtus[order.mac] = link.mtu if change.mtu is None else change.mtu
        change = replace(change, netns_fd=namespace.fd, name=ifname, alias=mark(order.alias, mtu))
        try:
            place.do(set_link(link.ifindex, change), f"{nic}: move to {path} as {ifname}")
        except NetlinkRefused as err:
            if err.errno == errno.EEXIST:  # taken since we looked
                raise InvalidConfig(f"ifname {ifname}: taken in {path}") from err
            if err.errno == errno.ENODEV:
                raise LinkNotFound(str(err)) from err
            raise
        placed = inside.link(name=ifname)  # the index is another one where the old one was taken
        if placed is None:
            raise LinkNotFound(f"{nic}: vanished on its way to {path}")
        inside.do(add_address(placed.ifindex, order.address), f"{nic}: add address {order.address} in {path}")
        self._apply_settings(namespace, order)
        inside.do(set_link(placed.ifindex, LinkChange(is_up=True)), f"{nic}: set up in {path}")
        routes = tuple(r for r in order.routes if _is_added(inside, placed, r, order))
        return PlacedLink(placed.ifindex, placed.mtu, routes)

    def _apply_settings(self, namespace: Namespace, order: LinkOrder) -> None:
        with self._places.traveller.inside(namespace):  # /proc/sys/net is that of the thread's namespace
            for template, value in SETTINGS:
                setting = template.format(order.ifname)
                try:
                    write_setting(setting, value)
                except FileNotFoundError:
                    continue
                except OSError as err:
                    raise KernelRefused(f"nic {order.mac}: write {value!r} to {setting}: {err.strerror}") from err

    def _undo(self, mac: str, places: Sequence[Netlink], cause: BaseException) -> None:
        """Park the NIC from whichever of *places* it is in now; a failure of that is told together with its cause."""
        try:
            for place in places:
                if self._bring_from(place, Sought(mac)):
                    return
        except KernelRefused as err:
            raise KernelRefused(f"{cause}; and it was not undone: {err}") from cause

    # --- and back ------------------------------------------------------------------------------------

    def _bring_from(self, place: Netlink, sought: Sought) -> bool:
        """Park the NIC if *place* holds it; False if it does not, or no longer."""
        link = place.link(ifindex=sought.ifindex) if sought.ifindex else None
        if link is None or not sought.is_surely(link):
            link = sought.pick(place.links())
        return link is not None and self._bring_if_there(place, link, sought.mac)

    def _bring_unsure(self, inside: Netlink, sought: Sought) -> bool:
        link = inside.link(ifindex=sought.ifindex) if sought.ifindex else None
        return link is not None and sought.is_perhaps(link) and self._bring_if_there(inside, link, sought.mac)

    def _bring_from_anywhere(self, sought: Sought, recorded: Namespace | None) -> bool:
        """Search every reachable namespace but the host's, the parking and the *recorded* one."""
        known = {recorded.identity} if recorded else set()
        with closing(self._places.elsewhere(known)) as visits:
            return any(self._bring_from(place, sought) for _netns, place in visits)

    def _bring_if_there(self, place: Netlink, link: LinkInfo, mac: str) -> bool:
        try:
            self._bring(place, link, mac)
        except NetlinkRefused as err:
            if err.errno == errno.ENODEV:  # unplugged, or a veth whose namespace died
                return False
            raise
        return True

    def _bring(self, place: Netlink, link: LinkInfo, mac: str) -> None:
        """Move *link* from *place* to the parking namespace, reset; there already, it is only reset."""
        if place is self._parking:
            self._tidy(link, mac)
        else:
            self._move_home(place, link, mac)
        self._mtus.pop(mac, None)  # from now on the link itself tells

    def _move_home(self, place: Netlink, link: LinkInfo, mac: str) -> None:
        wish = f"nic {mac}: park {link.name}"
        self._strip_altnames(place, link, mac)
        change = replace(self._resetting(link, mac), netns_fd=self._places.parking_ns.fd, name=parked_name(mac))
        try:
            place.do(set_link(link.ifindex, change), wish)
        except NetlinkRefused as err:
            # The kernel moves first: what it refused may have been a later part of the message.
            moved = [parked for parked in self._parking.links() if parked.mac in (mac, link.mac)]
            if moved:
                self._tidy(moved[0], mac)
            elif err.errno == errno.EEXIST:
                place.do(set_link(link.ifindex, replace(change, name=SPARE_NAME)), wish)
            else:
                raise

    def _tidy(self, link: LinkInfo, mac: str) -> None:
        """Give a link in the parking namespace the looks of a parked NIC, as far as it has not got them."""
        wish = f"nic {mac}: reset {link.name}"
        self._strip_altnames(self._parking, link, mac)
        change = self._resetting(link, mac)
        if change.is_up is False:  # name and MAC change only while it is down
            self._parking.do(set_link(link.ifindex, LinkChange(is_up=False)), wish)
        if not change:
            return
        try:
            self._parking.do(set_link(link.ifindex, change), wish)
        except NetlinkRefused as err:
            if err.errno != errno.EEXIST:
                raise
            self._parking.do(set_link(link.ifindex, replace(change, name=SPARE_NAME)), wish)

    def _resetting(self, link: LinkInfo, mac: str) -> LinkChange:
        return resetting(link, mac, self._mtus.get(mac))

    def _strip_altnames(self, place: Netlink, link: LinkInfo, mac: str) -> None:
        """Take the altnames off: they cross with the link, and one that is taken on the other side stops it."""
        if link.altnames:
            place.do(delete_altnames(link.ifindex, link.altnames), f"nic {mac}: remove altnames of {link.name}")


def _is_added(inside: Netlink, link: LinkInfo, route: Route, order: LinkOrder) -> bool:
    """Add a route; False where the container has one to there already, through another NIC of its own."""
    wish = f"nic {order.mac}: add route {route.dst} via {route.gw} in {order.netns.path}"
    try:
        inside.do(add_route(link.ifindex, route.dst, route.gw), wish)
    except NetlinkRefused as err:
        if err.errno != errno.EEXIST:
            raise
        return False
    return True


def _inspection(netns: Netns, place: Netlink, link: LinkInfo) -> Inspection:
    """What there is of a link in a container."""
    addresses = [parse_address(message.body) for message in place.dump(get_addresses(), "list addresses")]
    routes = [parse_route(message.body) for message in place.dump(get_routes(), "list routes")]
    return Inspection(
        netns,
        plain(link),
        tuple(a.address for a in addresses if a.ifindex == link.ifindex),
        tuple(Route(r.dst, r.gateway) for r in routes if r is not None and r.ifindex == link.ifindex),
    )
