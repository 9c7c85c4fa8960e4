"""Compares table, kernel and cloud: at start, after a doubt, on request, and every quarter of an hour."""

import asyncio
from collections.abc import Mapping, Sequence
from math import inf

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.signals import settle
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.agent.cloudops.lookups import VxnetCache
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.agent.reconcile.links import Compared, Links
from qingcloud_cni.agent.reconcile.remedies import Remedies
from qingcloud_cni.core.drift.cloud_drift import Adopt, CloudFacts, TableFacts, cloud_drift, unlisted
from qingcloud_cni.core.drift.differences import Difference, DifferenceKind, Known, Tracked, Verdict, track
from qingcloud_cni.core.drift.link_drift import misplaced_links
from qingcloud_cni.core.drift.schedule import Schedule, stretched
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.nics.model import Nic, OpKind
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, HowUrgent, Vxnet

SURVEY_PERIOD = 30.0  # seconds between surveys of every namespace, whether or not the kernel reported a change
PERIOD = 900.0  # seconds between comparisons with the cloud, times JITTER; longer if calls are scarce
JITTER = (0.8, 1.2)
POSTPONED = (900.0, 2700.0)  # seconds until the first comparison of a new host whose calls are scarce
LISTS = 2  # calls of a comparison that finds no difference


class Reconciler:
    """Finds differences, and begins their remedies once they are certain."""

    def __init__(
        self,
        context: Context,
        *,
        pool: Pool,
        links: Links,
        gateways: Gateways,
        vxnets: VxnetCache,
        remedies: Remedies,
    ) -> None:
        self.record = TaskRecord(PERIOD)
        self.last_error = ""  # of the latest comparison
        self.is_postponed = False  # the first comparison
        self._context = context
        self._pool = pool
        self._links = links
        self._gateways = gateways
        self._vxnets = vxnets
        self._remedies = remedies
        self._in_kernel: Known = {}
        self._in_cloud: Known = {}
        self._schedule = Schedule(period=PERIOD)
        self._waiting: list[asyncio.Future[None]] = []  # for a comparison that begins after they asked

    @property
    def open(self) -> tuple[Tracked, ...]:
        return tuple(sorted((*self._in_kernel.values(), *self._in_cloud.values()), key=lambda seen: seen.since))

    @property
    def expects_more(self) -> bool:
        """Whether NICs of ours may exist that the table does not know yet."""
        return self.is_postponed or any(
            seen.difference.kind is DifferenceKind.YOUNG for seen in self._in_cloud.values()
        )

    # --- when ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Compare whenever it is due, until cancelled. `compare` or `postpone` comes first."""
        urgency = self._context.urgency.comparison
        if not self.is_postponed:
            self._done()
        while True:
            await self._pause()
            permits = await self.permits(urgency)
            waiting, self._waiting = self._waiting, []
            causes = self._context.signals.take_doubts()
            try:
                await self.compare(permits, urgency, causes)
            except AgentError as err:
                self.failed(err)
                self._schedule.failed(self._context.now() + delay_after(self.record.failures, self._context.rng))
                failure: AgentError | None = err
            else:
                self._done()
                failure = None
            for future in waiting:
                settle(future, failure)

    def postpone(self) -> None:
        """No NIC is ours, so the first comparison may come later, or when the host is drained."""
        self.is_postponed = True
        self._gateways.learn(())
        self._schedule.postpone(self._context.now() + self._context.rng.uniform(*POSTPONED))

    async def ask(self, seconds: float) -> None:
        """Compare now, and repair NICs again whose repairs have failed; AgentError, TimeoutError after *seconds*."""
        self._remedies.reset_repairs()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._context.signals.doubt_due.notify()
        async with asyncio.timeout(seconds):
            with self._context.urgency.asks():
                await done

    async def permits(self, urgency: HowUrgent) -> tuple[CloudCalls, ...]:
        """For the lists that a comparison begins with, so that no wait for a permit comes between them."""
        return tuple([await self._context.cloud.permit(urgency) for _ in range(LISTS)])

    def _done(self) -> None:
        context, period = self._context, stretched(PERIOD, self._context.cloud.spending().rate)
        self.record.period = period
        spread = context.rng.uniform(*JITTER)
        self._schedule.done(context.now(), period=period, is_pending=self._is_pending, spread=spread)

    async def _pause(self) -> None:
        while not self._waiting:
            if self._context.signals.has_doubts:
                self._schedule.doubt(self._context.now())
            until = (seen.difference.until for seen in self._in_cloud.values())
            asked_for = -inf if self.is_postponed and self._context.urgency.is_draining else inf
            left = self._schedule.due_at(min(self._remedies.next_at, *until, asked_for)) - self._context.now()
            if left <= 0:
                return
            await self.record.pause(left, self._context.signals.doubt_due, self._context.clock)

    @property
    def _is_pending(self) -> bool:
        """Whether another comparison is due soon: to confirm a difference, or to check the remedies."""
        return self._remedies.has_begun or any(seen.is_pending for seen in self._in_cloud.values())

    # --- what ----------------------------------------------------------------------------------------

    async def compare_links(self) -> Compared:
        compared = await self._links.compare(is_wide=True)
        context, table, moves = self._context, self._context.table, self._context.moves
        still = tuple(n for n in compared.nics if table.nics.get(n.nic_id) is n and n.nic_id not in moves)
        attachments = {a.nic_id: a for a in table.attachments.values()}
        misplaced = misplaced_links(still, attachments, compared.survey, compared.seen, context.identity.alias)
        verdict = self._track(self._in_kernel, misplaced)
        self._in_kernel = verdict.known
        self._remedies.carry_out(verdict.remedies)
        return compared

    async def compare(self, permits: Sequence[CloudCalls], urgency: HowUrgent, causes: Sequence[str] = ()) -> None:
        """Compare once, with the calls of `permits`; any CloudError means "retry later"."""
        if causes:
            self._context.note("reconcile.doubted", detail="; ".join(causes))
        try:
            with self.record.run(self._context.clock):
                await self._compare(permits, urgency)
        finally:
            for calls in permits:
                calls.return_permit()
        self.last_error = ""

    def failed(self, err: AgentError) -> None:
        self.last_error = str(err)
        self._context.note_and_push("cloud.unanswered", detail=str(err))

    async def _compare(self, permits: Sequence[CloudCalls], urgency: HowUrgent) -> None:
        """First ask the cloud, then the kernel; then judge only the rows that have not changed meanwhile."""
        self._remedies.begin()
        context, table = self._context, self._context.table
        before, asked = dict(table.nics), set(self._asked())
        cloud = await self._ask_cloud(before, permits, urgency)
        vxnets = await self._ask_vxnets(cloud, urgency)
        await context.reserved.learn(cloud.values())
        compared = await self.compare_links()
        # Nothing is awaited from here to the remedies, so no row changes.
        ours = {nic_id: nic for nic_id, nic in cloud.items() if nic_id not in context.reserved}
        held = TableFacts(
            nics=tuple(n for n in compared.nics if self._is_unchanged(n, before) and n.nic_id not in compared.hidden),
            known=before.keys() | table.nics.keys(),
            attachments={a.nic_id: a for a in table.attachments.values()},
            creating=asked | set(self._asked()),
        )
        on_host = {link.claimed_id: link for link in compared.survey.host if link.fingerprint}
        view = CloudFacts(
            ours, vxnets, on_host, is_whole=not compared.survey.unseen, wall=context.clock.wall(),
            instance_id=self._context.identity.instance_id, is_ours=self._context.is_ours,
        )  # fmt: skip
        verdict = self._track(self._in_cloud, cloud_drift(held, view, compared.seen, context.now()))
        self._in_cloud = verdict.known
        table.forget_new_addresses()
        self._remedies.carry_out(verdict.remedies)
        context.journal.push()
        await self._links.compare(is_wide=any(isinstance(remedy, Adopt) for remedy in verdict.remedies))
        self._remedies.release_ended()
        self._context.signals.obstacle_gone()  # only now: gateways depend on whom adopted NICs serve
        self.is_postponed = False
        self._learn_others(cloud)  # last: then gateways that serve nothing are released

    def _asked(self) -> tuple[str, ...]:
        return tuple(i.name for i in self._context.table.intents.values() if i.kind is OpKind.CREATE)

    def _is_unchanged(self, nic: Nic, before: Mapping[str, Nic]) -> bool:
        table = self._context.table
        is_same = before.get(nic.nic_id) is nic and table.nics.get(nic.nic_id) is nic
        return is_same and nic.nic_id not in table.busy and nic.nic_id not in self._context.moves

    async def _ask_cloud(
        self, before: Mapping[str, Nic], permits: Sequence[CloudCalls], urgency: HowUrgent
    ) -> dict[str, CloudNic]:
        """All free NICs, and all that are attached here; NICs of the table in neither list are read by their ids.

        So an incomplete list has little effect. The cloud's name filter may match loosely, so it is not used.
        """
        first, second = permits
        free = await first.nics(status="available")
        here = await second.nics(instance_id=self._context.identity.instance_id)
        found = {n.nic_id: n for n in (*free, *here)}
        busy = self._context.table.busy
        if missed := unlisted((n for n in before.values() if n.nic_id not in busy), found):
            calls = await self._context.cloud.permit(urgency)
            found |= {n.nic_id: n for n in await calls.nics(nic_ids=missed)}
        return found

    async def _ask_vxnets(self, cloud: Mapping[str, CloudNic], urgency: HowUrgent) -> dict[str, Vxnet]:
        found = {}
        for vxnet_id in sorted({n.vxnet_id for n in cloud.values() if self._context.is_ours(n.name)}):
            if (vxnet := await self._vxnets.get(vxnet_id, urgency)) is not None:
                found[vxnet_id] = vxnet
        return found

    def _learn_others(self, cloud: Mapping[str, CloudNic]) -> None:
        """NICs of the instance that are not ours: they count for its limit, and may serve as gateways."""
        here = [n for n in cloud.values() if n.instance_id == self._context.identity.instance_id]
        is_ours, reserved = self._context.is_ours, self._context.reserved
        others = tuple(n for n in here if n.nic_id in reserved or not is_ours(n.name))
        self._pool.learn_others(sum(n.role == 0 for n in others))
        self._gateways.learn(others)

    def _track(self, known: Known, found: tuple[Difference, ...]) -> Verdict:
        verdict = track(known, found, self._context.now())
        note = self._context.note
        for new in verdict.new:
            note("drift.seen", new.nic_id, new.subject, str(new))
        for over in verdict.over:
            note("drift.over", over.nic_id, over.subject, str(over))
        self._context.journal.push()
        return verdict
