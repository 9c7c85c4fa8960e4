"""A machine in memory: links and namespaces of one simulated host.

Links behave as on Linux: names and indexes change on the way, and a namespace that dies returns its NICs late, down
and under another name.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from qingcloud_cni.core.nics.model import Netns, Route
from qingcloud_cni.core.seams.kernel import Link, ServicePath
from qingcloud_cni.sim.memory.faults import KernelFault
from qingcloud_cni.sim.topology import Effect, FilterNic, Latencies, PlugNic, UnplugNic

MTU = 1500
HOST_PATH = "/proc/1/ns/net"
IFACE = "eth0"  # the link of the primary NIC
_SETTINGS = {"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/send_redirects": "1"}  # after each boot
_FIRST_INODE = 4026531840  # of namespaces, after each boot
NSFS = 4  # device number of namespaces; any number does


@dataclass(slots=True, eq=False)
class Space:
    """A network namespace; *path* is "" once its mount is gone."""

    path: str
    inode: int
    links: "dict[int, FakeLink]" = field(default_factory=dict)  # by ifindex

    @property
    def netns(self) -> Netns:
        return Netns(self.path, NSFS, self.inode)

    def has_name(self, name: str) -> bool:
        return any(link.name == name for link in self.links.values())


@dataclass(slots=True, eq=False)
class FakeLink:
    nic_id: str  # "" if it is not a NIC
    mac: str
    name: str
    ifindex: int
    is_up: bool = True
    alias: str = ""
    address: str = ""
    routes: tuple[Route, ...] = ()
    soil: str = ""  # state that a container left on it
    is_stuck: bool = False  # … and that the kernel lets nobody remove
    prefix: str = ""  # of its name whenever it returns to the host; "": the kernel chooses
    permanent_mac: str = ""
    fingerprint: str = ""

    def shown(self) -> Link:
        return Link(
            self.mac, self.name, self.ifindex, self.is_up, self.alias, MTU, self.permanent_mac, self.fingerprint
        )

    def restore(self) -> str:
        """Bring it back to the state in which the cloud plugged it in; return what cannot be removed."""
        if not self.is_stuck:
            self.soil = ""
        return self.soil

    def unconfigure(self, name: str) -> None:
        """Change what the kernel changes when it takes a link out of its namespace."""
        self.name, self.is_up, self.address, self.routes = name, False, "", ()

    def reset(self, name: str) -> None:
        self.unconfigure(name)
        self.mac, self.alias = self.nic_id, ""


class MoveQueue:
    """Link moves run one at a time, in order; late ones only when no other waits."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._numbers = count()

    @asynccontextmanager
    async def take(self, *, is_late: bool = False) -> AsyncIterator[None]:
        if self._is_taken:
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heappush(self._waiting, (is_late, next(self._numbers), ready))
            try:
                await ready
            except asyncio.CancelledError:
                if not ready.cancelled():
                    self._pass_on()
                raise
        self._is_taken = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            ready = heappop(self._waiting)[2]
            if not ready.done():
                ready.set_result(None)
                return
        self._is_taken = False


class Machine:
    """`apply` is the hardware; the other plain methods are the container runtime and operators."""

    def __init__(
        self,
        instance_id: str,
        *,
        rng: random.Random,
        sleep: Callable[[float], Awaitable[None]],
        latencies: Latencies | None = None,
        is_hardware: bool = False,
    ) -> None:
        """Effects meant for other instances are ignored; *rng* draws how long dead namespaces retain their NICs.

        *is_hardware*: NICs have a burnt-in MAC and survive their namespace. Else they are those of the simulator,
        which makes another link then.
        """
        self.is_hardware = is_hardware
        self._plugged = 0
        self.instance_id = instance_id
        self.parking_path = f"/run/netns/qingcni-{instance_id}"
        self._rng = rng
        self._sleep = sleep
        self._latencies = latencies or Latencies()
        self._faults: list[KernelFault] = []
        self._last_inode = _FIRST_INODE
        self._last_ifindex = 1  # lo
        self._host = self._new_space(HOST_PATH)
        self._parking = self._new_space(self.parking_path)
        self._containers: dict[str, Space] = {}
        self._lost: dict[int, list[FakeLink]] = {}  # returning from dead namespaces, by inode
        self.default_route = IFACE  # the host's link with the best one …
        self.is_iface_default = True  # … and whether IFACE has one, too
        self._reserved: frozenset[str] = frozenset()  # MACs of links that the agent must not change
        self.claims: dict[str, str] = {}  # by address: the MAC of another machine in the vxnet that uses it
        self.flows: set[str] = set()  # addresses with tracked flows; each container leaves some behind
        self.stale: list[str] = []  # addresses that a container got while flows of an earlier one were tracked: a bug
        self.announced: list[str] = []  # addresses, in the order of announcements
        self.path = ServicePath()  # as last served
        self.path_harms: list[str] = []  # what the next `serve` restores
        self.path_faults: tuple[str, ...] = ()  # what it cannot
        self._gateways: set[str] = set()  # MACs of links configured for it
        self.settings = dict(_SETTINGS)
        self._moves = MoveQueue()
        self.is_parking_mounted = True
        self.unseen: set[str] = set()  # containers that a survey cannot enter
        self._generation = 0
        self._losses = 0
        self.is_silent = False  # `changes` reports nothing
        self.on_move: Callable[[FakeLink, Space, Space | None], None] = lambda _link, _source, _target: None
        self._watchers: dict[asyncio.Future[None], None] = {}

    def __repr__(self) -> str:
        spaces = {space.path: [link.name for link in space.links.values()] for space in self._spaces()}
        return f"{type(self).__name__}({self.instance_id}, {spaces})"

    # --- the hardware -----------------------------------------------------------------------------

    def apply(self, *effects: Effect) -> None:
        """Carry out the cloud's effects on this host, in order."""
        for effect in effects:
            self._apply(effect)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case PlugNic(nic_id=nic_id, instance_id=self.instance_id) if self._find(nic_id) is None:
                self._last_ifindex += 1
                name = self._free_name(effect.link_name or "eth")
                link = FakeLink(nic_id, nic_id, name, self._last_ifindex, prefix=effect.link_name)
                self._identify(link)
                self._host.links[self._last_ifindex] = link
                self._announce()
            case UnplugNic(nic_id=nic_id):
                self.unplug(nic_id)
            case PlugNic() | FilterNic():
                pass  # another host's, plugged already, or about traffic, which memory does not carry

    def _identify(self, link: FakeLink) -> None:
        """Give it the fingerprint of a NIC that has just been plugged in."""
        self._plugged += 1
        link.soil, link.is_stuck = "", False
        link.permanent_mac = link.nic_id if self.is_hardware else ""
        link.fingerprint = (
            f"virtio/virtio{self._plugged} {link.nic_id}" if self.is_hardware else f"veth 1/{self._plugged}"
        )

    def unplug(self, nic_id: str) -> None:
        """Remove a NIC wherever its link is."""
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
        assert path not in self.paths(), path
        self._containers[path] = self._new_space(path)
        return self._containers[path].netns

    def kill_netns(self, path: str) -> None:
        """End a container's namespace: its NICs return to the host after a while, down.

        Hardware retains MAC, alias and name. If the host has the name already, it becomes ``dev<ifindex>``.
        """
        space = self._containers.pop(path)
        for link in space.links.values():
            self.on_move(link, space, None)
        links = [link for link in space.links.values() if link.nic_id]  # the others are not hardware
        space.path = ""
        space.links.clear()
        if links:
            delay = self._rng.uniform(*self._latencies.replug)
            asyncio.get_running_loop().call_later(delay, self._return, space.inode)
            self._lost[space.inode] = links

    def change(self, path: str, ifname: str, **fields: Any) -> None:
        """Change an interface as a container or a chained plugin does: `is_up=False`, `routes=()`."""
        link = next(link for link in self.devices_in(path) if link.name == ifname)
        for name, value in fields.items():
            setattr(link, name, value)

    def move(self, path: str, ifname: str, target: str) -> None:
        """Do `ip link set netns`: the link loses its configuration except MAC and alias. A taken index changes."""
        link = self._take(path, ifname)
        link.unconfigure(ifname)
        self._put_in(self._at(target), link)
        self._announce()

    def delete_link(self, path: str, ifname: str) -> None:
        """Do `ip link delete`, or fail as a driver does."""
        self._take(path, ifname)
        self._announce()

    def add_link(self, path: str, mac: str, name: str, alias: str = "", ifindex: int = 0) -> None:
        """Add a link that is not the cloud's hardware, at *ifindex* if that is free."""
        self._last_ifindex += 1
        link = FakeLink("", mac, name, ifindex or self._last_ifindex, alias=alias)
        self._put_in(self._at(path), link)
        self._announce()

    def reboot(self) -> None:
        """End all containers. All NICs are on the host, named in the order in which they were plugged."""
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
        for link in sorted(links, key=lambda link: link.ifindex):
            if link.nic_id:
                link.reset(self._free_name(link.prefix or "eth"))
                self._identify(link)
                link.is_up = True
                self._host.links[link.ifindex] = link
        self._announce()

    def lose_message(self) -> None:
        """Overflow the buffer of notifications: `changes` reports a loss."""
        self._losses += 1
        self._announce()

    def set_address(self, mac: str, address: str) -> None:
        """Set the address, with prefix length, of a link on the host, as the guest's own configuration does."""
        next(link for link in self._host.links.values() if link.mac == mac).address = address

    # --- what is where ----------------------------------------------------------------------------

    def paths(self) -> set[str]:
        """Paths of all namespaces: the host's, the parking namespace and the containers'."""
        return {space.path for space in self._spaces()}

    def containers(self) -> list[str]:
        return [*self._containers]

    def devices_in(self, path: str) -> list[FakeLink]:
        """Links in a container, or in the host's or the parking namespace; changes take effect."""
        return [*self._at(path).links.values()]

    def links_in(self, path: str) -> tuple[Link, ...]:
        """The same links as the kernel shows them."""
        return tuple(link.shown() for link in self.devices_in(path))

    def addresses_in(self, path: str) -> dict[str, tuple[str, tuple[Route, ...]]]:
        """Address and routes of each configured link there, by its name."""
        return {link.name: (link.address, link.routes) for link in self.devices_in(path) if link.address}

    def locations(self) -> dict[str, str]:
        """Path of the namespace of each NIC's link, by NIC id."""
        return {link.nic_id: s.path for s in self._spaces() for link in s.links.values() if link.nic_id}

    # --- inside -----------------------------------------------------------------------------------

    def _return(self, inode: int) -> None:
        for link in self._lost.pop(inode, ()):
            own = f"dev{link.ifindex}" if self._host.has_name(link.name) else link.name
            if not self.is_hardware:
                link.mac, link.alias = link.nic_id, ""
                self._identify(link)
            link.unconfigure(self._free_name(link.prefix) if link.prefix else own)
            self._host.links[link.ifindex] = link
            self._announce()

    def _put_in(self, space: Space, link: FakeLink) -> None:
        if link.ifindex in space.links:
            self._last_ifindex += 1
            link.ifindex = self._last_ifindex
        space.links[link.ifindex] = link

    def _take(self, path: str, ifname: str) -> FakeLink:
        space = self._at(path)
        link = next(link for link in space.links.values() if link.name == ifname)
        return space.links.pop(link.ifindex)

    def _announce(self) -> None:
        """Wake the watchers: links of the host or the parking namespace have changed."""
        if self.is_silent:
            return
        self._generation += 1
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _find(self, nic_id: str) -> tuple[Space, FakeLink] | None:
        """Find a NIC's link anywhere."""
        hits = ((space, link) for space in self._spaces() for link in space.links.values() if link.nic_id == nic_id)
        return next(hits, None)

    def _spaces(self) -> tuple[Space, ...]:
        return (self._host, self._parking, *self._containers.values())

    def _at(self, path: str) -> Space:
        return next(space for space in self._spaces() if space.path == path)

    def _new_space(self, path: str) -> Space:
        self._last_inode += 1
        return Space(path, self._last_inode)
