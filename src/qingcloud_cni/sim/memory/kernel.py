"""A kernel in memory, for agents on a virtual clock: core.seams.Kernel on a `Machine`. Moves are slow and serial."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

from qingcloud_cni.core.errors import InvalidConfig, InvalidNetns, KernelRefused, LinkNotFound, NicSoiled
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import (
    Arrival,
    Detached,
    Gateway,
    HostMacs,
    Inspection,
    LinkOrder,
    NicRecord,
    OtherNamespace,
    PlacedLink,
    Served,
    ServicePath,
    Survey,
)
from qingcloud_cni.sim.memory.faults import KernelFaults, verb
from qingcloud_cni.sim.memory.machine import HOST_PATH, IFACE, MTU, FakeLink, Machine, Space

MOVE = 0.019  # seconds; measured on a two-core host
PROBE = 2.1  # seconds without an answer after which an address is free
FLUSH = 0.012  # seconds to scan the table of tracked flows
COMPARISON = 0.02  # seconds for each NIC: a macvlan is made and removed
PLUGGED = "{}"  # the description of a NIC's state
NOARP = "NOARP"  # the soil that CHECK fails for
SERVING = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/send_redirects": "0",
}  # while pods' packets pass


class FakeKernel(Machine, KernelFaults):
    @verb
    async def host_macs(self) -> HostMacs:
        named = {link.name: frozenset({link.nic_id}) for link in self._host.links.values()}
        none: frozenset[str] = frozenset()
        return HostMacs(named.get(IFACE, none), named.get(self.default_route, none), self.is_iface_default)

    @verb
    async def reserve(self, macs: Collection[str]) -> None:
        self._reserved = (await self.host_macs()).iface.union(macs)

    def _check_free(self, mac: str) -> None:
        if mac in self._reserved:
            raise KernelRefused(f"nic {mac}: reserved, as it is the host's own NIC")

    @verb
    async def identify(self, path: str) -> Netns:
        if path in {HOST_PATH, self.parking_path}:
            raise InvalidNetns(f"{path}: is not a container's namespace")
        if path not in self._containers:
            raise InvalidNetns(f"{path}: there is no network namespace")
        return self._containers[path].netns

    @verb
    async def inspect(self, path: str, ifname: str, nic: NicRecord | None = None) -> Inspection:
        netns = await self.identify(path)
        link = next((link for link in self._at(path).links.values() if link.name == ifname), None)
        if link is None:
            return Inspection(netns)
        differences = (link.soil,) if nic and link.soil else ()
        return replace(_inspection(self._at(path), link), is_silent=link.soil == NOARP, differences=differences)

    @verb
    async def survey(self) -> Survey:
        return Survey(self.links_in(HOST_PATH), self.links_in(self.parking_path))

    @verb
    async def survey_all(self, paths: Sequence[str]) -> Survey:
        """Survey all containers, whatever *paths* names."""
        seen = [space for path, space in self._containers.items() if path not in self.unseen]
        places = tuple(OtherNamespace(space.netns, self.links_in(space.path)) for space in seen)
        return replace(await self.survey(), elsewhere=places, is_wide=True, unseen=tuple(sorted(self.unseen)))

    @verb
    async def park(self, nic: NicRecord) -> Arrival:
        async with self._moves.take(is_late=True):
            return await self._park(nic)

    @verb
    async def attach(self, order: LinkOrder) -> PlacedLink:
        async with self._moves.take():
            container = self._recorded(order.netns)
            if container is None:
                raise InvalidNetns(f"{order.netns.path}: is no longer the namespace it was")
            inside = container.links.values()
            placed = next((n for n in inside if n.name == order.ifname and order.nic.matches(n.shown())), None)
            if placed is None:
                self._find_free(order.nic)
                try:
                    placed = await self._place(order, container)
                except (InvalidConfig, InvalidNetns, KernelRefused):
                    await self._park(order.nic)
                    raise
                self._announce()
            return PlacedLink(placed.ifindex, MTU, placed.routes, Arrival(placed.fingerprint, PLUGGED))

    @verb
    async def detach(self, nic: NicRecord, netns: Netns, ifindex: int) -> Detached:
        async with self._moves.take():
            self._check_free(nic.mac)
            found = self._located(nic) or self._located(NicRecord(nic.mac), (self._host, self._parking))
            spoofs = tuple(
                f"{link.name} in {space.path}"
                for space in self._spaces()
                for link in space.links.values()
                if found is None
                and (
                    link.mac == nic.mac
                    or link.alias == (nic.alias or None)
                    or (link.ifindex == ifindex and space.netns == netns)
                )
            )
            if found is None:
                return Detached(spoofs=spoofs)
            space, link = found
            if space is not self._parking:
                await self._sleep(MOVE)
                if space.links.get(link.ifindex) is not link:  # its namespace died, or it was unplugged
                    return Detached(spoofs=spoofs)
                self._put(link, space, self._parking)
                link.reset(_parked_name(link))
                self._announce()
            return Detached(Arrival(link.fingerprint), spoofs)

    @verb
    async def compare(self, nics: Collection[NicRecord]) -> Mapping[str, Arrival]:
        await self._sleep(COMPARISON * len(nics))
        found = {}
        for nic in nics:
            with suppress(LinkNotFound):
                found[nic.mac] = Arrival(plugged=PLUGGED, soil=self._parked(nic.mac).restore())
        return found

    @verb
    async def search(self, sought: Collection[NicRecord]) -> Mapping[str, Inspection]:
        located = {nic.mac: self._located(nic) for nic in sought}
        containers = [*self._containers.values()]
        return {mac: _inspection(*found) for mac, found in located.items() if found and found[0] in containers}

    @verb
    async def announce(self, order: LinkOrder, ifindex: int) -> bool:
        container = self._recorded(order.netns)
        link = container.links.get(ifindex) if container is not None else None
        if link is None or (link.address, link.is_up) != (order.address, True):
            return False
        self.announced.append(order.address)
        return True

    @verb
    async def probe(self, mac: str, address: str) -> str:
        """A claimant answers at once."""
        link = self._parked(mac)
        link.is_up = True
        try:
            if address not in self.claims:
                await self._sleep(PROBE)
            if self._parked(mac) is not link or not link.is_up:
                raise LinkNotFound(f"nic {mac}: probe: it was moved during the probe")
            return self.claims.get(address, "")
        finally:
            if self._parking.links.get(link.ifindex) is link:
                link.is_up = False

    @verb
    async def flush(self, addresses: Collection[str]) -> int:
        await self._sleep(FLUSH)
        found = self.flows & set(addresses)
        self.flows -= found
        return len(found)

    @verb
    async def is_gone(self, nic: NicRecord, netns: Netns) -> bool:
        if self._recorded(netns) is not None:
            return False
        if any(NicRecord(nic.mac).matches(n.shown()) for s in (self._host, self._parking) for n in s.links.values()):
            return True
        return self._located(nic) is None and all(space.inode != netns.inode for space in self._spaces())

    @verb
    async def host_addresses(self) -> Mapping[str, tuple[str, ...]]:
        up = [link for link in self._host.links.values() if link.is_up]
        return {link.mac: (link.address,) if link.address else () for link in up}

    @verb
    async def serve(self, path: ServicePath) -> Served:
        async with self._moves.take():
            for mac in sorted(self._gateways - {gateway.mac for gateway in path.gateways if gateway.link_name}):
                self._undo_gateway(mac)
            for gateway in path.gateways:
                await self._serve_by(gateway)
            self.path = path
            changed = await self.settings_before(path)
            self.settings |= {name: SERVING[name] for name in changed}
            harms, self.path_harms = tuple(self.path_harms), []
            return Served(changed, harms, self.path_faults)

    @verb
    async def settings_before(self, path: ServicePath) -> Mapping[str, str]:
        wanted = SERVING if path.forwards else {}
        return {name: self.settings[name] for name in wanted if self.settings[name] != wanted[name]}

    @verb
    async def restore(self, settings: Mapping[str, str]) -> None:
        self.settings |= {name: value for name, value in settings.items() if name in self.settings}

    @verb
    async def restore_parking(self) -> str | None:
        was_mounted, self.is_parking_mounted = self.is_parking_mounted, True
        return None if was_mounted else self.parking_path

    def changes(self) -> AsyncIterator[bool]:
        """Yield once for any number of changes since the last time, those since this call included."""
        return self._watch(self._generation, self._losses)

    @property
    def lacks(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        """Do nothing: the machine outlives the agent."""

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

    async def _park(self, nic: NicRecord) -> Arrival:
        space, link = self._find_free(nic)
        if space is self._parking:
            return Arrival(link.fingerprint, PLUGGED, link.restore())
        await self._sleep(MOVE)
        if link.ifindex not in space.links:
            raise LinkNotFound(f"nic {nic.mac}: park: it vanished on the way")
        self._put(link, space, self._parking)
        link.reset(_parked_name(link))
        self._announce()
        return Arrival(link.fingerprint, PLUGGED, link.restore())

    async def _place(self, order: LinkOrder, container: Space) -> FakeLink:
        """Move and configure; on failure the link stays in its namespace."""
        space, link = self._find_free(order.nic)
        if soil := link.restore():
            raise NicSoiled(f"nic {order.mac}: {soil}")
        await self._sleep(MOVE)
        if link.ifindex not in space.links:
            raise LinkNotFound(f"nic {order.mac}: attach: it vanished on the way")
        if self._recorded(order.netns) is not container:
            raise InvalidNetns(f"{order.netns.path}: died while nic {order.mac} was moved there")
        if container.has_name(order.ifname):
            raise InvalidConfig(f"{order.ifname} in {order.netns.path}: taken by another interface")
        network = IPv4Interface(order.address).network
        for route in order.routes:
            if route.gw and IPv4Address(route.gw) not in network:
                raise KernelRefused(f"nic {order.mac}: route {route.dst} via {route.gw}: network is unreachable")
        self._put(link, space, container)
        link.name, link.alias, link.is_up = order.ifname, order.nic.alias, True
        taken = {route.destination for other in container.links.values() for route in other.routes}
        link.address = order.address
        address = order.address.partition("/")[0]
        if address in self.flows:
            self.stale.append(address)
        self.flows.add(address)
        link.routes = tuple(route for route in order.routes if route.destination not in taken)
        return link

    async def _serve_by(self, gateway: Gateway) -> None:
        """Configure a gateway's link, and move it to the host first if it is parked."""
        if not gateway.link_name:
            if gateway.address not in (link.address for link in self._host.links.values() if link.mac == gateway.mac):
                raise LinkNotFound(f"nic {gateway.mac}: is not up on the host with address {gateway.address}")
            return
        space, link = self._find_free(NicRecord(gateway.mac))
        self._gateways.add(gateway.mac)
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

    def _put(self, link: FakeLink, source: Space, target: Space) -> None:
        """Move a link. It retains its index unless a container took that."""
        self.on_move(link, source, target)
        del source.links[link.ifindex]
        self._put_in(target, link)

    def _find_free(self, nic: NicRecord) -> tuple[Space, FakeLink]:
        self._check_free(nic.mac)
        for space in (self._parking, self._host):
            for link in space.links.values():
                if nic.matches(link.shown()):
                    return space, link
        raise LinkNotFound(f"nic {nic.mac}: neither parked nor on the host")

    def _parked(self, mac: str) -> FakeLink:
        space, link = self._find_free(NicRecord(mac))
        if space is not self._parking:
            raise LinkNotFound(f"nic {mac}: is not parked")
        return link

    def _located(self, nic: NicRecord, spaces: Sequence[Space] = ()) -> tuple[Space, FakeLink] | None:
        """The NIC's link in any namespace, or in *spaces*; None if several claim to be it."""
        links = ((space, link) for space in spaces or self._spaces() for link in space.links.values())
        found = [(space, link) for space, link in links if nic.matches(link.shown())]
        return found[0] if len(found) == 1 else None

    def _recorded(self, netns: Netns) -> Space | None:
        """Return the container's namespace if its path still leads to the one recorded."""
        space = self._containers.get(netns.path)
        return space if space is not None and space.netns == netns else None


def _inspection(space: Space, link: FakeLink) -> Inspection:
    return Inspection(space.netns, link.shown(), (link.address,) if link.address else (), link.routes)


def _parked_name(link: FakeLink) -> str:
    return f"p{link.nic_id.replace(':', '')}"
