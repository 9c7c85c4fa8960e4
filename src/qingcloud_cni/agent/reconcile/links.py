"""Links: sees NICs arrive, vanish and return, by looking whenever the kernel says that something changed."""

import asyncio
from dataclasses import dataclass

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.core.drift.link_drift import Arrived, LinkRemedy, Lost, Returned, Strayed, link_drift
from qingcloud_cni.core.drift.link_locations import LinkLocations, locate
from qingcloud_cni.core.drift.recovery import unclaimed_attachment
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.core.seams.kernel import Survey

UNHURRIED = 0.1  # seconds until a look while nobody waits for a link: a survey takes the kernel thread 3 ms


@dataclass(frozen=True, slots=True)
class Look:
    """What a look showed. *nics* are those that it may be compared with: nothing moved or changed them meanwhile."""

    survey: Survey
    seen: LinkLocations
    nics: tuple[Nic, ...]


class Links:
    """Keeps the table in step with the links of the host and the parking namespace."""

    def __init__(self, context: Context, pool: Pool, gateways: Gateways) -> None:
        self.record = TaskRecord()
        self._context = context
        self._pool = pool
        self._gateways = gateways
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Look after every change, until cancelled.

        Our own moves are changes too: a look at once would run while their requests are being answered.
        """
        async for is_incomplete in self._context.kernel.changes():
            if is_incomplete:
                self._context.doubt("the kernel had more to tell of links than it keeps")
            if not self._pool.waiting and not self._context.table.in_state(NicState.ATTACHING):
                await self._context.clock.sleep(UNHURRIED)
            try:
                with self.record.run(self._context.clock):
                    await self.look()
            except KernelRefused as err:  # the periodic look comes in any case
                self._context.note("links.unseen", detail=str(err))
                self._context.journal.push()

    async def look(self, *, is_wide: bool = False) -> Look:
        """Compare once, and begin the remedies; parking goes on in tasks of its own.

        *is_wide*: into every namespace. That is done as well where the host's and the parking one leave open what
        has become of a NIC. One that a verb moves, or whose row changed since the survey began, is left for the next
        look: the survey may show it where it was before.
        """
        async with self._one_at_a_time:
            look, remedies = await self._compare(is_wide=is_wide or self._must_know())
            for remedy in remedies:
                self._carry_out(remedy)
            if held := self._held(look):
                await self._find(held)
            self._learn_missing(look)
            context = self._context
            context.journal.push()
            context.arrivals.notify()
            context.plan_due.notify()
            return look

    async def _compare(self, *, is_wide: bool) -> tuple[Look, tuple[LinkRemedy, ...]]:
        context, table = self._context, self._context.table
        before, moving = dict(table.nics), set(context.moving)
        if is_wide:
            paths = tuple(a.netns.path for a in table.attachments.values())
            survey = await context.kernel.survey_all(paths)
        else:
            survey = await context.kernel.survey()
        moving |= context.moving
        still = tuple(n for n in table.nics.values() if n.nic_id not in moving and before.get(n.nic_id) is n)
        seen = locate(table.nics.keys(), survey, context.instance_id)
        attachments = {a.nic_id: a for a in table.attachments.values()}
        drift = link_drift(still, attachments, survey, seen, context.now())
        if drift.is_unsure:
            return await self._compare(is_wide=True)
        return Look(survey, seen, still), drift.remedies

    def _must_know(self) -> bool:
        """Whether a missing NIC may be detached as soon as it is known to be nowhere."""
        missing = self._context.table.in_state(NicState.MISSING)
        return any(self._pool.is_draining or n.is_gateway for n in missing if n.nic_id not in self._pool.nowhere)

    def _held(self, look: Look) -> tuple[Nic, ...]:
        """Missing NICs that containers have."""
        table, moving = self._context.table, self._context.moving
        return tuple(
            nic
            for nic in table.in_state(NicState.MISSING)
            if nic.nic_id in look.seen and not nic.is_gateway and nic.nic_id not in moving
        )

    async def _find(self, held: tuple[Nic, ...]) -> None:
        """One that a container has serves it, even if the table does not know whom."""
        context, table = self._context, self._context.table
        found = await context.kernel.search({n.nic_id: link_alias(context.instance_id, n.nic_id) for n in held})
        for nic in held:
            is_still = table.nics.get(nic.nic_id) is nic and nic.nic_id not in context.moving
            if nic.nic_id in found and is_still:
                table.found(unclaimed_attachment(nic, found[nic.nic_id], context.now()), context.now())
                context.path_due.notify()

    def _learn_missing(self, look: Look) -> None:
        """Which missing NICs are really nowhere: those may be detached."""
        missing = {n.nic_id for n in self._context.table.in_state(NicState.MISSING)}
        nowhere = self._pool.nowhere & missing
        if look.survey.is_wide:
            nowhere = set() if look.survey.unseen else missing - set(look.seen)
        if nowhere != self._pool.nowhere:
            self._pool.nowhere = nowhere
            self._context.look_again()

    def _carry_out(self, remedy: LinkRemedy) -> None:
        table, now = self._context.table, self._context.now()
        match remedy:
            case Lost(nic_id, detail):
                table.lost(nic_id, now, detail)
                self._context.doubt(f"nic {nic_id}: {detail}")
            case Strayed(nic_id, path):
                table.strayed(nic_id, now, f"its link is in {path}")
                self._context.doubt(f"nic {nic_id}: its link is in {path}")
            case Returned(nic_id, is_parked):
                self._release(nic_id, is_parked=is_parked)
                if not is_parked:
                    self._receive(nic_id)
            case Arrived(nic_id):
                self._receive(nic_id)

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
            await context.kernel.park(nic_id, link_alias(context.instance_id, nic_id))
        except KernelRefused as err:
            context.note("nic.park-failed", nic_id, detail=str(err))  # stays arriving; the next look tries again
        else:
            self.parked(nic_id)
        finally:
            context.moving.discard(nic_id)
        self._pool.hand_out()
        context.journal.push()
        context.plan_due.notify()

    def parked(self, nic_id: str) -> None:
        """Its link lies in the parking namespace now."""
        table = self._context.table
        if table.nics[nic_id].state is NicState.ARRIVING:
            table.parked(nic_id, self._context.now())
