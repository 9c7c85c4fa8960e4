"""Table, kernel and cloud compared: at start, after a doubt, when somebody asks, and every quarter of an hour."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.agent.cloudops.vxnet_cache import VxnetCache
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.agent.reconcile.links import Links, Look
from qingcloud_cni.agent.reconcile.remedies import Remedies
from qingcloud_cni.core.drift.cloud_drift import Adopt, CloudFacts, TableFacts, cloud_drift, unlisted
from qingcloud_cni.core.drift.differences import Difference, DifferenceKind, Known, Tracked, Verdict, track
from qingcloud_cni.core.drift.link_drift import misplaced_links
from qingcloud_cni.core.drift.schedule import Schedule, stretched
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.metrics import gauge
from qingcloud_cni.core.nics.model import Nic, OpKind
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, HowUrgent, Vxnet

LOOK_PERIOD = 30.0  # seconds between looks into every namespace, whether or not the kernel reported anything
PERIOD = 900.0  # seconds between comparisons with the cloud; less or more by JITTER, and more where calls are few
JITTER = (0.8, 1.2)
PUT_OFF = (900.0, 2700.0)  # seconds until the first comparison of a new host that has few calls
LISTS = 2  # calls that a comparison takes where nothing differs


@dataclass(frozen=True, slots=True)
class DriftStatistics:
    differences: Annotated[
        Mapping[str, int], gauge("qingagent_drift", "Differences between table, kernel and cloud.", "kind")
    ]


class Reconciler:
    """Finds out what differs, and has it cured once enough is known of it."""

    def __init__(
        self,
        context: Context,
        *,
        pool: Pool,
        links: Links,
        gateways: Gateways,
        vxnets: VxnetCache,
        remedies: Remedies,
        iface: str,
    ) -> None:
        """*iface* is the host's own link: its NIC is never adopted."""
        self.record = TaskRecord(PERIOD)
        self.last_error = ""
        self.is_owed = False  # the first comparison was put off, and has not been made yet
        self._context = context
        self._pool = pool
        self._links = links
        self._gateways = gateways
        self._vxnets = vxnets
        self._remedies = remedies
        self._iface = iface
        self._in_kernel: Known = {}
        self._in_cloud: Known = {}
        self._schedule = Schedule(period=PERIOD)
        self._waiting: list[asyncio.Future[None]] = []  # for a comparison that begins after they asked

    @property
    def open(self) -> tuple[Tracked, ...]:
        """The differences there are, the oldest first."""
        return tuple(sorted((*self._in_kernel.values(), *self._in_cloud.values()), key=lambda seen: seen.since))

    def statistics(self) -> DriftStatistics:
        kinds = [seen.difference.kind for seen in self.open]
        return DriftStatistics({kind.value: kinds.count(kind) for kind in DifferenceKind})

    @property
    def expects_more(self) -> bool:
        """Whether NICs of ours that the table does not know may be taken in yet."""
        return self.is_owed or any(seen.difference.kind is DifferenceKind.YOUNG for seen in self._in_cloud.values())

    # --- when ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Compare again and again, until cancelled; `compare` has been done once, or `put_off`."""
        urgency = self._context.urgency.comparison
        if not self.is_owed:
            self._done()
        while True:
            await self._pause()
            permits = await self.permits(urgency)
            waiting, self._waiting = self._waiting, []
            causes = self._take_doubts()
            try:
                await self.compare(permits, urgency, causes)
            except AgentError as err:
                self.failed(err)
                self._schedule.failed(self._now() + delay_after(self.record.failures, self._context.rng))
                _tell(waiting, err)
            else:
                self._done()
                _tell(waiting, None)

    def put_off(self) -> None:
        """Nothing here is ours, so that the first comparison may come later; a drain does not wait for that."""
        self.is_owed = True
        self._gateways.learn(())
        self._schedule.postpone(self._now() + self._context.rng.uniform(*PUT_OFF))

    async def ask(self, seconds: float) -> None:
        """Compare now, NICs that were given up as well. Raises what hindered it, TimeoutError after *seconds*."""
        self._remedies.forgive()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._context.doubt_due.notify()
        async with asyncio.timeout(seconds):
            with self._context.urgency.asks():
                await done

    async def permits(self, urgency: HowUrgent) -> tuple[CloudCalls, ...]:
        """For the lists that a comparison begins with: they belong together, however long calls have to wait."""
        return tuple([await self._context.cloud.permit(urgency) for _ in range(LISTS)])

    def _done(self) -> None:
        rate = self._context.cloud.spending().rate
        self._schedule.period = self.record.period = stretched(PERIOD, rate)
        self._schedule.done(self._now(), is_pending=self._is_pending, spread=self._context.rng.uniform(*JITTER))

    async def _pause(self) -> None:
        while not self._waiting:
            if self._context.doubts:
                self._schedule.doubt(self._now())
            until = (seen.difference.until for seen in self._in_cloud.values())
            asked_for = -inf if self.is_owed and self._context.urgency.is_draining else inf
            left = self._schedule.due_at(min(self._remedies.next_at, *until, asked_for)) - self._now()
            if left <= 0:
                return
            await self.record.pause(left, self._context.doubt_due, self._context.clock)

    def _take_doubts(self) -> tuple[str, ...]:
        causes = tuple(self._context.doubts)
        self._context.doubts.clear()
        return causes

    @property
    def _is_pending(self) -> bool:
        """Whether another comparison is wanted soon: for a second look, or to see what the remedies have done."""
        return self._remedies.has_begun or any(seen.is_pending for seen in self._in_cloud.values())

    def _now(self) -> float:
        return self._context.now()

    # --- what ----------------------------------------------------------------------------------------

    async def look_around(self) -> Look:
        """Look into every namespace, and weigh what is odd there."""
        look = await self._links.look(is_wide=True)
        table, moving = self._context.table, self._context.moving
        still = tuple(n for n in look.nics if table.nics.get(n.nic_id) is n and n.nic_id not in moving)
        attachments = {a.nic_id: a for a in table.attachments.values()}
        verdict = self._weigh(self._in_kernel, misplaced_links(still, attachments, look.survey, look.seen))
        self._in_kernel = verdict.known
        self._remedies.carry_out(verdict.remedies)
        return look

    async def compare(self, permits: Sequence[CloudCalls], urgency: HowUrgent, causes: Sequence[str] = ()) -> None:
        """Compare once, with what `permits` gave; any CloudError means "again later"."""
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
        """Tell that a comparison came to nothing."""
        self.last_error = str(err)
        self._context.note("cloud.unanswered", detail=str(err))
        self._context.journal.push()

    async def _compare(self, permits: Sequence[CloudCalls], urgency: HowUrgent) -> None:
        """The cloud is asked first: its answer, the kernel, and rows that have not changed meanwhile go together."""
        self._remedies.begin()
        context, table = self._context, self._context.table
        before, asked = dict(table.nics), set(self._asked())
        cloud = await self._ask_cloud(before, permits, urgency)
        vxnets = await self._ask_vxnets(cloud, urgency)
        look = await self.look_around()
        # From here on nothing is awaited: what was seen is so still, as far as it can be known.
        reserved = {link.mac for link in look.survey.host if link.name == self._iface}
        ours = {nic_id: nic for nic_id, nic in cloud.items() if nic_id not in reserved}
        held = TableFacts(
            nics=tuple(n for n in look.nics if self._is_unchanged(n, before) and n.nic_id not in reserved),
            known=before.keys() | table.nics.keys(),
            attachments={a.nic_id: a for a in table.attachments.values()},
            asked=asked | set(self._asked()),
        )
        on_host = {link.mac: link for link in look.survey.host}
        view = CloudFacts(
            ours, vxnets, on_host, is_whole=not look.survey.unseen, wall=context.clock.wall(),
            instance_id=context.instance_id, is_ours=context.is_ours,
        )  # fmt: skip
        verdict = self._weigh(self._in_cloud, cloud_drift(held, view, look.seen, context.now()))
        self._in_cloud = verdict.known
        table.forget_new_addresses()
        self._remedies.carry_out(verdict.remedies)
        context.journal.push()
        await self._links.look(is_wide=any(isinstance(remedy, Adopt) for remedy in verdict.remedies))
        context.look_again()  # not before it is known whom NICs serve that were taken in: gateways follow from that
        self.is_owed = False
        self._learn_others(cloud, reserved)  # last: from now on gateways that serve nothing are undone

    def _asked(self) -> tuple[str, ...]:
        return tuple(i.name for i in self._context.table.intents.values() if i.kind is OpKind.CREATE)

    def _is_unchanged(self, nic: Nic, before: Mapping[str, Nic]) -> bool:
        table = self._context.table
        is_same = before.get(nic.nic_id) is nic and table.nics.get(nic.nic_id) is nic
        return is_same and nic.nic_id not in table.busy | self._context.moving

    async def _ask_cloud(
        self, before: Mapping[str, Nic], permits: Sequence[CloudCalls], urgency: HowUrgent
    ) -> dict[str, CloudNic]:
        """All NICs that are free, and all that are attached here; those in neither list are asked for by their ids.

        So one list that is not whole has little effect. The cloud's own name filter is not relied on.
        """
        first, second = permits
        free = await first.nics(status="available")
        here = await second.nics(instance_id=self._context.instance_id)
        found = {n.nic_id: n for n in (*free, *here)}
        busy = self._context.table.busy
        if missed := unlisted((n for n in before.values() if n.nic_id not in busy), found):
            calls = await self._context.cloud.permit(urgency)
            found |= {n.nic_id: n for n in await calls.nics(nic_ids=missed)}
        return found

    async def _ask_vxnets(self, cloud: Mapping[str, CloudNic], urgency: HowUrgent) -> dict[str, Vxnet]:
        """The vxnets of our NICs, as far as they have addresses."""
        found = {}
        for vxnet_id in sorted({n.vxnet_id for n in cloud.values() if self._context.is_ours(n.name)}):
            if (vxnet := await self._vxnets.get(vxnet_id, urgency)) is not None:
                found[vxnet_id] = vxnet
        return found

    def _learn_others(self, cloud: Mapping[str, CloudNic], reserved: set[str]) -> None:
        """NICs of the instance that are not ours: they take room, and one of them may be the host's own way out."""
        here = [n for n in cloud.values() if n.instance_id == self._context.instance_id]
        others = tuple(n for n in here if n.nic_id in reserved or not self._context.is_ours(n.name))
        self._pool.others = sum(n.role == 0 for n in others)
        self._gateways.learn(others)

    def _weigh(self, known: Known, found: tuple[Difference, ...]) -> Verdict:
        verdict = track(known, found, self._now())
        note = self._context.note
        for new in verdict.new:
            note("drift.seen", new.nic_id, new.subject, str(new))
        for over in verdict.over:
            note("drift.over", over.nic_id, over.subject, str(over))
        self._context.journal.push()
        return verdict


def _tell(waiting: list["asyncio.Future[None]"], error: AgentError | None) -> None:
    for future in waiting:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
