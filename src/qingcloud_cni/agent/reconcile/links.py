"""Links: NICs arrive, vanish and return; each change that the kernel reports leads to a comparison."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context, Move
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.core.drift.link_drift import Arrived, LinkRemedy, Lost, Returned, Strayed, link_drift
from qingcloud_cni.core.drift.link_locations import LinkLocations, hidden, locate
from qingcloud_cni.core.drift.recovery import unclaimed_attachment
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.model import Netns, Nic, NicState
from qingcloud_cni.core.seams.kernel import Arrival, Survey

UNHURRIED = 0.1  # seconds until a survey if no ADD waits for a link: it takes the kernel thread 3 ms


@dataclass(frozen=True, slots=True)
class Compared:
    """A survey and the *nics* that it was compared with: those that were not moved or changed meanwhile."""

    survey: Survey
    seen: LinkLocations
    nics: tuple[Nic, ...]
    hidden: frozenset[str]  # NICs that may be in a container, though they were not seen


class Links:
    """Keeps the table in step with the links of the host and the parking namespace."""

    def __init__(self, context: Context, pool: Pool, gateways: Gateways) -> None:
        self.record = TaskRecord()
        self._context = context
        self._pool = pool
        self._gateways = gateways
        self._one_at_a_time = asyncio.Lock()
        self._park_failures = 0  # since a NIC was parked
        self._retry: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Compare after every change, and again after a comparison that skipped NICs or failed, until cancelled.

        Moves by the agent are changes too; a comparison at once would slow down the answers to their requests.
        """
        context, record = self._context, self.record
        context.tasks.spawn("link changes", self._follow(context.kernel.changes()))
        while True:
            await context.signals.links_due.wait(
                delay_after(record.failures, context.rng) if record.failures else None
            )
            if not self._pool.waiting and not self._context.table.in_state(NicState.ATTACHING):
                await self._context.clock.sleep(UNHURRIED)
            try:
                with self.record.run(self._context.clock):
                    await self.compare()
            except KernelRefused as err:
                self._context.note_and_push("links.unseen", detail=str(err))

    async def _follow(self, changes: AsyncIterator[bool]) -> None:
        signals = self._context.signals
        async for is_incomplete in changes:
            if is_incomplete:
                signals.doubt("the kernel lost messages about links")
            signals.links_due.notify()

    async def compare(self, *, is_wide: bool = False) -> Compared:
        """Compare once, and begin the remedies; parking goes on in tasks of its own.

        *is_wide*: survey every namespace. This is also done if the host's and the parking one do not show what has
        become of a NIC. NICs that are being moved, or whose row changed since the survey began, are skipped, for the
        survey may show them where they were before; `run` compares again once they are at rest.
        """
        async with self._one_at_a_time:
            compared, remedies = await self._compare(is_wide=is_wide or self._must_know())
            for remedy in remedies:
                self._carry_out(remedy)
            if held := self._held(compared):
                await self._find(held)
            self._learn_nowhere(compared)
            self._context.journal.push()
            self._context.signals.arrivals.notify()
            self._context.signals.plan_due.notify()
            return compared

    async def _compare(self, *, is_wide: bool) -> tuple[Compared, tuple[LinkRemedy, ...]]:
        context, table = self._context, self._context.table
        before, moving = dict(table.nics), set(context.moves)
        if is_wide:
            paths = tuple(a.netns.path for a in table.attachments.values())
            survey = await context.kernel.survey_all(paths)
        else:
            survey = await context.kernel.survey()
        moving.update(context.moves)
        still = tuple(n for n in table.nics.values() if n.nic_id not in moving and before.get(n.nic_id) is n)
        seen = locate(table.nics, survey)
        attachments = {a.nic_id: a for a in table.attachments.values()}
        drift = link_drift(still, attachments, survey, seen, context.now())
        if drift.is_unsure:
            return await self._compare(is_wide=True)
        for nic_id, fingerprint in drift.arrived.items():
            table.identified(nic_id, fingerprint)
        nics = tuple(table.nics[n.nic_id] for n in still)
        context.moves.skip(table.nics.keys() - {n.nic_id for n in still})
        unsure = hidden(table.nics, survey, seen, context.identity.alias)
        return Compared(survey, seen, nics, unsure), drift.remedies

    def _must_know(self) -> bool:
        """Whether a missing NIC may be detached as soon as it is known to be nowhere."""
        missing = self._context.table.in_state(NicState.MISSING)
        return any(self._pool.is_draining or n.is_gateway for n in missing if n.nic_id not in self._pool.nowhere)

    def _held(self, compared: Compared) -> tuple[Nic, ...]:
        table, moves = self._context.table, self._context.moves
        return tuple(
            nic
            for nic in table.in_state(NicState.MISSING)
            if nic.nic_id in compared.seen and not nic.is_gateway and nic.nic_id not in moves
        )

    async def _find(self, held: tuple[Nic, ...]) -> None:
        """Such a NIC serves its container, even if the table does not know which container that is."""
        context, table = self._context, self._context.table
        found = await context.kernel.search([context.identity.record_of(n) for n in held])
        for nic in held:
            is_still = table.nics.get(nic.nic_id) is nic and nic.nic_id not in context.moves
            if nic.nic_id in found and is_still:
                table.found(unclaimed_attachment(nic, found[nic.nic_id], context.now()), context.now())
                self._context.signals.path_due.notify()

    def _learn_nowhere(self, compared: Compared) -> None:
        """Which missing NICs are in no namespace: those may be detached."""
        missing = {n.nic_id for n in self._context.table.in_state(NicState.MISSING)}
        nowhere = self._pool.nowhere & missing
        if compared.survey.is_wide:
            unseen = frozenset(missing - set(compared.seen) - compared.hidden)
            nowhere = frozenset() if compared.survey.unseen else unseen
        self._pool.learn_nowhere(nowhere)

    def _carry_out(self, remedy: LinkRemedy) -> None:
        table, now = self._context.table, self._context.now()
        match remedy:
            case Lost(nic_id, detail):
                table.lost(nic_id, now, detail)
                self._context.signals.doubt(f"nic {nic_id}: {detail}")
            case Strayed(nic_id, path):
                table.strayed(nic_id, now, f"its link is in {path}")
                self._context.signals.doubt(f"nic {nic_id}: its link is in {path}")
            case Returned(nic_id, is_parked):
                self._release(nic_id, is_parked=is_parked)
                if not is_parked:
                    self._receive(nic_id)
            case Arrived(nic_id):
                self._receive(nic_id)

    def _release(self, nic_id: str, *, is_parked: bool) -> None:
        """An attachment has ended without a DEL: its namespace is gone, or its ADD was cut off."""
        attachment = self._context.table.attachment_of(nic_id)
        if attachment is not None:
            self._context.table.released(
                attachment.key, self._context.now(), is_parked=is_parked, cause="its link has left the container"
            )

    def _receive(self, nic_id: str) -> None:
        """A link is on the host: move it to a waiting container, else to the parking namespace."""
        table = self._context.table
        if table.nics[nic_id].state is not NicState.ARRIVING:
            table.arrived(nic_id, self._context.now())
        if table.nics[nic_id].is_gateway:
            self._gateways.receive(nic_id)
            return
        if not self._pool.assign_arriving(nic_id):
            self.park(nic_id)

    def park(self, nic_id: str, netns: Netns | None = None) -> None:
        """Begin to park a link that is on the host, or strayed into *netns*."""
        self._context.tasks.spawn(f"park {nic_id}", self._park(self._context.moves.of(nic_id), netns))

    async def _park(self, move: Move, netns: Netns | None) -> None:
        context, table = self._context, self._context.table
        with move as nic_id:
            record = context.identity.record_of(table.nics[nic_id])
            try:
                if netns is None:
                    arrival: Arrival | None = await context.kernel.park(record)
                else:
                    arrival = (await context.kernel.detach(record, netns, 0)).arrival
            except KernelRefused as err:
                context.note("nic.park-failed", nic_id, detail=str(err))
                context.moves.leave(nic_id)
                self._retry_later()
            else:
                self._park_failures = 0
                if arrival is not None:
                    table.identified(nic_id, arrival.fingerprint, arrival.plugged)
                    if arrival.soil:
                        table.soiled(nic_id, context.now(), arrival.soil)
                if arrival is not None and table.nics[nic_id].state is NicState.ARRIVING:
                    table.parked(nic_id, context.now())
        self._pool.assign_idle()
        context.journal.push()
        context.signals.plan_due.notify()

    def _retry_later(self) -> None:
        """Compare again after a while, and so park again; once for all NICs."""
        if self._retry is None:
            self._park_failures += 1
            delay = delay_after(self._park_failures, self._context.rng)
            self._retry = asyncio.get_running_loop().call_later(delay, self._retry_now)

    def _retry_now(self) -> None:
        self._retry = None
        self._context.signals.links_due.notify()
