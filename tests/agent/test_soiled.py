"""A NIC that is not as the cloud plugged it in serves nobody: restored, or detached, deleted and replaced."""

from typing import Any

import pytest

from inprocess.agent import SimulatedHost, netns_of, on_host
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import CheckFailed, InvalidConfig, KernelRefused, PoolEmpty
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.memory.kernel import NOARP
from qingcloud_cni.sim.memory.machine import FakeLink

SMALL: dict[str, Any] = {"min_idle": 1, "max_idle": 1, "max_nics": 2}
PROGRAM = "XDP program 7"


def link_of(host: SimulatedHost, nic_id: str) -> FakeLink:
    paths = host.kernel.paths()
    return next(link for path in paths for link in host.kernel.devices_in(path) if link.nic_id == nic_id)


def soil(host: SimulatedHost, nic_id: str, *, is_stuck: bool, what: str = PROGRAM) -> None:
    link = link_of(host, nic_id)
    link.soil, link.is_stuck = what, is_stuck


async def soiled(host: SimulatedHost) -> list[tuple[str, str]]:
    found = await host.journal.events(EventFilter(limit=10_000, name="nic.soiled"))
    return [(event.nic_id, event.detail) for event in found]


@on_host(cooldown=130, **SMALL)
async def test_what_a_container_left_is_removed_while_its_nic_cools(host: SimulatedHost) -> None:
    nic_id = (await host.add("c1")).nic_id
    soil(host, nic_id, is_stuck=False)
    await host.delete("c1")
    assert link_of(host, nic_id).soil  # the DEL does not wait for it
    await host.clock.sleep(30.0)
    assert not link_of(host, nic_id).soil
    await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "idle again", 200.0)
    assert await soiled(host) == []


@on_host(cooldown=0, **SMALL)
async def test_an_add_that_requests_a_nic_is_refused_once_it_is_known_to_be_soiled(host: SimulatedHost) -> None:
    nic_id = (await host.add("c1")).nic_id
    soil(host, nic_id, is_stuck=True)
    await host.delete("c1")
    with pytest.raises(InvalidConfig, match="no idle NIC of this host has it"):
        await host.ask(Verb.ADD, "c2", runtimeConfig={"mac": nic_id})
    assert (nic_id, PROGRAM) in await soiled(host)


@on_host(cooldown=130, **SMALL)
async def test_nic_that_cannot_be_restored_is_deleted_and_replaced(host: SimulatedHost) -> None:
    nic_id = (await host.add("c1")).nic_id
    soil(host, nic_id, is_stuck=True)
    await host.delete("c1")
    await host.until(lambda: nic_id not in host.nics, "deleted", 120.0)
    assert await soiled(host) == [(nic_id, PROGRAM)]
    await host.until(lambda: host.states() == ["idle"], "replaced", 60.0)
    assert nic_id not in host.model.state.nics


@on_host(min_idle=2, max_idle=2, max_nics=3)
async def test_add_gets_another_nic_if_the_first_is_soiled(host: SimulatedHost) -> None:
    """A program that came while it was idle; the comparison before it is handed out finds it."""
    first = min(host.nics.values(), key=lambda nic: nic.since).nic_id
    soil(host, first, is_stuck=True)
    assert (await host.add("c1")).nic_id != first
    ((nic_id, detail),) = await soiled(host)
    assert (nic_id, PROGRAM in detail) == (first, True)
    await host.until(lambda: first not in host.nics, "deleted", 120.0)


@on_host(min_idle=0, is_warm=False)
async def test_nic_that_arrives_soiled_goes_to_no_waiting_container(host: SimulatedHost) -> None:
    """A host agent hangs a program on every NIC: the ADD fails with the cause, and nothing is handed out."""
    host.kernel.observe("attach", lambda order: soil(host, order.mac, is_stuck=True))
    with pytest.raises((KernelRefused, PoolEmpty), match=PROGRAM):
        await host.add("c1")
    assert host.table.attachments == {}


@on_host(cooldown=130, **SMALL)
async def test_restart_while_it_cools_compares_once_more(host: SimulatedHost) -> None:
    nic_id = (await host.add("c1")).nic_id
    soil(host, nic_id, is_stuck=True)
    await host.delete("c1")
    await host.kill()
    await host.start()
    await host.until(lambda: nic_id not in host.nics, "deleted", 200.0)
    assert (nic_id, PROGRAM) in await soiled(host)


@on_host(cooldown=130, **SMALL)
async def test_kernel_that_refuses_comparisons_stops_no_pool(host: SimulatedHost) -> None:
    """An ADD compares once more."""
    host.kernel.fail("compare")
    nic_id = (await host.add("c1")).nic_id
    await host.delete("c1")
    await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "idle again", 200.0)
    found = await host.journal.events(EventFilter(limit=10_000, name="nic.compare-failed"))
    assert len(found) == 1


@on_host(**SMALL)
async def test_the_state_of_a_nic_is_recorded_at_its_arrival_and_survives_a_restart(host: SimulatedHost) -> None:
    (nic,) = host.nics.values()
    assert nic.plugged
    await host.kill()
    await host.start()
    assert host.nics[nic.nic_id].plugged == nic.plugged


@on_host(**SMALL)
async def test_check_fails_for_a_nic_without_arp(host: SimulatedHost) -> None:
    nic_id = (await host.add("c1")).nic_id
    soil(host, nic_id, is_stuck=False)
    with pytest.raises(CheckFailed) as caught:  # for want of a prevResult
        await host.ask(Verb.CHECK, "c1", prevResult={"cniVersion": "1.1.0", "interfaces": [], "ips": []})
    assert "ARP" not in str(caught.value)
    soil(host, nic_id, is_stuck=False, what=NOARP)
    with pytest.raises(CheckFailed, match="interface eth0 does not use ARP"):
        await host.ask(Verb.CHECK, "c1", prevResult={"cniVersion": "1.1.0", "interfaces": [], "ips": []})


# --- by hand -------------------------------------------------------------------------------------------


@on_host(**SMALL)
async def test_nic_that_an_operator_takes_out_of_use_is_deleted_and_replaced(host: SimulatedHost) -> None:
    (nic,) = host.nics.values()
    host.agent.pool.quarantine(nic)
    assert host.states() == ["quarantined"]
    await host.until(lambda: nic.nic_id not in host.nics and host.states() == ["idle"], "replaced", 120.0)
    assert await soiled(host) == [(nic.nic_id, "an operator took it out of use")]


@on_host(**SMALL)
async def test_container_keeps_a_nic_that_is_out_of_use(host: SimulatedHost) -> None:
    nic_id = (await host.add("c1")).nic_id
    host.agent.pool.quarantine(host.nics[nic_id])
    await host.clock.sleep(600.0)
    assert host.nics[nic_id].state is NicState.ASSIGNED
    assert nic_id in [link.nic_id for link in host.kernel.devices_in(netns_of("c1"))]
    await host.delete("c1")
    await host.until(lambda: nic_id not in host.nics, "deleted", 120.0)


@on_host(cooldown=0, **SMALL)
async def test_no_probe_clears_a_nic_that_is_out_of_use(host: SimulatedHost) -> None:
    (nic,) = host.nics.values()
    host.kernel.delay("probe", 5.0, times=1)
    await host.add("c1")
    await host.delete("c1")
    await host.until(lambda: host.nics[nic.nic_id].state is NicState.IDLE, "idle again", 20.0)
    host.agent.pool.quarantine(host.nics[nic.nic_id])
    await host.until(lambda: nic.nic_id not in host.nics, "deleted", 120.0)
