"""Whatever differs between table, kernel and cloud is found and cured, and nothing is done on one location.

Each test makes one difference on a calm host and lets time pass; nobody tells the agent what was done.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, on_host, set_faults
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.drift import schedule
from qingcloud_cni.core.drift.cloud_drift import GROWN_UP
from qingcloud_cni.core.drift.differences import CONFIRM_SECONDS, DifferenceKind
from qingcloud_cni.core.errors import CloudError
from qingcloud_cni.core.nics.model import Event, Nic, NicState
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.cloud.state import NicRecord
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import FaultSpec, Latencies, default_topology

S = NicState
QUARTER = 15 * 60.0 * 1.2 + 60.0  # seconds within which a comparison comes in any case
SOON = 120.0  # seconds within which a doubt has had its two looks
LONG = 10_000  # calls: a fault that lasts until it is taken away
SERVICES = read_config(
    {"name": "net", "ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}, "isGateway": True}
)
TWO_HOSTS = default_topology("sim", 2)


def parked(host: SimulatedHost) -> set[str]:
    return {link.mac for link in host.kernel.links_in(host.kernel.parking_path)}


def idle(host: SimulatedHost) -> list[Nic]:
    return sorted((n for n in host.nics.values() if n.state is S.IDLE), key=lambda n: n.nic_id)


def record(host: SimulatedHost, nic_id: str) -> NicRecord:
    return host.model.state.nics[nic_id]


def kinds(host: SimulatedHost) -> list[DifferenceKind]:
    return [seen.difference.kind for seen in host.agent.reconciler.open]


async def events(host: SimulatedHost, name: str, nic_id: str = "") -> list[Event]:
    found = await host.journal.events(EventFilter(10_000, name=name, nic_id=nic_id))
    return list(found)


async def told(host: SimulatedHost, kind: DifferenceKind, nic_id: str) -> int:
    """Count the events of a new difference of this kind."""
    return sum(e.detail.startswith(f"{kind}: ") for e in await events(host, "drift.seen", nic_id))


async def calm(host: SimulatedHost) -> None:
    """Nothing is under way, nothing differs, and three NICs are ready."""

    def is_calm() -> bool:
        return not host.table.intents and not kinds(host) and host.states().count("idle") >= 3

    await host.until(is_calm, f"calm: {kinds(host)}", 3600.0)
    assert set(host.ours_in_cloud()) == set(host.nics)
    assert parked(host) == {n.nic_id for n in host.nics.values() if n.state in (S.IDLE, S.COOLING)}


async def console(host: SimulatedHost, action: str, *nic_ids: str, **params: str) -> None:
    """Somebody does that at the console, and it is done."""
    answer = host.console(action, *nic_ids, **params)
    assert answer["ret_code"] == 0, answer
    await host.clock.sleep(5.0 if action in ("AttachNics", "DetachNics") else 0.0)


def create(host: SimulatedHost, name: str, count: int = 1) -> list[str]:
    answer = host.console("CreateNics", vxnet="vxnet-pods001", count=str(count), nic_name=name)
    return [nic["nic_id"] for nic in answer["nics"]]


def our_name(host: SimulatedHost) -> str:
    return host.agent.context.identity.nic_name("0123456789abcdef", is_gateway=False)


# --- ours in the cloud, not in the table ---------------------------------------------------------------


@on_host()
async def test_a_grown_up_nic_of_ours_that_nobody_knows_is_taken_in_or_deleted(host: SimulatedHost) -> None:
    (stranger,) = create(host, our_name(host))
    await host.agent.reconciler.ask(60.0)
    await host.clock.sleep(GROWN_UP + 30.0)
    assert [e.nic_id for e in await events(host, "nic.adopted")] == [stranger]
    assert stranger not in host.model.state.nics  # the pool had enough
    await calm(host)


@on_host()
async def test_a_nic_of_ours_that_is_missed_serves_instead_of_a_new_one(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("CreateNics", "nic-quota", times=LONG))
    (stranger,) = create(host, our_name(host))
    await host.add("c0")  # the pool is short of one
    await host.until(lambda: stranger in host.nics, "adopted", GROWN_UP + QUARTER)
    await host.until(lambda: host.nics[stranger].state in (S.IDLE, S.COOLING), "attached")
    assert record(host, stranger).instance_id == host.instance_id


@pytest.mark.defect("others-3")
@on_host()
async def test_a_nic_that_somebody_may_be_just_making_is_left_alone(host: SimulatedHost) -> None:
    (stranger,) = create(host, our_name(host))
    await host.agent.reconciler.ask(60.0)
    assert kinds(host) == [DifferenceKind.YOUNG]
    assert stranger not in host.nics
    host.model.state.nics[stranger] = replace(record(host, stranger), create_time=host.clock.now() - GROWN_UP)
    await host.agent.reconciler.ask(60.0)
    assert stranger in host.nics


@on_host()
async def test_nics_of_a_create_under_way_are_left_to_it(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("CreateNics", "late-reply", by=(15.0, 15.0)))
    adding = asyncio.create_task(host.add("c0"))
    await host.until(lambda: len(host.ours_in_cloud()) > 3, "made, and not answered")
    for nic_id in set(host.ours_in_cloud()) - set(host.nics):
        host.model.state.nics[nic_id] = replace(record(host, nic_id), create_time=0.0)
    await host.agent.reconciler.ask(60.0)
    await adding
    await calm(host)
    assert not await events(host, "nic.adopted")


@on_host()
async def test_a_nic_of_ours_that_is_attached_here_is_taken_in_at_once(host: SimulatedHost) -> None:
    (stranger,) = create(host, our_name(host))
    await console(host, "AttachNics", stranger, instance=host.instance_id)
    assert stranger in {link.mac for link in host.kernel.links_in(HOST_PATH)}
    await host.agent.reconciler.ask(60.0)
    await host.until(lambda: host.nics[stranger].state is S.COOLING, "parked, and its address rests", 5.0)


@pytest.mark.defect("hostnic-18")
@pytest.mark.parametrize("name", ["somebody's", "", "qingcni_i-other_0123456789abcdef", "qingcni"])
@on_host()
async def test_nics_with_other_names_are_never_touched_and_take_room(host: SimulatedHost, name: str) -> None:
    """However they come and go, the room that is left is known after each comparison."""
    free, here = create(host, name, 2)
    await console(host, "AttachNics", here, instance=host.instance_id)
    before = dict(host.model.state.nics)
    await host.clock.sleep(QUARTER)
    assert {n: record(host, n) for n in (free, here)} == {n: before[n] for n in (free, here)}
    assert host.agent.pool.state().instance_room == host.settings.instance_nic_limit - 1
    await console(host, "DetachNics", here)
    await host.clock.sleep(QUARTER)
    assert host.agent.pool.state().instance_room == host.settings.instance_nic_limit
    assert not kinds(host)


@pytest.mark.defect("hostnic-16")
@pytest.mark.parametrize("is_file_lost", [False, True])
@on_host()
async def test_more_nics_than_one_page_shows_are_all_found_again(host: SimulatedHost, *, is_file_lost: bool) -> None:
    """Fifty of ours among hundred and fifty of others; an earlier program took over the first twenty."""
    for n in range(47):
        await host.add(f"c{n}")
    await host.until(lambda: host.states().count("idle") == 3, "refilled")
    create(host, "somebody's", 150)
    before = {n.nic_id: n.state for n in host.nics.values()}
    await host.kill()
    if is_file_lost:
        host.settings.database.unlink()
    await host.start()
    await host.until(lambda: host.agent.is_cloud_compared, "compared")
    await host.clock.sleep(SOON)
    after = {n.nic_id: n.state for n in host.nics.values()}
    assert {n for n, state in after.items() if state is S.ASSIGNED} == {
        n for n, state in before.items() if state is S.ASSIGNED
    }
    assert before.keys() <= after.keys() == host.ours_in_cloud().keys()
    assert len(after) == 50 + 3 * is_file_lost  # addresses of unknown use rest, and others serve meanwhile


# --- in the table, not in the cloud --------------------------------------------------------------------


@on_host()
async def test_a_nic_that_was_detached_and_deleted_at_the_console_is_forgotten(host: SimulatedHost) -> None:
    gone = idle(host)[0].nic_id
    host.model.state.nics.pop(gone)
    host.kernel.unplug(gone)
    await host.clock.sleep(CONFIRM_SECONDS - 5.0)
    assert gone in host.nics  # one location is none
    await host.until(lambda: gone not in host.nics, "forgotten", SOON)
    await calm(host)


@pytest.mark.defect("hostnic-13", "others-16")
@pytest.mark.parametrize("effect", ["empty-list", "partial-list"])
@on_host()
async def test_a_list_that_is_not_whole_makes_nothing_forgotten(host: SimulatedHost, effect: str) -> None:
    """However often the lists say so: links speak against it, and containers keep what they have."""
    await host.add("c0")
    before = {n.nic_id: (n.state, n.address) for n in host.nics.values()}
    set_faults(host, FaultSpec("DescribeNics", effect, times=LONG))
    for _ in range(5):
        await host.agent.reconciler.ask(60.0)
        await host.clock.sleep(CONFIRM_SECONDS + 10.0)
    now = {n.nic_id: (n.state, n.address) for n in host.nics.values()}
    assert {n: now[n] for n in before} == before
    set_faults(host)
    await host.agent.reconciler.ask(60.0)
    assert not kinds(host)


@pytest.mark.defect("others-16")
@on_host()
async def test_one_answer_that_does_not_show_a_nic_is_checked_by_its_id(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("DescribeNics", "partial-list", nth=2))
    calls = host.model.calls["DescribeNics"]
    await host.agent.reconciler.ask(60.0)
    assert host.model.calls["DescribeNics"] - calls == 3
    assert not kinds(host)


@pytest.mark.parametrize(
    ("action", "effect"),
    [
        ("AttachNics", "refuse"), ("AttachNics", "lose-link"), ("AttachNics", "fail-job"), ("DetachNics", "refuse"),
        ("DetachNics", "lose-reply"), ("DetachNics", "fail-job"), ("DeleteNics", "refuse"),
    ],
)  # fmt: skip
@on_host(max_idle=3, cooldown=0, idle_ttl=5)
async def test_an_operation_that_went_wrong_does_not_believe_one_empty_list(
    host: SimulatedHost, action: str, effect: str
) -> None:
    """It looks at once what has become of its NICs, and would take them for gone."""
    await host.add("c0")
    await host.add("c1")
    await host.until(lambda: host.states().count("idle") == 3, "refilled")
    set_faults(host, FaultSpec(action, effect, code=1400), FaultSpec("DescribeNics", "empty-list"))
    if action == "AttachNics":
        await host.add("c2")
    else:
        await host.delete("c0")
        await host.delete("c1")
    faults = host.model.faults
    await host.until(lambda: faults.left(0) == faults.left(1) == 0, "both have struck")
    await host.clock.sleep(SOON)
    assert not await events(host, "nic.gone")
    assert not await events(host, "nic.adopted")  # as one that was forgotten would be
    await calm(host)


@on_host()
async def test_a_silent_cloud_changes_nothing_and_is_reported(host: SimulatedHost) -> None:
    before = dict(host.nics)
    set_faults(host, FaultSpec("DescribeNics", "reset", times=LONG))
    await host.clock.sleep(3 * QUARTER)
    assert dict(host.nics) == before
    assert "DescribeNics" in host.agent.last_cloud_error
    failures = host.agent.reconciler.record.failures
    assert 2 < failures < 200
    set_faults(host)
    await host.until(lambda: host.agent.last_cloud_error == "", "compared", 3600.0)
    assert (host.agent.reconciler.record.failures, host.agent.reconciler.record.all_failures) == (0, failures)


# --- attached, and no link ------------------------------------------------------------------------------


@pytest.mark.defect("others-12")
@on_host(max_nics=3)
async def test_a_nic_without_a_link_is_detached_and_attached_again(host: SimulatedHost) -> None:
    lost = idle(host)[0].nic_id
    host.kernel.unplug(lost)
    detaches = host.model.calls["DetachNics"]
    await host.clock.sleep(CONFIRM_SECONDS - 5.0)
    assert (host.nics[lost].state, host.model.calls["DetachNics"]) == (S.MISSING, detaches)
    await host.until(lambda: lost in parked(host) or lost not in host.nics, "its link is back", 600.0)
    await calm(host)
    assert host.model.calls["DetachNics"] == detaches + 1
    assert await told(host, DifferenceKind.NO_LINK, lost) == 1


@on_host(max_nics=3)
async def test_repairs_of_a_nic_without_a_link_pause_and_are_reported(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("AttachNics", "lose-link", times=LONG))
    lost = idle(host)[0].nic_id
    host.kernel.unplug(lost)
    await host.until(lambda: kinds(host) == [DifferenceKind.GIVEN_UP], "given up", 3 * 3600.0)
    assert host.nics[lost].state is S.MISSING
    assert host.nics[lost].repairs == schedule.REPAIRS_PER_NIC
    assert host.model.calls["DetachNics"] == schedule.REPAIRS_PER_NIC
    assert await told(host, DifferenceKind.GIVEN_UP, lost) == 1
    await host.clock.sleep(3600.0)
    assert host.model.calls["DetachNics"] == schedule.REPAIRS_PER_NIC
    set_faults(host)
    await host.agent.reconciler.ask(60.0)  # somebody says that it may come now
    await host.clock.sleep(SOON)
    await calm(host)
    assert host.nics[lost].state is S.IDLE


@on_host(max_nics=3)
async def test_paused_repairs_are_retried_later(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("AttachNics", "lose-link", times=LONG))
    lost = idle(host)[0].nic_id
    host.kernel.unplug(lost)
    await host.until(lambda: kinds(host) == [DifferenceKind.GIVEN_UP], "given up", 3 * 3600.0)
    set_faults(host)
    await host.kill()
    await host.start()  # it is on disk how often it was tried
    await host.clock.sleep(3600.0)
    assert host.nics[lost].state is S.MISSING
    await host.clock.sleep(schedule.REPAIR_MEMORY)
    await calm(host)


@on_host(min_idle=8, max_idle=8, max_nics=8)
async def test_repairs_of_many_nics_share_their_calls_and_are_few(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("AttachNics", "lose-link", times=LONG))
    for nic in idle(host):
        host.kernel.unplug(nic.nic_id)
    await host.clock.sleep(3600.0)
    assert host.model.calls["DetachNics"] <= schedule.REPAIRS_PER_HOUR


@on_host()
async def test_a_missing_nic_is_never_taken_from_a_container_that_has_it(host: SimulatedHost) -> None:
    """The table does not know the container; nor is anything concluded while not all can be looked into."""
    host.kernel.make_netns("/run/netns/theirs")
    held, lost = (nic.nic_id for nic in idle(host)[:2])
    host.kernel.unseen.add("/run/netns/theirs")
    host.kernel.move(host.kernel.parking_path, _named(host, held), "/run/netns/theirs")
    host.kernel.unplug(lost)
    await host.clock.sleep(QUARTER)
    assert (host.nics[held].state, host.nics[lost].state) == (S.MISSING, S.MISSING)
    assert not host.model.calls["DetachNics"]
    host.kernel.unseen.clear()
    await host.until(lambda: host.nics[held].state is S.ASSIGNED, "found in the container", QUARTER)
    await host.clock.sleep(SOON)
    assert [link.mac for link in host.kernel.links_in("/run/netns/theirs")] == [held]
    host.kernel.kill_netns("/run/netns/theirs")
    await host.clock.sleep(SOON)
    await calm(host)


def _named(host: SimulatedHost, nic_id: str, path: str = "") -> str:
    links = host.kernel.links_in(path or host.kernel.parking_path)
    return next(link.name for link in links if link.mac == nic_id)


# --- link, and not attached ------------------------------------------------------------------------------


def detach_in_cloud_only(host: SimulatedHost, nic_id: str) -> None:
    """The cloud has it free, and the hardware did not follow."""
    nic = record(host, nic_id)
    host.model.state.nics[nic_id] = replace(nic, instance_id="", status="available", is_plugged=False)


@on_host()
async def test_a_nic_of_the_pool_that_the_cloud_has_not_attached_is_replaced(host: SimulatedHost) -> None:
    await host.clock.sleep(60.0)
    ghost = idle(host)[0].nic_id
    detach_in_cloud_only(host, ghost)
    await host.agent.reconciler.ask(60.0)
    assert kinds(host) == [DifferenceKind.GHOST]
    assert host.nics[ghost].state is S.IDLE
    await host.until(lambda: ghost not in host.nics, "given up", SOON)
    assert ghost not in host.model.state.nics
    await host.until(lambda: host.states().count("idle") == 3, "replaced")
    assert set(host.ours_in_cloud()) == set(host.nics)


@on_host()
async def test_a_gateway_that_the_cloud_has_not_attached_is_attached_again(host: SimulatedHost) -> None:
    await host.add("c0", config=SERVICES)
    (gateway,) = (n for n in host.nics.values() if n.is_gateway)
    await host.clock.sleep(60.0)
    detach_in_cloud_only(host, gateway.nic_id)
    await host.agent.reconciler.ask(60.0)
    await host.clock.sleep(SOON)
    await host.until_calm()
    assert record(host, gateway.nic_id).instance_id == host.instance_id
    assert host.nics[gateway.nic_id].state is S.GATEWAY
    assert host.nics[gateway.nic_id].address == gateway.address


@on_host(
    topology=replace(
        default_topology("sim", 1),
        faults=(FaultSpec("AttachNics", "early-link", by=(15.0, 15.0)),),
        latencies=Latencies(attach=(4.0, 4.0)),
    ),
    is_warm=False,
)
async def test_a_link_that_appears_before_its_job_ends_is_not_a_difference(host: SimulatedHost) -> None:
    await host.until(lambda: "idle" in host.states() and not host.table.busy, "links are there")
    assert set(host.ours_in_cloud().values()) == {"available"}  # their job still runs
    await host.agent.reconciler.ask(60.0)
    await calm(host)
    assert not await events(host, "drift.seen")


# --- links in odd places -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_taken", [False, True])
@on_host()
async def test_a_link_that_comes_back_to_the_host_is_taken_in_under_any_name(
    host: SimulatedHost, *, is_taken: bool
) -> None:
    """`eth0` of a container meets the host's own: the kernel calls it dev7 or so."""
    nic_id = (await host.add("c0")).nic_id
    assert [link.name for link in host.kernel.links_in(netns_of("c0"))] == ["eth0"]
    if not is_taken:
        host.kernel.change(netns_of("c0"), "eth0", name="net7")
    host.kernel.kill_netns(netns_of("c0"))
    names: set[str] = set()
    while nic_id not in parked(host):
        names |= {link.name for link in host.kernel.links_in(HOST_PATH) if link.mac == nic_id}
        await host.clock.sleep(0.01)
    assert all(name.startswith("dev") if is_taken else name == "net7" for name in names)
    await host.until(lambda: host.nics[nic_id].state is S.COOLING, "taken in", 5.0)
    assert not host.table.attachments


@pytest.mark.parametrize(
    "changes", [{"mac": "02:00:00:00:00:09"}, {"alias": ""}, {"mac": "02:00:00:00:00:09", "alias": ""}]
)
@on_host(max_nics=4)
async def test_a_container_that_hid_its_nic_and_died_without_del_loses_it_none_the_less(
    host: SimulatedHost, changes: dict[str, str]
) -> None:
    nic_id = (await host.add("c0")).nic_id
    host.kernel.change(netns_of("c0"), "eth0", **changes)
    host.kernel.kill_netns(netns_of("c0"))
    await host.until(lambda: nic_id in parked(host), "taken in", SOON)
    assert not host.table.attachments
    assert not host.model.calls["DetachNics"]


@on_host()
async def test_an_idle_nic_in_a_container_is_parked_and_its_address_cools_down(host: SimulatedHost) -> None:
    stray = idle(host)[0].nic_id
    host.kernel.make_netns("/run/netns/theirs")
    host.kernel.move(host.kernel.parking_path, _named(host, stray), "/run/netns/theirs")
    await host.clock.sleep(CONFIRM_SECONDS / 2)
    assert host.nics[stray].state is S.ARRIVING
    assert host.kernel.links_in("/run/netns/theirs")  # one location is none
    await host.until(lambda: stray in parked(host), "brought home", SOON)
    await host.until(lambda: host.nics[stray].state is S.COOLING, "its address rests", 5.0)
    assert await told(host, DifferenceKind.STRAY, stray) == 1


@on_host()
async def test_a_link_moved_by_its_container_is_reported_and_stays_until_del(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    host.kernel.make_netns("/run/netns/inner")
    host.kernel.move(netns_of("c0"), "eth0", "/run/netns/inner")
    await host.clock.sleep(QUARTER)
    assert kinds(host) == [DifferenceKind.MOVED]
    assert await told(host, DifferenceKind.MOVED, nic_id) == 1
    assert [link.mac for link in host.kernel.links_in("/run/netns/inner")] == [nic_id]
    await host.delete("c0")
    assert nic_id in parked(host)
    await host.clock.sleep(60.0)
    assert not kinds(host)


@on_host()
async def test_a_container_that_died_without_its_link_is_over(host: SimulatedHost) -> None:
    """It had moved it to a namespace that lives on; no DEL comes."""
    nic_id = (await host.add("c0")).nic_id
    host.kernel.make_netns("/run/netns/inner")
    host.kernel.move(netns_of("c0"), "eth0", "/run/netns/inner")
    host.kernel.kill_netns(netns_of("c0"))
    await host.until(lambda: nic_id in parked(host), "brought home", SOON)
    assert key_of("c0") not in host.table.attachments
    assert host.nics[nic_id].state is S.COOLING


@on_host()
async def test_a_container_that_deleted_its_link_keeps_its_attachment_until_del(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    host.kernel.delete_link(netns_of("c0"), "eth0")
    await host.clock.sleep(QUARTER)
    assert kinds(host) == [DifferenceKind.STRIPPED]
    assert key_of("c0") in host.table.attachments
    assert not host.model.calls["DetachNics"]
    await host.delete("c0")
    await host.until(lambda: nic_id in parked(host) or nic_id not in host.nics, "detached and attached", 600.0)
    await calm(host)


@on_host()
async def test_a_container_whose_namespace_and_link_are_gone_is_over_without_del(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    host.kernel.delete_link(netns_of("c0"), "eth0")
    host.kernel.kill_netns(netns_of("c0"))
    await host.until(lambda: not host.table.attachments, "released", SOON)
    assert await told(host, DifferenceKind.LEFT, nic_id) == 1
    await host.until(lambda: nic_id in parked(host) or nic_id not in host.nics, "detached and attached", 600.0)
    await calm(host)


@on_host()
async def test_a_successor_of_a_dead_container_is_left_alone(host: SimulatedHost) -> None:
    """DEL and ADD may come between the look that showed its end and the release."""
    over = await host.add("c0")
    await host.delete("c0")
    again = await host.add("c0")
    await host.agent.attachments.release_left(over, "gone")
    assert host.table.attachments[key_of("c0")] == again
    await host.agent.attachments.release_left(again, "gone")
    assert key_of("c0") not in host.table.attachments


@on_host()
async def test_a_namespace_that_a_survey_cannot_enter_is_not_gone(host: SimulatedHost) -> None:
    await host.add("c0")
    host.kernel.unseen.add(netns_of("c0"))
    await host.clock.sleep(QUARTER)
    assert key_of("c0") in host.table.attachments


@pytest.mark.parametrize("where", ["host", "parking", "another container"])
@pytest.mark.parametrize("alias", [False, True])
@on_host()
async def test_a_link_that_claims_to_be_a_containers_nic_takes_nothing_from_it(
    host: SimulatedHost, where: str, *, alias: bool
) -> None:
    nic_id = (await host.add("c0")).nic_id
    host.kernel.make_netns("/run/netns/theirs")
    path = {"host": HOST_PATH, "parking": host.kernel.parking_path, "another container": "/run/netns/theirs"}[where]
    host.kernel.add_link(path, nic_id, "veth9", link_alias(host.instance_id, nic_id) if alias else "")
    await host.clock.sleep(QUARTER)
    assert key_of("c0") in host.table.attachments
    assert "veth9" in {link.name for link in host.kernel.links_in(path)}
    assert kinds(host) == [DifferenceKind.SPOOFED]
    assert await told(host, DifferenceKind.SPOOFED, nic_id) == 1
    for n in range(1, 4):
        assert (await host.add(f"c{n}")).nic_id != nic_id


@on_host()
async def test_a_link_with_the_mac_of_an_idle_nic_is_reported(host: SimulatedHost) -> None:
    nic_id = idle(host)[0].nic_id
    host.kernel.add_link(HOST_PATH, nic_id, "veth9")
    await host.clock.sleep(QUARTER)
    assert kinds(host) == [DifferenceKind.SPOOFED]
    assert "veth9" in {link.name for link in host.kernel.links_in(HOST_PATH)}


# --- a container's NIC, and what the cloud says --------------------------------------------------------------


@pytest.mark.parametrize("what", ["detached", "deleted", "attached elsewhere"])
@on_host(topology=TWO_HOSTS)
async def test_a_nic_taken_at_the_console_is_reported_and_stays_recorded(host: SimulatedHost, what: str) -> None:
    attachment = await host.add("c0")
    nic_id = attachment.nic_id
    await host.clock.sleep(60.0)
    await console(host, "DetachNics", nic_id)
    if what == "deleted":
        await console(host, "DeleteNics", nic_id)
    if what == "attached elsewhere":
        await console(host, "AttachNics", nic_id, instance=host.topology.hosts[1].instance_id)
    await host.clock.sleep(QUARTER)
    assert DifferenceKind.CUT_OFF in kinds(host)
    assert await told(host, DifferenceKind.CUT_OFF, nic_id) == 1
    assert host.table.attachments[key_of("c0")] == attachment
    await host.delete("c0")
    await host.clock.sleep(SOON + 60.0)
    await calm(host)
    if what == "attached elsewhere":
        assert record(host, nic_id).instance_id == host.topology.hosts[1].instance_id
        assert nic_id not in host.nics


@pytest.mark.parametrize("state", ["idle", "gateway"])
@pytest.mark.parametrize("is_drained", [False, True])
@on_host(topology=TWO_HOSTS)
async def test_a_nic_that_somebody_attached_elsewhere_while_the_agent_was_away_stays_there(
    host: SimulatedHost, state: str, *, is_drained: bool
) -> None:
    """Its link is nowhere, and a detach, which names no instance, would take it from the other one."""
    other = host.topology.hosts[1].instance_id
    await host.add("c0", config=SERVICES)
    await host.until(lambda: host.states().count("idle") >= 3, "refilled")
    gateway = next(n.nic_id for n in host.nics.values() if n.is_gateway)
    nic_id = gateway if state == "gateway" else idle(host)[0].nic_id
    await host.kill()
    await console(host, "DetachNics", nic_id)
    await console(host, "AttachNics", nic_id, instance=other)
    await host.start()
    if is_drained:
        await host.until(lambda: host.agent.is_cloud_compared, "compared")
        host.agent.pool.drain()
    for _ in range(100):
        await host.clock.sleep(QUARTER / 100)
        assert record(host, nic_id).instance_id == other
    assert nic_id not in host.nics
    if not is_drained:
        await host.add("c1", config=SERVICES)
        assert [n.state for n in host.nics.values() if n.is_gateway] == [S.GATEWAY]


@pytest.mark.parametrize("state", ["idle", "assigned", "gateway"])
@on_host(cooldown=0)
async def test_a_new_address_of_a_nic_is_used_but_never_behind_a_containers_back(
    host: SimulatedHost, state: str
) -> None:
    attachment = await host.add("c0", config=SERVICES)
    by_state = {
        "idle": idle(host)[0].nic_id,
        "assigned": attachment.nic_id,
        "gateway": next(n.nic_id for n in host.nics.values() if n.is_gateway),
    }
    nic_id = by_state[state]
    before = host.nics[nic_id].address
    host.model.state.nics[nic_id] = replace(record(host, nic_id), private_ip="172.20.1.200")
    await host.clock.sleep(QUARTER)
    after = host.nics[nic_id].address
    assert after == (before if state == "assigned" else "172.20.1.200/24")
    assert await host.add("c0", config=SERVICES) == attachment
    if state == "gateway":
        assert {g.address for g in host.kernel.path.gateways} == {after}
    if state == "assigned":
        assert kinds(host) == [DifferenceKind.READDRESSED]
        await host.delete("c0")
        assert host.nics[nic_id].address == "172.20.1.200/24"
        await host.clock.sleep(QUARTER)
    assert not kinds(host)


@on_host(max_nics=3, cooldown=0)
async def test_the_next_container_gets_an_address_changed_while_the_nic_was_detached(
    host: SimulatedHost,
) -> None:
    """So it is done at the console, which refuses it for a NIC that is attached."""
    nic_id = idle(host)[0].nic_id
    host.console("DetachNics", nic_id)
    await host.until(lambda: not record(host, nic_id).instance_id, "detached")
    assert host.console("ModifyNicAttributes", nic=nic_id, private_ip="172.20.1.200")["ret_code"] == 0
    await host.until(lambda: nic_id in parked(host), "attached again", QUARTER)
    for n in range(3):
        attachment = await host.add(f"c{n}")
        nic = host.nics[attachment.nic_id]
        assert nic.host_address == record(host, nic.nic_id).private_ip


@on_host()
async def test_a_renamed_nic_is_no_longer_ours(host: SimulatedHost) -> None:
    kept = idle(host)[0].nic_id
    host.model.state.nics[kept] = replace(record(host, kept), name="mine")
    await host.clock.sleep(QUARTER + SOON)
    assert kept not in host.nics
    assert record(host, kept).instance_id == host.instance_id
    assert host.agent.pool.others == 1


# --- the host is booted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_same_netns", [False, True])
@on_host()
async def test_after_a_boot_containers_are_over_and_all_nics_are_parked(
    host: SimulatedHost, *, is_same_netns: bool
) -> None:
    """Even where a new container got path and inode of an old one."""
    old = await host.add("c0", config=SERVICES)
    await host.until(lambda: host.states().count("idle") == 3, "refilled")
    nics = set(host.nics)
    await host.kill()
    host.kernel.reboot()
    host.kernel.settings["net/ipv4/ip_forward"] = "1"  # somebody's wish since
    host.clock.reboot()
    if is_same_netns:
        host.kernel.make_netns("/run/netns/other")
        while host.kernel.make_netns(netns_of("c0")).inode < old.netns.inode:
            host.kernel.kill_netns(netns_of("c0"))
    await host.start()
    assert not host.table.attachments
    assert "net/ipv4/ip_forward" not in host.table.settings
    assert [e.detail for e in await events(host, "host.booted")] == [host.clock.boot]
    pool = {n for n in nics if not host.nics[n].is_gateway}
    await host.until(lambda: parked(host) >= pool, "all parked", 10.0)
    assert host.nics[old.nic_id].state is S.COOLING
    await host.clock.sleep(SOON)
    assert set(host.nics) == nics
    new = await host.add("c1", config=SERVICES)
    assert new.routes == old.routes  # the gateway serves as before
    await host.kill()
    await host.start()
    assert len(await events(host, "host.booted")) == 1


@on_host()
async def test_after_a_boot_no_namespace_is_taken_for_an_old_one_though_the_link_does_not_come(
    host: SimulatedHost,
) -> None:
    """Path and inode are those of the old container: only the boot id shows that it is over."""
    old = await host.add("c0")
    await host.journal.save()
    await host.kill()
    host.kernel.reboot()
    host.kernel.unplug(old.nic_id)
    host.clock.reboot()
    while host.kernel.make_netns(netns_of("c0")) != old.netns:
        host.kernel.kill_netns(netns_of("c0"))
    await host.start()
    assert not host.table.attachments
    assert host.nics[old.nic_id].released == pytest.approx(host.clock.now(), abs=1.0)


@on_host(max_nics=3)
async def test_a_nic_that_does_not_come_back_with_a_boot_is_attached_again(host: SimulatedHost) -> None:
    lost = idle(host)[0].nic_id
    await host.kill()
    host.kernel.reboot()
    host.kernel.unplug(lost)
    host.clock.reboot()
    await host.start()
    await host.clock.sleep(SOON)
    await calm(host)
    assert host.nics[lost].state is S.IDLE


# --- when ------------------------------------------------------------------------------------------------------


def compared_at(host: SimulatedHost) -> list[float]:
    return [seen for seen in (host.agent.reconciler.record.last_success,) if seen]


@on_host()
async def test_a_calm_host_compares_every_quarter_of_an_hour_with_two_calls(host: SimulatedHost) -> None:
    calls, begun = host.calls, host.clock.now()
    times = set()
    while host.clock.now() < begun + 4 * 3600.0:
        times.add(host.agent.reconciler.record.last_success)
        await host.clock.sleep(60.0)
    gaps = [after - before for before, after in zip(sorted(times), sorted(times)[1:], strict=False)]
    assert all(12 * 60.0 <= gap <= 18.5 * 60.0 for gap in gaps)
    assert len({round(gap) for gap in gaps}) > 3  # hosts do not march
    hourly = 2 * (4 + 1)  # of the instance, and of vxnets
    assert host.calls - calls <= 2 * len(times) + hourly


@on_host()
async def test_a_request_during_a_comparison_waits_for_the_next_one(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("DescribeNics", "late-reply", times=1, by=(10.0, 10.0)))
    early = asyncio.create_task(host.agent.reconciler.ask(60.0))
    await host.clock.sleep(5.0)
    begun = host.clock.now()
    create(host, our_name(host))
    await host.agent.reconciler.ask(60.0)
    assert early.done()
    assert host.clock.now() - begun < 10.0
    assert kinds(host) == [DifferenceKind.YOUNG]


@pytest.mark.parametrize(("effect", "refusal"), [("silence", TimeoutError), ("reset", CloudError)])
@on_host()
async def test_a_request_for_a_comparison_fails_if_the_cloud_does_not_answer(
    host: SimulatedHost, effect: str, refusal: type[Exception]
) -> None:
    set_faults(host, FaultSpec("DescribeNics", effect, times=LONG))
    with pytest.raises(refusal):
        await host.agent.reconciler.ask(15.0)
    set_faults(host)
    await host.agent.reconciler.ask(60.0)
    await calm(host)


@on_host()
async def test_a_lost_message_of_the_kernel_is_a_doubt(host: SimulatedHost) -> None:
    await host.clock.sleep(60.0)
    before = host.agent.reconciler.record.last_success
    host.kernel.lose_message()
    await host.until(lambda: host.agent.reconciler.record.last_success > before, "compared", 10.0)
    (doubt,) = await events(host, "reconcile.doubted")
    assert "lost messages" in doubt.detail


DOUBTFUL = {  # what goes wrong with a call, and words of the doubt
    "create refused, and nobody knows": (("CreateNics", "lose-reply"), ("CreateNics", "nic-gone"), "CreateNics"),
    "attach refused": (("AttachNics", "refuse"), None, "PermissionDenied"),
    "links that do not come": (("AttachNics", "lose-link"), None, "no link within"),
    "detach refused": (("DetachNics", "refuse"), None, "not detached: "),
    "detach failed": (("DetachNics", "fail-job"), None, "not detached: "),
}


@pytest.mark.parametrize("case", DOUBTFUL)
@on_host(max_idle=3, idle_ttl=5, cooldown=0)
async def test_an_operation_that_ended_otherwise_than_expected_is_a_doubt(host: SimulatedHost, case: str) -> None:
    await host.clock.sleep(60.0)
    first, second, words = DOUBTFUL[case]
    faults = [FaultSpec(*f, times=1, code=1400, message="PermissionDenied") for f in (first, second) if f]
    set_faults(host, *faults)
    before = host.agent.reconciler.record.last_success
    await host.add("c0")
    await host.add("c1")
    await host.until(lambda: host.states().count("idle") >= 3, "refilled", 900.0)
    await host.delete("c0")
    await host.delete("c1")
    await host.until(lambda: host.agent.reconciler.record.last_success > before, "compared", 120.0)
    assert any(words in e.detail for e in await events(host, "reconcile.doubted"))
    await host.clock.sleep(SOON)
    await calm(host)


@pytest.mark.defect("others-26")
@on_host()
async def test_doubts_that_go_on_cost_ever_fewer_calls(host: SimulatedHost) -> None:
    await host.clock.sleep(60.0)
    calls = host.calls
    for _ in range(360):
        host.kernel.lose_message()
        await host.clock.sleep(10.0)
    assert host.calls - calls <= 40


@on_host(max_nics=3)
async def test_differences_and_remedies_are_recorded_as_events(host: SimulatedHost) -> None:
    lost = idle(host)[0].nic_id
    host.kernel.unplug(lost)
    await host.until(lambda: kinds(host) == [DifferenceKind.NO_LINK], "seen", SOON)
    (seen,) = host.agent.reconciler.open
    assert (seen.difference.nic_id, seen.comparisons) == (lost, 1)
    await host.until(lambda: not kinds(host), "over", 600.0)
    await host.clock.sleep(SOON)
    names = _without_repetition([e.name for e in await events(host, "", lost)])
    expected = ["nic.missing", "drift.seen", "nic.detaching", "nic.unattached", "nic.attaching", "drift.over"]
    assert [name for name in names if name in expected][-6:] == expected


def _without_repetition(names: Sequence[str]) -> list[str]:
    return [name for n, name in enumerate(names) if n == 0 or names[n - 1] != name]
