"""The hosts' own DHCP clients, as on stock images: they configure every NIC, and race with the agent."""

import asyncio
import logging
import random
from asyncio import TaskGroup
from collections.abc import Mapping

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.sim.fabric.layout import Layout, Port, manager_address
from qingcloud_cni.sim.fabric.shell import RTM_DELLINK, RTM_NEWLINK, drain, inside, ip_batch, ip_json, open_monitor

_LEFT = (  # the kernel's errors for a link that left meanwhile
    "No such device",
    "Device not found",
    "Cannot find device",
    "Nexthop has invalid gateway",
    "Network is unreachable",
    "Network is down",
    "File exists",  # the address was given by hand
)
_SeenLink = tuple[str, int]  # MAC and index: a link that comes back usually has another index

log = logging.getLogger(__name__)


class GuestDhcp:
    """One DHCP client on each host; it ignores the primary NIC, which is configured already."""

    def __init__(
        self,
        layout: Layout,
        ports: Mapping[str, Port],
        primaries: frozenset[str],
        *,
        delay: tuple[float, float],
        rng: random.Random,
    ) -> None:
        """*ports* are the fabric's, by NIC id, which changes them; *delay* is the time from a link to its lease."""
        self.leases = 0  # so far
        self._layout = layout
        self._ports = ports
        self._primaries = primaries
        self._delay = delay
        self._rng = rng

    async def run(self) -> None:
        """Give leases until cancelled."""
        async with TaskGroup() as tasks:
            for host in self._layout.hosts.values():
                tasks.create_task(self._serve(host.namespace, tasks), name=f"dhcp on {host.namespace}")

    async def _serve(self, namespace: str, tasks: TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        wake.set()
        seen: frozenset[_SeenLink] = frozenset()
        reports = inside(namespace, open_monitor)
        loop.add_reader(reports, drain, reports, wake, {RTM_NEWLINK, RTM_DELLINK})
        try:
            while True:
                await wake.wait()
                wake.clear()
                here = await self._secondary_nics(namespace)
                for mac, ifindex in sorted(here - seen):
                    pause = self._rng.uniform(*self._delay)
                    tasks.create_task(self._lease(namespace, mac, ifindex, pause), name=f"dhcp for {mac}")
                seen = here
        finally:
            loop.remove_reader(reports)
            reports.close()

    async def _secondary_nics(self, namespace: str) -> frozenset[_SeenLink]:
        """The secondary NICs of the cloud that are in a host's own namespace."""
        try:
            rows = await ip_json(namespace, "link", "show")
        except KernelRefused as err:  # somebody may have deleted the namespace
            log.warning("DHCP: list links failed: %s", err)
            return frozenset()
        nics = self._ports.keys() - self._primaries
        return frozenset((row["address"], row["ifindex"]) for row in rows if row.get("address") in nics)

    async def _lease(self, namespace: str, mac: str, ifindex: int, pause: float) -> None:
        """Bring a NIC up with its address, connected route and a default route, unless it has left by then.

        The default route comes before the primary's: on a real host either may win, and this is the worse case. The
        commands use the link's index, since another link may have its name by now.
        """
        await asyncio.sleep(pause)
        if (mac, ifindex) not in await self._secondary_nics(namespace):
            return
        port = self._ports[mac]
        vxnets = self._layout.router_of(port.nic.vxnet_id).vxnets
        gateway = manager_address(next(vxnet for vxnet in vxnets if vxnet.vxnet_id == port.nic.vxnet_id))
        if gateway is None or not port.nic.private_ip:
            return
        device = f"dev if{ifindex}"
        lines = [
            f"link set {device} up",
            f"address add {port.nic.private_ip}/{gateway.network.prefixlen} brd + {device}",
            f"route prepend default via {gateway.ip} {device}",
        ]
        try:
            await ip_batch(namespace, lines, tolerate=_LEFT)
        except KernelRefused as err:
            log.warning("%s: lease failed: %s", mac, err)
        else:
            self.leases += 1
            log.info("leased %s to %s in %s", port.nic.private_ip, mac, namespace)
