"""What comes late, or shows what was: effects of writes that were cut off, old surveys, old addresses."""

import asyncio
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, netns_of, on_host, set_faults, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.cloudops.lookups import LATE_EFFECT
from qingcloud_cni.core.errors import PoolEmpty
from qingcloud_cni.core.nics.model import Intent, NicState, OpKind
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.cloud.faults import REFUSE, RESET
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import FaultSpec

LATE = 15.0  # seconds: after the first look at what a write has done, before it can have no effect any more


async def _cut_off(host: SimulatedHost, kind: OpKind, action: str) -> Intent:
    """Wait for the first call of *action*, whose connection breaks, and for the time at which its effect comes."""
    await host.until(lambda: host.model.calls[action] == 1, f"{action} was sent")
    (intent,) = (i for i in host.table.intents.values() if i.kind is kind)
    await host.clock.sleep(LATE)
    return intent


@pytest.mark.defect("hostnic-7")
@on_host(is_warm=False)
async def test_a_create_that_takes_effect_late_is_found_and_not_repeated(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("CreateNics", RESET))
    intent = await _cut_off(host, OpKind.CREATE, "CreateNics")
    host.console("CreateNics", vxnet=intent.vxnet_id, count=str(intent.count), nic_name=intent.name)
    await host.until(lambda: host.states() == ["idle"] * 3, "warm")
    assert set(host.ours_in_cloud()) == set(host.nics)
    assert host.model.calls["CreateNics"] == 2  # the one sent, and its effect


@on_host(is_warm=False)
async def test_a_create_that_the_busy_cloud_refused_is_not_awaited(host: SimulatedHost) -> None:
    """It has said itself that nothing was done: only that has to be looked at, and another create follows at once."""
    set_faults(host, FaultSpec("CreateNics", REFUSE, code=5100))
    await host.until(lambda: host.states() == ["idle"] * 3, "warm", LATE_EFFECT / 2)


@on_host(is_warm=False)
async def test_an_attach_that_takes_effect_late_is_not_repeated(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("AttachNics", RESET))
    intent = await _cut_off(host, OpKind.ATTACH, "AttachNics")
    host.console("AttachNics", *intent.nic_ids, instance=host.instance_id)
    await host.until(lambda: host.states() == ["idle"] * 3, "warm")
    assert host.model.calls["AttachNics"] == 2  # the one sent, and its effect


@pytest.mark.defect("others-25")
@on_host(max_nics=4, max_idle=3, idle_ttl=5, cooldown=0)
async def test_a_nic_whose_detach_may_still_take_effect_serves_nobody(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(4)))
    set_faults(host, FaultSpec("DetachNics", RESET))
    for n in range(4):
        await host.delete(f"c{n}")
    detaching = asyncio.create_task(_cut_off(host, OpKind.DETACH, "DetachNics"))
    await host.until(lambda: "detaching" in host.states(), "surplus")
    served = {(await host.add(f"d{n}")).nic_id for n in range(3)}
    with pytest.raises(PoolEmpty):
        await host.add("d3", seconds=5.0)
    intent = await detaching
    assert not served & set(intent.nic_ids)
    assert host.console("DetachNics", *intent.nic_ids)["ret_code"] == 0
    await host.until(lambda: not set(intent.nic_ids) & set(host.ours_in_cloud()), "deleted")
    await host.clock.sleep(60)
    host.check_invariants()


@on_host(cooldown=0)
async def test_an_old_survey_takes_no_nic_from_a_container(host: SimulatedHost) -> None:
    host.kernel.delay("survey", late=0.3)  # an ADD and a DEL take 0.02 each
    for n in range(30):
        attachment = await host.add(f"c{n}")
        await host.clock.sleep(0.1)
        assert attachment in host.table.attachments.values()
        assert [link.mac for link in host.kernel.links_in(netns_of(f"c{n}"))] == [attachment.nic_id]
        if n % 3:
            await host.delete(f"c{n}")
    await host.clock.sleep(5)
    assert len(host.table.attachments) == 10
    host.check_invariants()


@on_host(max_nics=3)
async def test_the_nic_of_a_dead_container_cools_down_before_it_serves_a_waiting_add(
    host: SimulatedHost,
) -> None:
    for n in range(3):
        await host.add(f"c{n}")
    waiting = asyncio.create_task(host.add("c3"))
    await host.clock.sleep(1)
    died = host.clock.now()
    host.kernel.kill_netns(netns_of("c0"))
    await waiting
    assert 30.0 <= host.clock.now() - died < 32.0  # cooldown-min


@on_host(max_nics=3, cooldown=0)
async def test_of_several_idle_nics_the_longest_idle_serves_first(host: SimulatedHost) -> None:
    nic_ids = [(await host.add(f"c{n}")).nic_id for n in range(3)]
    for n in (1, 0, 2):
        await host.delete(f"c{n}")
        await host.clock.sleep(1)
    assert [(await host.add(f"d{n}")).nic_id for n in range(3)] == [nic_ids[n] for n in (1, 0, 2)]


@on_host()
async def test_adds_that_come_one_after_the_other_are_gathered(host: SimulatedHost) -> None:
    before = host.model.calls["CreateNics"]
    adding = []
    for n in range(20):
        adding.append(asyncio.create_task(host.add(f"c{n}")))
        await host.clock.sleep(0.03)
    await asyncio.gather(*adding)
    assert host.model.calls["CreateNics"] - before <= 2


BACK = 1.0  # seconds: far below the periodic comparison


@pytest.mark.parametrize("is_hardware", [False, True])
@in_virtual_time
async def test_a_nic_that_returns_while_its_del_looks_for_it_is_parked_at_once(
    tmp_path: Path, *, is_hardware: bool
) -> None:
    """The DEL has looked on the host before the link came; the comparison after that skipped the NIC of the DEL."""
    async with simulated(tmp_path, is_hardware=is_hardware) as host:
        nic_id = (await host.add("c0")).nic_id
        host.kernel.kill_netns(netns_of("c0"))
        with host.kernel.delay("detach", late=2.0):
            await host.delete("c0")
        await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "parked", BACK)
        assert host.kernel.locations()[nic_id] == host.kernel.parking_path


@on_host(cooldown=10, cooldown_min=10)
async def test_a_nic_whose_row_changes_during_a_comparison_is_compared_again(host: SimulatedHost) -> None:
    """It cools down, is unplugged, and becomes idle while the kernel lists the links."""
    nic_id = (await host.add("c0")).nic_id
    await host.delete("c0")
    await host.clock.sleep(9.0)
    with host.kernel.delay("survey", late=4.0), host.kernel.delay("survey_all", late=4.0):
        host.kernel.unplug(nic_id)
        await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "idle, as nobody knows yet")
        await host.clock.sleep(5.0)
    await host.until(lambda: host.nics[nic_id].state is NicState.MISSING, "seen", 10.0)


@pytest.mark.parametrize("seed", range(20))
@in_virtual_time
async def test_nics_of_dead_containers_are_back_soon_whatever_meets(tmp_path: Path, seed: int) -> None:
    """DELs and comparisons that take their time, in any order with the links' return."""
    async with simulated(tmp_path, seed=seed, is_hardware=bool(seed % 2)) as host:
        uniform = host.rng.uniform
        for n in range(4):
            await host.add(f"c{n}")
            host.kernel.kill_netns(netns_of(f"c{n}"))
            host.kernel.delay("detach", uniform(0.0, 0.5), late=uniform(0.0, 0.5), times=1)
            host.kernel.delay("survey", uniform(0.0, 0.3), late=uniform(0.0, 0.3), times=2)
            await host.clock.sleep(uniform(0.0, 0.6))
            await host.delete(f"c{n}")
            await host.until(lambda: not {"arriving", "assigned"} & {*host.states()}, "parked", 2.0)
        assert {*host.kernel.locations().values()} == {host.kernel.parking_path, HOST_PATH}
        assert not host.table.attachments
        host.check_invariants()


@pytest.mark.parametrize("verb", ["survey", "park"])
@on_host()
async def test_a_nic_that_returns_is_parked_soon_after_the_kernel_refused_once(
    host: SimulatedHost, verb: str
) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.until(lambda: host.states().count("idle") == 3, "calm")
    await host.clock.sleep(BACK)
    with host.kernel.fail(verb, times=1) as refused:
        host.kernel.kill_netns(netns_of("c0"))
        await refused.reached()
        await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "parked", 3 * BACK)


@on_host()
async def test_a_kernel_that_keeps_refusing_is_asked_less_and_less(host: SimulatedHost) -> None:
    """As often for one NIC as for three: every 30 s besides."""
    for n in range(3):
        await host.add(f"c{n}")
    await host.until(lambda: host.states().count("idle") == 3, "calm")
    nic_ids = [attachment.nic_id for attachment in host.table.attachments.values()]
    with host.kernel.fail("park", nic_id=nic_ids[0]) as refused, host.kernel.fail("park", nic_id=nic_ids[1]):
        for n in range(3):
            host.kernel.kill_netns(netns_of(f"c{n}"))
        await host.clock.sleep(300.0)
        assert 10 <= len(refused.calls) <= 25
    await host.until(lambda: "arriving" not in host.states(), "parked", 30.0)


@pytest.mark.parametrize("is_hardware", [False, True])
@in_virtual_time
async def test_a_del_takes_the_returned_link_for_the_nic_whatever_its_fingerprint(
    tmp_path: Path, *, is_hardware: bool
) -> None:
    """The DEL comes before the comparison of the returned link, and reports no copy."""
    async with simulated(tmp_path, is_hardware=is_hardware) as host:
        nic_id = (await host.add("c0")).nic_id
        with host.kernel.delay("detach", seconds=1.0), host.kernel.delay("survey", seconds=2.0):
            host.kernel.kill_netns(netns_of("c0"))
            await host.delete("c0")
        assert host.nics[nic_id].state is NicState.COOLING
        assert host.kernel.locations()[nic_id] == host.kernel.parking_path
        assert not await host.journal.events(EventFilter(10, name="nic.spoofed"))
