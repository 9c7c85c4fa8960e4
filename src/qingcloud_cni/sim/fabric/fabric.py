"""The hardware of the simulated cloud: hosts, routers and vxnets as namespaces and bridges, NICs as veth pairs.

It carries out the model's effects with iproute2 and nft. It shares no code with qingcloud_cni.kernel, so that each
proves the other.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.sim.fabric.layout import (
    HOST_SYSCTLS,
    ROUTER_SYSCTLS,
    RULESET,
    Layout,
    Port,
    filter_script,
    make_layout,
    port_of,
)
from qingcloud_cni.sim.fabric.names import LEAVING_GROUP, PORT_GROUP, Mark
from qingcloud_cni.sim.fabric.shell import RTM_DELLINK, drain, inside, ip_batch, ip_json, nft, open_monitor
from qingcloud_cni.sim.topology import Effect, FilterNic, PlugNic, Topology, UnplugNic

CHECK_PERIOD = 2.0  # seconds after which the fabric checks its ports even without a report of the kernel
ATTEMPTS = 3  # to make links, since another program on the host may take their names or indexes first

_GONE = ("Cannot find device", "No such device")

log = logging.getLogger(__name__)


class Fabric:
    """The namespaces and links of one simulator.

    `build` makes them, `apply` carries out effects, `watch` replugs NICs whose namespace died.
    """

    def __init__(self, sim: str, topology: Topology, state_dir: Path, *, rng: random.Random) -> None:
        self.layout: Layout = make_layout(sim, topology)
        self._sim = sim
        self._state_dir = state_dir
        self._replug = topology.latencies.replug
        self._rng = rng
        self.ports: dict[str, Port] = {}  # by NIC id: all plugged NICs; only the fabric changes it
        self._due: dict[str, float] = {}  # by NIC id, on the loop's clock: when a link that died comes back
        self._busy = asyncio.Lock()  # held while links change, so that a check never sees half a change

    async def build(self, nics: Sequence[PlugNic]) -> None:
        """Make all namespaces, and *nics*; the first of each host is its primary. Raises KernelRefused."""
        layout = self.layout
        await ip_batch("", [f"netns add {namespace}" for namespace in layout.namespaces])
        for router in layout.routers:
            inside(router.namespace, lambda: _set_sysctls(ROUTER_SYSCTLS))
            await ip_batch(router.namespace, router.lines(self._mark("")))
            await nft(router.namespace, RULESET)
        for host in layout.hosts.values():
            inside(host.namespace, lambda: _set_sysctls(HOST_SYSCTLS))
        await self.apply(*nics)
        for instance_id, host in layout.hosts.items():
            primary = next(nic for nic in nics if nic.instance_id == instance_id)
            await ip_batch(host.namespace, host.lines(self._mark(instance_id), primary.private_ip))

    async def adopt(self, nics: Sequence[PlugNic]) -> None:
        """Take over an earlier simulator's fabric, and delete links of NICs not in *nics*. Raises KernelRefused.

        Missing links of *nics* come by `apply` or, as links that died meanwhile, by `watch`.
        """
        async with self._busy:
            self.ports |= {nic.nic_id: port_of(self.layout, nic) for nic in nics}
            for router in self.layout.routers:
                ports = {port.name: port for port in self.ports.values() if port.router == router.namespace}
                present = await self._present([router.namespace])
                # an earlier simulator may have died after it made either end of a pair
                lines = [f"link set {name} group {LEAVING_GROUP}" for name in present - ports.keys()]
                lines += [f"link set {name} master {ports[name].bridge} up" for name in present & ports.keys()]
                await ip_batch(router.namespace, [*lines, f"link delete group {LEAVING_GROUP}"], tolerate=_GONE)
            await self._write_filters(router.namespace for router in self.layout.routers)

    async def apply(self, *effects: Effect) -> None:
        """Carry out *effects* in order, adjacent ones of one kind and host together.

        A failure does not stop the others; the first one is raised at the end (KernelRefused). `watch` retries a NIC
        whose plug failed.
        """
        failures: list[KernelRefused] = []
        async with self._busy:
            for (kind, _), group in itertools.groupby(effects, key=_batch_key):
                batch = list(group)
                try:
                    if kind is PlugNic:
                        await self._plug([effect for effect in batch if isinstance(effect, PlugNic)])
                    elif kind is UnplugNic:
                        await self._unplug([effect.nic_id for effect in batch])
                    else:
                        await self._filter([effect for effect in batch if isinstance(effect, FilterNic)])
                except KernelRefused as err:
                    failures.append(err)
        if failures:
            raise failures[0]

    async def watch(self) -> None:
        """Replug NICs whose namespace died, until cancelled.

        The kernel's reports only start a check of all links, so a lost report costs CHECK_PERIOD.
        """
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        sockets = [inside(router.namespace, open_monitor) for router in self.layout.routers]
        try:
            for reports in sockets:
                loop.add_reader(reports, drain, reports, wake, {RTM_DELLINK})
            while True:
                await self._check_links()
                pause = min([CHECK_PERIOD, *(due - loop.time() for due in self._due.values())])
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(pause, 0)):
                        await wake.wait()
                wake.clear()
        finally:
            for reports in sockets:
                loop.remove_reader(reports)
                reports.close()

    def links(self) -> dict[str, bool]:
        """The plugged NICs, and whether each has its link (False: its namespace died, the link comes back)."""
        return {nic_id: nic_id not in self._due for nic_id in self.ports}

    def _mark(self, instance_id: str) -> Mark:
        return Mark(self._sim, instance_id, self._state_dir)

    async def _plug(self, nics: list[PlugNic]) -> None:
        """Plug NICs of one host."""
        ports = [port_of(self.layout, nic) for nic in nics]
        self.ports |= {port.nic.nic_id: port for port in ports}
        await self._write_filters({port.router for port in ports})  # before the links: no frame passes unfiltered
        await self._link(ports[0].host, ports, is_return=False)
        log.info("plugged %s into %s", ", ".join(port.nic.nic_id for port in ports), ports[0].host)

    async def _unplug(self, nic_ids: list[str]) -> None:
        ports = [self.ports.pop(nic_id) for nic_id in nic_ids if nic_id in self.ports]
        for nic_id in nic_ids:
            self._due.pop(nic_id, None)
        for router in {port.router for port in ports}:
            # as a group: the kernel waits some 20 ms for each deletion, once per group
            lines = [f"link set {port.name} group {LEAVING_GROUP}" for port in ports if port.router == router]
            await ip_batch(router, [*lines, f"link delete group {LEAVING_GROUP}"], tolerate=_GONE)
        await self._write_filters({port.router for port in ports})
        log.info("unplugged %s", ", ".join(nic_ids))

    async def _filter(self, changes: list[FilterNic]) -> None:
        for change in changes:
            port = self.ports.get(change.nic_id)
            if port:
                nic = replace(port.nic, private_ip=change.private_ip, enable_aspoof=change.enable_aspoof)
                self.ports[change.nic_id] = replace(port, nic=nic)
        await self._write_filters({self.ports[c.nic_id].router for c in changes if c.nic_id in self.ports})

    async def _write_filters(self, routers: Iterable[str]) -> None:
        for router in routers:
            here = (port for port in self.ports.values() if port.router == router)
            guarded = (port for port in here if port.nic.enable_aspoof and port.nic.private_ip)
            await nft(router, filter_script(guarded))

    async def _link(self, host: str, ports: Sequence[Port], *, is_return: bool) -> None:
        """Make the veth pairs of *ports*; raises KernelRefused."""
        make = self._replug_links if is_return else self._hotplug
        for attempt in range(1, ATTEMPTS + 1):
            present = await self._present({port.router for port in ports})
            missing = [port for port in ports if port.name not in present]
            try:
                await make(host, missing)
            except KernelRefused:
                if attempt == ATTEMPTS:
                    raise
            else:
                return

    async def _hotplug(self, host: str, ports: Sequence[Port]) -> None:
        """Make links as new devices: the next free `ethN`, or the name of a fault, up, as stock images leave them."""
        taken = {row["ifname"] for row in await ip_json(host, "link", "show")}
        named = [(port, _free_name(port.nic.link_name or "eth", taken)) for port in ports]
        try:
            for router in {port.router for port in ports}:
                await ip_batch(router, [port.add_from_router(name) for port, name in named if port.router == router])
        finally:
            # a program on the host may have moved or renamed the link already
            await ip_batch(host, [f"link set {name} up" for _, name in named], tolerate=_GONE)

    async def _replug_links(self, host: str, ports: Sequence[Port]) -> None:
        """Make links as the kernel returns devices of a dead namespace: down, `dev<ifindex>` or a fault's name."""
        links = await ip_json(host, "link", "show")
        first = max(row["ifindex"] for row in links) + 1
        taken = {row["ifname"] for row in links}
        named = [
            (port, ifindex, _free_name(port.nic.link_name, taken) if port.nic.link_name else f"dev{ifindex}")
            for ifindex, port in enumerate(ports, first)
        ]
        try:
            await ip_batch(host, [port.add_from_host(ifindex, name) for port, ifindex, name in named])
        finally:
            for router in {port.router for port in ports}:
                lines = [f"link set {port.name} master {port.bridge} up" for port in ports if port.router == router]
                await ip_batch(router, lines, tolerate=_GONE)

    async def _present(self, routers: Iterable[str]) -> set[str]:
        return {
            row["ifname"]
            for router in routers
            for row in await ip_json(router, "link", "show", "group", str(PORT_GROUP))
        }

    async def _check_links(self) -> None:
        """Find links that died, and replug those that are due."""
        now = asyncio.get_running_loop().time
        async with self._busy:
            present = await self._present({router.namespace for router in self.layout.routers})
            for nic_id, port in self.ports.items():
                if port.name not in present and nic_id not in self._due:
                    self._due[nic_id] = now() + self._rng.uniform(*self._replug)
                    log.info("link of %s died with its namespace", nic_id)
            ready = [port for nic_id, port in self.ports.items() if self._due.get(nic_id, now() + 1) <= now()]
            for host, group in _by_host(ready):
                nic_ids = [port.nic.nic_id for port in group]
                try:
                    await self._link(host, group, is_return=True)
                except KernelRefused as err:  # the host's own namespace may be gone too
                    log.warning("%s: replug failed: %s", ", ".join(nic_ids), err)
                    self._due |= dict.fromkeys(nic_ids, now() + CHECK_PERIOD)
                else:
                    for nic_id in nic_ids:
                        del self._due[nic_id]
                    log.info("replugged %s into %s", ", ".join(nic_ids), host)


def _batch_key(effect: Effect) -> tuple[type, str]:
    return type(effect), effect.instance_id if isinstance(effect, PlugNic) else ""


def _by_host(ports: Iterable[Port]) -> list[tuple[str, list[Port]]]:
    ordered = sorted(ports, key=lambda port: port.host)
    return [(host, list(group)) for host, group in itertools.groupby(ordered, key=lambda port: port.host)]


def _free_name(prefix: str, taken: set[str]) -> str:
    """The lowest numbered name not in *taken*, to which it is added."""
    name = next(name for number in itertools.count() if (name := f"{prefix}{number}") not in taken)
    taken.add(name)
    return name


def _set_sysctls(values: dict[str, str]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.exists() or not name.startswith("net/bridge/"):  # br_netfilter need not be loaded
            path.write_text(value)
