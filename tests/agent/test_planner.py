"""The planner within a whole agent: what it measures, what vxnets tell it, and when it does nothing any more."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, on_host, served, set_faults, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.errors import CloudUnreachable, Draining, PoolEmpty, Unavailable
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.core.pool.pool_state import Mode
from qingcloud_cni.sim.topology import FaultSpec, Latencies, Limits, default_topology

SLOW = Latencies(detach=(3600.0, 3600.0))  # and so are jobs of instances
PODS = ["vxnet-pods001", "vxnet-pods002", "vxnet-pods003"]
TO_HOST = {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}


def vxnets_of(host: SimulatedHost) -> list[str]:
    return sorted(nic.vxnet_id for nic in host.nics.values())


# --- how long an attach takes --------------------------------------------------------------------------


@on_host(
    topology=replace(default_topology("sim", 1), latencies=Latencies(attach=(20.0, 20.0))), min_idle=1, max_idle=1
)
async def test_how_long_an_attach_takes_is_measured(host: SimulatedHost) -> None:
    """With 20 s an address that has rested for 111 s is back sooner than a new NIC."""
    await host.until(lambda: host.agent.pool.state().attach_seconds != 5.0, "a measure")
    assert 20.0 <= host.agent.pool.state().attach_seconds < 30.0
    await host.add("c0")
    await host.until(lambda: host.states() == ["assigned", "idle"], "the next one")
    await host.delete("c0")
    await host.clock.sleep(111)
    creates = host.model.calls["CreateNics"]
    await host.add("c1")
    await host.clock.sleep(25)
    assert host.model.calls["CreateNics"] == creates
    assert host.states() == ["assigned", "idle"]


@on_host(
    topology=replace(
        default_topology("sim", 1),
        latencies=Latencies(attach=(3.0, 3.0)),
        faults=(FaultSpec("AttachNics", "fail-job"),),
    )
)
async def test_a_failed_attach_does_not_count_as_a_measurement(host: SimulatedHost) -> None:
    assert 3.0 <= host.agent.pool.state().attach_seconds < 3.5


# --- vxnets ----------------------------------------------------------------------------------------------


@on_host(topology=replace(default_topology("sim", 1), limits=Limits(nics_per_vxnet=2)), vxnet=PODS[:2], min_idle=4)
async def test_the_error_of_an_add_names_the_skipped_vxnets_and_their_pauses(host: SimulatedHost) -> None:
    for n in range(4):
        await host.add(f"c{n}")
    with pytest.raises(PoolEmpty) as refused:
        await host.add("c4", seconds=20.0)
    assert "vxnet-pods001 for " in str(refused.value)
    assert "vxnet-pods002 for " in str(refused.value)
    assert " s more" in str(refused.value)


@on_host(topology=replace(default_topology("sim", 1), limits=Limits(nics_per_vxnet=5)), vxnet=PODS[:1])
async def test_creates_do_not_exceed_the_known_room_of_a_vxnet(host: SimulatedHost) -> None:
    """Two addresses are left. While two NICs are being created there, the other ADDs create none."""
    set_faults(host, FaultSpec("CreateNics", "late-reply", by=(5.0, 5.0)))
    before = host.model.calls["CreateNics"]
    adds = [asyncio.create_task(host.add(f"c{n}")) for n in range(5)]
    await host.clock.sleep(3)
    adds.append(asyncio.create_task(host.add("c5")))
    await host.clock.sleep(2)
    assert host.model.calls["CreateNics"] - before == 1
    await asyncio.gather(*adds[:5])
    assert not adds[5].done()
    await host.delete("c0")
    await adds[5]  # with the address that came free


@on_host(topology=replace(default_topology("sim", 1), limits=Limits(nics_per_vxnet=5)), vxnet=PODS[:2])
async def test_a_create_under_way_reduces_the_room_of_its_vxnet(host: SimulatedHost) -> None:
    """Two addresses are left in the first one, and both are asked for: further NICs are created in the second."""
    set_faults(host, FaultSpec("CreateNics", "late-reply", by=(5.0, 5.0)))
    before = host.model.calls["CreateNics"]
    adds = [asyncio.create_task(host.add(f"c{n}")) for n in range(2)]
    await host.clock.sleep(3)
    adds += [asyncio.create_task(host.add(f"c{n}")) for n in range(2, 5)]
    await asyncio.gather(*adds)
    await host.until(lambda: host.states().count("idle") == 3, "three more")
    assert vxnets_of(host) == [PODS[0]] * 5 + [PODS[1]] * 3
    assert host.model.calls["CreateNics"] - before == 2


@in_virtual_time
async def test_a_vxnet_that_is_full_at_the_start_is_not_asked(tmp_path: Path) -> None:
    """The comparison with the cloud shows that it is full."""
    topology = replace(default_topology("sim", 1), limits=Limits(nics_per_vxnet=2))
    host = SimulatedHost(tmp_path, topology, vxnet=PODS[:2], min_idle=2)
    host.console("CreateNics", vxnet=PODS[0], count="2", nic_name="others")
    async with served(host):
        assert vxnets_of(host) == [PODS[1]] * 2
        assert host.model.calls["CreateNics"] == 2  # theirs and ours


@pytest.mark.parametrize(
    ("fault", "used"),
    [
        pytest.param(FaultSpec("CreateNics", "refuse", code=1400), PODS[1], id="refused"),
        pytest.param(FaultSpec("CreateNics", "refuse", code=5000), PODS[1], id="the cloud failed"),
        pytest.param(FaultSpec("CreateNics", "refuse", code=1300), PODS[0], id="this host's clock"),
        pytest.param(FaultSpec("CreateNics", "call-quota"), PODS[0], id="too many calls"),
        pytest.param(FaultSpec("CreateNics", "reset"), PODS[0], id="the connection broke"),
    ],
)
@in_virtual_time
async def test_fail_rotate_moves_on_only_for_failures_of_the_vxnet(
    tmp_path: Path, fault: FaultSpec, used: str
) -> None:
    topology = replace(default_topology("sim", 1), faults=(fault,))
    async with simulated(tmp_path, topology, vxnet=PODS) as host:
        assert vxnets_of(host) == [used] * 3


@on_host(vxnet=PODS[:2], is_started=False)
async def test_a_create_that_did_not_reach_the_cloud_did_not_fail_there(host: SimulatedHost) -> None:
    unreached: list[str] = []

    def cut_off_once(target: str) -> None:
        if "action=CreateNics" in target and not unreached:
            unreached.append(target)
            raise CloudUnreachable("no route to the cloud", action="CreateNics")

    host.cable.on_send = cut_off_once
    await host.start()
    await host.until(lambda: host.states() == ["idle"] * 3, "a warm pool")
    assert unreached
    assert vxnets_of(host) == [PODS[0]] * 3


# --- the end ---------------------------------------------------------------------------------------------


@on_host(max_idle=3, idle_ttl=10, cooldown=0)
async def test_an_agent_that_stops_begins_nothing(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(6)))
    await host.until(lambda: host.states().count("idle") == 3, "the next three")
    for n in range(6):
        await host.delete(f"c{n}")
    await host.until(lambda: host.states() == ["idle"] * 9, "all rested")
    host.agent.stop()
    before = host.calls
    await host.clock.sleep(600)
    assert host.states() == ["idle"] * 9  # six are surplus
    assert host.calls == before
    assert host.agent.pool.mode is Mode.STOPPING
    with pytest.raises(Draining, match="stopping"):
        await host.add("c9")


@pytest.mark.parametrize("action", ["TerminateInstances", "StopInstances"])
@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(detach=(300.0, 300.0))))
async def test_a_terminating_instance_gets_no_nic_and_leaves_no_orphan(host: SimulatedHost, action: str) -> None:
    """The attach is refused and the cloud names the cause; the created NICs are deleted, and no others created."""
    host.console(action, **{"instances.1": host.instance_id})
    for n in range(3):
        await host.add(f"c{n}")
    with pytest.raises(PoolEmpty, match=r"instance i-simhost1 is (stopp|terminat)ing in the cloud: nothing"):
        await host.add("c3", seconds=30.0)
    assert host.agent.pool.mode is Mode.LEAVING
    await host.until(lambda: len(host.ours_in_cloud()) == 3, "only what containers have")
    creates, attaches = host.model.calls["CreateNics"], host.model.calls["AttachNics"]
    await host.clock.sleep(200)
    assert (host.model.calls["CreateNics"], host.model.calls["AttachNics"]) == (creates, attaches)


@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(detach=(1.0, 1.0))))
async def test_an_instance_that_stays_after_all_is_served_again(host: SimulatedHost) -> None:
    host.console("StopInstances", **{"instances.1": host.instance_id})
    for n in range(3):
        await host.add(f"c{n}")
    await host.until(lambda: host.agent.pool.mode is Mode.LEAVING, "it stops")
    await host.clock.sleep(2)
    started = host.console("StartInstances", **{"instances.1": host.instance_id})
    assert started["ret_code"] == 0
    await host.until(lambda: host.states().count("idle") == 3, "served again", seconds=1000)
    assert host.agent.pool.mode is Mode.SERVING


@in_virtual_time
async def test_an_agent_that_starts_on_a_terminating_instance_creates_nothing(tmp_path: Path) -> None:
    host = SimulatedHost(tmp_path, replace(default_topology("sim", 1), latencies=SLOW))
    host.console("StopInstances", **{"instances.1": host.instance_id})
    async with served(host, is_warm=False):
        await host.until(lambda: host.agent.is_cloud_compared, "compared")
        await host.clock.sleep(120)
        assert host.agent.pool.mode is Mode.LEAVING
        assert host.model.calls["CreateNics"] == 0


@on_host(topology=replace(default_topology("sim", 1), latencies=SLOW))
async def test_a_calm_host_asks_every_hour_whether_it_stays(host: SimulatedHost) -> None:
    host.console("StopInstances", **{"instances.1": host.instance_id})
    await host.until(lambda: host.agent.pool.mode is Mode.LEAVING, "it is known", seconds=3700)


@pytest.mark.parametrize("is_gateway", [False, True])
@on_host(topology=replace(default_topology("sim", 1), latencies=SLOW))
async def test_a_terminating_instance_gets_no_repairs(host: SimulatedHost, *, is_gateway: bool) -> None:
    """Not what has lost its link, whether containers need it or not."""
    await host.ask("ADD", "c0", ipam=TO_HOST, timeout=60.0)
    host.console("StopInstances", **{"instances.1": host.instance_id})
    await host.agent.instance_status.ask(host.urgency.provisioning)
    state = NicState.GATEWAY if is_gateway else NicState.IDLE
    nic = host.table.in_state(state)[0]
    host.kernel.unplug(nic.nic_id)
    await host.until(lambda: host.nics[nic.nic_id].state is NicState.MISSING, "missed")
    await host.clock.sleep(600)
    assert host.model.calls["DetachNics"] == 0


@pytest.mark.parametrize("keeps_link", [False, True])
@on_host(topology=replace(default_topology("sim", 1), latencies=SLOW))
async def test_a_gateway_nic_that_an_instance_that_goes_away_has_lost_is_not_attached_again(
    host: SimulatedHost, *, keeps_link: bool
) -> None:
    """It is not, even if the attach was about to begin."""
    await host.ask("ADD", "c0", ipam=TO_HOST, timeout=60.0)
    await host.until(lambda: host.states().count("idle") == 3, "refilled")
    (gateway,) = host.table.in_state(NicState.GATEWAY)
    attaches = host.model.calls["AttachNics"]
    await host.clock.sleep(120)
    await host.kill()
    nic = host.model.state.nics[gateway.nic_id]
    host.model.state.nics[gateway.nic_id] = replace(nic, instance_id="", status="available", is_plugged=False)
    if not keeps_link:
        host.kernel.unplug(gateway.nic_id)
    set_faults(host, FaultSpec("ModifyNicAttributes", "late-reply", by=(5.0, 5.0)))
    modified = host.model.calls["ModifyNicAttributes"]
    await host.start()
    if not keeps_link:
        await host.until(lambda: host.model.calls["ModifyNicAttributes"] > modified, "it is to be attached")
    host.console("StopInstances", **{"instances.1": host.instance_id})
    await host.agent.instance_status.ask(host.urgency.provisioning)
    await host.clock.sleep(600)
    assert host.model.calls["AttachNics"] == attaches
    assert gateway.nic_id in host.nics


@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(detach=(300.0, 300.0))))
async def test_a_terminating_instance_gets_no_gateway(host: SimulatedHost) -> None:
    host.console("StopInstances", **{"instances.1": host.instance_id})
    await host.agent.instance_status.ask(host.urgency.provisioning)
    creates = host.model.calls["CreateNics"]
    with pytest.raises(Unavailable, match=r"no gateway NIC.*instance i-simhost1 is stopping in the cloud"):
        await host.ask("ADD", "c0", ipam=TO_HOST, timeout=20.0)
    assert host.model.calls["CreateNics"] == creates


@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(detach=(300.0, 300.0))))
async def test_a_gateway_nic_that_is_not_attached_before_its_instance_goes_away_is_deleted(
    host: SimulatedHost,
) -> None:
    set_faults(host, FaultSpec("AttachNics", "refuse", code=1400, times=99))
    adding = asyncio.create_task(host.ask("ADD", "c0", ipam=TO_HOST, timeout=60.0))
    await host.until(lambda: any(n.is_gateway for n in host.nics.values()), "a gateway NIC")
    host.console("StopInstances", **{"instances.1": host.instance_id})
    with pytest.raises(Unavailable):
        await adding
    await host.until(lambda: not any(n.is_gateway for n in host.nics.values()), "its end", seconds=30)
    assert not [n for n in host.model.state.nics.values() if n.name.startswith("hostnic_")]


# --- giving back -----------------------------------------------------------------------------------------


@on_host(min_idle=1, max_idle=2, idle_ttl=100, cooldown=0)
async def test_unused_nics_are_released_under_constant_churn(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(12)))
    for n in range(12):
        await host.delete(f"c{n}")
    for n in range(12, 42):
        await host.add(f"c{n}")
        await host.delete(f"c{n}")
        await host.clock.sleep(10)
    assert host.states() == ["idle"] * 2


@pytest.mark.parametrize(
    "fault",
    [FaultSpec("DetachNics", "refuse", code=1400, message="NotNow"), FaultSpec("DetachNics", "fail-job")],
)
@on_host(min_idle=6)
async def test_a_refused_detach_of_many_nics_is_one_failure(host: SimulatedHost, fault: FaultSpec) -> None:
    set_faults(host, fault)
    host.agent.pool.drain()
    await host.until(lambda: host.agent.releaser.backoff.cause, "the refusal")
    await host.until(lambda: host.states() == ["idle"] * 6, "all are parked again")
    assert host.agent.releaser.backoff.failures == 1
    await host.until(lambda: not host.nics, "drained", seconds=20)


@on_host(min_idle=1, max_idle=1, idle_ttl=0, cooldown=0)
async def test_a_read_that_fails_during_a_release_is_not_why_an_add_waits(host: SimulatedHost) -> None:
    await asyncio.gather(host.add("c0"), host.add("c1"))
    set_faults(
        host,
        FaultSpec("DetachNics", "lose-reply"),
        FaultSpec("DescribeNics", "refuse", times=3, code=5100, message="Busy"),
    )
    await host.delete("c0")
    causes: set[tuple[str, str]] = set()

    def is_released() -> bool:
        found = host.agent.pool.causes()
        causes.add((found.provisioning, found.release))
        return len(host.nics) == 2

    await host.until(is_released, "released", 300.0)
    assert {provisioning for provisioning, _ in causes} == {""}
    assert any("Busy" in release for _, release in causes)
    assert host.agent.pool.causes().release == ""


@on_host(min_idle=1)
async def test_the_error_of_a_read_goes_with_the_next_read_that_succeeds(host: SimulatedHost) -> None:
    set_faults(
        host,
        FaultSpec("CreateNics", "lose-reply"),
        FaultSpec("DescribeNics", "refuse", times=3, code=5100, message="Busy"),
        FaultSpec("AttachNics", "endless-job"),
    )
    await host.add("c0")
    await host.until(lambda: "Busy" in host.agent.pool.causes().provisioning, "the read fails")
    await host.until(lambda: host.states().count("attaching") == 1, "found, and asked to be attached", 300.0)
    assert host.agent.pool.causes().provisioning == ""
