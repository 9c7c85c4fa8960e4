"""Cloud jobs under way: one DescribeJobs polls all of them, at growing intervals."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from math import inf

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.signals import Signal
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.errors import CloudError, ResourceNotFound
from qingcloud_cni.core.seams.cloud import CloudCalls, HowUrgent, Job, JobStatus

FIRST_INTERVAL = 2.0  # seconds between polls of a job; a hot-plug takes 2 to 4 s
LONGEST_INTERVAL = 600.0  # so that a job that does not end does not use up the call budget
GROWTH = 1.5


@dataclass(slots=True)
class _Watched:
    end: "asyncio.Future[Job | None]"
    urgency: HowUrgent
    due: float  # seconds since the epoch
    interval: float = FIRST_INTERVAL
    is_seen: bool = False  # an answer has listed it
    is_overdue: bool = False  # the next answer settles it, whatever it is


class Jobs:
    def __init__(self, context: Context) -> None:
        self.record = TaskRecord()
        self._context = context
        self._watched: dict[str, _Watched] = {}
        self._added = Signal()

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(self._watched)

    async def end(
        self, job_id: str, urgency: HowUrgent, *, first_poll: float = FIRST_INTERVAL, limit: float = inf
    ) -> Job | None:
        """The job once it has ended, polled first after *first_poll* seconds; None if the cloud does not know it.

        After *limit* seconds it is returned as pending, but not before an answer has shown it so: polls may be late.
        """
        future: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        watched = self._watched[job_id] = _Watched(future, urgency, self._context.now() + first_poll)
        self._added.notify()
        self._context.cloud.reconsider()
        try:
            await asyncio.wait({future}, timeout=None if limit == inf else limit)
            if not watched.is_seen:
                watched.is_overdue = True
                await asyncio.wait({future})
            return future.result() if future.done() else Job(job_id, JobStatus.PENDING, "")
        finally:
            self._watched.pop(job_id, None)

    async def run(self) -> None:
        """Poll whenever a job is due, until cancelled."""
        while True:
            due = min((w.due for w in self._watched.values()), default=None)
            if due is None:
                self.record.next_run = 0.0
                await self._added.wait()
            elif (wait := due - self._context.now()) > 0:
                await self.record.pause(wait, self._added, self._context.clock)
            else:
                calls = await self._context.cloud.permit(self._urgency)
                if job_ids := tuple(self._watched):  # else their links have come meanwhile
                    with suppress(CloudError), self.record.run(self._context.clock):
                        await self._poll(job_ids, calls)
                calls.return_permit()

    async def _poll(self, job_ids: tuple[str, ...], calls: CloudCalls) -> None:
        """One call for all jobs; one by one only if the cloud says that some are unknown.

        Raises CloudError if the cloud does not answer; the jobs' next polls are set by then.
        """
        seen: dict[str, Job] = {}
        failure: CloudError | None = None
        try:
            seen = {job.job_id: job for job in await calls.jobs(job_ids)}
        except ResourceNotFound:
            if len(job_ids) == 1:
                self._settle(job_ids[0], None)
                return
            for job_id in job_ids:
                await self._poll((job_id,), calls)
            return
        except CloudError as err:
            failure = err
            self._context.note_and_push("jobs.unanswered", detail=str(err))
        for job_id in job_ids:
            job = seen.get(job_id)
            watched = self._watched.get(job_id)
            if watched is None:
                continue
            if job is not None and (job.status is not JobStatus.PENDING or watched.is_overdue):
                self._settle(job_id, job)
                continue
            watched.is_seen = watched.is_seen or job is not None
            if watched.due <= self._context.now():
                watched.due = self._context.now() + watched.interval
                watched.interval = min(watched.interval * GROWTH, LONGEST_INTERVAL)
        if failure is not None:
            raise failure

    def _urgency(self) -> Urgency:
        return min((watched.urgency() for watched in self._watched.values()), default=Urgency.RELEASE)

    def _settle(self, job_id: str, job: Job | None) -> None:
        watched = self._watched.pop(job_id, None)  # now: its waiter may run only after the next poll
        if watched is not None and not watched.end.done():
            watched.end.set_result(job)
