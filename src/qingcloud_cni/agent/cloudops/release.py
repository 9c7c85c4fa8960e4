"""Detaching and deleting NICs, from the intent until the cloud has done it; and detaching them for a repair."""

from collections.abc import Mapping, Sequence

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.cloudops.cloud_writes import GONE_FROM_HERE, JOB_LIMIT, CloudWrites
from qingcloud_cni.agent.cloudops.jobs import FIRST_INTERVAL
from qingcloud_cni.agent.cloudops.lookups import LATE_EFFECT, RECHECK, patience_after
from qingcloud_cni.core.errors import CloudError, KernelRefused
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.nics.model import Intent, NicState, OpKind
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, HowUrgent, JobStatus

DETACH_FIRST = 5.0  # seconds until a detach job is polled for which nobody waits; it has usually ended by then


class Releaser(CloudWrites):
    """Detaches and deletes NICs. Its backoff is that of detaching; each delete is retried on its own."""

    def start_detach(self, nic_ids: Sequence[str], cause: str, calls: CloudCalls) -> None:
        """Begin to detach NICs and to delete them; the intent is in the table when this returns."""
        intent = self._table.intend_detach(self._context.new_operation(), nic_ids, self._context.now(), cause)
        self._spawn(intent, self._detach(intent, calls))

    def start_delete(self, nic_ids: Sequence[str], calls: CloudCalls | None = None) -> None:
        """Begin to delete free NICs; the intent is in the table when this returns."""
        intent = self._intend_delete(nic_ids)
        self._spawn(intent, self._delete_persisted(intent, calls))

    async def repair(self, nic_ids: Sequence[str], tries: Mapping[str, int], calls: CloudCalls) -> None:
        """Detach NICs that are to be attached again; *tries* as for `Table.intend_repair`."""
        op_id, now = self._context.new_operation(), self._context.now()
        await self._detach(self._table.intend_repair(op_id, nic_ids, now, tries), calls)

    async def resume(self, intent: Intent) -> None:
        if intent.kind is OpKind.DETACH:
            await self._follow_detach(intent.op_id)
        else:
            await self._delete(intent, await self._still_free(intent.nic_ids))

    # --- detach --------------------------------------------------------------------------------------

    async def _detach(self, intent: Intent, calls: CloudCalls) -> None:
        """Detach the NICs; delete them once the cloud confirms.

        DetachNics does not name the instance. A NIC without a link here may have been attached to another instance,
        and the call would take it from there. So the agent first reads where such NICs are attached.
        """
        intent = await self._persisted(intent)
        if not await self._are_links_here(intent.nic_ids):
            seen = await self._lookups.nics(intent.nic_ids, self._urgency(intent))
            if not all(self._is_here(seen.get(nic_id)) for nic_id in intent.nic_ids):
                calls.return_permit()
                await self._finish_detach(intent, self._judge_detach(intent, seen))
                return
        patience = await self._ask_to_detach(intent, intent.nic_ids, calls)
        await self._follow_detach(intent.op_id, patience)

    async def _are_links_here(self, nic_ids: Sequence[str]) -> bool:
        """Whether all their links are on the host or parked, so that no other instance has the NICs."""
        try:
            survey = await self._context.kernel.survey()
        except KernelRefused:
            return False
        return set(nic_ids) <= {link.claimed_id for link in (*survey.host, *survey.parked) if link.fingerprint}

    async def _ask_to_detach(self, intent: Intent, nic_ids: Sequence[str], calls: CloudCalls) -> float:
        """Seconds for which the call may still take effect; 0 once the cloud has answered."""
        try:
            job_id = await calls.detach_nics(nic_ids)
        except CloudError as err:
            self._context.note("detach.unanswered", subject=intent.op_id, detail=str(err))
            self.backoff.failed(self._context.now(), str(err))
            return patience_after(err)
        self._table.job_started(intent.op_id, job_id, "detach.accepted", self._context.now())
        return 0.0

    async def _follow_detach(self, op_id: str, patience: float = LATE_EFFECT) -> None:
        """See a detach end, then finish it.

        A detach whose reply was lost may take effect at any time. So its NICs are not used again, and the call is
        repeated at growing intervals. A refusal then proves nothing, for the cloud also refuses a detach while the
        first one is under way.
        """
        end = self._context.now() + JOB_LIMIT
        while True:
            self._context.journal.push()
            intent = self._table.intents[op_id]
            status = await self._detach_job(intent) if intent.job_id else None
            if status is JobStatus.SUCCESSFUL:
                self.backoff.worked()
                free = intent.nic_ids
                break
            seen = await self._after_detach(intent, 0.0 if status else patience)
            left = [n for n in intent.nic_ids if self._is_here(seen.get(n))]
            if not left:
                self.backoff.worked()
            if not left or status or not patience or self._context.now() >= end:
                free = self._judge_detach(intent, seen)
                break
            calls = await self._context.cloud.permit(self._urgency(intent))
            await self._ask_to_detach(intent, left, calls)
            patience = min(2.0 * patience, JOB_LIMIT / 3)
        await self._finish_detach(intent, free)

    async def _detach_job(self, intent: Intent) -> JobStatus | None:
        """How the job has ended; None if it is unknown. PENDING only once none of the NICs is attached any more."""
        urgency = self._urgency(intent)
        first_poll = DETACH_FIRST if urgency().is_background else FIRST_INTERVAL
        while True:
            job = await self._jobs.end(intent.job_id, urgency, first_poll=first_poll, limit=JOB_LIMIT)
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
            self._context.signals.path_due.notify()
        if unneeded := tuple(n for n in free if n not in needed):
            await self._delete_persisted(self._intend_delete(unneeded))
        else:
            self._changed()

    async def _after_detach(self, intent: Intent, patience: float) -> dict[str, CloudNic]:
        """The NICs as the cloud has them, read for *patience* seconds while one of them is attached."""
        urgency, end = self._urgency(intent), self._context.now() + patience
        seen = await self._lookups.nics(intent.nic_ids, urgency)
        while any(map(self._is_here, seen.values())) and self._context.now() < end:
            await self._context.clock.sleep(RECHECK if patience <= LATE_EFFECT else patience / 3)
            seen = await self._lookups.nics(intent.nic_ids, urgency)
        return seen

    def _judge_detach(self, intent: Intent, seen: Mapping[str, CloudNic]) -> tuple[str, ...]:
        """The NICs that are detached; those still attached return to the pool."""
        now = self._context.now()
        free, attached = [], []
        for nic_id in intent.nic_ids:
            nic = seen.get(nic_id)
            if self._is_gone(nic):
                self._table.drop(nic_id, "nic.gone", now, GONE_FROM_HERE)
            elif self._is_here(nic):
                if intent.is_repair:
                    self._table.lost(nic_id, now, "the cloud has not detached it")
                else:
                    self._table.not_detached(nic_id, now, "the cloud has not detached it")
                attached.append(nic_id)
            else:
                free.append(nic_id)
        if attached:
            cause = f"not detached: {', '.join(attached)}"
            self._context.signals.doubt(cause)
            if intent.job_id:  # else the refusal of the call has counted
                self.backoff.failed(now, cause)
        return tuple(free)

    def _is_used_gateway(self, nic_id: str) -> bool:
        nics, attachments = self._table.nics, tuple(self._table.attachments.values())
        return nics[nic_id].is_gateway and nic_id not in unused(nics.values(), attachments)

    def _urgency(self, intent: Intent) -> HowUrgent:
        """Containers wait for the repair of a gateway that they use."""
        if any(self._is_used_gateway(nic_id) for nic_id in intent.nic_ids if nic_id in self._table.nics):
            return self._context.urgency.provisioning
        return self._context.urgency.comparison if intent.is_repair else self._context.urgency.release

    # --- delete --------------------------------------------------------------------------------------

    def _intend_delete(self, nic_ids: Sequence[str]) -> Intent:
        return self._table.intend_delete(self._context.new_operation(), nic_ids, self._context.now())

    async def _delete_persisted(self, intent: Intent, calls: CloudCalls | None = None) -> None:
        intent = await self._persisted(intent)
        await self._delete(intent, intent.nic_ids, calls)

    async def _delete(self, intent: Intent, nic_ids: Sequence[str], calls: CloudCalls | None = None) -> None:
        """Retry until the NICs are deleted, however long it takes; "not found" is success."""
        failures = 0
        left = tuple(nic_ids)
        while left:
            calls = calls or await self._context.cloud.permit(self._context.urgency.release)
            try:
                await calls.delete_nics(left)
            except CloudError as err:
                failures += 1
                self._context.note_and_push("delete.unanswered", subject=intent.op_id, detail=str(err))
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
        """Those of *nic_ids* that are still to be deleted; the others are gone, or were attached meanwhile."""
        seen = await self._lookups.nics(nic_ids, self._context.urgency.release)
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
