"""Links: sees NICs arrive, vanish and return, by looking whenever the kernel says that something changed."""

import asyncio
from collections.abc import Sequence

from qingcloud_cni.agent.context import Context
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool import Pool
from qingcloud_cni.core.drift import Arrived, Lost, Returned, link_drift
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.model import Nic, NicState
from qingcloud_cni.core.names import link_alias
from qingcloud_cni.core.recovery import nameless

UNHURRIED = 0.1  # seconds until a look while nobody waits for a link: a survey takes the kernel thread 3 ms


class Links:
    """Keeps the table in step with the links of the host and the parking namespace."""

    def __init__(self, context: Context, pool: Pool, gateways: Gateways) -> None:
        self._context = context
        self._pool = pool
        self._gateways = gateways
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Look after every change, until cancelled.

        Our own moves are changes too: a look at once would run while their requests are being answered.
        """
        async for _ in self._context.kernel.changes():
            if not self._pool.waiting and not self._context.table.in_state(NicState.ATTACHING):
                await self._context.clock.sleep(UNHURRIED)
            try:
                await self.look()
            except KernelRefused as err:  # the periodic look comes in any case
                self._context.note("links.unseen", detail=str(err))
                self._context.journal.push()

    async def look(self) -> None:
        """Compare once, and begin the cures; parking goes on in tasks of its own.

        A NIC that a verb moves, or whose row changed since the survey began, is left for the next look: the survey
        may show it where it was before.
        """
        async with self._one_at_a_time:
            context, table = self._context, self._context.table
            before, moving = dict(table.nics), set(context.moving)
            survey = await context.kernel.survey()
            moving |= context.moving
            still = [n for n in table.nics.values() if n.nic_id not in moving and before.get(n.nic_id) is n]
            to_park: list[str] = []
            for cure in link_drift(still, survey, context.now()):
                match cure:
                    case Lost(nic_id, detail):
                        table.lost(nic_id, context.now(), detail)
                    case Returned(nic_id, is_parked):
                        self._release(nic_id, is_parked=is_parked)
                        if not is_parked:
                            to_park.append(nic_id)
                    case Arrived(nic_id):
                        to_park.append(nic_id)
            for nic_id in to_park:
                self._receive(nic_id)
            context.journal.push()
            context.arrivals.notify()
            context.plan_due.notify()
            missing = table.in_state(NicState.MISSING)  # of which only these may be detached
            await self._seek([n for n in missing if self._pool.is_draining or n.is_gateway])

    async def seek(self) -> None:
        """Learn where missing NICs are. One that a container has serves it, even if the table does not know whom."""
        await self._seek(self._context.table.in_state(NicState.MISSING))

    async def _seek(self, missing: Sequence[Nic]) -> None:
        context, table = self._context, self._context.table
        sought = {n.nic_id: link_alias(context.instance_id, n.nic_id) for n in missing}
        found = await context.kernel.search(sought) if sought else {}
        for nic in missing:
            is_still = table.nics.get(nic.nic_id) is nic and nic.nic_id not in context.moving
            if nic.nic_id in found and is_still and not nic.is_gateway:
                table.found(nameless(nic, found[nic.nic_id], context.now()), context.now())
        nowhere = set(sought) - set(found)
        if found or nowhere != self._pool.nowhere:
            self._pool.nowhere = nowhere
            context.journal.push()
            context.look_again()

    def _release(self, nic_id: str, *, is_parked: bool) -> None:
        """An attachment is over without a DEL: its namespace is gone, or the ADD that made it was cut off."""
        attachment = self._context.table.attachment_of(nic_id)
        if attachment is not None:
            self._context.table.released(
                attachment.key, self._context.now(), is_parked=is_parked, cause="its link has left the container"
            )

    def _receive(self, nic_id: str) -> None:
        """A link is here: to a waiting container, else to the parking namespace."""
        table = self._context.table
        if table.nics[nic_id].state is not NicState.ARRIVING:
            table.arrived(nic_id, self._context.now())
        if table.nics[nic_id].is_gateway:
            self._gateways.receive(nic_id)
            return
        if self._pool.hand_over(nic_id):
            return
        self._context.moving.add(nic_id)
        self._context.tasks.spawn(f"park {nic_id}", self._park(nic_id))

    async def _park(self, nic_id: str) -> None:
        context = self._context
        try:
            await context.kernel.park(nic_id)
        except KernelRefused as err:
            context.note("nic.park-failed", nic_id, detail=str(err))  # stays arriving; the next look tries again
        else:
            if context.table.nics[nic_id].state is NicState.ARRIVING:
                context.table.parked(nic_id, context.now())
        finally:
            context.moving.discard(nic_id)
        self._pool.hand_out()
        context.journal.push()
        context.plan_due.notify()
