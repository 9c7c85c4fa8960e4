"""A request's time is divided into phases that add up to it."""

import asyncio

import pytest

from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.base.phases import Phase, Phases


@in_virtual_time
async def test_phases_together_are_the_whole_time() -> None:
    phases = Phases()
    await asyncio.sleep(1.0)
    for _ in range(2):
        with phases.waiting(Phase.STORE):
            await asyncio.sleep(2.0)
    with pytest.raises(TimeoutError), phases.waiting(Phase.KERNEL):
        async with asyncio.timeout(8.0):
            await asyncio.sleep(60.0)
    seconds = phases.seconds()
    assert seconds == pytest.approx({"queue": 0.0, "cloud": 0.0, "kernel": 8.0, "store": 4.0, "own": 1.0})
    assert sum(seconds.values()) == pytest.approx(phases.total)
