"""A machine in memory: links and namespaces of one simulated host, and what befalls them.

Its manners are those of the real thing: names and indexes change on the way, a namespace that dies gives its NICs
back late, down and under another name.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from qingcloud_cni.core.nics.model import Netns, Route
from qingcloud_cni.core.seams.kernel import Link, ServicePath
from qingcloud_cni.sim.topology import Effect, FilterNic, Latencies, PlugNic, UnplugNic

MTU = 1500
HOST_PATH = "/proc/1/ns/net"
_SETTINGS = {"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/send_redirects": "1"}  # after each boot
_FIRST_INODE = 4026531840  # of namespaces, after each boot
NSFS = 4  # device number of namespaces; any number does


@dataclass(slots=True, eq=False)
class Space:
    """A network namespace; *path* is "" once nothing leads there any more."""

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


class Machine:
    """`apply` plays the hardware, the other plain methods the container runtime and people who meddle."""

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
        self._containers: dict[str, Space] = {}
        self._lost: dict[int, list[FakeLink]] = {}  # on their way back from dead namespaces, by inode
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
        return f"{type(self).__name__}({self.instance_id}, {spaces})"

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
                link = FakeLink(nic_id, nic_id, name, self._last_ifindex, prefix=effect.link_name)
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
        self._at(path).links[self._last_ifindex] = FakeLink("", mac, name, self._last_ifindex, alias=alias)
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

    def _take(self, path: str, ifname: str) -> FakeLink:
        space = self._at(path)
        link = next(link for link in space.links.values() if link.name == ifname)
        return space.links.pop(link.ifindex)

    # --- inside -----------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Tell the watchers that links of the host or the parking namespace have changed."""
        if self.is_silent:
            return
        self._generation += 1
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _find(self, nic_id: str) -> tuple[Space, FakeLink] | None:
        """Find a link anywhere by the MAC burnt in."""
        hits = ((space, link) for space in self._spaces() for link in space.links.values() if link.nic_id == nic_id)
        return next(hits, None)

    def _spaces(self) -> tuple[Space, ...]:
        return (self._host, self._parking, *self._containers.values())

    def _paths(self) -> set[str]:
        return {space.path for space in self._spaces()}

    def _at(self, path: str) -> Space:
        return next(space for space in self._spaces() if space.path == path)

    def _new_space(self, path: str) -> Space:
        self._last_inode += 1
        return Space(path, self._last_inode)
