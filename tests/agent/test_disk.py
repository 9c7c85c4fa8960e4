"""While the disk takes nothing: what is answered, what is not, and that a kill at any point of it loses nothing.

The rule (docs/decisions/0013): nothing is given away and nothing asked of the cloud, for no record of it would
survive. Whatever a later start can see in the kernel goes on: links come home, and DEL is answered.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from inprocess import virtual_time
from inprocess.agent import SimulatedHost, key_of, netns_of, on_host, set_faults, simulated
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import AgentError, OutcomeUnknown, PoolEmpty, StoreRefused
from qingcloud_cni.core.nics.model import Event, NicState, Route
from qingcloud_cni.sim.topology import FaultSpec, Latencies, default_topology

FULL = "database or disk is full; make room there"
WRITES = ("CreateNics", "AttachNics", "DetachNics", "DeleteNics", "ModifyNicAttributes")
LIST = "cni.dev/valid-attachments"


def cloud_writes(host: SimulatedHost) -> int:
    return sum(host.model.calls[action] for action in WRITES)


async def fill(host: SimulatedHost) -> None:
    """Fill the disk, and let the agent notice it with an event that changes nothing."""
    host.disk.obstacle = FULL
    host.table.note(Event(host.clock.now(), "agent.ready"))
    host.journal.push()
    await host.until(lambda: host.journal.error, "the disk's refusal is known", 5.0)


async def empty(host: SimulatedHost) -> None:
    """Free the disk, and wait until all changes are written."""
    host.disk.obstacle = ""
    await host.until(lambda: not host.journal.unsaved, "all is on disk", 30.0)


# --- what is answered ----------------------------------------------------------------------------------


@on_host()
async def test_a_new_add_is_refused_at_once_and_nothing_is_asked_of_the_cloud(host: SimulatedHost) -> None:
    await host.add("c0")
    await host.until(lambda: host.states().count("idle") == 3, "the pool is filled", 60.0)
    await fill(host)
    idle = host.table.in_state(NicState.IDLE)[0].nic_id
    host.kernel.unplug(idle)
    await host.until(lambda: host.nics[idle].state is NicState.MISSING, "the pool is short of one", 60.0)
    writes, nics = cloud_writes(host), dict(host.nics)
    begun = host.clock.now()
    with pytest.raises(StoreRefused) as refused:
        await host.add("c1")
    said = f"state file {host.settings.database} cannot be written: {FULL}"
    assert str(refused.value) == said
    assert host.clock.now() == begun
    await host.clock.sleep(4000.0)
    assert cloud_writes(host) == writes
    assert not host.table.intents
    assert dict(host.nics) == nics
    assert host.kernel.links_in(netns_of("c1")) == ()
    assert host.agent.obstacle.startswith(said)
    await empty(host)
    assert not host.agent.obstacle
    await host.until(lambda: host.states().count("idle") == 3, "the pool is filled", 60.0)
    await host.add("c1")


@on_host()
async def test_all_but_new_adds_is_served(host: SimulatedHost) -> None:
    config = {"cniVersion": "1.1.0", "name": "net", "type": "qingcni"}
    first = await host.ask(Verb.ADD, "c0", config)
    assert first is not None
    for name in ("c1", "c2"):
        await host.add(name)
    await fill(host)
    assert await host.ask(Verb.ADD, "c0", config) == first
    await host.ask(Verb.CHECK, "c0", config | {"prevResult": first})
    await host.ask(Verb.STATUS, "")
    nic_id = host.table.attachments[key_of("c1")].nic_id
    await host.delete("c1")
    await host.delete("c1")
    await host.delete("unknown")
    assert host.kernel.links_in(netns_of("c1")) == ()
    assert host.nics[nic_id].state is NicState.COOLING
    host.kernel.kill_netns(netns_of("c2"))
    await host.ask(Verb.GC, "", config | {LIST: [{"containerID": "c0", "ifname": "eth0"}]})
    assert set(host.table.attachments) == {key_of("c0")}
    assert {a.key for a in host.store.on_disk().attachments} == {key_of("c0"), key_of("c1"), key_of("c2")}
    await empty(host)
    assert {a.key for a in host.store.on_disk().attachments} == {key_of("c0")}


@on_host()
async def test_the_nic_of_a_dead_container_is_released_on_a_full_disk(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await fill(host)
    host.kernel.kill_netns(netns_of("c0"))
    await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "taken back", 60.0)
    assert nic_id in {link.mac for link in host.kernel.links_in(host.kernel.parking_path)}
    await empty(host)


@on_host(cooldown=5, cooldown_min=5)
async def test_a_waiting_add_gets_a_nic_if_the_disk_recovers_in_time_or_an_error(
    host: SimulatedHost,
) -> None:
    set_faults(host, FaultSpec("CreateNics", "refuse", times=10_000))
    for n in range(3):
        await host.add(f"c{n}")
    early = asyncio.create_task(host.add("early", seconds=20.0))
    late = asyncio.create_task(host.add("late", seconds=90.0))
    await host.clock.sleep(1.0)
    await fill(host)
    await host.delete("c0")
    with pytest.raises(PoolEmpty, match="cannot be written"):
        await early
    await host.clock.sleep(30.0)
    assert not late.done()
    await empty(host)
    await late


@on_host()
async def test_an_add_whose_record_is_refused_leaves_its_nic_as_it_was(host: SimulatedHost) -> None:
    host.disk.obstacle = FULL
    before = dict(host.nics)
    with pytest.raises(StoreRefused):
        await host.add("c0")
    assert {n: nic.state for n, nic in host.nics.items()} == {n: nic.state for n, nic in before.items()}
    assert host.kernel.links_in(netns_of("c0")) == ()
    assert not host.moves
    await empty(host)
    await host.add("c0")


@pytest.mark.parametrize("has_all_routes", [True, False])
@on_host()
async def test_an_add_whose_second_save_fails_is_answered_if_the_first_was_complete(
    host: SimulatedHost, *, has_all_routes: bool
) -> None:
    """Else a start could not give the same answer again, and so the link is taken back."""
    host.kernel.make_netns(netns_of("c0"))
    if not has_all_routes:
        host.kernel.add_link(netns_of("c0"), "02:00:00:00:00:01", "net1")
        host.kernel.change(netns_of("c0"), "net1", routes=(Route("10.0.0.0/8", "10.0.0.1"),))
    attach = host.kernel.block("attach")
    config = read_config({"name": "net", "ipam": {"routes": [{"dst": "10.0.0.0/8"}]}})
    adding = asyncio.create_task(host.add("c0", config=config))
    await attach.reached()
    host.disk.obstacle = FULL
    attach.release()
    if has_all_routes:
        answered = await adding
        await host.kill()
        host.disk.obstacle = ""
        await host.start()
        assert host.table.attachments[key_of("c0")] == answered
    else:
        with pytest.raises(StoreRefused):
            await adding
        assert [link.name for link in host.kernel.links_in(netns_of("c0"))] == ["net1"]
        assert not host.table.attachments
        await empty(host)


@on_host()
async def test_a_disk_that_does_not_answer_is_as_a_full_one_after_a_while(host: SimulatedHost) -> None:
    await host.add("c0")
    host.disk.is_stuck = True
    with pytest.raises(StoreRefused, match="has not answered for 10 s"):
        await host.add("c1")
    begun = host.clock.now()
    await host.delete("c0")
    assert host.clock.now() - begun < 1.0
    host.disk.is_stuck = False
    await empty(host)
    await host.add("c1")


@on_host()
async def test_a_start_on_a_full_disk_serves_known_containers(host: SimulatedHost) -> None:
    first = await host.add("c0")
    nic_id = (await host.add("c1")).nic_id
    await host.clock.sleep(1.0)
    await host.kill()
    host.disk.obstacle = FULL
    host.kernel.kill_netns(netns_of("c1"))
    await host.clock.sleep(5.0)
    await host.start()
    assert await host.add("c0") == first
    await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "c1 is taken back", 60.0)
    with pytest.raises(StoreRefused):
        await host.add("c2")
    await empty(host)
    await host.add("c2")


# --- the cloud -------------------------------------------------------------------------------------------


@on_host()
async def test_an_intent_that_waited_for_the_disk_gets_the_time_of_its_save(
    host: SimulatedHost,
) -> None:
    """By its age the agent knows how long a call without a reply may still take effect: here 15 s."""
    lost: list[str] = []

    def lose_reply(target: str) -> None:
        if "action=CreateNics" in target and not lost:
            (intent,) = host.store.on_disk().intents
            assert host.clock.now() - intent.since < 5.0
            lost.append(target)
            raise OutcomeUnknown("the connection was closed before an answer", action="")

    host.cable.on_send = lose_reply
    host.disk.seconds = 0.01
    for n in range(3):
        await host.add(f"c{n}")
    host.disk.obstacle = FULL  # just as the pool is about to record what it wants
    await host.clock.sleep(3600.0)
    assert not lost
    host.disk.obstacle = ""
    await host.until(lambda: lost, "the call is sent")
    await host.clock.sleep(15.0)
    reply = await host.api.respond("GET", lost[0], b"")  # only now it takes effect
    assert reply is not None
    assert reply.status == 200
    await host.until(lambda: host.states().count("idle") == 3, "the pool is filled", 120.0)
    await host.clock.sleep(60.0)
    assert set(host.ours_in_cloud()) == set(host.nics)


@on_host(cooldown=0)
async def test_operations_under_way_come_to_their_end_once_the_disk_is_back(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(5)))
    for n in range(5):
        await host.delete(f"c{n}")
    host.agent.pool.drain()
    await host.until(lambda: host.model.calls["DetachNics"] == 1, "detaching")
    await fill(host)
    await host.clock.sleep(600.0)
    assert host.model.calls["DeleteNics"] == 0
    await empty(host)
    await host.until(lambda: not host.nics, "drained", 60.0)
    assert not host.ours_in_cloud()


# --- a kill at every point ---------------------------------------------------------------------------------


def kill_at(host: SimulatedHost, point: int) -> None:
    """Kill the agent as soon as it has called disk, kernel or cloud so often: the latter two do what it asked."""
    left = [None] * point

    def count(*_args: object) -> None:
        if left:
            left.pop()
            if not left and host.process is not None:
                host.process.die()

    for verb in ("attach", "detach", "park"):
        host.kernel.observe(verb, count)
    host.cable.on_send = host.disk.on_write = count


@dataclass
class Promises:
    """The answers that the runtime got."""

    has: dict[str, str] = field(default_factory=dict)  # containers that were added, and not asked to be deleted: NICs
    gone: set[str] = field(default_factory=set)  # containers whose DEL was answered, or whose ADD was refused
    open: set[str] = field(default_factory=set)  # containers of which nothing was answered yet


async def story(host: SimulatedHost, promises: Promises) -> None:
    """Containers come and go, the disk is full for a while, and the pool grows and shrinks meanwhile."""

    async def request(work: Coroutine[Any, Any, T]) -> T:
        assert host.process is not None
        return await host.process.start(work, "request")

    async def add(name: str) -> None:
        promises.open.add(name)
        try:
            promises.has[name] = (await request(host.add(name, seconds=30.0))).nic_id
        except AgentError:
            promises.gone.add(name)
        promises.open.discard(name)

    async def delete(name: str) -> None:
        promises.open.add(name)
        promises.has.pop(name, None)
        await request(host.delete(name))
        promises.gone.add(name)
        promises.open.discard(name)

    await asyncio.gather(*(add(f"before{n}") for n in range(4)))
    await delete("before0")
    host.disk.obstacle = FULL
    await asyncio.gather(add("refused0"), delete("before1"))
    await host.clock.sleep(8.0)
    await add("refused1")
    host.kernel.kill_netns(netns_of("before2"))
    promises.gone.add("before2")
    promises.has.pop("before2", None)
    await host.clock.sleep(12.0)
    await delete("before2")
    host.disk.obstacle = ""
    await add("after0")
    await host.clock.sleep(20.0)
    await asyncio.gather(add("after1"), delete("after0"))
    await host.clock.sleep(60.0)


T = TypeVar("T")
TOPOLOGY = replace(default_topology("sim", 1), latencies=Latencies(attach=(1.0, 3.0), call=(0.05, 0.2)))


def killed_at(tmp_path: Path, point: int, is_full_afterwards: bool) -> bool:
    """Kill the agent at *point* of the story; return whether the story has it."""

    async def main() -> bool:
        async with simulated(tmp_path, TOPOLOGY, seed=7, disk_seconds=0.003, max_nics=7, max_idle=3, idle_ttl=5,
                             cooldown=10, cooldown_min=2) as host:  # fmt: skip
            promises = Promises()
            kill_at(host, point)
            telling = asyncio.create_task(story(host, promises))
            while host.is_running and not telling.done():
                await host.clock.sleep(0.25)
            if host.is_running:
                telling.result()
                return False
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            await host.bury()
            if not is_full_afterwards:
                host.disk.obstacle = ""
            await host.start()
            check(host, promises)
            await host.clock.sleep(20.0)
            check(host, promises)
            host.disk.obstacle = ""
            await host.until(lambda: not host.agent.obstacle, "the disk is back", 30.0)
            await settled(host)
            check(host, promises)
            return True

    return virtual_time.run(main())


def check(host: SimulatedHost, promises: Promises) -> None:
    """Check that containers have what their ADD returned, and nothing after their DEL."""
    host.check_invariants()
    attachments = host.table.attachments
    for name, nic_id in promises.has.items():
        assert attachments[key_of(name)].nic_id == nic_id, name
        assert [link.mac for link in host.kernel.links_in(netns_of(name))] == [nic_id], name
    for name in promises.gone - promises.open - set(promises.has):
        assert key_of(name) not in attachments, name
        if netns_of(name) in host.paths():
            assert host.kernel.links_in(netns_of(name)) == (), name


async def settled(host: SimulatedHost) -> None:
    """Table, cloud and kernel agree."""
    table = host.table
    passing = {NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING, NicState.DETACHING, NicState.DELETING}

    def is_calm() -> bool:
        return not table.intents and not any(n.state in passing for n in host.nics.values())

    await host.until(is_calm, "nothing is under way")
    assert set(host.ours_in_cloud()) == set(host.nics)
    assert "missing" not in host.states()
    parked = {link.mac for link in host.kernel.links_in(host.kernel.parking_path)}
    assert parked == {n.nic_id for n in host.nics.values() if n.state in {NicState.IDLE, NicState.COOLING}}


@on_host()
async def test_a_disk_that_is_full_for_a_day_ends_no_agent(host: SimulatedHost) -> None:
    await fill(host)
    await host.clock.sleep(24 * 3600.0)
    await host.check_alive()
    host.disk.obstacle = ""
    await host.until(lambda: not host.journal.error, "all is on disk", 30.0)


@pytest.mark.parametrize("is_full_afterwards", [False, True], ids=["room-at-the-start", "full-at-the-start"])
def test_a_kill_at_any_point_breaks_no_promise_and_loses_no_nic(tmp_path: Path, *, is_full_afterwards: bool) -> None:
    point = 1
    while True:
        folder = tmp_path / str(point)
        folder.mkdir()
        try:
            if not killed_at(folder, point, is_full_afterwards):
                break
        except BaseException as err:
            err.add_note(f"killed at point {point}")
            raise
        point += 1
    assert point > 80
