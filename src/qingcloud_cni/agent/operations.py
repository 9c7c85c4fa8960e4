"""The cloud writes, each from its intent to its end: what is asked, what a lost reply means, what comes after.

Every operation can be taken up at any point after its intent was saved; that is what `resume` does after a restart.
No write is repeated before DescribeNics has told what the first one did.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from math import inf

from qingcloud_cni.agent.clock import Backoff, Lately, delay_after
from qingcloud_cni.agent.context import Context
from qingcloud_cni.agent.departure import Departure
from qingcloud_cni.agent.jobs import FIRST_INTERVAL, Jobs
from qingcloud_cni.agent.lookups import LATE_EFFECT, LOOK_AGAIN, Lookups, patience_after
from qingcloud_cni.agent.vxnet_book import VxnetBook
from qingcloud_cni.core.errors import (
    ClockSkewed,
    CloudBusy,
    CloudError,
    CloudQuota,
    CloudRefused,
    CloudUnreachable,
    CredentialsRefused,
    OutcomeUnknown,
)
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.model import Intent, Nic, NicState, OpKind
from qingcloud_cni.core.seams import CloudCalls, CloudNic, CreatedNic, HowUrgent, Job, JobStatus
from qingcloud_cni.core.vxnets import VxnetChooser

ATTACH_FIRST = 5.0  # seconds an attach is taken to last until one was seen; hot-plug takes 2-4 s
LINK_FIRST = 10.0  # seconds in which an attached link usually shows; only then is the job asked about
DETACH_FIRST = 5.0  # seconds until a detach job is asked about that nobody waits for; it is usually over then
LINK_AFTER_JOB = 20.0  # seconds after a successful attach job in which the link has to show
JOB_LIMIT = 1800.0  # seconds after which a job that does not end is believed no more than the NICs it is about
FRESH = 5.0  # seconds for which an intent may have waited for the disk when the call is made

Prepare = Callable[[Sequence[str]], Awaitable[bool]]


class Operations:
    """Creates, attaches, detaches and deletes NICs."""

    def __init__(self, context: Context, jobs: Jobs, chooser: VxnetChooser, vxnets: VxnetBook) -> None:
        self._context = context
        self._table = context.table
        self._jobs = jobs
        self._chooser = chooser
        self.growth = Backoff(context.rng)  # creating and attaching
        self.shrinking = Backoff(context.rng)  # detaching
        self.attaching = Lately(ATTACH_FIRST)
        self.departure = Departure(context)
        self._to_grow = context.demand.growth
        self._to_release = context.demand.release
        self._lookups = Lookups(context, vxnets, self.growth)

    # --- create and attach ---------------------------------------------------------------------------

    def begin_create(self, vxnet_ids: Sequence[str], *, is_gateway: bool = False) -> tuple[Intent, ...]:
        """Intents for a NIC in each of *vxnet_ids*, one per distinct vxnet; carry them out with `grow`."""
        intents = []
        for vxnet_id in dict.fromkeys(vxnet_ids):
            op_id = self._context.new_operation()
            name = self._context.nic_name(op_id, is_gateway=is_gateway)
            count = sum(v == vxnet_id for v in vxnet_ids)
            intents.append(self._table.intend_create(op_id, vxnet_id, name, count, self._context.now()))
        return tuple(intents)

    def begin_attach(self, nic_ids: Sequence[str]) -> Intent:
        return self._table.intend_attach(self._context.new_operation(), nic_ids, self._context.now())

    async def grow(self, intents: Sequence[Intent], calls: CloudCalls, prepare: Prepare | None = None) -> None:
        """Carry out creates at once, then one attach for all that they brought, if *prepare* says they are ready.

        The first create goes with *calls*, the others wait for turns of their own.
        """
        first, *others = intents
        await asyncio.gather(self._create(first, calls), *(self._create(intent) for intent in others))
        made = [n for i in intents for n in self._made(i)]
        is_ready = prepare is None or not made or await prepare(made)
        await self._attach_created(intents, is_ready=is_ready)

    def _made(self, intent: Intent) -> tuple[str, ...]:
        return self._in(self._table.intents[intent.op_id], NicState.CREATING)

    async def _attach_created(self, intents: Sequence[Intent], *, is_ready: bool = True) -> None:
        calls = await self._permit() if any(map(self._made, intents)) and is_ready else None
        made = [n for i in intents for n in self._made(i)]  # as it is now: the permit may have taken long
        for intent in intents:
            self._table.finish(intent.op_id, "create.finished", self._context.now())
        if made and calls:
            await self.attach(self.begin_attach(made), calls)
        else:
            self._changed()

    async def _create(self, intent: Intent, calls: CloudCalls | None = None) -> None:
        calls = calls or await self._permit()
        intent = await self._announced(intent)
        try:
            created = await calls.create_nics(intent.vxnet_id, intent.count, intent.name)
        except OutcomeUnknown as err:
            self.growth.cause = str(err)  # what an ADD that waits meanwhile is told
            self._context.note("create.unanswered", subject=intent.op_id, detail=str(err))
            self._context.journal.push()
            created = await self._lookups.created(intent, patience_after(err))
            if not created:
                self.growth.failed(self._context.now(), str(err))
                if isinstance(err, CloudBusy):  # the cloud has said no itself
                    self._chooser.failed(intent.vxnet_id)
            if len(created) < intent.count:
                self._context.doubt(str(err))
        except CloudError as err:
            await self._create_refused(intent, err)
            created = ()
        await self._enter(intent, created)

    async def _enter(self, intent: Intent, created: Sequence[CreatedNic]) -> None:
        """Bring new NICs into the table; they stay with their operation until they are asked to be attached."""
        vxnet = await self._lookups.vxnet(intent.vxnet_id) if created else None
        now = self._context.now()
        for made in created:
            if vxnet is not None and made.nic_id not in self._table.nics:
                address = vxnet.address_of(made.private_ip)
                nic = Nic(made.nic_id, intent.name, vxnet.vxnet_id, address, vxnet.gateway, NicState.CREATING, now)
                self._context.enter(nic, "nic.created", subject=intent.op_id)
        self._table.reserve(intent.op_id, [n.nic_id for n in created if n.nic_id in self._table.nics])
        if created:
            self._chooser.worked(intent.vxnet_id, len(created), now)
        self._changed()

    async def _create_refused(self, intent: Intent, err: CloudError) -> None:
        """Learn whether a refusal concerns this vxnet or the cloud as a whole."""
        cause = str(err)
        left: int | None = None
        if isinstance(err, CloudQuota):
            left = await self._addresses_left(intent.vxnet_id)
        is_vxnets = left is not None and left < intent.count
        if left is not None and not is_vxnets:  # neither addresses nor NICs are used up, so the calls are
            self._context.cloud.slow_down()
        now = self._context.now()
        if left is not None and is_vxnets:
            self._chooser.has_room(intent.vxnet_id, left, now)
            cause = f"{intent.vxnet_id}: {left} addresses left; {err}"
        if is_vxnets or not isinstance(err, CloudUnreachable | CloudQuota | CredentialsRefused | ClockSkewed):
            self._chooser.failed(intent.vxnet_id)
        if is_vxnets and self._chooser.next_choice_at(now) <= now:
            self.growth.cause = cause  # another vxnet may serve at once
        else:
            self.growth.failed(now, cause)
        self._context.note("create.refused", subject=intent.op_id, detail=cause)

    async def _addresses_left(self, vxnet_id: str) -> int | None:
        """What the cloud says of the vxnet's free addresses; None if it does not answer, or may not be asked now."""
        calls = self._context.cloud.permit_now(self._to_grow)
        if calls is None:
            return None
        try:
            found = await calls.vxnets([vxnet_id])
        except CloudError:
            return None
        return next((v.available_ips for v in found), None)

    async def attach(self, intent: Intent, calls: CloudCalls) -> None:
        """Ask for the intent's NICs on this instance and see their links arrive."""
        intent = await self._announced(intent)
        try:
            job_id = await calls.attach_nics(self._context.instance_id, intent.nic_ids)
        except OutcomeUnknown as err:
            self._context.note("attach.unanswered", subject=intent.op_id, detail=str(err))
        except CloudError as err:
            await self._attach_refused(intent, err)
            return
        else:
            self._table.job_started(intent.op_id, job_id, "attach.accepted", self._context.now())
        if await self._follow_attach(intent.op_id):
            self.attaching.saw(self._context.now() - intent.since)

    async def _attach_refused(self, intent: Intent, err: CloudError) -> None:
        """None is attached; one that was deleted, or attached by somebody, would have the next attach refused too."""
        self.growth.failed(self._context.now(), str(err))
        if isinstance(err, CloudRefused):
            self._context.doubt(str(err))
            self._move_on(intent, await self._lookups.nics(intent.nic_ids, self._to_grow), str(err))
            with suppress(CloudError):  # what is wrong with the instance is asked again after the next refusal
                await self.departure.ask(self._to_grow)
        for nic_id in self._in(intent, NicState.ATTACHING):
            self._table.not_attached(nic_id, self._context.now(), str(err))
        self._table.finish(intent.op_id, "attach.refused", self._context.now(), str(err))
        self._changed()

    async def _follow_attach(self, op_id: str) -> bool:
        """See the links of an attach arrive; True if all have."""
        self._context.journal.push()
        intent = self._table.intents[op_id]
        failure = ""
        if not await self._links_arrive(intent, self._left(intent, LINK_FIRST)) and intent.job_id:
            job = await self._job_or_links(intent)
            if job is not None and job.status is JobStatus.FAILED:
                failure = f"job {job.job_id} failed: {job.error or 'the cloud gives no reason'}"
            elif job is not None and job.status is JobStatus.PENDING:
                failure = f"job {job.job_id} has not ended within {JOB_LIMIT / 60:.0f} minutes"
            else:
                await self._links_arrive(intent, LINK_AFTER_JOB)
        is_whole = await self._judge_not_arrived(intent, failure)
        self._table.finish(op_id, "attach.finished", self._context.now(), failure)
        self._changed()
        return is_whole

    async def _job_or_links(self, intent: Intent) -> Job | None:
        """Wait for the end of an attach job, or until the kernel shows all its links; then nobody is asked."""
        job_end = self._jobs.end(intent.job_id, self._to_grow, first_look=0.0, limit=JOB_LIMIT)
        end, links = asyncio.ensure_future(job_end), asyncio.ensure_future(self._links_arrive(intent, inf))
        try:
            done, _ = await asyncio.wait({end, links}, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                future.result()  # a bug in either shall show
            return end.result() if end in done else None
        finally:
            for future in (end, links):
                future.cancel()
            await asyncio.gather(end, links, return_exceptions=True)

    async def _links_arrive(self, intent: Intent, seconds: float) -> bool:
        """Whether all links of the operation have shown within *seconds*."""
        end = self._context.now() + seconds
        while self._in(intent, NicState.ATTACHING):
            left = end - self._context.now()
            if left <= 0 or not await self._context.arrivals.wait(None if left == inf else left):
                return not self._in(intent, NicState.ATTACHING)
        return True

    async def _judge_not_arrived(self, intent: Intent, failure: str) -> bool:
        """Ask the cloud about NICs whose links have not shown; True if all have."""
        late = self._in(intent, NicState.ATTACHING)
        if not late:
            self.growth.worked()  # only now: a NIC that can be created but not attached is no success
            return True
        seen = await self._lookups.nics(late, self._to_grow)
        if not intent.job_id and not any(map(self._is_here, seen.values())):
            await self._context.clock.sleep(self._left(intent, LATE_EFFECT))  # it may still be queued
            seen = await self._lookups.nics(late, self._to_grow)
        now = self._context.now()
        cause = failure or f"no link within {now - intent.since:.0f} s of asking"
        self.growth.failed(now, f"attach of {', '.join(late)}: {cause}")
        self._context.doubt(f"attach of {', '.join(late)}: {cause}")
        self._move_on(intent, seen, cause)
        return False

    def _move_on(self, intent: Intent, seen: Mapping[str, CloudNic], cause: str) -> None:
        """NICs whose attach is over and whose links have not come, to where the cloud has them."""
        now = self._context.now()
        for nic_id in self._in(intent, NicState.ATTACHING):
            nic = seen.get(nic_id)
            if self._is_gone(nic):
                self._table.drop(nic_id, "nic.gone", now, "the cloud knows it no more, or has it elsewhere")
            elif self._is_here(nic):
                self._table.lost(nic_id, now, cause)
            else:
                self._table.not_attached(nic_id, now, cause)

    # --- detach and delete ---------------------------------------------------------------------------

    def begin_detach(self, nic_ids: Sequence[str], cause: str) -> Intent:
        return self._table.intend_detach(self._context.new_operation(), nic_ids, self._context.now(), cause)

    def begin_repair(self, nic_ids: Sequence[str], tries: Mapping[str, int]) -> Intent:
        """A detach after which they are to be attached again; *tries* as `Table.intend_repair`."""
        return self._table.intend_repair(self._context.new_operation(), nic_ids, self._context.now(), tries)

    def begin_delete(self, nic_ids: Sequence[str]) -> Intent:
        return self._table.intend_delete(self._context.new_operation(), nic_ids, self._context.now())

    async def detach(self, intent: Intent, calls: CloudCalls) -> None:
        """Ask for the NICs off this instance; delete them once the cloud confirms."""
        intent = await self._announced(intent)
        patience = await self._ask_to_detach(intent, intent.nic_ids, calls)
        await self._follow_detach(intent.op_id, patience)

    async def _ask_to_detach(self, intent: Intent, nic_ids: Sequence[str], calls: CloudCalls) -> float:
        """Seconds for which it may still take effect, where the cloud has named no job."""
        try:
            job_id = await calls.detach_nics(nic_ids)
        except CloudError as err:
            self._context.note("detach.unanswered", subject=intent.op_id, detail=str(err))
            self.shrinking.failed(self._context.now(), str(err))
            return patience_after(err)
        self._table.job_started(intent.op_id, job_id, "detach.accepted", self._context.now())
        return 0.0

    async def _follow_detach(self, op_id: str, patience: float = LATE_EFFECT) -> None:
        """A detach whose reply was lost may take effect at any time, also when its NICs have long been used again.

        So they are not: it is asked for again and again, at growing intervals. A refusal proves nothing then, for the
        cloud refuses as well while the first one is under way.
        """
        end = self._context.now() + JOB_LIMIT
        while True:
            self._context.journal.push()
            intent = self._table.intents[op_id]
            status = await self._detach_job(intent) if intent.job_id else None
            if status is JobStatus.SUCCESSFUL:
                self.shrinking.worked()
                free = intent.nic_ids
                break
            seen = await self._after_detach(intent, 0.0 if status else patience)
            left = [n for n in intent.nic_ids if self._is_here(seen.get(n))]
            if not left or status or not patience or self._context.now() >= end:
                free = self._judge_detach(intent, seen)
                break
            calls = await self._context.cloud.permit(self._urgency(intent))
            await self._ask_to_detach(intent, left, calls)
            patience = min(2.0 * patience, JOB_LIMIT / 3)
        await self._finish_detach(intent, free)

    async def _detach_job(self, intent: Intent) -> JobStatus | None:
        """How the job has ended; None if it is unknown. One that does not end is awaited while a NIC is attached."""
        urgency = self._urgency(intent)
        first_look = DETACH_FIRST if urgency().is_background else FIRST_INTERVAL
        while True:
            job = await self._jobs.end(intent.job_id, urgency, first_look=first_look, limit=JOB_LIMIT)
            if job is None or job.status is not JobStatus.PENDING:
                return None if job is None else job.status
            seen = await self._lookups.nics(intent.nic_ids, urgency)
            if not any(map(self._is_here, seen.values())):
                return job.status

    async def _finish_detach(self, intent: Intent, free: Sequence[str]) -> None:
        now = self._context.now()
        self._table.finish(intent.op_id, "detach.finished", now)
        needed = [n for n in free if intent.is_repair or self._is_used_gateway(n)]
        for nic_id in needed:
            self._table.not_attached(nic_id, now, "to be attached again")
            self._context.path_due.notify()
        if unneeded := tuple(n for n in free if n not in needed):
            await self.delete(self.begin_delete(unneeded))
        else:
            self._changed()

    async def _after_detach(self, intent: Intent, patience: float) -> dict[str, CloudNic]:
        """What has become of the NICs, after *patience* seconds if any is attached still."""
        urgency, end = self._urgency(intent), self._context.now() + patience
        seen = await self._lookups.nics(intent.nic_ids, urgency)
        while any(map(self._is_here, seen.values())) and self._context.now() < end:
            await self._context.clock.sleep(LOOK_AGAIN if patience <= LATE_EFFECT else patience / 3)
            seen = await self._lookups.nics(intent.nic_ids, urgency)
        return seen

    def _judge_detach(self, intent: Intent, seen: Mapping[str, CloudNic]) -> tuple[str, ...]:
        """The NICs that are free; those still attached go back to the pool."""
        now = self._context.now()
        free = []
        kept = []
        for nic_id in intent.nic_ids:
            nic = seen.get(nic_id)
            if self._is_gone(nic):
                self._table.drop(nic_id, "nic.gone", now, "the cloud knows it no more, or has it elsewhere")
            elif self._is_here(nic):
                self._table.kept(nic_id, now, "the cloud has not detached it")
                kept.append(nic_id)
            else:
                free.append(nic_id)
        if kept:
            cause = f"not detached: {', '.join(kept)}"
            self._context.doubt(cause)
            if intent.job_id:  # else the call was refused, which is counted already
                self.shrinking.failed(now, cause)
        return tuple(free)

    async def delete(self, intent: Intent, calls: CloudCalls | None = None) -> None:
        """Delete free NICs, however long it takes; "not found" is success."""
        intent = await self._announced(intent)
        await self._delete(intent, intent.nic_ids, calls)

    async def _delete(self, intent: Intent, nic_ids: Sequence[str], calls: CloudCalls | None = None) -> None:
        failures = 0
        left = tuple(nic_ids)
        while left:
            calls = calls or await self._context.cloud.permit(self._to_release)
            try:
                await calls.delete_nics(left)
            except CloudError as err:
                failures += 1
                self._context.note("delete.unanswered", subject=intent.op_id, detail=str(err))
                self._context.journal.push()
                await self._context.clock.sleep(delay_after(failures, self._context.rng))
                left, calls = await self._still_free(left), None
            else:
                for nic_id in left:
                    self._table.drop(nic_id, "nic.deleted", self._context.now())
                left = ()
            self._context.journal.push()
        self._table.finish(intent.op_id, "delete.finished", self._context.now())
        self._changed()

    async def _still_free(self, nic_ids: Sequence[str]) -> tuple[str, ...]:
        """Those of *nic_ids* that wait to be deleted; the others are moved on: gone, or attached by somebody."""
        seen = await self._lookups.nics(nic_ids, self._to_release)
        now = self._context.now()
        free = []
        for nic_id in (n for n in nic_ids if self._is(n, NicState.DELETING)):
            nic = seen.get(nic_id)
            if self._is_gone(nic):
                self._table.drop(nic_id, "nic.deleted", now)
            elif self._is_here(nic):
                self._table.lost(nic_id, now, "attached again when it was to be deleted")
            else:
                free.append(nic_id)
        return tuple(free)

    # --- after a restart -----------------------------------------------------------------------------

    async def resume(self, intent: Intent) -> None:
        """Take up an operation that was under way when the agent ended."""
        match intent.kind:
            case OpKind.CREATE:
                if intent.count:
                    await self._enter(intent, await self._lookups.created(intent))
                await self._attach_created([intent])
            case OpKind.ATTACH:
                await self._follow_attach(intent.op_id)
            case OpKind.DETACH:
                await self._follow_detach(intent.op_id)
            case OpKind.DELETE:
                await self._delete(intent, await self._still_free(intent.nic_ids))

    # --- shared --------------------------------------------------------------------------------------

    def _is(self, nic_id: str, state: NicState) -> bool:
        nic = self._table.nics.get(nic_id)
        return nic is not None and nic.state is state

    def _in(self, intent: Intent, state: NicState) -> tuple[str, ...]:
        return tuple(n for n in intent.nic_ids if self._is(n, state))

    def _is_here(self, nic: CloudNic | None) -> bool:
        return nic is not None and nic.instance_id == self._context.instance_id

    def _is_gone(self, nic: CloudNic | None) -> bool:
        """Whether it is ours no more: deleted, or attached to another instance."""
        return nic is None or nic.instance_id not in ("", self._context.instance_id)

    def _left(self, intent: Intent, seconds: float) -> float:
        """What is left of *seconds* since the intent; after a restart much of it may have passed."""
        return max(intent.since + seconds - self._context.now(), 0.0)

    async def _announced(self, intent: Intent) -> Intent:
        """The intent as it is on disk, where it has to be before the cloud is asked.

        One that waited long for the disk is dated anew: after a restart its age tells what the call may still do.
        """
        self._context.plan_due.notify()
        await self._context.journal.save()
        while (now := self._context.now()) - self._table.intents[intent.op_id].since > FRESH:
            self._table.renew(intent.op_id, now)
            await self._context.journal.save()
        return self._table.intents[intent.op_id]

    def _changed(self) -> None:
        self._context.journal.push()
        self._context.plan_due.notify()

    def _is_used_gateway(self, nic_id: str) -> bool:
        """Whether containers have its address as their gateway."""
        nics, attachments = self._table.nics, tuple(self._table.attachments.values())
        return nics[nic_id].is_gateway and nic_id not in unused(nics.values(), attachments)

    def _urgency(self, intent: Intent) -> HowUrgent:
        """Of what a detach takes: containers wait for the repair of the gateway they go through."""
        if any(self._is_used_gateway(nic_id) for nic_id in intent.nic_ids if nic_id in self._table.nics):
            return self._to_grow
        return self._context.demand.comparison if intent.is_repair else self._to_release

    async def _permit(self) -> CloudCalls:
        return await self._context.cloud.permit(self._to_grow)
