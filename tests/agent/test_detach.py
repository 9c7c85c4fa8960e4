"""Detaches whose reply is lost, which come late or whose jobs do not end: no container ever has such a NIC."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from inprocess.agent import SimulatedHost, on_host, set_faults
from qingcloud_cni.agent.cloudops.cloud_writes import JOB_LIMIT
from qingcloud_cni.agent.cloudops.lookups import LATE_EFFECT
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.sim.topology import FaultSpec, Latencies, default_topology

SHRINKING: dict[str, Any] = {"min_idle": 1, "max_idle": 1, "idle_ttl": 5, "cooldown": 0}


async def surplus(host: SimulatedHost) -> str:
    """Let the pool have a NIC too many; which one it begins to detach."""
    await host.add("c0")
    await host.add("c1")
    await host.until(lambda: host.states().count("idle") == 1, "refilled")
    await host.delete("c0")
    await host.until(lambda: "detaching" in host.states(), "detaching")
    return next(n.nic_id for n in host.nics.values() if n.state is NicState.DETACHING)


def is_attached(host: SimulatedHost, nic_id: str) -> bool:
    nic = host.model.state.nics.get(nic_id)
    return nic is not None and nic.instance_id == host.instance_id


@pytest.mark.parametrize("is_killed", [False, True])
@on_host(**SHRINKING)
async def test_a_detach_that_was_not_heard_is_asked_again_instead_of_using_its_nics(
    host: SimulatedHost, *, is_killed: bool
) -> None:
    set_faults(host, FaultSpec("DetachNics", "reset", times=1))  # not done, and the agent cannot know
    given_back = await surplus(host)
    if is_killed:
        await host.kill()
        await host.start()
    adding = [asyncio.create_task(host.add(f"d{n}", seconds=100.0)) for n in range(3)]
    assert given_back not in {a.nic_id for a in await asyncio.gather(*adding)}
    await host.until(lambda: given_back not in host.nics, "detached and deleted", 3 * LATE_EFFECT)
    assert host.model.calls["DetachNics"] == 2
    assert set(host.ours_in_cloud()) == set(host.nics)


@pytest.mark.defect("others-25")
@on_host(**SHRINKING)
async def test_a_detach_that_takes_effect_long_after_its_lost_reply_meets_no_container(host: SimulatedHost) -> None:
    """An agent that looked for half a minute would have put the NIC back into the pool."""
    set_faults(
        host,
        FaultSpec("DetachNics", "lose-reply", times=1),
        FaultSpec("DetachNics", "slow-job", times=1, by=(90.0, 90.0)),
    )
    given_back = await surplus(host)
    begun = host.clock.now()
    served = set()
    while host.clock.now() < begun + 200.0:
        attachment = await host.add("d0")
        served.add(attachment.nic_id)
        assert is_attached(host, attachment.nic_id)
        await host.clock.sleep(2.0)
        assert is_attached(host, attachment.nic_id)
        await host.delete("d0")
        await host.clock.sleep(1.0)
    assert given_back not in served
    await host.until(lambda: given_back not in host.model.state.nics, "deleted", 3600.0)
    assert set(host.ours_in_cloud()) == set(host.nics)


@on_host(**SHRINKING)
async def test_a_nic_whose_detaches_never_take_effect_is_idle_again(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("DetachNics", "reset", times=10_000))
    given_back = await surplus(host)
    await host.clock.sleep(JOB_LIMIT - 60.0)
    assert host.nics[given_back].state is NicState.DETACHING
    await host.until(lambda: host.nics[given_back].state is NicState.IDLE, "kept", JOB_LIMIT)
    assert host.model.calls["DetachNics"] < 10
    assert given_back in {(await host.add(f"d{n}")).nic_id for n in range(2)}


@pytest.mark.parametrize("is_done_all_the_same", [False, True])
@on_host(**SHRINKING)
async def test_a_detach_job_that_does_not_end_keeps_its_nics_from_containers_as_long_as_they_are_attached(
    host: SimulatedHost, *, is_done_all_the_same: bool
) -> None:
    set_faults(host, FaultSpec("DetachNics", "endless-job", times=1))
    given_back = await surplus(host)
    await host.clock.sleep(60.0)
    if is_done_all_the_same:
        nic = host.model.state.nics[given_back]
        host.model.state.nics[given_back] = replace(
            nic, instance_id="", status="available", is_plugged=False, busy=""
        )
        host.kernel.unplug(given_back)
    else:
        await host.clock.sleep(3 * JOB_LIMIT)
        assert host.nics[given_back].state is NicState.DETACHING
        set_faults(host)  # the job fails at last
        await host.until(lambda: host.nics[given_back].state is NicState.IDLE, "kept", 2 * JOB_LIMIT)
        return
    await host.until(lambda: given_back not in host.nics, "given back", 2 * JOB_LIMIT)
    assert set(host.ours_in_cloud()) == set(host.nics)


@pytest.mark.defect("others-6")
@on_host(
    topology=replace(
        default_topology("sim", 1), faults=(FaultSpec("AttachNics", "endless-job", times=1),), latencies=Latencies()
    ),
    is_warm=False,
)
async def test_an_endless_attach_job_is_abandoned_and_its_nic_is_free_again(host: SimulatedHost) -> None:
    await host.until(lambda: host.states().count("attaching") > 0, "attaching")
    await host.clock.sleep(JOB_LIMIT - 60.0)
    assert host.states().count("attaching") > 0
    set_faults(host)
    await host.until(lambda: host.states().count("idle") == 3, "attached", 1800.0)
    assert set(host.ours_in_cloud()) == set(host.nics)


@pytest.mark.defect("hostnic-17")
@pytest.mark.parametrize("moment", ["asked", "plugged", "arriving"])
@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(attach=(2.0, 2.0))), is_warm=False)
async def test_a_nic_half_ready_when_the_agent_was_killed_is_made_ready_and_never_a_gateway(
    host: SimulatedHost, moment: str
) -> None:
    """An earlier program took such a link, up and without an address, for its way to Services."""
    await host.until(lambda: "attaching" in host.states(), "asked")
    if moment == "plugged":
        await host.clock.sleep(1.99)
    while moment == "arriving" and "arriving" not in host.states():
        await host.clock.sleep(0.001)
    half_ready = {n.nic_id for n in host.nics.values()}
    await host.kill()
    await host.clock.sleep(10.0)
    await host.start()
    await host.until(lambda: host.states() == ["idle"] * 3, "ready")
    assert set(host.nics) == half_ready == set(host.ours_in_cloud())
    assert not host.kernel.path.gateways
    assert {link.mac for link in host.kernel.links_in(host.kernel.parking_path)} == half_ready
