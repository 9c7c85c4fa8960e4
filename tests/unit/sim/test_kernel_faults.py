"""Faults of the kernel in memory."""

import asyncio
import random

import pytest

from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.core.seams.kernel import NicRecord
from qingcloud_cni.sim.memory.kernel import MOVE, FakeKernel
from qingcloud_cni.sim.topology import PlugNic

NIC, OTHER = "52:54:00:00:00:02", "52:54:00:00:00:03"


def make_kernel() -> FakeKernel:
    kernel = FakeKernel("i-1", rng=random.Random(1), sleep=asyncio.sleep)
    kernel.apply(*(PlugNic(nic, "i-1", "vxnet-p", "10.0.1.2", enable_aspoof=True) for nic in (NIC, OTHER)))
    return kernel


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_a_fault_strikes_so_many_calls_after_those_it_skips() -> None:
    kernel = make_kernel()
    fault = kernel.fail("survey", times=2, skip=1)
    await kernel.survey()
    for _ in range(2):
        with pytest.raises(KernelRefused, match="survey: failed"):
            await kernel.survey()
    await kernel.survey()
    assert fault.calls == [(), ()]


@in_virtual_time
async def test_a_fault_of_one_nic_leaves_the_others_alone_and_ends_with_its_block() -> None:
    kernel = make_kernel()
    with kernel.fail("park", LinkNotFound("gone"), nic_id=NIC):
        await kernel.park(NicRecord(OTHER))
        with pytest.raises(LinkNotFound, match="gone"):
            await kernel.park(NicRecord(NIC))
    await kernel.park(NicRecord(NIC))


@in_virtual_time
async def test_a_delay_is_before_the_work_or_after_it() -> None:
    kernel = make_kernel()
    kernel.delay("park", 20.0, nic_id=NIC)
    kernel.delay("park", late=5.0, nic_id=OTHER)
    parking = [asyncio.create_task(kernel.park(NicRecord(nic))) for nic in (NIC, OTHER)]
    await asyncio.sleep(2 * MOVE)
    assert [link.mac for link in kernel.links_in(kernel.parking_path)] == [OTHER]
    await parking[1]
    assert now() == pytest.approx(5.0 + MOVE)
    await parking[0]
    assert now() == pytest.approx(20.0 + MOVE)


@in_virtual_time
async def test_a_blocked_verb_waits_until_it_is_released() -> None:
    kernel = make_kernel()
    fault = kernel.block("park")
    parking = asyncio.create_task(kernel.park(NicRecord(NIC)))
    await fault.reached()
    await kernel.park(NicRecord(OTHER))  # the block strikes one call
    await asyncio.sleep(1000.0)
    assert not parking.done()
    fault.release()
    await parking


@in_virtual_time
async def test_an_observer_gets_the_arguments_before_the_work() -> None:
    kernel = make_kernel()
    seen: list[tuple[str, int]] = []
    fault = kernel.observe("park", lambda nic: seen.append((nic.mac, len(kernel.links_in(kernel.parking_path)))))
    await kernel.park(NicRecord(NIC))
    assert seen == [(NIC, 0)]
    assert fault.calls == [(NicRecord(NIC),)]
