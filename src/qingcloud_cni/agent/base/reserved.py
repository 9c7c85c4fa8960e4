"""The host's own NICs, which no part of the agent changes: table and kernel refuse to."""

from collections.abc import Collection, Iterable

from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.clock import Clock
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
        self._macs = host.iface | _default_route(host, table)

    @classmethod
    async def begin(cls, table: Table, kernel: Kernel, clock: Clock, moves: Collection[str]) -> "Reserved":
        """Before the table is used."""
        found = cls(await kernel.host_macs(), table, kernel, clock, moves)
        await found._apply()
        return found

    def __contains__(self, nic_id: str) -> bool:
        return nic_id in self._macs

    async def learn_primary(self, nic_ids: Iterable[str]) -> None:
        """The cloud calls these primary. It cannot be right about one that serves; one that is moving waits."""
        table = self._table
        in_use = {*self._moves, *table.busy, *(a.nic_id for a in table.attachments.values())}
        if fresh := set(nic_ids) - in_use - self._macs:
            self._macs |= fresh
            await self._apply()

    async def _apply(self) -> None:
        self._table.keep_off(self._macs, self._clock.now())
        await self._kernel.reserve(self._macs)


def _default_route(host: HostMacs, table: Table) -> frozenset[str]:
    """A NIC of ours may have the best one, as DHCP clients of the host ask for all after a boot."""
    return host.default_route - table.nics.keys() if host.is_iface_default else host.default_route
