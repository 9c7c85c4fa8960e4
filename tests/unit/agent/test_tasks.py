"""Signals, tasks in a group, and steps that repeat, all on a virtual clock."""

import asyncio
import errno
from collections.abc import Callable

import pytest

from inprocess import virtual_time
from inprocess.virtual_time import EPOCH, VirtualClock
from qingcloud_cni.agent.base.signals import Signal
from qingcloud_cni.agent.base.tasks import TaskRecord, Tasks, repeat
from qingcloud_cni.core.errors import Unavailable

CLOCK = VirtualClock()


def seconds() -> float:
    """Since the run began."""
    return CLOCK.now() - EPOCH


def test_a_notification_is_kept_for_the_next_who_waits_and_only_once() -> None:
    async def main() -> tuple[bool, bool]:
        signal = Signal()
        signal.notify()
        signal.notify()
        answers = await signal.wait(), await signal.wait(5)
        assert seconds() == pytest.approx(5)
        return answers

    assert virtual_time.run(main()) == (True, False)


def test_all_who_wait_are_woken_and_nothing_is_kept() -> None:
    async def main() -> tuple[list[bool], bool]:
        signal = Signal()
        waits = [asyncio.create_task(signal.wait(timeout)) for timeout in (None, 10, 20)]
        await asyncio.sleep(1)
        signal.notify()
        assert seconds() == pytest.approx(1)
        return await asyncio.gather(*waits), await signal.wait(1)

    assert virtual_time.run(main()) == ([True, True, True], False)


def test_a_wait_that_ended_or_was_cancelled_takes_no_notification() -> None:
    async def main() -> bool:
        signal = Signal()
        assert not await signal.wait(1)
        cancelled = asyncio.create_task(signal.wait())
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        signal.notify()
        return await signal.wait(1)

    assert virtual_time.run(main())


def test_a_change_between_looking_and_waiting_is_not_missed() -> None:
    async def main() -> int:
        signal, count = Signal(), 0

        async def change() -> None:
            nonlocal count
            for _ in range(100):
                count += 1
                signal.notify()
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(change())
            while count < 100:
                assert await signal.wait(60)
                await asyncio.sleep(0)
        return count

    assert virtual_time.run(main()) == 100


def test_a_bug_in_a_task_ends_the_group() -> None:
    async def bug() -> None:
        raise KeyError("bug")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            tasks.spawn("waits for ever", _wait_for_ever())
            tasks.spawn("bug", bug())

    with pytest.raises(ExceptionGroup) as group:
        virtual_time.run(main())
    assert [type(e) for e in group.value.exceptions] == [KeyError]


async def _wait_for_ever() -> None:
    await asyncio.Event().wait()


def test_cancelling_lets_the_group_be_left() -> None:
    async def main() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = Tasks(group)
            spawned = [tasks.spawn(name, _wait_for_ever()) for name in ("a", "b")]
            await asyncio.sleep(1)
            tasks.cancel()
        assert all(t.cancelled() for t in spawned)
        return [t.get_name() for t in spawned]

    assert virtual_time.run(main()) == ["a", "b"]


# --- repeat ------------------------------------------------------------------------------------------


def repeated(step: Callable[[int], None], *, until: float, takes: float = 0.0) -> tuple[list[float], TaskRecord]:
    """When the step ran, in seconds from the beginning, and its record after *until* seconds."""
    record, runs = TaskRecord(10.0), list[float]()

    async def run() -> None:
        runs.append(seconds())
        await asyncio.sleep(takes)
        step(len(runs))

    async def main() -> None:
        task = asyncio.create_task(repeat(run, record, backoff=lambda n: 2.0**n, clock=CLOCK))
        done, _ = await asyncio.wait({task}, timeout=until)
        task.cancel()
        for finished in done:
            await finished

    virtual_time.run(main())
    return runs, record


def test_a_step_repeats_after_its_period() -> None:
    runs, record = repeated(lambda _: None, until=30, takes=1.5)
    assert runs == pytest.approx([0, 11.5, 23])
    assert (record.failures, record.last_error) == (0, "")
    assert (record.last_success - EPOCH, record.duration) == pytest.approx((24.5, 1.5))


def test_expected_errors_back_off_until_a_step_succeeds() -> None:
    def step(number: int) -> None:
        if number <= 3:
            raise Unavailable(f"failure {number}")

    runs, record = repeated(step, until=30)
    assert runs == pytest.approx([0, 2, 6, 14, 24])
    assert (record.failures, record.last_error) == (0, "")


def test_a_record_shows_what_went_wrong() -> None:
    def step(_number: int) -> None:
        raise Unavailable("the cloud is silent")

    runs, record = repeated(step, until=10)
    assert runs == pytest.approx([0, 2, 6])
    assert (record.failures, record.last_error, record.last_success) == (3, "the cloud is silent", 0.0)


def test_a_bug_in_a_step_is_not_survived() -> None:
    def step(number: int) -> None:
        if number == 2:
            raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        repeated(step, until=60)


@pytest.mark.parametrize("err", [OSError(errno.EMFILE, "x"), MemoryError()])
def test_a_shortage_in_a_step_is_recorded_and_retried(err: Exception) -> None:
    """Steps also do work beside the seams, on the agent's own files."""
    record, tries = TaskRecord(10.0), iter([err, err, None])
    succeeded = asyncio.Event()

    async def step() -> None:
        if (found := next(tries)) is not None:
            raise found
        succeeded.set()

    async def main() -> None:
        task = asyncio.create_task(repeat(step, record, backoff=float, clock=CLOCK))
        await succeeded.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    virtual_time.run(main())
    assert (record.failures, record.all_failures) == (0, 2)
