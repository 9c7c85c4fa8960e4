"""Containers that die, agents that are killed, operations cut off: on a virtual clock."""

import asyncio

import pytest

from inprocess.agent import CONFIG, SimulatedHost, key_of, netns_of, on_host
from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import InvalidNetns
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.sim.memory.machine import HOST_PATH


@on_host()
async def test_a_repeated_add_returns_the_first_result(host: SimulatedHost) -> None:
    first = await host.add("c0")
    assert await host.add("c0") == first
    one, two = await asyncio.gather(host.add("c1"), host.add("c1"))
    assert one == two == await host.add("c1")
    assert len(host.table.attachments) == 2


@on_host()
async def test_del_is_idempotent_and_succeeds_for_the_unknown(host: SimulatedHost) -> None:
    await host.delete("c0")
    await host.add("c0")
    await asyncio.gather(host.delete("c0"), host.delete("c0"))
    await host.delete("c0")
    assert not host.table.attachments
    assert host.kernel.links_in(netns_of("c0")) == ()


@on_host()
async def test_a_container_that_dies_without_del_releases_its_nic(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    host.kernel.kill_netns(netns_of("c0"))
    await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "taken back", 5.0)
    assert not host.table.attachments
    assert nic_id in {link.mac for link in host.kernel.links_in(host.kernel.parking_path)}


@on_host()
async def test_del_before_the_link_is_back_frees_the_attachment_and_the_nic_arrives_later(
    host: SimulatedHost,
) -> None:
    nic_id = (await host.add("c0")).nic_id
    host.kernel.kill_netns(netns_of("c0"))
    await host.delete("c0")
    assert host.nics[nic_id].state is NicState.ARRIVING
    await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "arrived", 5.0)


@on_host()
async def test_the_same_container_in_a_new_namespace_gets_a_nic_there(host: SimulatedHost) -> None:
    first = await host.add("c0")
    host.kernel.kill_netns(netns_of("c0"))
    second = await host.add("c0")
    assert second.netns != first.netns
    assert [link.mac for link in host.kernel.links_in(netns_of("c0"))] == [second.nic_id]
    host.check_invariants()


@on_host()
async def test_the_hosts_own_namespace_is_refused_before_anything_is_touched(host: SimulatedHost) -> None:
    before = host.kernel.links_in(HOST_PATH)
    for path in (HOST_PATH, host.kernel.parking_path, "/run/netns/none"):
        with pytest.raises(InvalidNetns):
            await host.agent.attachments.add(key_of("c0"), path, CONFIG, CniCall(Verb.ADD, 5.0))
    assert host.kernel.links_in(HOST_PATH) == before
    assert host.states() == ["idle"] * 3


@on_host()
async def test_a_killed_agent_comes_back_to_the_same_table(host: SimulatedHost) -> None:
    attachments = [await host.add(f"c{n}") for n in range(2)]
    await host.until(lambda: host.states().count("idle") == 3, "refilled")
    nics, calls = dict(host.nics), host.model.calls["CreateNics"]
    await host.kill()
    await host.start()
    await host.clock.sleep(60)
    assert dict(host.nics) == nics
    assert [await host.add(f"c{n}") for n in range(2)] == attachments
    assert host.model.calls["CreateNics"] == calls


@pytest.mark.parametrize("after", [0.0, 0.05, 0.11, 0.5, 1.5, 2.5, 3.5, 4.05])
@on_host(is_warm=False)
async def test_an_agent_killed_while_its_pool_grows_loses_no_nic(host: SimulatedHost, after: float) -> None:
    await host.clock.sleep(after)
    await host.kill()
    await host.clock.sleep(1)
    await host.start()
    await _settled(host)
    assert host.states() == ["idle"] * 3


@pytest.mark.parametrize("after", [0.05, 0.5, 1.5, 2.5, 3.5, 6.0])
@on_host()
async def test_an_agent_killed_while_it_drains_leaves_nothing_when_it_drains_again(
    host: SimulatedHost, after: float
) -> None:
    host.agent.pool.drain()
    await host.clock.sleep(after)
    await host.kill()
    await host.start()
    host.agent.pool.drain()
    await host.until(lambda: not host.nics and host.agent.is_drained(), "drained")
    assert not host.ours_in_cloud()


@on_host()
async def test_an_add_cut_off_by_a_kill_is_undone(host: SimulatedHost) -> None:
    adding = asyncio.create_task(host.add("c0"))
    await host.clock.sleep(0.01)  # the move is under way
    assert host.table.attachments
    await host.kill()
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    await host.start()
    assert not host.table.attachments
    host.check_invariants()
    await host.add("c0")


@pytest.mark.defect("others-22")
@on_host()
async def test_containers_that_died_while_the_agent_was_away_are_released(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.kill()
    host.kernel.kill_netns(netns_of("c0"))
    await host.clock.sleep(5)
    await host.start()
    assert not host.table.attachments
    await host.until(lambda: host.nics[nic_id].state in {NicState.COOLING, NicState.IDLE}, "parked", 5.0)


@on_host(is_warm=False, instance_nic_limit=4)
async def test_foreign_nics_are_never_touched_and_leave_less_room(host: SimulatedHost) -> None:
    await host.kill()
    call = {"zone": "pek3a", "vxnet": "vxnet-pods001", "count": "2", "nic_name": "somebody's"}
    made = host.model.call({"action": "CreateNics"} | call)
    foreign = [n["nic_id"] for n in made["nics"]]
    ids = {f"nics.{i}": n for i, n in enumerate(foreign)}
    host.model.call({"action": "AttachNics", "zone": "pek3a", "instance": host.instance_id} | ids)
    await host.clock.sleep(10)
    await host.start()
    await host.clock.sleep(120)
    assert len(host.nics) == 2  # 4 less the 2 of others
    on_host = {link.mac for link in host.kernel.links_in(HOST_PATH)}
    assert set(foreign) <= on_host
    assert not set(foreign) & set(host.nics)


async def _settled(host: SimulatedHost) -> None:
    """No operation is under way, and cloud and table agree."""
    await host.until(lambda: host.agent.is_cloud_compared and not host.table.intents, "operations over")
    await host.until(lambda: host.states().count("idle") >= 3, "warm")
    assert set(host.ours_in_cloud()) == set(host.nics)
    host.check_invariants()
