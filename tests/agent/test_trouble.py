"""Expected faults: the kernel refuses, an operator uses the cloud's console, the clock is set back.

They neither end the agent, nor stop the pool, nor lose a NIC.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from inprocess.agent import CONFIG, SimulatedHost, key_of, netns_of, on_host, set_faults, settings_of, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.core.cni import protocol
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.errors import PoolEmpty, Unavailable
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import FaultSpec, Latencies, default_topology

# --- the kernel refuses ------------------------------------------------------------------------------


@on_host()
async def test_a_refused_survey_is_retried(host: SimulatedHost) -> None:
    refused = host.kernel.fail("survey", times=2)
    await host.add("c0")
    await host.until(lambda: host.states() == ["assigned"] + ["idle"] * 3, "refilled")
    assert len(refused.calls) == 2


@pytest.mark.parametrize("nth", [0, 1])
@on_host(is_warm=False)
async def test_a_comparison_with_the_cloud_is_retried_after_a_refused_survey(host: SimulatedHost, nth: int) -> None:
    await host.clock.sleep(1.0)
    await host.kill()  # an attach is under way: it must be taken up once, not once per try
    host.kernel.fail("survey", times=1, skip=1 + nth)  # the first is the comparison with the kernel
    await host.start()
    await host.until(lambda: host.states() == ["idle"] * 3, "warm")
    await host.until_calm()


@on_host()
async def test_a_refused_undo_of_an_unfinished_add_is_repeated(
    host: SimulatedHost,
) -> None:
    """The survey finds it: the link of an assigned NIC is parked."""
    with host.kernel.delay("attach", 1.0):
        adding = asyncio.create_task(host.add("c0"))
        await host.clock.sleep(0.5)  # the table says that the NIC serves, and the link is parked
        await host.kill()
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    host.kernel.fail("detach", times=1)
    await host.start()
    assert not host.table.attachments
    attachment = await host.add("c0")
    assert attachment.is_ready
    assert [link.mac for link in host.kernel.links_in(netns_of("c0"))] == [attachment.nic_id]


@pytest.mark.defect("others-10")
@on_host(max_nics=3)
async def test_an_add_without_a_caller_takes_no_nic_from_waiting_adds(host: SimulatedHost) -> None:
    for n in range(3):
        await host.add(f"c{n}")
    gone = asyncio.create_task(host.add("c3"))
    await host.clock.sleep(1)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert not host.agent.pool.waiting
    await host.delete("c0")
    await host.add("c4")
    assert {key.container_id for key in host.table.attachments} == {"c1", "c2", "c4"}


@pytest.mark.parametrize("looks", [0, 1])
@on_host()
async def test_an_add_whose_caller_has_gone_is_not_begun_or_is_undone(host: SimulatedHost, looks: int) -> None:
    """A late one must not take a NIC after the DEL that followed it."""
    path, answers = netns_of("c0"), iter([True] * looks)
    host.kernel.make_netns(path)
    add = host.agent.attachments.add
    call = CniCall(protocol.Verb.ADD, 5.0, is_awaited=lambda: next(answers, False))
    with pytest.raises(Unavailable, match="has gone"):
        await add(key_of("c0"), path, CONFIG, call)
    assert not host.table.attachments
    assert not host.kernel.links_in(path)
    assert host.states() == ["cooling"] * looks + ["idle"] * (3 - looks)
    await host.add("c0")


@on_host()
async def test_a_clock_that_is_set_back_does_not_hide_a_dead_container(host: SimulatedHost) -> None:
    await host.add("c0")
    host.clock.ahead = -86_400.0
    host.kernel.kill_netns(netns_of("c0"))
    await host.clock.sleep(60)
    assert not host.table.attachments


# --- links that do not come --------------------------------------------------------------------------


@pytest.mark.defect("others-10")
@on_host(
    topology=replace(default_topology("sim", 1), faults=(FaultSpec("AttachNics", "lose-link", times=10000),)),
    is_warm=False,
    max_nics=60,
)
async def test_where_links_never_come_the_pool_slows_down_instead_of_using_up_its_nics(host: SimulatedHost) -> None:
    await host.until(lambda: host.states().count("missing") >= 3, "the first ones are given up")
    with pytest.raises(PoolEmpty, match="no link within"):
        await host.add("c0", seconds=20.0)
    await host.until(lambda: host.agent.provisioner.backoff.failures >= 5, "each failure is counted")
    host.check_invariants()


# --- the operator at the console ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["deleted", "attached elsewhere", "attached here"])
@on_host(
    topology=replace(
        default_topology("sim", 2), faults=(FaultSpec("AttachNics", "refuse", code=1400, message="PermissionDenied"),)
    ),
    is_warm=False,
)
async def test_a_nic_that_somebody_took_away_does_not_stop_the_others(host: SimulatedHost, what: str) -> None:
    await host.until(lambda: host.states() == ["creating"] * 3, "created, attached nowhere")
    taken = min(host.nics)
    if what == "deleted":
        answer = host.console("DeleteNics", taken)
    else:
        instance = host.topology.hosts[what == "attached elsewhere"].instance_id
        answer = host.console("AttachNics", taken, instance=instance)
    assert answer["ret_code"] == 0
    await host.until(lambda: host.states() == ["idle"] * 3, "warm")
    assert (taken in host.nics) == (what == "attached here")
    await host.add("c0")


@pytest.mark.parametrize("seed", range(10))
@in_virtual_time
async def test_a_link_that_appears_after_its_refused_attach_serves_at_once(tmp_path: Path, seed: int) -> None:
    latencies = Latencies(attach=(0.5, 2.0), call=(0.0, 2.0))
    refused = FaultSpec("AttachNics", "refuse", code=1400, message="PermissionDenied")
    topology = replace(default_topology("sim", 1), faults=(refused,), latencies=latencies)
    async with simulated(tmp_path, topology, is_warm=False, seed=seed) as host:
        adding = [asyncio.create_task(host.add(f"c{n}")) for n in range(3)]
        await host.until(lambda: host.model.calls["AttachNics"] == 1, "refused")
        host.console("AttachNics", min(host.nics), instance=host.instance_id)
        await asyncio.gather(*adding)
        host.check_invariants()


@on_host(topology=replace(default_topology("sim", 2), faults=(FaultSpec("DetachNics", "lose-reply"),)))
async def test_a_nic_attached_elsewhere_during_its_detach_is_dropped(host: SimulatedHost) -> None:
    taken = min(host.nics)
    other = host.topology.hosts[1].instance_id
    host.agent.pool.drain()
    await host.until(lambda: host.ours_in_cloud()[taken] == "available", "detached")
    assert host.console("AttachNics", taken, instance=other)["ret_code"] == 0
    await host.until(lambda: not host.nics, "drained")
    await host.clock.sleep(120)
    assert host.model.state.nics[taken].instance_id == other


@on_host(max_idle=3, idle_ttl=5, cooldown=0)
async def test_a_nic_attached_here_again_before_it_was_deleted_stays_in_the_table(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(4)))
    set_faults(host, FaultSpec("DeleteNics", "refuse"))
    for n in range(4):
        await host.delete(f"c{n}")
    await host.until(lambda: host.states().count("deleting") > 0 and host.model.calls["DeleteNics"] > 0, "refused")
    again = next(n.nic_id for n in host.nics.values() if n.state is NicState.DELETING)
    answer = host.console("AttachNics", again, instance=host.instance_id)
    assert answer["ret_code"] == 0
    await host.clock.sleep(60)
    assert set(host.ours_in_cloud()) == set(host.nics)
    assert "missing" not in host.states()


@pytest.mark.parametrize("state", ["idle", "cooling", "assigned"])
@pytest.mark.parametrize("action", ["DetachNics", "DeleteNics"])
@on_host(max_nics=4, min_idle=2)
async def test_a_nic_detached_at_the_console_is_not_handed_out_before_it_is_attached_again(
    host: SimulatedHost, state: str, action: str
) -> None:
    taken = (await host.add("c0")).nic_id
    if state != "assigned":
        await host.delete("c0")
    if state == "idle":
        await host.until(lambda: host.nics[taken].state is NicState.IDLE, "rested")
    assert host.console("DetachNics", taken)["ret_code"] == 0
    await host.clock.sleep(4)
    if action == "DeleteNics":
        assert host.console("DeleteNics", taken)["ret_code"] == 0
    if state == "assigned":
        await host.delete("c0")
    for n in range(1, 5):
        attachment = await host.add(f"c{n}", seconds=200.0)
        assert host.model.state.nics[attachment.nic_id].instance_id == host.instance_id
        host.check_invariants()
    assert set(host.ours_in_cloud()) == set(host.nics)


@on_host()
async def test_a_nic_unplugged_in_the_middle_of_an_add_is_replaced_by_another(host: SimulatedHost) -> None:
    attaching = host.kernel.observe("attach", lambda order: host.kernel.unplug(order.mac), times=1)
    attachment = await host.add("c0")
    unplugged = attaching.calls[0][0].mac
    assert attachment.nic_id != unplugged
    await host.clock.sleep(60)
    assert host.nics[unplugged].state is NicState.MISSING
    assert key_of("c0") in host.table.attachments


@on_host(min_idle=4, cooldown=0)
async def test_a_gateway_nic_that_the_cloud_refuses_to_change_costs_few_calls_however_busy_the_host_is(
    host: SimulatedHost,
) -> None:
    refused = FaultSpec("ModifyNicAttributes", "refuse", times=10_000, code=1400, message="PermissionDenied")
    set_faults(host, refused)
    config = read_config({"name": "net", "ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}})
    waiting = asyncio.create_task(host.add("wants-services", config=config, seconds=100.0))
    for _ in range(100):  # each ADD and DEL is a change that the links are looked at for
        await host.add("c0")
        await host.clock.sleep(1.0)
        await host.delete("c0")
    with pytest.raises(Unavailable, match="PermissionDenied"):
        await waiting
    assert 3 <= host.model.calls["ModifyNicAttributes"] <= 10
    set_faults(host)
    await host.add("wants-services", config=config, seconds=100.0)


# --- an operation taken up with other settings ---------------------------------------------------------


@in_virtual_time
async def test_a_create_in_a_vxnet_no_longer_configured_is_resumed_although_the_cloud_is_silent(
    tmp_path: Path,
) -> None:
    """Its NICs are known, and replaced by others of the configured vxnet."""
    topology = replace(default_topology("sim", 1), latencies=Latencies(call=(0.2, 0.2)))
    async with simulated(tmp_path, topology, is_warm=False) as host:
        await host.until(lambda: host.model.calls["CreateNics"] == 1, "asked")
        await host.kill()
        host.settings = settings_of(tmp_path, topology, vxnet=["vxnet-pods002"])
        set_faults(host, FaultSpec("DescribeVxnets", "refuse", nth=3, times=20))
        await host.start()
        await host.until(lambda: host.states() == ["idle"] * 3, "warm")
        assert set(host.ours_in_cloud()) == set(host.nics)
        assert {n.vxnet_id for n in host.nics.values()} == {"vxnet-pods002"}
        assert host.model.calls["DeleteNics"] == 1


@on_host()
async def test_a_nic_of_ours_without_an_address_is_left_alone(host: SimulatedHost) -> None:
    name = next(iter(host.nics.values())).name
    await host.kill()
    made = host.console("CreateNics", vxnet="vxnet-pods001", nic_name=name, disable_ip="1")
    await host.start()
    await host.until(lambda: host.agent.is_cloud_compared, "compared")
    assert made["nics"][0]["nic_id"] not in host.nics
    assert len(host.kernel.links_in(HOST_PATH)) == 1
