"""Cloud jobs: one call for all that are pending, at growing intervals, whatever the cloud answers."""

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from inprocess import virtual_time
from inprocess.budgets import make_limiter, waiting
from inprocess.virtual_time import EPOCH, VirtualClock
from qingcloud_cni.agent.base.context import Context, Identity, Moves
from qingcloud_cni.agent.base.journal import Journal
from qingcloud_cni.agent.base.reserved import Reserved
from qingcloud_cni.agent.base.signals import Signal, Signals
from qingcloud_cni.agent.base.tasks import Tasks
from qingcloud_cni.agent.base.urgency import CallUrgency
from qingcloud_cni.agent.cloudops.jobs import FIRST_INTERVAL, LONGEST_INTERVAL, Jobs
from qingcloud_cni.cloud import Limiter
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.errors import CloudUnreachable, ResourceNotFound
from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.cloud import Cloud, HowUrgent, Job, JobStatus
from qingcloud_cni.core.seams.kernel import HostMacs, Kernel
from qingcloud_cni.core.seams.store import EventFilter


class FakeCloud:
    """Jobs that end at times of their own; keeps when it was asked about which."""

    def __init__(self, ends: dict[str, float], status: JobStatus = JobStatus.SUCCESSFUL) -> None:
        self.ends = ends  # seconds from the beginning
        self.status = status
        self.asked: list[tuple[float, tuple[str, ...]]] = []
        self.silent_until = 0.0
        self.turn = 0.0  # seconds for which a call waits
        self.limiter: Limiter | None = None

    async def permit(self, urgency: HowUrgent) -> "FakeCloud":
        await asyncio.sleep(self.turn)
        if self.limiter is not None:
            await self.limiter.acquire(urgency)
        return self

    def return_permit(self) -> None:
        """There are as many turns as anybody wants."""

    def reconsider(self) -> None:
        if self.limiter is not None:
            self.limiter.reconsider()

    async def jobs(self, job_ids: Sequence[str]) -> tuple[Job, ...]:
        now = VirtualClock().now() - EPOCH
        self.asked.append((round(now, 3), tuple(job_ids)))
        await asyncio.sleep(0.01)
        if now < self.silent_until:
            raise CloudUnreachable("DescribeJobs: no connection", action="DescribeJobs")
        if unknown := set(job_ids) - set(self.ends):
            raise ResourceNotFound(f"DescribeJobs: the cloud does not know {unknown}", action="DescribeJobs")
        return tuple(Job(i, self.status if now >= self.ends[i] else JobStatus.PENDING, "") for i in job_ids)


def refill() -> Urgency:
    return Urgency.REFILL


def release() -> Urgency:
    return Urgency.RELEASE


class FakeStore:
    def __init__(self) -> None:
        self.saved: list[Change] = []

    async def load(self) -> Snapshot:
        return Snapshot()

    async def save(self, changes: Sequence[Change]) -> None:
        self.saved += changes

    async def replace_file(self, changes: Sequence[Change]) -> str:
        raise NotImplementedError

    async def check_files(self) -> str | None:
        raise NotImplementedError

    async def tidy(self) -> None:
        raise NotImplementedError

    async def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        return tuple(c for c in self.saved if isinstance(c, Event))[-wanted.limit :]

    async def close(self) -> None:
        self.saved.clear()


def with_jobs(cloud: FakeCloud, use: Callable[[Jobs], Coroutine[Any, Any, None]]) -> list[Change]:
    """Run *use* while jobs are asked about; what was saved meanwhile."""
    store = FakeStore()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            table, tasks, rng = Table(Snapshot()), Tasks(group), random.Random(1)
            journal = Journal(table, store, VirtualClock(), rng)
            moves, kernel, clock = Moves(Signal()), cast("Kernel", None), VirtualClock()
            context = Context(
                Identity("i-1", "qingcni", "hostnic"), Signals(), table, journal, cast("Cloud", cloud),
                CallUrgency(lambda: None), kernel, clock, rng, tasks,
                Reserved(HostMacs(), table, kernel, clock, moves), moves,
            )  # fmt: skip
            jobs = Jobs(context)
            tasks.spawn("store", journal.run())
            tasks.spawn("jobs", jobs.run())
            await use(jobs)
            assert jobs.pending == ()
            asked = len(cloud.asked)
            await asyncio.sleep(3600)
            assert len(cloud.asked) == asked, "asked about jobs that have ended"
            tasks.cancel()

    virtual_time.run(main())
    return store.saved


def now() -> float:
    return VirtualClock().now() - EPOCH


def test_a_job_is_asked_about_at_growing_intervals_until_it_ends() -> None:
    cloud = FakeCloud({"j-1": 4000.0})

    async def use(jobs: Jobs) -> None:
        job = await jobs.end("j-1", refill)
        assert job == Job("j-1", JobStatus.SUCCESSFUL, "")

    with_jobs(cloud, use)
    times = [at for at, _ in cloud.asked]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert times[0] == pytest.approx(FIRST_INTERVAL)
    assert gaps == pytest.approx(sorted(gaps))
    assert gaps[0] == pytest.approx(FIRST_INTERVAL, abs=0.02)
    assert gaps[-1] == pytest.approx(LONGEST_INTERVAL, abs=0.02)
    assert times[-2] < 4000 <= times[-1]
    assert len(times) <= 20


def test_one_call_asks_about_all_that_are_pending() -> None:
    cloud = FakeCloud({f"j-{n}": 1.0 for n in range(40)})

    async def use(jobs: Jobs) -> None:
        ended = await asyncio.gather(*(jobs.end(job_id, refill) for job_id in cloud.ends))
        assert [job.job_id for job in ended if job] == list(cloud.ends)

    with_jobs(cloud, use)
    assert [ids for _, ids in cloud.asked] == [tuple(cloud.ends)]


def test_a_job_added_later_shares_the_calls() -> None:
    cloud = FakeCloud({"j-1": 30.0, "j-2": 30.0})

    async def use(jobs: Jobs) -> None:
        first = asyncio.create_task(jobs.end("j-1", refill))
        await asyncio.sleep(10)
        second = await jobs.end("j-2", refill)
        assert second is not None
        assert await first is not None

    with_jobs(cloud, use)
    assert all(ids == ("j-1", "j-2") for at, ids in cloud.asked if at > 12)
    assert cloud.asked[-1][0] < 50


def test_the_first_poll_may_be_at_once_or_later() -> None:
    cloud = FakeCloud({"j-1": 0.0, "j-2": 0.0})

    async def use(jobs: Jobs) -> None:
        await jobs.end("j-1", refill, first_poll=0.0)
        assert now() < 0.1
        await jobs.end("j-2", refill, first_poll=60.0)
        assert now() == pytest.approx(60, abs=0.1)

    with_jobs(cloud, use)
    assert len(cloud.asked) == 2


def test_a_failed_job_says_so() -> None:
    cloud = FakeCloud({"j-1": 0.0}, JobStatus.FAILED)

    async def use(jobs: Jobs) -> None:
        job = await jobs.end("j-1", refill)
        assert job is not None
        assert job.status is JobStatus.FAILED

    with_jobs(cloud, use)
    assert len(cloud.asked) == 1


def test_an_unknown_job_is_told_and_the_others_go_on() -> None:
    cloud = FakeCloud({"j-1": 20.0})

    async def use(jobs: Jobs) -> None:
        known = asyncio.create_task(jobs.end("j-1", refill))
        await asyncio.sleep(0)
        assert await jobs.end("j-unknown", refill) is None
        assert now() < 3
        assert not known.done()
        assert await known is not None

    with_jobs(cloud, use)
    assert all(ids == ("j-1",) for at, ids in cloud.asked if at > 3)


def test_a_silent_cloud_is_asked_again_ever_more_rarely() -> None:
    cloud = FakeCloud({"j-1": 0.0})
    cloud.silent_until = 120.0

    async def use(jobs: Jobs) -> None:
        assert await jobs.end("j-1", refill) is not None
        assert 120 < now() < 160

    saved = with_jobs(cloud, use)
    notes = [c for c in saved if isinstance(c, Event)]
    assert {n.name for n in notes} == {"jobs.unanswered"}
    assert len(notes) == len(cloud.asked) - 1 < 12


def test_whoever_no_longer_waits_is_forgotten() -> None:
    cloud = FakeCloud({"j-1": 9e9})

    async def use(jobs: Jobs) -> None:
        waiting = asyncio.create_task(jobs.end("j-1", refill))
        await asyncio.sleep(5)
        assert jobs.pending == ("j-1",)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with_jobs(cloud, use)
    assert cloud.asked


def test_a_job_that_does_not_end_is_answered_as_pending_when_its_time_is_up() -> None:
    cloud = FakeCloud({"j-1": 10_000.0, "j-2": 50.0})

    async def use(jobs: Jobs) -> None:
        job = await jobs.end("j-1", refill, limit=100.0)
        assert job is not None
        assert job.status is JobStatus.PENDING
        assert VirtualClock().now() - EPOCH == pytest.approx(100.0)
        assert jobs.pending == ()
        job = await jobs.end("j-2", refill, limit=100.0)
        assert job is not None
        assert job.status is cloud.status

    with_jobs(cloud, use)


@pytest.mark.parametrize("end", [50.0, 10_000.0])
def test_a_job_that_nobody_could_ask_about_in_its_time_is_awaited_until_it_was_asked_about(end: float) -> None:
    cloud = FakeCloud({"j-1": end})
    cloud.turn = 3000.0

    async def use(jobs: Jobs) -> None:
        job = await jobs.end("j-1", refill, limit=100.0)
        assert job is not None
        assert job.status is (JobStatus.PENDING if end > cloud.turn else cloud.status)
        assert now() == pytest.approx(3002.0, abs=0.1)

    with_jobs(cloud, use)


def test_a_turn_that_comes_when_nobody_waits_any_more_asks_about_nothing() -> None:
    cloud = FakeCloud({"j-1": 10_000.0})
    cloud.turn = 100.0

    async def use(jobs: Jobs) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10.0):
                await jobs.end("j-1", refill)
        await asyncio.sleep(200.0)
        assert not cloud.asked

    with_jobs(cloud, use)


def test_a_job_that_a_container_waits_for_takes_the_others_along() -> None:
    cloud = FakeCloud({"j-1": 0.0, "j-2": 0.0})

    async def use(jobs: Jobs) -> None:
        limiter = cloud.limiter = make_limiter(VirtualClock(), 12)
        while limiter.try_acquire(release):
            pass
        slow = asyncio.create_task(jobs.end("j-1", release, first_poll=0.0))
        await asyncio.sleep(60.0)
        assert not slow.done()
        await jobs.end("j-2", waiting, first_poll=0.0)
        await slow
        assert now() < 61.0

    with_jobs(cloud, use)
