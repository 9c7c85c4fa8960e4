"""Conntrack entries of cooling addresses: the host forgets them before an address is used again."""

import asyncio
from contextlib import suppress

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.model import Nic

GATHER = 0.2  # seconds in which releases are gathered for one flush, unless an address is due before


class Flows:
    """Flushes them when an address is released and again when it has cooled down; no request waits for a flush.

    A new agent flushes all cooling addresses, for flushes are not recorded on disk.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.record = TaskRecord()
        self._begun: dict[str, float] = {}  # by NIC id: when its latest flush began
        self._under_way: set[str] = set()
        self._wanted: set[str] = set()
        self._urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin_due(self) -> None:
        """Begin the flush of all addresses that were released since their latest flush."""
        nics = self._context.table.nics
        self._begun = {nic_id: at for nic_id, at in self._begun.items() if nic_id in nics}
        for nic in nics.values():
            if nic.released > 0.0 and not self._is_begun(nic, nic.released):
                self._want(nic)

    def are_forgotten(self, nic: Nic, due: float) -> bool:
        """Whether a flush at *due* or later has ended; if not, one begins, and notifies the planner at its end."""
        if self._is_begun(nic, due):
            return nic.nic_id not in self._under_way
        self._want(nic)
        self._urgent.set()
        return False

    def _is_begun(self, nic: Nic, due: float) -> bool:
        return self._begun.get(nic.nic_id, float("-inf")) >= due

    def _want(self, nic: Nic) -> None:
        self._wanted.add(nic.nic_id)
        if self._task is None or self._task.done():
            self._task = self._context.tasks.spawn("flows", self._flush())

    async def _flush(self) -> None:
        context = self._context
        while self._wanted:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    await self._urgent.wait()
            self._urgent.clear()
            nics = [context.table.nics[nic_id] for nic_id in sorted(self._wanted) if nic_id in context.table.nics]
            self._wanted.clear()
            self._under_way = {nic.nic_id for nic in nics}
            self._begun |= dict.fromkeys(self._under_way, context.now())
            addresses = [nic.host_address for nic in nics]
            try:
                with self.record.run(context.clock):
                    if count := await context.kernel.flush(addresses):
                        context.note("flows.forgotten", detail=f"{count} from or to {', '.join(addresses)}")
            except KernelRefused as err:
                if self.record.failures == 1:  # the kernel refuses every flush for the same reason
                    context.note("flows.kept", detail=str(err))  # addresses cool down without it
            self._under_way = set()
            self._context.signals.plan_due.notify()
