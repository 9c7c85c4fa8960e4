"""`changes()` wakes each reader once per burst, and misses none."""

import asyncio
import subprocess

import pytest

from machines.nics import Lab, ip, kernel, lab
from qingcloud_cni.kernel import HostKernel

__all__ = ["kernel", "lab"]  # fixtures

SILENCE = 0.3  # seconds without a change that count as the end of a burst


async def quiet(kernel: HostKernel) -> int:
    """Count bursts until there are no more."""
    changes, bursts = kernel.changes(), 0
    while True:
        try:
            await asyncio.wait_for(anext(changes), SILENCE)
        except TimeoutError:
            return bursts
        bursts += 1


async def test_arrival_and_change_in_parking_wake(lab: Lab, kernel: HostKernel) -> None:
    changes = kernel.changes()
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    assert not waiting.done()
    mac = await asyncio.to_thread(lab.plug)
    await asyncio.wait_for(waiting, 5)
    assert [link.mac for link in (await kernel.survey()).host] == [mac]
    await kernel.park(lab.record(mac))
    await quiet(kernel)
    changes = kernel.changes()
    await asyncio.wait_for(anext(changes), 5)  # what has been so far
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.to_thread(ip, "-n", lab.vxnet, "link", "del", "p1")  # its other end, parked, vanishes too
    await asyncio.wait_for(waiting, 5)
    assert (await kernel.survey()).parked == ()


async def test_change_before_anyone_waits_is_not_missed(lab: Lab, kernel: HostKernel) -> None:
    await asyncio.to_thread(lab.plug)
    changes = kernel.changes()
    assert not await asyncio.wait_for(anext(changes), 5)  # and no message was lost


async def test_many_links_at_once_are_few_bursts(lab: Lab, kernel: HostKernel) -> None:
    adds = "".join(f"link add a{n} type veth peer name b{n}\n" for n in range(20))
    command = ("ip", "-n", lab.host, "-batch", "-")
    await asyncio.to_thread(subprocess.run, command, input=adds.encode(), check=True)
    bursts = await quiet(kernel)
    assert 1 <= bursts <= 20  # 40 links, and several messages for each
    assert len((await kernel.survey()).host) == 40


async def test_each_reader_is_woken(lab: Lab, kernel: HostKernel) -> None:
    first, second = kernel.changes(), kernel.changes()
    both = asyncio.gather(anext(first), anext(second))
    await asyncio.to_thread(lab.plug)
    await asyncio.wait_for(both, 5)


async def test_lost_messages_wake_too(lab: Lab, kernel: HostKernel) -> None:
    """While the loop is busy the kernel has more to say than it keeps; afterwards we hear again."""
    lab.plug()
    await quiet(kernel)
    changes = kernel.changes()
    await asyncio.wait_for(anext(changes), 5)
    renames = "".join(f"link set eth1 alias a{n}\n" for n in range(3000))
    subprocess.run(("ip", "-n", lab.host, "-batch", "-"), input=renames.encode(), check=True)  # blocks the loop
    assert await asyncio.wait_for(anext(changes), 5)
    await quiet(kernel)
    changes = kernel.changes()
    await asyncio.wait_for(anext(changes), 5)
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.to_thread(lab.plug, 2)
    await asyncio.wait_for(waiting, 5)


async def test_closing_ends_the_iteration(kernel: HostKernel) -> None:
    await quiet(kernel)
    changes = kernel.changes()

    async def read() -> int:
        return len([None async for _ in changes])

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await kernel.close()
    assert await asyncio.wait_for(reading, 5) <= 1
    with pytest.raises(StopAsyncIteration):
        await anext(changes)
