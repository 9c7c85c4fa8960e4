"""Addresses before and after they serve: flows are forgotten, duplicates kept out of use, rests kept."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inprocess.agent import SimulatedHost, netns_of, on_host, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.errors import KernelRefused, PoolEmpty
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.memory.kernel import PROBE
from qingcloud_cni.sim.topology import default_topology

ROBBER = "02:00:00:00:00:99"
SMALL: dict[str, Any] = {"min_idle": 1, "max_idle": 1, "max_nics": 1}


async def events(host: SimulatedHost, name: str) -> list[str]:
    """Details of the events of this name, oldest first."""
    found = await host.journal.events(EventFilter(limit=10_000, name=name))
    return [event.detail for event in found]


async def quarantine_the_only_nic(host: SimulatedHost) -> Nic:
    """Somebody else uses its address as it comes back from a container; the NIC, as it was before."""
    (nic,) = host.nics.values()
    host.kernel.claims[nic.host_address] = ROBBER
    await host.add("c1")
    await host.delete("c1")
    await host.until(lambda: host.states() == ["quarantined"], "quarantined")
    return nic


def address_of(host: SimulatedHost, nic_id: str) -> str:
    return host.nics[nic_id].host_address


# --- flows ---------------------------------------------------------------------------------------------


@pytest.mark.defect("others-19")
@on_host()
async def test_flows_of_an_address_are_forgotten_when_it_is_released_and_before_it_serves_again(
    host: SimulatedHost,
) -> None:
    nic_id = (await host.add("c1")).nic_id
    address = address_of(host, nic_id)
    assert address in host.kernel.flows
    await host.delete("c1")
    await host.until(lambda: address not in host.kernel.flows, "the flows are forgotten", 1.0)
    host.kernel.flows.add(address)  # a client that does not give up
    await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "rested")
    assert address not in host.kernel.flows


@pytest.mark.parametrize("cooldown", [0, 5])
@in_virtual_time
async def test_a_waiting_add_gets_a_cooling_nic_only_after_its_flows_are_flushed(
    tmp_path: Path, cooldown: int
) -> None:
    """However long that takes."""
    async with simulated(tmp_path, cooldown=cooldown, **SMALL) as host:
        flushing = host.kernel.delay("flush", 7.0)
        await host.add("c1")
        adding = asyncio.create_task(host.add("c2"))
        await host.delete("c1")
        await flushing.reached()
        await host.clock.sleep(6.9)
        assert not adding.done()
        await adding
        host.check_invariants()


@on_host()
async def test_an_orphans_flows_are_forgotten_as_well(host: SimulatedHost) -> None:
    address = address_of(host, (await host.add("c1")).nic_id)
    host.kernel.kill_netns(netns_of("c1"))
    await host.until(lambda: address not in host.kernel.flows, "the flows are forgotten", 60.0)


@on_host()
async def test_the_next_agent_completes_the_flushes_of_a_killed_one(host: SimulatedHost) -> None:
    address = address_of(host, (await host.add("c1")).nic_id)
    deleting = asyncio.create_task(host.delete("c1"))
    await host.until(lambda: "cooling" in host.states(), "released")
    await deleting
    await host.kill()
    host.kernel.flows.add(address)
    await host.start()
    await host.until(lambda: address not in host.kernel.flows, "the flows are forgotten", 1.0)


@on_host()
async def test_a_burst_of_releases_is_few_flushes(host: SimulatedHost) -> None:
    await host.add("c0")
    await host.delete("c0")
    await host.until(lambda: "cooling" not in host.states(), "one that was in a hurry")
    flushing = host.kernel.observe("flush")
    await asyncio.gather(*(host.add(f"c{n}") for n in range(20)))
    await asyncio.gather(*(host.delete(f"c{n}") for n in range(20)))
    await host.clock.sleep(1.0)
    assert not host.kernel.flows
    assert sum(len(set(addresses)) for (addresses,) in flushing.calls) == 20  # each once
    assert len(flushing.calls) < 20


@on_host(cooldown=0, **SMALL)
async def test_a_refused_flush_delays_neither_del_nor_reuse_and_is_logged_once(host: SimulatedHost) -> None:
    host.kernel.fail("flush", KernelRefused("list tracked flows: Operation not permitted (EPERM)"))
    for _ in range(5):
        await host.add("c1")
        host.kernel.flows.clear()
        await host.delete("c1")
    assert host.agent.pool.flows.record.failures > 1
    assert await events(host, "flows.kept") == ["list tracked flows: Operation not permitted (EPERM)"]


# --- rest ----------------------------------------------------------------------------------------------


@on_host(min_idle=3, max_idle=3, max_nics=3)
async def test_after_a_restart_the_nic_released_first_serves_first(host: SimulatedHost) -> None:
    order = [(await host.add(name)).nic_id for name in ("c1", "c2", "c3")]
    for name in ("c2", "c3", "c1"):
        await host.delete(name)
        await host.clock.sleep(1.0)
    await host.kill()
    await host.clock.sleep(3600.0)  # all have rested, and become idle at one moment
    await host.start()
    await host.until(lambda: host.states() == ["idle"] * 3, "rested")
    assert [(await host.add(name)).nic_id for name in ("d1", "d2", "d3")] == [order[1], order[2], order[0]]


@pytest.mark.defect("others-18")
@on_host(**SMALL)
async def test_a_restart_does_not_change_the_end_of_a_cooldown(host: SimulatedHost) -> None:
    await host.add("c1")
    await host.delete("c1")
    released = host.clock.now()
    await host.clock.sleep(60.0)
    await host.kill()
    await host.start()
    await host.until(lambda: host.states() == ["idle"], "rested")
    assert 130.0 <= host.clock.now() - released < 131.0


@on_host(**SMALL)
async def test_the_short_cooldown_lasts_only_while_an_add_waits(host: SimulatedHost) -> None:
    """One that gives up as the NIC is about to be ready leaves it to rest on."""
    await host.add("c1")
    await host.delete("c1")
    released = host.clock.now()
    host.kernel.delay("flush", 2.0)
    with pytest.raises(PoolEmpty, match="the next one has cooled down in 0 s"):
        await host.add("c2", seconds=31.0)  # 30 s of rest, and 2 s until its flows are forgotten
    await host.clock.sleep(5.0)
    assert host.states() == ["cooling"]
    await host.until(lambda: host.states() == ["idle"], "rested")
    assert 130.0 <= host.clock.now() - released < 133.0


@pytest.mark.parametrize("forward", [-3600.0, 3600.0])
@on_host(**SMALL)
async def test_a_clock_set_between_two_agents_shortens_no_cooldown(host: SimulatedHost, forward: float) -> None:
    """*forward* seconds; a cooldown that the clock leaves in doubt starts again."""
    await host.add("c1")
    await host.delete("c1")
    await host.clock.sleep(60.0)
    await host.kill()
    host.set_clock(forward)
    restarted = host.clock.now()
    await host.start()
    await host.until(lambda: host.states() == ["idle"], "rested")
    rest = 70.0 if forward > 0 else 130.0
    assert rest <= host.clock.now() - restarted < rest + 1.0


# --- duplicates ----------------------------------------------------------------------------------------


@on_host(min_idle=3, max_nics=3)
async def test_every_nic_that_becomes_idle_is_probed_and_is_down_again_afterwards(host: SimulatedHost) -> None:
    def up() -> int:
        return sum(link.is_up for link in host.kernel.links_in(host.kernel.parking_path))

    assert up() == 3
    await host.clock.sleep(PROBE)
    assert up() == 0
    nic_id = (await host.add("c1")).nic_id
    await host.delete("c1")
    assert up() == 0  # at rest
    await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "rested")
    await host.until(lambda: up() == 1, "probed", 1.0)


@on_host(min_idle=1, max_idle=1, max_nics=2, cooldown=0)
async def test_a_nic_that_becomes_idle_while_the_pool_gathers_a_burst_is_probed_then(host: SimulatedHost) -> None:
    """The plan that follows the burst may be the last for half a minute."""
    (nic,) = host.nics.values()
    await host.clock.sleep(PROBE - 0.1 - (host.clock.now() - nic.since))
    await host.add("c1")  # the pool is about to grow, and the first probe about to end
    host.kernel.claims[nic.host_address] = ROBBER
    await host.delete("c1")
    await host.until(lambda: "quarantined" in host.states(), "quarantined", 4.0)


@on_host(max_nics=4, cooldown=0)
async def test_a_nic_whose_address_somebody_uses_is_quarantined_and_replaced(host: SimulatedHost) -> None:
    nic_id = (await host.add("c1")).nic_id
    host.kernel.claims[address_of(host, nic_id)] = ROBBER
    await host.delete("c1")
    await host.until(lambda: host.nics[nic_id].state is NicState.QUARANTINED, "quarantined")
    assert host.nics[nic_id].claimant == ROBBER
    assert await events(host, "nic.quarantined") == [f"{address_of(host, nic_id)} is used by {ROBBER}"]
    await host.until(lambda: host.states().count("idle") >= 3, "replaced")
    for n in range(3):
        assert (await host.add(f"d{n}")).nic_id != nic_id
    assert len(host.nics) <= 4


@on_host(cooldown=0, **SMALL)
async def test_a_quarantine_ends_when_nobody_answers_and_survives_a_restart(
    host: SimulatedHost,
) -> None:
    nic = await quarantine_the_only_nic(host)
    since = host.nics[nic.nic_id].since
    await host.clock.sleep(300.0)
    await host.kill()
    await host.start()
    assert (host.nics[nic.nic_id].claimant, host.nics[nic.nic_id].since) == (ROBBER, since)
    del host.kernel.claims[nic.host_address]
    await host.until(lambda: host.states() == ["idle"], "cleared", 600.0)
    assert host.nics[nic.nic_id].claimant == ""
    assert (await host.add("c2")).nic_id == nic.nic_id


@on_host(cooldown=0, **SMALL)
async def test_a_quarantined_nic_is_probed_ever_more_rarely_and_released_after_an_hour(
    host: SimulatedHost,
) -> None:
    asked: list[float] = []
    host.kernel.observe("probe", lambda *_args: asked.append(host.clock.now()))
    nic = await quarantine_the_only_nic(host)
    await host.until(lambda: nic.nic_id not in host.nics, "given back", 4000.0)
    pauses = [round((b - a) / 60) for a, b in pairwise(asked)]
    assert pauses[:6] == [1, 1, 2, 4, 8, 16]
    assert nic.nic_id not in host.ours_in_cloud()


@on_host(cooldown=0, **SMALL)
async def test_an_add_that_waits_at_the_limit_gets_another_nic_in_the_place_of_a_quarantined_one(
    host: SimulatedHost,
) -> None:
    """Even if the cloud gives the new one the same address at first: that is never handed over unprobed."""
    nic = await quarantine_the_only_nic(host)
    attachment = await host.add("c2")
    assert address_of(host, attachment.nic_id) != nic.host_address


@on_host(cooldown=0, **SMALL)
async def test_a_quarantined_nic_that_is_cleared_is_handed_out_at_once_and_not_probed_again(
    host: SimulatedHost,
) -> None:
    nic = await quarantine_the_only_nic(host)
    del host.kernel.claims[nic.host_address]
    await host.until(lambda: host.states() == ["idle"], "cleared")
    assert not any(link.is_up for link in host.kernel.links_in(host.kernel.parking_path))
    begun = host.clock.now()
    await host.add("c2")
    assert host.clock.now() - begun < 0.1


@on_host(
    topology=replace(
        default_topology("sim", 1),
        vxnets=tuple(
            [
                msgspec.structs.replace(v, network="172.20.1.0/29") if v.vxnet_id == "vxnet-pods001" else v
                for v in default_topology("sim", 1).vxnets
            ]
        ),
    ),
    cooldown=0,
    **SMALL,
)
async def test_an_address_that_somebody_uses_is_not_handed_over_with_another_nic_either(host: SimulatedHost) -> None:
    """It is the only one left in the vxnet, so the cloud gives it to the next NIC as well."""
    host.console("CreateNics", vxnet="vxnet-pods001", count="3", nic_name="others")
    nic = await quarantine_the_only_nic(host)
    with pytest.raises(PoolEmpty, match="1 of them quarantined"):
        await host.add("c2")
    (other,) = host.nics.values()
    assert (other.address, other.state) == (nic.address, NicState.QUARANTINED)
    assert other.nic_id != nic.nic_id


@on_host(cooldown=0, **SMALL)
async def test_a_duplicate_found_after_the_add_is_logged_and_quarantines_the_nic_later(host: SimulatedHost) -> None:
    (nic,) = host.nics.values()
    await host.clock.sleep(5.0)  # its first probe is over
    host.kernel.claims[nic.host_address] = ROBBER
    host.kernel.delay("probe", late=1.5, times=1)
    await host.add("c1")
    await host.delete("c1")  # it is idle again, and being probed
    await host.clock.sleep(1.0)
    await host.add("c2")
    await host.clock.sleep(2.0)
    assert host.states() == ["assigned"]
    (told,) = await events(host, "nic.duplicate")
    assert told.startswith(f"{nic.host_address} is used by {ROBBER}")
    await host.delete("c2")
    with pytest.raises(PoolEmpty):
        await host.add("c3", seconds=30.0)
    assert host.states() == ["quarantined"]


@on_host(min_idle=0, is_warm=False)
async def test_a_nic_that_goes_straight_to_a_waiting_container_is_not_probed(host: SimulatedHost) -> None:
    begun = host.clock.now()
    await asyncio.gather(*(host.add(f"c{n}") for n in range(6)))
    assert host.clock.now() - begun < 5.0 + PROBE
    assert not await events(host, "nic.parked") or len(host.nics) > 6


@on_host(cooldown=0, min_idle=3, max_nics=3)
async def test_an_add_takes_a_nic_that_is_being_probed_only_if_there_is_no_other(host: SimulatedHost) -> None:
    await host.clock.sleep(10.0)
    first = (await host.add("c1")).nic_id
    await host.delete("c1")  # it is idle again, and being probed
    await host.clock.sleep(0.5)
    others = {(await host.add(f"d{n}")).nic_id for n in range(2)}
    assert first not in others
    begun = host.clock.now()
    assert (await host.add("d3")).nic_id == first
    assert host.clock.now() - begun < 0.1
    assert [link.is_up for link in host.kernel.links_in(netns_of("d3"))] == [True]
    await host.clock.sleep(PROBE)
    assert host.agent.pool.duplicates.record.all_failures == 0


@on_host(cooldown=0, min_idle=3, max_idle=3, max_nics=3)
async def test_a_mac_that_answers_for_every_address_is_ignored(host: SimulatedHost) -> None:
    """A proxy in the vxnet would otherwise empty the pool."""
    host.kernel.claims |= dict.fromkeys((nic.host_address for nic in host.nics.values()), ROBBER)
    while not await events(host, "probe.distrusted"):
        await host.clock.sleep(0.1)
    for n in range(3):
        await host.add(f"c{n}", seconds=1.0)
    for n in range(3):
        await host.delete(f"c{n}")
    await host.clock.sleep(10.0)
    assert host.states() == ["idle"] * 3
    (told,) = await events(host, "probe.distrusted")
    assert told.startswith(f"{ROBBER} answers for every address")


@on_host(cooldown=0, **SMALL)
async def test_without_the_probe_nothing_is_asked_and_quarantines_end(host: SimulatedHost) -> None:
    await quarantine_the_only_nic(host)
    await host.kill()
    host.settings = replace(host.settings, duplicate_probe=False)
    await host.start()
    await host.until(lambda: host.states() == ["idle"], "cleared", 1.0)
    await host.clock.sleep(3600.0)
    assert host.states() == ["idle"]


@on_host(cooldown=0, **SMALL)
async def test_a_nic_is_used_and_an_event_logged_if_the_kernel_cannot_probe(host: SimulatedHost) -> None:
    host.kernel.fail("probe", KernelRefused("probe: Invalid argument"))
    await host.add("c1")
    await host.delete("c1")
    await host.clock.sleep(600.0)
    assert host.states() == ["idle"]
    assert len(await events(host, "nic.probe-failed")) == 1
    assert "Invalid argument" in host.agent.pool.duplicates.record.last_error


# --- announcements -------------------------------------------------------------------------------------


@on_host()
async def test_an_address_is_announced_again_within_a_second_of_its_add(host: SimulatedHost) -> None:
    attachment = await host.add("c1")
    await host.clock.sleep(1.0)
    assert host.kernel.announced == [host.nics[attachment.nic_id].address] * 2


@on_host(cooldown=0, **SMALL)
async def test_a_del_ends_announcements_and_the_next_add_has_its_own(host: SimulatedHost) -> None:
    await host.add("c1")
    await host.clock.sleep(0.5)
    assert len(host.kernel.announced) == 1
    await host.delete("c1")
    await host.clock.sleep(5.0)
    assert len(host.kernel.announced) == 1
    await host.add("c2")
    await host.delete("c2")
    await host.add("c3")
    await host.clock.sleep(5.0)
    assert len(host.kernel.announced) == 3


@on_host()
async def test_a_del_is_answered_only_when_no_announcement_holds_the_namespace_open(host: SimulatedHost) -> None:
    announcing = host.kernel.block("announce")
    await host.add("c1")
    await announcing.reached()
    deleting = asyncio.create_task(host.delete("c1"))
    await host.clock.sleep(3.0)
    assert not deleting.done()
    announcing.release()
    await deleting
