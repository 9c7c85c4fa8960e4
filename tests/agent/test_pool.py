"""The pool of a whole agent, on a virtual clock."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, netns_of, on_host, set_faults, settings_of, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.errors import Draining, InvalidConfig, PoolEmpty
from qingcloud_cni.core.nics.model import NicState, Route
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.memory.kernel import MOVE
from qingcloud_cni.sim.topology import FaultSpec, Latencies, Limits, default_topology


@pytest.mark.defect("slow-2")
@on_host()
async def test_a_start_warms_the_pool_with_one_create_and_one_attach(host: SimulatedHost) -> None:
    assert host.states() == ["idle"] * 3
    assert (host.model.calls["CreateNics"], host.model.calls["AttachNics"]) == (1, 1)
    assert host.model.calls["DescribeJobs"] == 0  # the kernel showed the links first


@pytest.mark.defect("others-29")
@on_host(max_nics=3, max_idle=3, cooldown=0)
async def test_a_recycled_nic_costs_no_call(host: SimulatedHost) -> None:
    before = host.calls
    for _ in range(50):
        await host.add("c1")
        await host.delete("c1")
    await host.clock.sleep(60)
    assert host.calls == before
    assert host.states() == ["idle"] * 3


@pytest.mark.defect("ancestor-1", "slow-4")
@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(attach=(3.0, 3.0))))
async def test_a_cold_burst_costs_few_calls_and_one_attach_job_of_time(host: SimulatedHost) -> None:
    before, begun = host.calls, host.clock.now()
    await asyncio.gather(*(host.add(f"c{n}") for n in range(50)))
    took = host.clock.now() - begun
    # one create and one attach job, 1 s of gathering, 50 moves of 19 ms one after the other
    assert took < 0.3 + 3.0 + 1.0 + 50 * 0.019 * 1.3, took
    assert host.calls - before <= 0.2 * 50
    addresses = {host.nics[a.nic_id].address for a in host.table.attachments.values()}
    assert len(addresses) == 50


@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(attach=(3.0, 3.0))))
async def test_a_burst_whose_plugins_hold_each_other_up_is_one_burst(host: SimulatedHost) -> None:
    """Fifty interpreters that start on two processors do not all ask within 100 ms of each other."""
    before = host.calls

    async def late(number: int) -> None:
        await host.clock.sleep(0.15 * max(number - 39, 0))  # forty at once, ten that come out of breath
        await host.add(f"c{number}")

    await asyncio.gather(*(late(n) for n in range(45)))
    assert host.calls - before == 2  # one create, one attach


@on_host(is_warm=False, min_idle=14, max_idle=14)
async def test_an_add_waits_for_one_parking_of_a_refill_and_not_for_all(host: SimulatedHost) -> None:
    """All NICs arrive at once, and each move takes as long as that of the ADD."""
    await host.kernel.observe("park").reached()
    await host.clock.sleep(1.5 * MOVE)
    assert host.states().count("idle") == 1
    assert host.states().count("arriving") > 10
    begun = host.clock.now()
    await host.add("c0")
    assert host.clock.now() - begun < 2.5 * MOVE
    assert host.states().count("arriving") > 8
    await host.until(lambda: host.states().count("idle") == 13, "the others are parked")


@on_host(max_nics=3)
async def test_max_nics_holds_and_the_add_that_waits_in_vain_says_why(host: SimulatedHost) -> None:
    for n in range(3):
        await host.add(f"c{n}")
    with pytest.raises(PoolEmpty, match=r"all 3 NICs are taken \(max-nics 3\)"):
        await host.add("c3", seconds=20.0)
    assert len(host.ours_in_cloud()) == 3


@pytest.mark.defect("others-20")
@on_host(max_nics=3)
async def test_an_add_at_the_limit_waits_for_the_nic_that_cools_down_first(host: SimulatedHost) -> None:
    for n in range(3):
        await host.add(f"c{n}")
    first = (await host.add("c0")).nic_id
    await host.delete("c0")
    released = host.clock.now()
    await host.delete("c1")
    attachment = await host.add("c3")
    assert attachment.nic_id == first
    assert 30.0 <= host.clock.now() - released < 31.0  # cooldown-min, since an ADD waited


@pytest.mark.defect("others-20")
@on_host(max_nics=4)
async def test_an_address_cools_down_fully_when_no_add_waits(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.delete("c0")
    released = host.clock.now()
    assert host.nics[nic_id].state is NicState.COOLING
    await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "rested")
    assert 130.0 <= host.clock.now() - released < 131.0


@on_host(max_idle=4, cooldown=0, idle_ttl=600)
async def test_unused_nics_above_max_idle_are_detached_and_deleted_after_idle_ttl(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(10)))
    for n in range(10):
        await host.delete(f"c{n}")
    held = len(host.nics)
    assert held >= 10
    await host.clock.sleep(500)
    assert len(host.nics) == held  # still young
    await host.until(lambda: len(host.nics) == 4, "shrunk to max-idle")
    await host.clock.sleep(3600)
    assert host.states() == ["idle"] * 4
    assert set(host.ours_in_cloud()) == set(host.nics)


@on_host()
async def test_adds_are_served_in_the_order_they_came(host: SimulatedHost) -> None:
    order: list[int] = []

    async def one(n: int) -> None:
        await host.add(f"c{n}")
        order.append(n)

    tasks = []
    for n in range(12):
        tasks.append(asyncio.create_task(one(n)))
        await host.clock.sleep(0.001)
    await asyncio.gather(*tasks)
    assert order == list(range(12))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("FailRotate", [1, 1, 1, 1, 1, 1]), ("RoundRotate", [1, 2, 3, 1, 2, 3])],
)
@in_virtual_time
async def test_the_policy_chooses_the_vxnet_per_nic(tmp_path: Path, policy: str, expected: list[int]) -> None:
    vxnets = ["vxnet-pods001", "vxnet-pods002", "vxnet-pods003"]
    async with simulated(tmp_path, vxnet=vxnets, policy=policy, min_idle=6) as host:
        assert sorted(n.vxnet_id for n in host.nics.values()) == sorted(f"vxnet-pods00{n}" for n in expected)


@on_host(
    topology=replace(default_topology("sim", 1), limits=Limits(nics_per_vxnet=2)),
    vxnet=["vxnet-pods001", "vxnet-pods002"],
    min_idle=4,
)
async def test_fail_rotate_moves_on_when_a_vxnet_is_full(host: SimulatedHost) -> None:
    used = sorted(n.vxnet_id for n in host.nics.values())
    assert used == ["vxnet-pods001"] * 2 + ["vxnet-pods002"] * 2


@pytest.mark.defect("others-11", "others-27")
@on_host(topology=replace(default_topology("sim", 1), limits=Limits(nics_per_vxnet=3)))
async def test_when_every_vxnet_is_full_the_add_names_it(host: SimulatedHost) -> None:
    for n in range(3):
        await host.add(f"c{n}")
    with pytest.raises(PoolEmpty, match="vxnet-pods001"):
        await host.add("c3", seconds=50.0)
    calls = host.model.calls["CreateNics"]
    await host.clock.sleep(3600)
    assert host.model.calls["CreateNics"] - calls <= 6  # the rest grows
    for n in range(3):
        await host.delete(f"c{n}")
    await host.until(lambda: host.states().count("idle") == 3, "recycled")
    await host.add("c4")


@pytest.mark.defect("hostnic-6", "ancestor-2")
@pytest.mark.parametrize(
    "action", ["CreateNics", "AttachNics", "DescribeNics", "DescribeVxnets", "DescribeInstances"]
)
@pytest.mark.parametrize("effect", ["refuse", "lose-reply"])
@in_virtual_time
async def test_one_failed_call_of_any_kind_delays_the_pool_and_loses_nothing(
    tmp_path: Path, action: str, effect: str
) -> None:
    topology = replace(default_topology("sim", 1), faults=(FaultSpec(action, effect),))
    async with simulated(tmp_path, topology) as host:
        await host.clock.sleep(120)
        assert host.states() == ["idle"] * 3
        assert set(host.ours_in_cloud()) == set(host.nics)
        assert not host.table.intents


@pytest.mark.parametrize("action", ["DetachNics", "DeleteNics", "DescribeJobs"])
@pytest.mark.parametrize("effect", ["refuse", "lose-reply"])
@on_host()
async def test_one_failed_call_on_the_way_out_leaves_nothing_behind(
    host: SimulatedHost, action: str, effect: str
) -> None:
    set_faults(host, FaultSpec(action, effect))
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "drained")
    assert not host.ours_in_cloud()


@pytest.mark.defect("hostnic-6")
@on_host(topology=replace(default_topology("sim", 1), faults=(FaultSpec("AttachNics", "fail-job"),)))
async def test_a_failed_attach_job_is_noticed_and_the_nic_is_not_leaked(host: SimulatedHost) -> None:
    assert set(host.ours_in_cloud()) == set(host.nics)
    assert host.model.calls["CreateNics"] == 1  # the same NICs were attached again
    assert await host.journal.events(EventFilter(1000, name="nic.unattached"))


@pytest.mark.defect("others-6")
@on_host(topology=replace(default_topology("sim", 1), faults=(FaultSpec("AttachNics", "lose-link"),)))
async def test_a_link_that_never_comes_makes_the_nic_missing_and_another_serves(host: SimulatedHost) -> None:
    assert host.states() == ["idle"] * 3 + ["missing"] * 3
    assert set(host.ours_in_cloud()) == set(host.nics)


@on_host()
async def test_the_pool_serves_while_the_cloud_is_down_and_recovers(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("*", "refuse", times=10_000, code=5000, message="InternalError"))
    for n in range(3):
        await host.add(f"c{n}")
    with pytest.raises(PoolEmpty, match="InternalError"):
        await host.add("c3", seconds=60.0)
    set_faults(host)
    await host.add("c3", seconds=100.0)


@pytest.mark.defect("others-2")
@on_host(max_nics=3)
async def test_a_drain_rejects_adds_and_releases_free_nics_then_the_others(host: SimulatedHost) -> None:
    kept = await host.add("c0")
    for n in (1, 2):
        await host.add(f"c{n}")
    waiting = asyncio.create_task(host.add("c3"))
    await host.clock.sleep(1)
    await host.delete("c1")
    host.agent.pool.drain()
    with pytest.raises(Draining):
        await waiting
    with pytest.raises(Draining):
        await host.add("c4")
    await host.delete("c2")
    await host.until(host.agent.is_drained, "drained")
    assert set(host.ours_in_cloud()) == {kept.nic_id}
    assert await host.add("c0") == kept  # a repeated ADD is answered all the same
    await host.delete("c0")
    await host.until(lambda: not host.nics, "the last one")
    assert not host.ours_in_cloud()


@pytest.mark.defect("others-8")
@on_host()
async def test_a_full_pool_is_released_with_few_calls(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(50)))
    for n in range(50):
        await host.delete(f"c{n}")
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "drained")
    assert not host.ours_in_cloud()
    assert (host.model.calls["DetachNics"], host.model.calls["DeleteNics"]) == (1, 1)


@pytest.mark.defect("others-28")
@on_host(min_idle=0, max_nics=3)
async def test_with_all_nics_in_use_a_newly_configured_vxnet_has_the_next_ones(
    host: SimulatedHost, tmp_path: Path
) -> None:
    """Those in use stay in the former one, and serve nobody after their DEL."""
    old = [await host.add(f"c{n}") for n in range(3)]
    await host.kill()
    host.settings = settings_of(tmp_path, host.topology, vxnet=["vxnet-pods002"], min_idle=0, max_nics=4)
    await host.start()
    new = await host.add("c3")
    assert host.nics[new.nic_id].vxnet_id == "vxnet-pods002"
    with pytest.raises(PoolEmpty, match="max-nics 4"):
        await host.add("c4", seconds=20.0)
    await host.delete("c0")
    assert host.nics[(await host.add("c4")).nic_id].vxnet_id == "vxnet-pods002"
    assert old[0].nic_id not in host.nics


@on_host()
async def test_a_gateway_outside_the_vxnet_is_refused_and_the_nic_is_as_good_as_before(host: SimulatedHost) -> None:
    config = read_config({"name": "net", "ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "10.0.0.1"}]}})
    with pytest.raises(InvalidConfig, match=r"10\.0\.0\.1.*vxnet-pods001.*172\.20\.1\.0/24"):
        await host.add("c0", config=config)
    assert host.states() == ["idle"] * 3


@on_host()
async def test_given_routes_follow_the_default_one(host: SimulatedHost) -> None:
    config = read_config({"name": "net", "ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "172.20.1.9"}]}})
    attachment = await host.add("c0", config=config)
    address, routes = host.kernel.addresses_in(netns_of("c0"))["eth0"]
    assert address == host.nics[attachment.nic_id].address
    assert routes == (Route("0.0.0.0/0", "172.20.1.1"), Route("10.96.0.0/12", "172.20.1.9"))
