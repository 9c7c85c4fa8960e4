"""Creating and attaching NICs, from the intent until their links are on the host."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from math import inf

from qingcloud_cni.agent.base.clock import RecentMedian
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.cloudops.cloud_writes import GONE_FROM_HERE, JOB_LIMIT, CloudWrites
from qingcloud_cni.agent.cloudops.instance_status import InstanceStatus
from qingcloud_cni.agent.cloudops.jobs import Jobs
from qingcloud_cni.agent.cloudops.lookups import LATE_EFFECT, VxnetCache, patience_after
from qingcloud_cni.core import errors
from qingcloud_cni.core.nics.model import Intent, Nic, NicState, OpKind
from qingcloud_cni.core.pool.vxnets import VxnetChooser
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, CreatedNic, Job, JobStatus, Vxnet

ATTACH_FIRST = 5.0  # seconds an attach is assumed to last until one was seen; a hot-plug takes 2 to 4 s
LINK_FIRST = 10.0  # seconds in which an attached link usually shows; only then is the job polled
LINK_AFTER_JOB = 20.0  # seconds after a successful attach job in which the link has to show

Prepare = Callable[[Sequence[str]], Awaitable[bool]]


class Provisioner(CloudWrites):
    def __init__(
        self, context: Context, jobs: Jobs, chooser: VxnetChooser, vxnets: VxnetCache, instance_status: InstanceStatus
    ) -> None:
        super().__init__(context, jobs)
        self.attach_time = RecentMedian(ATTACH_FIRST)
        self.chooser = chooser
        self._vxnets = vxnets
        self._instance_status = instance_status
        self._urgency = context.urgency.provisioning

    @property
    def leaving(self) -> str:
        """Why nothing is created or attached any more; "" while the instance stays."""
        return self._instance_status.leaving

    def start_create(
        self, vxnet_ids: Sequence[str], calls: CloudCalls, *, is_gateway: bool = False, prepare: Prepare | None = None
    ) -> None:
        """Begin to create a NIC in each of *vxnet_ids* and to attach them.

        One create per distinct vxnet. Then one attach for all NICs, unless *prepare* says that they are not ready.
        The intents are in the table when this returns.
        """
        intents = []
        for vxnet_id in dict.fromkeys(vxnet_ids):
            op_id = self._context.new_operation()
            name = self._context.identity.nic_name(op_id, is_gateway=is_gateway)
            count = sum(v == vxnet_id for v in vxnet_ids)
            intents.append(self._table.intend_create(op_id, vxnet_id, name, count, self._context.now()))
        self._spawn(intents[0], self._create_all(intents, calls, prepare))

    def start_attach(self, nic_ids: Sequence[str], calls: CloudCalls) -> None:
        """Begin to attach NICs; the intent is in the table when this returns."""
        intent = self._intend_attach(nic_ids)
        self._spawn(intent, self._attach(intent, calls))

    async def attach(self, nic_ids: Sequence[str], calls: CloudCalls) -> None:
        await self._attach(self._intend_attach(nic_ids), calls)

    def _intend_attach(self, nic_ids: Sequence[str]) -> Intent:
        return self._table.intend_attach(self._context.new_operation(), nic_ids, self._context.now())

    async def resume(self, intent: Intent) -> None:
        if intent.kind is OpKind.ATTACH:
            await self._follow_attach(intent.op_id)
            return
        if intent.count:
            await self._enter(intent, await self._lookups.created(intent))
        await self._attach_created([intent])

    # --- create --------------------------------------------------------------------------------------

    async def _create_all(self, intents: Sequence[Intent], calls: CloudCalls, prepare: Prepare | None) -> None:
        """The first create goes with *calls*; the others wait for permits of their own."""
        first, *others = intents
        await asyncio.gather(self._create(first, calls), *(self._create(intent) for intent in others))
        made = [n for i in intents for n in self._made(i)]
        is_ready = prepare is None or not made or await prepare(made)
        await self._attach_created(intents, is_ready=is_ready)

    def _made(self, intent: Intent) -> tuple[str, ...]:
        made = self._in(self._table.intents[intent.op_id], NicState.CREATING)
        return tuple(nic_id for nic_id in made if self._table.nics[nic_id].address)

    async def _attach_created(self, intents: Sequence[Intent], *, is_ready: bool = True) -> None:
        calls = await self._permit() if any(map(self._made, intents)) and is_ready else None
        made = [n for i in intents for n in self._made(i)]  # again: the permit may have taken long
        for intent in intents:
            self._table.finish(intent.op_id, "create.finished", self._context.now())
        if made and calls:
            await self.attach(made, calls)
            return
        if calls:
            calls.return_permit()
        self._changed()

    async def _create(self, intent: Intent, calls: CloudCalls | None = None) -> None:
        calls = calls or await self._permit()
        intent = await self._persisted(intent)
        if flaw := await self._flaw(intent.vxnet_id):
            calls.return_permit()
            self._create_failed(intent, flaw)
            return
        try:
            created = await calls.create_nics(intent.vxnet_id, intent.count, intent.name)
        except errors.OutcomeUnknown as err:
            self.backoff.blocked(str(err))  # the reason for an ADD that waits meanwhile
            self._context.note_and_push("create.unanswered", subject=intent.op_id, detail=str(err))
            created = await self._lookups.created(intent, patience_after(err))
            if not created:
                self.backoff.failed(self._context.now(), str(err))
                if isinstance(err, errors.CloudBusy):  # the cloud itself said that it failed
                    self.chooser.failed(intent.vxnet_id)
            if len(created) < intent.count:
                self._context.signals.doubt(str(err))
            else:
                self.backoff.blocked("")  # the lost reply does not matter any more
        except errors.CloudError as err:
            await self._create_refused(intent, err)
            created = ()
        await self._enter(intent, created)

    async def _flaw(self, vxnet_id: str) -> str:
        """Why no NIC can be made there: without a usable network it would have no address. "" if one can."""
        if not self._vxnets.flaw(vxnet_id):
            return ""
        try:
            await self._vxnets.read((vxnet_id,), self._urgency)
        except errors.CloudError as err:
            return str(err)
        return self._vxnets.flaw(vxnet_id)

    def _create_failed(self, intent: Intent, cause: str) -> None:
        self.chooser.failed(intent.vxnet_id)
        self.backoff.failed(self._context.now(), cause)
        self._context.note("create.refused", subject=intent.op_id, detail=cause)
        self._table.reserve(intent.op_id, ())

    async def _enter(self, intent: Intent, created: Sequence[CreatedNic]) -> None:
        """Add new NICs to the table; they belong to their operation until they are to be attached.

        The pool deletes those without a usable address.
        """
        vxnet: Vxnet | None = None
        if created:
            vxnet = await self._lookups.answered(lambda: self._vxnets.get(intent.vxnet_id, self._urgency))
        now = self._context.now()
        for made in created:
            if vxnet is not None and made.nic_id not in self._table.nics:
                address = vxnet.address_of(made.private_ip)
                flaw = "" if address else f"is not a host's in {vxnet.network}"
                if address and (holder := await self._holder(made, vxnet.vxnet_id)):
                    address, flaw = "", f"NIC {holder} has as well"
                nic = Nic(made.nic_id, intent.name, vxnet.vxnet_id, address, vxnet.gateway, NicState.CREATING, now)
                if address:
                    nic = self._context.identity.indexed(nic, self._table.nics.values())
                else:
                    self._without_address(intent, made, flaw)
                if not self._table.add(nic, "nic.created", subject=intent.op_id):
                    cause = f"{intent.vxnet_id}: the cloud gave the MAC {made.nic_id} of the host's own NIC"
                    self.backoff.failed(now, cause)
                    self._context.signals.doubt(cause)
        known = (self._table.nics.get(made.nic_id) for made in created)
        self._table.reserve(intent.op_id, [n.nic_id for n in known if n is not None and n.name == intent.name])
        if created:
            self.chooser.created(intent.vxnet_id, len(created), now)
        self._changed()

    async def _holder(self, made: CreatedNic, vxnet_id: str) -> str:
        """Another NIC of the table with the address of this new one, "" if none has it.

        The cloud gives addresses of deleted NICs again, so it may show that only the new NIC has it.
        """
        places = {n.nic_id: (n.vxnet_id, n.host_address) for n in self._table.nics.values()}
        place = (vxnet_id, made.private_ip)
        holders = [n for n, other in places.items() if other == place and n != made.nic_id]
        if not holders:
            return ""
        seen = await self._lookups.nics([made.nic_id, *holders], self._urgency)
        showing = {n.nic_id for n in seen.values() if (n.vxnet_id, n.private_ip) == place}
        return "" if showing == {made.nic_id} else holders[0]

    def _without_address(self, intent: Intent, made: CreatedNic, flaw: str) -> None:
        said = f"address {made.private_ip}" if made.private_ip else "no usable address"
        cause = f"{intent.vxnet_id}: the cloud gave NIC {made.nic_id} {said}, which {flaw}"
        self.chooser.failed(intent.vxnet_id)
        self.backoff.failed(self._context.now(), cause)
        self._context.note("nic.unaddressed", made.nic_id, intent.op_id, cause)

    async def _create_refused(self, intent: Intent, err: errors.CloudError) -> None:
        """Find out whether a refusal concerns this vxnet or the cloud as a whole."""
        cause = str(err)
        left: int | None = None
        if isinstance(err, errors.CloudQuota):
            left = await self._addresses_left(intent.vxnet_id)
        is_vxnets = left is not None and left < intent.count
        if left is not None and not is_vxnets:  # addresses and NICs are left, so the calls are used up
            self._context.cloud.slow_down()
        now = self._context.now()
        if left is not None and is_vxnets:
            self.chooser.set_room(intent.vxnet_id, left, now)
            cause = f"{intent.vxnet_id}: {left} addresses left; {err}"
        if is_vxnets or not isinstance(
            err, errors.CloudUnreachable | errors.CloudQuota | errors.CredentialsRefused | errors.ClockSkewed
        ):
            self.chooser.failed(intent.vxnet_id)
        if is_vxnets and self.chooser.next_choice_at(now) <= now:
            self.backoff.blocked(cause)
        else:
            self.backoff.failed(now, cause)
        self._context.note("create.refused", subject=intent.op_id, detail=cause)

    async def _addresses_left(self, vxnet_id: str) -> int | None:
        """How many free addresses the vxnet has; None if the cloud does not answer, or may not be called now."""
        calls = self._context.cloud.permit_now(self._urgency)
        if calls is None:
            return None
        try:
            found = await calls.vxnets([vxnet_id])
        except errors.CloudError:
            return None
        return next((v.available_ips for v in found), None)

    # --- attach --------------------------------------------------------------------------------------

    async def _attach(self, intent: Intent, calls: CloudCalls) -> None:
        intent = await self._persisted(intent)
        try:
            job_id = await calls.attach_nics(self._context.identity.instance_id, intent.nic_ids)
        except errors.OutcomeUnknown as err:
            self._context.note("attach.unanswered", subject=intent.op_id, detail=str(err))
        except errors.CloudError as err:
            await self._attach_refused(intent, err)
            return
        else:
            self._table.job_started(intent.op_id, job_id, "attach.accepted", self._context.now())
        if await self._follow_attach(intent.op_id):
            self.attach_time.add(self._context.now() - intent.since)

    async def _attach_refused(self, intent: Intent, err: errors.CloudError) -> None:
        """None is attached. The table is corrected, for a deleted NIC would make the next attach fail as well."""
        self.backoff.failed(self._context.now(), str(err))
        if isinstance(err, errors.CloudRefused):
            self._context.signals.doubt(str(err))
            self._move_on(intent, await self._lookups.nics(intent.nic_ids, self._urgency), str(err))
            with suppress(errors.CloudError):  # the next refused attach asks again
                await self._instance_status.ask(self._urgency)
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
        """Wait for the end of an attach job; None once the kernel shows all its links, which needs no call."""
        job_end = self._jobs.end(intent.job_id, self._urgency, first_poll=0.0, limit=JOB_LIMIT)
        end, links = asyncio.ensure_future(job_end), asyncio.ensure_future(self._links_arrive(intent, inf))
        try:
            done, _ = await asyncio.wait({end, links}, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                future.result()  # raises a bug in either
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
            if left <= 0 or not await self._context.signals.arrivals.wait(None if left == inf else left):
                return not self._in(intent, NicState.ATTACHING)
        return True

    async def _judge_not_arrived(self, intent: Intent, failure: str) -> bool:
        """Ask the cloud about NICs whose links have not shown; True if all have."""
        late = self._in(intent, NicState.ATTACHING)
        if not late:
            self.backoff.worked()  # only now: a NIC that was created but cannot be attached is a failure
            return True
        seen = await self._lookups.nics(late, self._urgency)
        if not intent.job_id and not any(map(self._is_here, seen.values())):
            await self._context.clock.sleep(self._left(intent, LATE_EFFECT))  # the call may still take effect
            seen = await self._lookups.nics(late, self._urgency)
        now = self._context.now()
        cause = failure or f"no link within {now - intent.since:.0f} s of the call"
        self.backoff.failed(now, f"attach of {', '.join(late)}: {cause}")
        self._context.signals.doubt(f"attach of {', '.join(late)}: {cause}")
        self._move_on(intent, seen, cause)
        return False

    def _move_on(self, intent: Intent, seen: Mapping[str, CloudNic], cause: str) -> None:
        """Set NICs whose attach is over without a link to the state that the cloud shows."""
        now = self._context.now()
        for nic_id in self._in(intent, NicState.ATTACHING):
            nic = seen.get(nic_id)
            if self._is_gone(nic):
                self._table.drop(nic_id, "nic.gone", now, GONE_FROM_HERE)
            elif self._is_here(nic):
                self._table.lost(nic_id, now, cause)
            else:
                self._table.not_attached(nic_id, now, cause)

    async def _permit(self) -> CloudCalls:
        return await self._context.cloud.permit(self._urgency)
