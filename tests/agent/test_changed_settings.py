"""A start with other settings: what each means for the NICs and containers that the agent holds already."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from inprocess.agent import SimulatedHost, on_host, set_faults
from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.agent.api.plan_view import plan_view
from qingcloud_cni.agent.api.views import status_view
from qingcloud_cni.agent.settings.settings import SETTINGS
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.errors import CloudUnreachable, InvalidConfig, PoolEmpty
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.core.timeline import timelines
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import FaultSpec, Latencies, default_topology

OLD, NEW = "vxnet-pods001", "vxnet-pods002"
SERVICES = read_config(
    {"cniVersion": "1.0.0", "name": "net", "ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}}
)
ONLY_LATER = {  # settings that do not concern what is held; simulator-netns belongs to a simulated host
    "QYAccessFilePath", "bindaddr", "policy", "zone", "loglevel", "api-budget", "metrics-bind", "instance-id",
    "instance-id-file", "allow-readable-access-file", "simulator-netns",
}  # fmt: skip


async def restart(host: SimulatedHost, **settings: object) -> None:
    await host.kill()
    host.settings = replace(host.settings, **settings)  # type: ignore[arg-type]
    await host.start()


def vxnets(host: SimulatedHost) -> set[str]:
    return {n.vxnet_id for n in host.nics.values()}


def ids(host: SimulatedHost, state: NicState) -> set[str]:
    return {n.nic_id for n in host.table.in_state(state)}


def no_route(_target: str) -> None:
    raise CloudUnreachable("no route to the cloud", action="")


async def compared(host: SimulatedHost) -> None:
    await host.until(lambda: host.agent.is_cloud_compared, "the comparison with the cloud")
    await host.clock.sleep(1)
    await host.until_calm()


# --- vxnets ----------------------------------------------------------------------------------------------


@on_host(vxnet=[OLD], cooldown=1000)
async def test_nics_of_a_removed_vxnet_are_released_and_serve_nobody(host: SimulatedHost) -> None:
    """Idle and cooling ones at once, an assigned one after its DEL; plan, status and explain say so."""
    kept = (await host.add("c0")).nic_id
    await host.add("c1")
    await host.delete("c1")
    assert ids(host, NicState.COOLING)
    await restart(host, vxnet=(NEW,))
    await compared(host)
    await host.until(lambda: host.states() == ["assigned", "idle", "idle", "idle"], "replaced")
    assert {n.vxnet_id for n in host.table.in_state(NicState.IDLE)} == {NEW}
    assert {n.vxnet_id for n in host.model.state.nics.values() if n.name.startswith("qingcni")} == {OLD, NEW}
    assert [host.nics[(await host.add(f"n{n}")).nic_id].vxnet_id for n in range(4)] == [NEW] * 4
    assert status_view(host.agent, "1", 1).outside == {OLD: 1}
    staying = f"1 NICs in {OLD}, which is not in --vxnet, are released after the DEL of their containers"
    assert staying in [hold.what for hold in plan_view(host.agent).holds]
    assert await told(host, kept) == [
        f"net/c0/eth0: in {OLD}, which is not in --vxnet: released after the DEL of its container"
    ]
    await host.delete("c0")
    await host.until(lambda: kept not in host.nics, "released", 60.0)
    assert vxnets(host) == {NEW}
    assert status_view(host.agent, "1", 1).outside == {}


async def told(host: SimulatedHost, nic_id: str, event: str = "nic.outside") -> list[str]:
    """What `qingagent explain` says of the NIC."""
    await host.clock.sleep(1)
    (timeline,) = timelines(await host.store.events(EventFilter(10_000)), nic_id)
    return [step.detail for step in timeline.steps if step.name == event]


@on_host(vxnet=[OLD])
async def test_a_release_names_the_removed_vxnet(host: SimulatedHost) -> None:
    nic_id = min(host.nics)
    await restart(host, vxnet=(NEW,))
    await host.until(lambda: vxnets(host) == {NEW}, "replaced")
    (detail,) = await told(host, nic_id, "nic.detaching")
    assert detail.endswith(f": 3 unused in {OLD}, which is not in --vxnet")


@on_host(vxnet=[OLD])
async def test_before_the_cloud_answers_no_nic_of_a_removed_vxnet_serves(host: SimulatedHost) -> None:
    host.cable.on_send = no_route
    await restart(host, vxnet=(NEW,))
    with pytest.raises(PoolEmpty):
        await host.add("c0", seconds=5.0)
    assert host.states() == ["idle"] * 3


@on_host(vxnet=[OLD])
async def test_a_nic_of_a_removed_vxnet_cannot_be_requested(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("DetachNics", "refuse", code=1400))
    wanted = min(host.nics)
    await restart(host, vxnet=(NEW,))
    config = read_config({"cniVersion": "1.0.0", "name": "net", "runtimeConfig": {"mac": wanted}})
    with pytest.raises(InvalidConfig, match=wanted):
        await host.add("c0", config=config)


@on_host(
    topology=replace(default_topology("sim", 1), latencies=Latencies(attach=(20.0, 20.0))), vxnet=[OLD], is_warm=False
)
async def test_a_nic_on_its_way_from_a_removed_vxnet_is_released_when_it_comes(host: SimulatedHost) -> None:
    await host.until(lambda: ids(host, NicState.ATTACHING), "an attach")
    adding = asyncio.create_task(host.add("c0"))
    await host.clock.sleep(1)
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    await restart(host, vxnet=(NEW,))
    assert host.nics[(await host.add("c1")).nic_id].vxnet_id == NEW
    await host.until(lambda: vxnets(host) == {NEW}, "all others are released")


@on_host(vxnet=[OLD], min_idle=0)
async def test_a_gateway_of_a_removed_vxnet_stays_while_a_container_uses_it(host: SimulatedHost) -> None:
    await host.add("c0", config=SERVICES)
    await restart(host, vxnet=(NEW,))
    await compared(host)
    assert len(ids(host, NicState.GATEWAY)) == 1
    await host.delete("c0")
    await host.until(lambda: not host.nics, "released", 60.0)
    await host.until(lambda: not host.kernel.path.gateways, "the path to Services is gone")


@on_host(vxnet=[OLD], max_nics=4, min_idle=2)
async def test_a_full_host_makes_room_for_nics_of_the_new_vxnet(host: SimulatedHost) -> None:
    await host.add("c0")
    await host.add("c1")
    await restart(host, vxnet=(NEW,))
    await host.until(lambda: {n.vxnet_id for n in host.table.in_state(NicState.IDLE)} == {NEW}, "new ones")
    assert host.states() == ["assigned", "assigned", "idle", "idle"]


# --- each setting ----------------------------------------------------------------------------------------


async def gatewayns(host: SimulatedHost) -> None:
    await host.add("c0", config=SERVICES)
    (gateway,) = ids(host, NicState.GATEWAY)
    await restart(host, gatewayns="svc")
    await compared(host)
    assert [link.name for link in host.kernel.links_in(HOST_PATH) if link.mac == gateway] == ["svc"]
    assert ids(host, NicState.GATEWAY) == {gateway}
    assert (await host.add("c1", config=SERVICES)).routes[-1] == (await host.add("c0", config=SERVICES)).routes[-1]
    assert not host.agent.reconciler.open


async def iface(host: SimulatedHost) -> None:
    """The link is another one's: NICs of ours are where they were."""
    before = set(host.nics)
    await restart(host, iface="eth7")
    await compared(host)
    assert set(host.nics) == before


async def vxnet(host: SimulatedHost) -> None:
    await restart(host, vxnet=(NEW,))
    await host.until(lambda: vxnets(host) == {NEW}, "replaced")


async def min_idle(host: SimulatedHost) -> None:
    await restart(host, min_idle=5)
    await host.until(lambda: host.states() == ["idle"] * 5, "more", 60.0)


async def max_idle(host: SimulatedHost) -> None:
    await host.clock.sleep(700)
    await restart(host, min_idle=1, max_idle=1)
    await host.until(lambda: host.states() == ["idle"], "fewer", 60.0)


async def idle_ttl(host: SimulatedHost) -> None:
    await restart(host, min_idle=1, max_idle=1, idle_ttl=1000.0)
    await compared(host)
    await host.clock.sleep(100)
    assert host.states() == ["idle"] * 3
    await restart(host, idle_ttl=50.0)
    await host.until(lambda: host.states() == ["idle"], "fewer", 60.0)


async def max_nics(host: SimulatedHost) -> None:
    await lowered(host, max_nics=3)


async def instance_nic_limit(host: SimulatedHost) -> None:
    await lowered(host, instance_nic_limit=3)


async def lowered(host: SimulatedHost, **limit: int) -> None:
    """Two serve and one cools down: one may be kept beside those that serve."""
    for n in range(3):
        await host.add(f"c{n}")
    await host.until(lambda: host.states().count("idle") == 3, "a warm pool")
    await host.delete("c2")
    await restart(host, **limit)
    await compared(host)
    assert host.states() == ["assigned", "assigned", "cooling"] or host.states() == ["assigned", "assigned", "idle"]
    await host.delete("c1")
    await host.clock.sleep(300)
    assert len(host.nics) == 3


async def cooldown(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.delete("c0")
    await restart(host, cooldown=1000.0)
    await host.clock.sleep(300)
    assert host.nics[nic_id].state is NicState.COOLING
    await restart(host, cooldown=200.0)
    await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "rested already", 10.0)


async def cooldown_min(host: SimulatedHost) -> None:
    """At the limit, an ADD waits for the NIC of the container before it."""
    await restart(host, max_nics=1, min_idle=0, max_idle=0, cooldown_min=100.0)
    await host.until(lambda: len(host.nics) == 1, "one is left")
    await host.add("c0")
    await host.delete("c0")
    await restart(host, cooldown_min=20.0)
    await compared(host)
    await host.add("c1", seconds=30.0)


async def duplicate_probe(host: SimulatedHost) -> None:
    nic = host.nics[min(host.nics)]
    await restart(host, duplicate_probe=False)
    host.kernel.claims[nic.host_address] = "52:54:00:00:00:99"
    await restart(host, duplicate_probe=True)
    await host.until(lambda: host.nics[nic.nic_id].state is NicState.QUARANTINED, "probed")
    await restart(host, duplicate_probe=False)
    await host.until(lambda: host.nics[nic.nic_id].state is NicState.IDLE, "cleared", 60.0)


async def nic_name_prefix(host: SimulatedHost) -> None:
    """They are ours by their rows: nothing is forgotten, counted as foreign, or renamed in the cloud."""
    serving = (await host.add("c0", config=SERVICES)).nic_id
    await host.until(lambda: host.states().count("idle") == 3, "a warm pool")
    before = set(host.nics)
    await restart(host, nic_name_prefix="pods", gatewayns="svc")
    await compared(host)
    await host.clock.sleep(2000)
    assert set(host.nics) == before
    assert host.agent.pool.others == 0
    assert not host.agent.reconciler.open
    await host.add("c1")
    await host.delete("c0")
    await host.until(lambda: host.nics[serving].state is NicState.IDLE, "recycled")
    host.agent.pool.drain()
    await host.delete("c1")
    await host.until(lambda: not host.nics, "released")
    assert not [n for n in host.model.state.nics.values() if n.role == 0 and n.status != "gone"]


async def boot_id_file(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.kill()
    host.clock.boot = "another"
    await host.start()
    assert not host.table.attachments
    assert nic_id in host.nics


async def state_dir(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    before = set(host.nics)
    other = host.settings.state_dir / "other"
    other.mkdir()
    await restart(host, state_dir=other, run_dir=other)
    await compared(host)
    assert before <= set(host.nics)
    assert (await host.add("c0")).nic_id == nic_id


async def run_dir(host: SimulatedHost) -> None:
    await host.add("c0")
    await host.until(lambda: host.states().count("idle") == 3, "a warm pool")
    before = set(host.nics)
    other = host.settings.run_dir / "other"
    other.mkdir()
    await restart(host, run_dir=other)
    await compared(host)
    assert set(host.nics) == before


Scenario = Callable[[SimulatedHost], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    s.__name__.replace("_", "-"): s
    for s in (
        gatewayns, iface, vxnet, min_idle, max_idle, idle_ttl, max_nics, instance_nic_limit, cooldown, cooldown_min,
        duplicate_probe, nic_name_prefix, boot_id_file, state_dir, run_dir,
    )
}  # fmt: skip


def test_every_setting_says_what_it_means_for_what_is_held() -> None:
    assert {s.name for s in SETTINGS if s.held} == SCENARIOS.keys()
    assert {s.name for s in SETTINGS if not s.held} == ONLY_LATER


@pytest.mark.parametrize("setting", SCENARIOS)
@on_host(vxnet=[OLD])
async def test_a_start_with_another_value(host: SimulatedHost, setting: str) -> None:
    await SCENARIOS[setting](host)


@pytest.mark.parametrize("setting", ["policy", "zone", "loglevel", "api-budget"])
@on_host(vxnet=[OLD])
async def test_a_setting_for_later_leaves_what_is_held(host: SimulatedHost, setting: str) -> None:
    other: dict[str, Any] = {"policy": "Random", "zone": "pek3b", "loglevel": "debug", "api-budget": 600}
    await host.add("c0")
    await host.until(lambda: host.states().count("idle") == 3, "a warm pool")
    before = set(host.nics)
    await restart(host, **{setting.replace("-", "_"): other[setting]})
    await compared(host)
    assert set(host.nics) == before
    _: Agent = host.agent
