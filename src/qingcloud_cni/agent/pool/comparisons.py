"""NICs are compared with the state in which the cloud plugged them in while they cool, and become idle only then."""

import asyncio
from contextlib import suppress

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.model import Nic, NicState

GATHER = 10.0  # seconds in which releases are gathered: one comparison visits every namespace …
GATHER_DUE = 0.5  # … or this, if one of them could be idle now


class Comparisons:
    """Compares each NIC once after it left a container; no request waits for it.

    A new agent compares all cooling NICs, for comparisons are not recorded on disk.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.record = TaskRecord()
        self._compared: dict[str, float] = {}  # by NIC id: the release after which it was compared
        self._wanted: set[str] = set()
        self._urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin_due(self) -> None:
        """Begin the comparison of all NICs that have begun to cool."""
        nics = self._context.table.nics
        self._compared = {nic_id: released for nic_id, released in self._compared.items() if nic_id in nics}
        for nic in self._context.table.in_state(NicState.COOLING):
            if not self._is_compared(nic):
                self._want(nic)

    def is_over(self, nic: Nic) -> bool:
        """Whether a NIC has been compared since its release; if not, it is now, and the planner is notified."""
        if self._is_compared(nic):
            return True
        self._want(nic)
        self._urgent.set()
        return False

    def _is_compared(self, nic: Nic) -> bool:
        return self._compared.get(nic.nic_id) == nic.released

    def _want(self, nic: Nic) -> None:
        self._wanted.add(nic.nic_id)
        if self._task is None or self._task.done():
            self._task = self._context.tasks.spawn("comparisons", self._compare())

    async def _compare(self) -> None:
        context, table = self._context, self._context.table
        while self._wanted:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER):
                    await self._urgent.wait()
                    await context.clock.sleep(GATHER_DUE)
            self._urgent.clear()
            nics = [table.nics[nic_id] for nic_id in sorted(self._wanted) if nic_id in table.nics]
            self._wanted.clear()
            try:
                with self.record.run(context.clock):
                    found = await context.kernel.compare([context.identity.record_of(nic) for nic in nics])
            except KernelRefused as err:
                found = {}
                if self.record.failures == 1:  # the kernel refuses every comparison for the same reason
                    context.note("nic.compare-failed", detail=str(err))  # an ADD compares once more
            for nic in nics:
                self._compared[nic.nic_id] = nic.released
                if nic.nic_id in table.nics and (arrival := found.get(nic.nic_id)):
                    table.identified(nic.nic_id, arrival.fingerprint, arrival.plugged)
                    if arrival.soil:
                        table.soiled(nic.nic_id, context.now(), arrival.soil)
            context.journal.push()
            context.signals.plan_due.notify()
