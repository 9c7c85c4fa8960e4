"""The host's own NICs, which no part of the agent changes: table and kernel refuse to."""

from collections.abc import Collection, Iterable

from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import PRIMARY, CloudNic, InstanceNic
from qingcloud_cni.core.seams.kernel import HostMacs, Kernel


class Reserved:
    """That of --iface, that of the best default route, and primary ones (role 1)."""

    def __init__(self, host: HostMacs, table: Table, kernel: Kernel, clock: Clock, moves: Collection[str]) -> None:
        """*moves*: NICs whose links are being moved."""
        self.iface = host.iface
        self._table = table
        self._kernel = kernel
        self._clock = clock
        self._moves = moves
        self._host = host.iface | _default_route(host, table)
        self._primary: set[str] = set()

    @classmethod
    async def begin(cls, table: Table, kernel: Kernel, clock: Clock, moves: Collection[str]) -> "Reserved":
        """Before the table is used."""
        found = cls(await kernel.host_macs(), table, kernel, clock, moves)
        await found._apply()
        return found

    def __contains__(self, nic_id: str) -> bool:
        return nic_id in self._host or nic_id in self._primary

    async def learn(self, nics: Iterable[CloudNic | InstanceNic]) -> None:
        """Reserve those that the cloud calls primary, and free those that it calls so no longer.

        It cannot be right about one that serves a container; one that is being moved waits.
        """
        table = self._table
        in_use = {*self._moves, *table.busy, *(a.nic_id for a in table.attachments.values())}
        is_primary = {nic.nic_id: nic.role == PRIMARY for nic in nics}
        primary = {nic_id for nic_id in is_primary if is_primary[nic_id] and nic_id not in in_use}
        before = self._primary
        self._primary = {n for n in before if is_primary.get(n, True)} | primary
        if self._primary != before:
            await self._apply()

    async def _apply(self) -> None:
        macs = self._host | self._primary
        self._table.keep_off(macs, self._clock.now())
        await self._kernel.reserve(macs)


def _default_route(host: HostMacs, table: Table) -> frozenset[str]:
    """A NIC of ours may have the best one, as DHCP clients of the host ask for all after a boot."""
    return host.default_route - table.nics.keys() if host.is_iface_default else host.default_route
