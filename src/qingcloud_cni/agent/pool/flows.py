"""Flows that the host tracks for addresses at rest: forgotten before an address is used again."""

import asyncio
from contextlib import suppress

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.model import Nic

GATHER = 0.2  # seconds in which releases come together for one flush, unless an address is to be used before


class Flows:
    """Has them forgotten when an address is released and once more when it has rested; no request waits for it.

    What a table begun anew, or an agent just started, does not know to be done is done.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.record = TaskRecord()
        self._begun: dict[str, float] = {}  # by NIC id: when its latest flush began
        self._under_way: set[str] = set()
        self._wanted: set[str] = set()
        self._urgent = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_refused = False

    def look(self) -> None:
        """Have the flows of all addresses forgotten that were released since they were last."""
        nics = self._context.table.nics
        self._begun = {nic_id: at for nic_id, at in self._begun.items() if nic_id in nics}
        for nic in nics.values():
            if nic.released > 0.0 and not self._is_begun(nic, nic.released):
                self._want(nic)

    def are_forgotten(self, nic: Nic, due: float) -> bool:
        """Whether it was done at *due* or later; if not, it is begun, and a new plan follows it."""
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
            self._task = self._context.tasks.spawn("flows", self._forget())

    async def _forget(self) -> None:
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
                    count = await context.kernel.flush(addresses)
            except KernelRefused as err:
                self._tell_refusal(str(err))
            else:
                self._is_refused = False
                if count:
                    context.note("flows.forgotten", detail=f"{count} from or to {', '.join(addresses)}")
            self._under_way = set()
            context.plan_due.notify()

    def _tell_refusal(self, cause: str) -> None:
        """Once: the rest of an address goes on without it, and each DEL would say the same."""
        if not self._is_refused:
            self._context.note("flows.kept", detail=cause)
        self._is_refused = True
