"""A kernel in memory: links and namespaces of one simulated host, for agents that live on a virtual clock.

It keeps the contract of core.seams.Kernel and the manners of the real thing: moves are slow and one at a time, names
and indexes change on the way, a namespace that dies gives its NICs back late, down and under another name.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from qingcloud_cni.core.errors import InvalidConfig, InvalidNetns, KernelRefused, LinkNotFound
from qingcloud_cni.core.model import Netns, Route
from qingcloud_cni.core.seams import Gateway, Inspection, Link, LinkOrder, Place, PlacedLink, ServicePath, Survey
from qingcloud_cni.sim.effects import Effect, FilterNic, PlugNic, UnplugNic
from qingcloud_cni.sim.topology import Latencies

MOVE = 0.019  # seconds; measured, see design section 11
PROBE = 2.1  # seconds until silence counts
FLUSH = 0.012  # seconds to go through the table of tracked flows
MTU = 1500
HOST_PATH = "/proc/1/ns/net"
SERVING = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/all/send_redirects": "0"}  # settings, where there are gateways
_SETTINGS = {"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/send_redirects": "1"}  # after each boot
_FIRST_INODE = 4026531840  # of namespaces, after each boot
NSFS = 4  # device number of namespaces; any number does


@dataclass(slots=True, eq=False)
class _Space:
    """A network namespace; *path* is "" once nothing leads there any more."""

    path: str
    inode: int
    links: "dict[int, _Link]" = field(default_factory=dict)  # by ifindex

    @property
    def netns(self) -> Netns:
        return Netns(self.path, NSFS, self.inode)

    def has_name(self, name: str) -> bool:
        return any(link.name == name for link in self.links.values())


@dataclass(slots=True, eq=False)
class _Link:
    nic_id: str  # the MAC burnt in
    mac: str
    name: str
    ifindex: int
    is_up: bool = True
    alias: str = ""
    address: str = ""
    routes: tuple[Route, ...] = ()
    prefix: str = ""  # what stands before the number when it comes back; "": the kernel's way

    def shown(self) -> Link:
        return Link(self.mac, self.name, self.ifindex, self.is_up, self.alias, MTU)

    def unconfigure(self, name: str) -> None:
        """As a link looks that was taken out of its namespace by the kernel itself."""
        self.name, self.is_up, self.address, self.routes = name, False, "", ()

    def reset(self, name: str) -> None:
        """Forget all configuration."""
        self.unconfigure(name)
        self.mac, self.alias = self.nic_id, ""


class FakeKernel:
    """Implements core.seams.Kernel; `apply` plays the hardware, the other plain methods the container runtime."""

    def __init__(
        self,
        instance_id: str,
        *,
        rng: random.Random,
        sleep: Callable[[float], Awaitable[None]],
        latencies: Latencies | None = None,
    ) -> None:
        """Effects meant for other instances are ignored; *rng* draws how long dead namespaces keep their NICs."""
        self.instance_id = instance_id
        self.parking_path = f"/run/netns/qingcni-{instance_id}"
        self._rng = rng
        self._sleep = sleep
        self._latencies = latencies or Latencies()
        self._last_inode = _FIRST_INODE
        self._last_ifindex = 1  # lo
        self._host = self._new_space(HOST_PATH)
        self._parking = self._new_space(self.parking_path)
        self._containers: dict[str, _Space] = {}
        self._lost: dict[int, list[_Link]] = {}  # on their way back from dead namespaces, by inode
        self.claims: dict[str, str] = {}  # by address: the MAC of somebody else in the vxnet who uses it
        self.flows: set[str] = set()  # addresses that the host tracks flows of; each container leaves some behind
        self.stale: list[str] = []  # addresses that a container got while there were flows of another's: never
        self.announced: list[str] = []  # addresses, in the order of announcements
        self.path = ServicePath()  # as last served
        self._gateways: set[str] = set()  # MACs of links configured for it
        self.settings = dict(_SETTINGS)
        self._move_lock = asyncio.Lock()
        self.unseen: set[str] = set()  # containers that cannot be looked into
        self._generation = 0
        self._losses = 0
        self.is_silent = False  # nothing is told of links
        self._watchers: dict[asyncio.Future[None], None] = {}

    def __repr__(self) -> str:
        spaces = {space.path: [link.name for link in space.links.values()] for space in self._spaces()}
        return f"FakeKernel({self.instance_id}, {spaces})"

    # --- the hardware -----------------------------------------------------------------------------

    def apply(self, *effects: Effect) -> None:
        """Carry out what the cloud asks of this host's hardware, in order."""
        for effect in effects:
            self._apply(effect)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case PlugNic(nic_id=nic_id, instance_id=self.instance_id) if self._find(nic_id) is None:
                self._last_ifindex += 1
                name = self._free_name(effect.link_name or "eth")
                link = _Link(nic_id, nic_id, name, self._last_ifindex, prefix=effect.link_name)
                self._host.links[self._last_ifindex] = link
                self._announce()
            case UnplugNic(nic_id=nic_id):
                self._unplug(nic_id)
            case PlugNic() | FilterNic():
                pass  # another host's, there already, or about traffic, of which there is none here

    def _unplug(self, nic_id: str) -> None:
        for links in self._lost.values():
            links[:] = [link for link in links if link.nic_id != nic_id]
        found = self._find(nic_id)
        if found is not None:
            space, link = found
            del space.links[link.ifindex]
            self._announce()

    def _free_name(self, prefix: str) -> str:
        names = (f"{prefix}{n}" for n in range(len(self._host.links) + 1))
        return next(name for name in names if not self._host.has_name(name))

    # --- the container runtime --------------------------------------------------------------------

    def make_netns(self, path: str) -> Netns:
        """Make a container's namespace; its path must be free."""
        assert path not in self._paths(), path
        self._containers[path] = self._new_space(path)
        return self._containers[path].netns

    def kill_netns(self, path: str) -> None:
        """End a container's namespace: its NICs come back to the host after a while, down.

        They keep MAC, alias and name, but for one that is taken there: then it is ``dev<ifindex>``.
        """
        space = self._containers.pop(path)
        space.path = ""
        links = [link for link in space.links.values() if link.nic_id]  # others are no hardware
        space.links.clear()
        if links:
            delay = self._rng.uniform(*self._latencies.replug)
            asyncio.get_running_loop().call_later(delay, self._return, space.inode)
            self._lost[space.inode] = links

    def change(self, path: str, ifname: str, **fields: Any) -> None:
        """What a container, or a plugin behind ours, does to an interface there: `is_up=False`, `routes=()`."""
        link = next(link for link in self._at(path).links.values() if link.name == ifname)
        for name, value in fields.items():
            setattr(link, name, value)

    def move(self, path: str, ifname: str, target: str) -> None:
        """What somebody does with `ip link set netns`: the link loses what was configured, but for MAC and alias."""
        link = self._take(path, ifname)
        link.unconfigure(ifname)
        self._at(target).links[link.ifindex] = link
        self._announce()

    def delete_link(self, path: str, ifname: str) -> None:
        """What `ip link delete` does, or a driver that fails."""
        self._take(path, ifname)
        self._announce()

    def add_link(self, path: str, mac: str, name: str, alias: str = "") -> None:
        """A link of somebody else's, whatever MAC it claims."""
        self._last_ifindex += 1
        self._at(path).links[self._last_ifindex] = _Link("", mac, name, self._last_ifindex, alias=alias)
        self._announce()

    def reboot(self) -> None:
        """All containers are gone, and all links on the host, as the hardware makes them."""
        links = [link for space in self._spaces() for link in space.links.values()]
        links += [link for lost in self._lost.values() for link in lost]
        self._lost.clear()
        for space in self._spaces():
            space.links.clear()
        self._containers.clear()
        self._gateways.clear()
        self.path, self.settings = ServicePath(), dict(_SETTINGS)
        self._last_inode = self._host.inode
        self._parking = self._new_space(self.parking_path)
        for link in sorted(links, key=lambda link: link.ifindex):  # as they were plugged
            if link.nic_id:
                link.reset(self._free_name(link.prefix or "eth"))
                link.is_up = True
                self._host.links[link.ifindex] = link
        self._announce()

    def lose_message(self) -> None:
        """The kernel had more to tell than it keeps."""
        self._losses += 1
        self._announce()

    def set_address(self, mac: str, address: str) -> None:
        """What the guest's own configuration does: give a link on the host an address with prefix length."""
        next(link for link in self._host.links.values() if link.mac == mac).address = address

    def links_in(self, path: str) -> tuple[Link, ...]:
        """The links in a container, or in the host's or the parking namespace."""
        return tuple(link.shown() for link in self._at(path).links.values())

    def addresses_in(self, path: str) -> dict[str, tuple[str, tuple[Route, ...]]]:
        """Address and routes of each configured link there, by its name."""
        return {link.name: (link.address, link.routes) for link in self._at(path).links.values() if link.address}

    def _return(self, inode: int) -> None:
        for link in self._lost.pop(inode, ()):
            own = f"dev{link.ifindex}" if self._host.has_name(link.name) else link.name
            link.unconfigure(self._free_name(link.prefix) if link.prefix else own)
            self._host.links[link.ifindex] = link
            self._announce()

    def _take(self, path: str, ifname: str) -> _Link:
        space = self._at(path)
        link = next(link for link in space.links.values() if link.name == ifname)
        return space.links.pop(link.ifindex)

    # --- core.seams.Kernel ------------------------------------------------------------------------

    async def identify(self, path: str) -> Netns:
        if path in {HOST_PATH, self.parking_path}:
            raise InvalidNetns(f"{path}: is not a container's namespace")
        if path not in self._containers:
            raise InvalidNetns(f"{path}: there is no network namespace")
        return self._containers[path].netns

    async def inspect(self, path: str, ifname: str) -> Inspection:
        netns = await self.identify(path)
        link = next((link for link in self._at(path).links.values() if link.name == ifname), None)
        if link is None:
            return Inspection(netns)
        return _inspection(self._at(path), link)

    async def survey(self) -> Survey:
        return Survey(self.links_in(HOST_PATH), self.links_in(self.parking_path))

    async def survey_all(self, paths: Sequence[str]) -> Survey:
        """All containers here can be reached; what *paths* lead to besides is nothing."""
        seen = [space for path, space in self._containers.items() if path not in self.unseen]
        places = tuple(Place(space.netns, self.links_in(space.path)) for space in seen)
        return replace(await self.survey(), elsewhere=places, is_wide=True, unseen=tuple(sorted(self.unseen)))

    async def park(self, mac: str, alias: str = "") -> None:
        async with self._move_lock:
            await self._park(mac, alias)

    async def attach(self, order: LinkOrder) -> PlacedLink:
        async with self._move_lock:
            container = self._recorded(order.netns)
            if container is None:
                raise InvalidNetns(f"{order.netns.path}: is no longer the namespace it was")
            placed = next((link for link in container.links.values() if _is_placed(link, order)), None)
            if placed is None:
                self._find_free(order.mac)
                try:
                    placed = await self._place(order, container)
                except (InvalidConfig, InvalidNetns, KernelRefused):
                    await self._park(order.mac)
                    raise
                self._announce()
            return PlacedLink(placed.ifindex, MTU, placed.routes)

    async def detach(self, mac: str, netns: Netns, ifindex: int, alias: str) -> bool:
        async with self._move_lock:
            found = self._search(mac, netns, ifindex, alias)
            if found is None:
                return False
            space, link = found
            if space is not self._parking:
                await self._sleep(MOVE)
                if space.links.get(link.ifindex) is not link:  # died with its namespace, or was unplugged, meanwhile
                    return False
                self._put(link, space, self._parking)
                link.reset(_parked_name(link))
                self._announce()
            return True

    async def search(self, sought: Mapping[str, str]) -> Mapping[str, Inspection]:
        found: dict[str, Inspection] = {}
        for space in self._containers.values():
            for link in space.links.values():
                for mac in (m for m, alias in sought.items() if m in (link.nic_id, link.mac) or link.alias == alias):
                    found[mac] = _inspection(space, link)
        return found

    async def announce(self, order: LinkOrder, ifindex: int) -> bool:
        container = self._recorded(order.netns)
        link = container.links.get(ifindex) if container is not None else None
        if link is None or (link.alias, link.address, link.is_up) != (order.alias, order.address, True):
            return False
        self.announced.append(order.address)
        return True

    async def probe(self, mac: str, address: str) -> str:
        """Somebody who uses the address answers at once."""
        link = self._parked(mac)
        link.is_up = True
        try:
            if address not in self.claims:
                await self._sleep(PROBE)
            if self._parked(mac) is not link or not link.is_up:
                raise LinkNotFound(f"nic {mac}: probe: it was taken meanwhile")
            return self.claims.get(address, "")
        finally:
            if self._parking.links.get(link.ifindex) is link:
                link.is_up = False

    async def flush(self, addresses: Collection[str]) -> int:
        await self._sleep(FLUSH)
        found = self.flows & set(addresses)
        self.flows -= found
        return len(found)

    async def is_gone(self, mac: str, netns: Netns, alias: str) -> bool:
        if self._recorded(netns) is not None:
            return False
        if found := self._find(mac):
            return found[0] in (self._host, self._parking)
        return all(space.inode != netns.inode for space in self._spaces())

    async def host_addresses(self) -> Mapping[str, tuple[str, ...]]:
        up = [link for link in self._host.links.values() if link.is_up]
        return {link.mac: (link.address,) if link.address else () for link in up}

    async def serve(self, path: ServicePath) -> Mapping[str, str]:
        async with self._move_lock:
            for mac in sorted(self._gateways - {gateway.mac for gateway in path.gateways if gateway.link_name}):
                self._undo_gateway(mac)
            for gateway in path.gateways:
                await self._serve_by(gateway)
            self.path = path
            changed = await self.settings_before(path)
            self.settings |= {name: SERVING[name] for name in changed}
            return changed

    async def settings_before(self, path: ServicePath) -> Mapping[str, str]:
        wanted = SERVING if path.gateways else {}
        return {name: self.settings[name] for name in wanted if self.settings[name] != wanted[name]}

    async def restore(self, settings: Mapping[str, str]) -> None:
        self.settings |= {name: value for name, value in settings.items() if name in self.settings}

    def changes(self) -> AsyncIterator[bool]:
        """Yields once for any number of changes since the last time, those since this call included."""
        return self._watch(self._generation, self._losses)

    async def close(self) -> None:
        """Nothing to give back: the machine outlives the agent, and serves the next one."""

    # --- inside -----------------------------------------------------------------------------------

    async def _watch(self, seen: int, lost: int) -> AsyncIterator[bool]:
        while True:
            if seen == self._generation:
                watcher = asyncio.get_running_loop().create_future()
                self._watchers[watcher] = None
                try:
                    await watcher
                finally:
                    self._watchers.pop(watcher, None)
            is_complete = lost == self._losses
            seen, lost = self._generation, self._losses
            yield not is_complete

    def _announce(self) -> None:
        """Tell the watchers that links of the host or the parking namespace have changed."""
        if self.is_silent:
            return
        self._generation += 1
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def _park(self, mac: str, alias: str = "") -> None:
        space, link = self._find_free(mac, alias)
        if space is self._parking:
            return
        await self._sleep(MOVE)
        if link.ifindex not in space.links:
            raise LinkNotFound(f"nic {mac}: park: it vanished on the way")
        self._put(link, space, self._parking)
        link.reset(_parked_name(link))
        self._announce()

    async def _place(self, order: LinkOrder, container: _Space) -> _Link:
        """Move and configure; on failure the link is left where it was."""
        space, link = self._find_free(order.mac)
        await self._sleep(MOVE)
        if link.ifindex not in space.links:
            raise LinkNotFound(f"nic {order.mac}: attach: it vanished on the way")
        if self._recorded(order.netns) is not container:
            raise InvalidNetns(f"{order.netns.path}: died while nic {order.mac} was moved there")
        if container.has_name(order.ifname):
            raise InvalidConfig(f"{order.ifname} in {order.netns.path}: taken by another interface")
        network = IPv4Interface(order.address).network
        for route in order.routes:
            if IPv4Address(route.gw) not in network:
                raise KernelRefused(f"nic {order.mac}: route {route.dst} via {route.gw}: network is unreachable")
        self._put(link, space, container)
        link.name, link.alias, link.is_up = order.ifname, order.alias, True
        taken = {route.dst for other in container.links.values() for route in other.routes}
        link.address = order.address
        address = order.address.partition("/")[0]
        if address in self.flows:
            self.stale.append(address)
        self.flows.add(address)
        link.routes = tuple(route for route in order.routes if route.dst not in taken)
        return link

    async def _serve_by(self, gateway: Gateway) -> None:
        """Give a gateway's link the looks it shall have, from the parking namespace too."""
        if not gateway.link_name:
            if self._on_host(gateway.mac).address != gateway.address:
                raise LinkNotFound(f"nic {gateway.mac}: is not up on the host with address {gateway.address}")
            return
        self._gateways.add(gateway.mac)
        space, link = self._find_free(gateway.mac)
        if any(other.name == gateway.link_name for other in self._host.links.values() if other is not link):
            raise KernelRefused(f"nic {gateway.mac}: name {gateway.link_name}: taken by another link of the host")
        if space is not self._host:
            await self._sleep(MOVE)
            if link.ifindex not in space.links:
                raise LinkNotFound(f"nic {gateway.mac}: serve: it vanished on the way")
            self._put(link, space, self._host)
        before = (link.name, link.address, link.is_up)
        link.name, link.address, link.is_up = gateway.link_name, gateway.address, True
        if (link.name, link.address, link.is_up) != before or space is not self._host:
            self._announce()

    def _undo_gateway(self, mac: str) -> None:
        self._gateways.discard(mac)
        for link in self._host.links.values():
            if link.mac == mac:
                link.reset(_parked_name(link))
                self._announce()

    def _on_host(self, mac: str) -> _Link:
        for link in self._host.links.values():
            if link.mac == mac:
                return link
        raise LinkNotFound(f"nic {mac}: not on the host")

    def _put(self, link: _Link, source: _Space, target: _Space) -> None:
        """Move a link; it keeps its index if that is free there, as in the kernel."""
        del source.links[link.ifindex]
        target.links[link.ifindex] = link

    def _find_free(self, mac: str, alias: str = "") -> tuple[_Space, _Link]:
        for space in (self._parking, self._host):
            for link in space.links.values():
                if link.mac == mac or (alias and link.alias == alias):
                    return space, link
        raise LinkNotFound(f"nic {mac}: neither parked nor on the host")

    def _parked(self, mac: str) -> _Link:
        space, link = self._find_free(mac)
        if space is not self._parking:
            raise LinkNotFound(f"nic {mac}: is not parked")
        return link

    def _find(self, nic_id: str) -> tuple[_Space, _Link] | None:
        """Find a link anywhere by the MAC burnt in."""
        hits = ((space, link) for space in self._spaces() for link in space.links.values() if link.nic_id == nic_id)
        return next(hits, None)

    def _search(self, mac: str, netns: Netns, ifindex: int, alias: str) -> tuple[_Space, _Link] | None:
        container = self._recorded(netns)
        if container is not None:
            links = container.links.values()
            marks: tuple[Callable[[_Link], bool], ...] = (
                lambda link: link.ifindex == ifindex and link.nic_id == mac,
                lambda link: bool(alias) and link.alias == alias,
                lambda link: link.mac == mac,
            )
            for mark in marks:
                for link in links:
                    if mark(link):
                        return container, link
        everywhere = ((space, link) for space in self._spaces() for link in space.links.values())
        return next(((s, n) for s, n in everywhere if n.mac == mac or (alias and n.alias == alias)), None)

    def _recorded(self, netns: Netns) -> _Space | None:
        """The container's namespace, if its path still leads to the one recorded."""
        space = self._containers.get(netns.path)
        return space if space is not None and space.netns == netns else None

    def _spaces(self) -> tuple[_Space, ...]:
        return (self._host, self._parking, *self._containers.values())

    def _paths(self) -> set[str]:
        return {space.path for space in self._spaces()}

    def _at(self, path: str) -> _Space:
        return next(space for space in self._spaces() if space.path == path)

    def _new_space(self, path: str) -> _Space:
        self._last_inode += 1
        return _Space(path, self._last_inode)


def _inspection(space: _Space, link: _Link) -> Inspection:
    return Inspection(space.netns, link.shown(), (link.address,) if link.address else (), link.routes)


def _is_placed(link: _Link, order: LinkOrder) -> bool:
    return link.mac == order.mac and link.name == order.ifname and link.alias == order.alias


def _parked_name(link: _Link) -> str:
    return f"p{link.nic_id.replace(':', '')}"
