"""The tests' own clock keeps its promises."""

import asyncio
import time

import pytest

from inprocess import virtual_time
from inprocess.virtual_time import EPOCH, Stuck, VirtualClock


def test_a_day_passes_at_once() -> None:
    async def main() -> float:
        clock = VirtualClock()
        for _ in range(24 * 60):
            await clock.sleep(60)
        return clock.now()

    begun = time.monotonic()
    assert virtual_time.run(main()) == EPOCH + 86_400
    assert time.monotonic() - begun < 10


def test_sleepers_wake_in_the_order_of_their_times() -> None:
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(seconds)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for seconds in (5.0, 0.0, 90_000.0, 3.5):
                group.create_task(sleeper(seconds))

    virtual_time.run(main())
    assert woken == [0.0, 3.5, 5.0, 90_000.0]


def test_a_timeout_ends_a_wait() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 30)
        return VirtualClock().now() - EPOCH

    assert virtual_time.run(main()) == pytest.approx(30)


def test_a_deadlock_is_reported() -> None:
    with pytest.raises(Stuck, match=r"after 1\.000 s no task can ever run again"):
        virtual_time.run(_sleep_then_wait_for_ever())


async def _sleep_then_wait_for_ever() -> None:
    await asyncio.sleep(1)
    await asyncio.Event().wait()


def test_a_task_left_running_fails_the_run() -> None:
    kept: list[asyncio.Task[None]] = []

    async def main() -> None:
        kept.append(asyncio.create_task(asyncio.sleep(10)))

    with pytest.raises(AssertionError, match="left running"):
        virtual_time.run(main())
    assert kept[0].cancelled()


def test_a_cancelled_task_is_no_leftover() -> None:
    async def main() -> bool:
        return asyncio.create_task(asyncio.sleep(10)).cancel()

    assert virtual_time.run(main())
