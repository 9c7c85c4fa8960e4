"""Requests that overtake each other, wait for each other, or whose callers go away: on a virtual clock."""

import asyncio

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, on_host, set_faults
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import Unavailable
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.sim.topology import FaultSpec


def containers_of(host: SimulatedHost) -> set[str]:
    return {key.container_id for key in host.table.attachments}


@on_host(max_nics=1, min_idle=1)
async def test_an_add_that_waits_ends_soon_after_its_caller_has_gone_and_takes_no_nic(host: SimulatedHost) -> None:
    await host.ask(Verb.ADD, "c0")
    is_there = [True]
    add = asyncio.create_task(host.ask(Verb.ADD, "c1", is_awaited=lambda: is_there[0]))
    await host.clock.sleep(30)
    assert not add.done()
    is_there[0], begun = False, host.clock.now()
    with pytest.raises(Unavailable, match="the caller of its ADD has gone"):
        await add
    assert host.clock.now() - begun <= 1.0
    assert not host.agent.pool.waiting
    await host.ask(Verb.DEL, "c0")
    await host.clock.sleep(60)
    assert containers_of(host) == set()


@on_host(max_nics=1, min_idle=1)
async def test_a_del_ends_the_adds_that_wait_for_a_nic_at_once(host: SimulatedHost) -> None:
    """Also one that waits for the other's turn; one that comes after the DEL is not touched."""
    await host.ask(Verb.ADD, "c0")
    adds = [asyncio.create_task(host.ask(Verb.ADD, "c1")) for _ in range(2)]
    await host.clock.sleep(5)
    begun = host.clock.now()
    delete = asyncio.create_task(host.ask(Verb.DEL, "c1"))
    await asyncio.sleep(0)
    late = asyncio.create_task(host.ask(Verb.ADD, "c1"))
    await delete
    for add in adds:
        with pytest.raises(Unavailable, match="a DEL of the same attachment came meanwhile"):
            await add
    assert host.clock.now() == begun
    assert not late.done()
    await host.ask(Verb.DEL, "c0")
    assert await late
    assert containers_of(host) == {"c1"}


@pytest.mark.defect("others-24")
@pytest.mark.parametrize("looks", range(12))
@on_host(disk_seconds=0.01, cooldown=0)
async def test_a_del_at_any_moment_of_an_add_leaves_nothing(host: SimulatedHost, looks: int) -> None:
    """Whether the ADD is in its queue, moves a link, or writes to the disk."""
    add = asyncio.create_task(host.ask(Verb.ADD, "c0"))
    await host.clock.sleep(looks * 0.005)
    await host.ask(Verb.DEL, "c0")
    answer = (await asyncio.gather(add, return_exceptions=True))[0]
    assert isinstance(answer, dict | Unavailable), answer
    assert containers_of(host) == set()
    assert not host.kernel.links_in(netns_of("c0"))
    assert not host.moves
    await host.until(lambda: host.states().count("idle") >= 3, "all at rest")


@pytest.mark.parametrize("cause", ["DEL", "caller"])
@on_host()
async def test_an_add_that_waits_for_a_gateway_ends_too_and_its_nic_is_free_again(
    host: SimulatedHost, cause: str
) -> None:
    set_faults(host, FaultSpec("ModifyNicAttributes", "refuse", times=1000, code=1400, message="PermissionDenied"))
    is_there = [True]
    routes = {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}
    add = asyncio.create_task(host.ask(Verb.ADD, "c0", ipam=routes, is_awaited=lambda: is_there[0]))
    await host.clock.sleep(20)
    assert not add.done()
    assert containers_of(host) == {"c0"}
    begun = host.clock.now()
    if cause == "DEL":
        await host.ask(Verb.DEL, "c0")
        assert host.clock.now() == begun
    is_there[0] = False
    with pytest.raises(Unavailable, match="a DEL of the same" if cause == "DEL" else "has gone"):
        await add
    assert host.clock.now() - begun <= 1.0
    assert containers_of(host) == set()
    assert not host.moves
    assert host.states().count("idle") >= 3


@on_host(max_nics=1, min_idle=1)
async def test_a_nic_that_comes_at_the_moment_the_add_is_called_off_is_not_lost(host: SimulatedHost) -> None:
    first = await host.ask(Verb.ADD, "c0")
    add = asyncio.create_task(host.ask(Verb.ADD, "c1"))
    await host.clock.sleep(1)
    (nic_id,) = host.nics
    host.table.released(key_of("c0"), host.clock.now(), is_parked=True, cause="test")
    host.table.cooled(nic_id, host.clock.now())
    host.agent.pool.assign_idle()  # the NIC is the ADD's from here on, and it does not know yet
    host.agent.attachments.lock.call_off_adds(key_of("c1"), "called off")
    with pytest.raises(Unavailable, match="called off"):
        await add
    assert first
    assert host.nics[nic_id].state is NicState.IDLE
    assert not host.moves
    assert containers_of(host) == set()


@pytest.mark.parametrize("verb", [Verb.DEL, Verb.CHECK, Verb.ADD])
@on_host()
async def test_a_request_that_waits_for_another_one_answers_before_its_deadline(
    host: SimulatedHost, verb: Verb
) -> None:
    result = await host.ask(Verb.ADD, "c0")
    host.kernel.delay("detach", 500.0)
    first = asyncio.create_task(host.ask(Verb.DEL, "c0"))
    await host.clock.sleep(1)
    begun = host.clock.now()
    with pytest.raises(Unavailable, match=f"{verb} of net/c0/eth0: not begun within 19 s, for its DEL is still"):
        await host.ask(verb, "c0", timeout=20.0, prevResult=None if verb is Verb.ADD else result)
    assert host.clock.now() - begun == pytest.approx(19.0)
    await first
    assert containers_of(host) == set()


@on_host(min_idle=3, max_idle=50)
async def test_fifty_containers_at_once_are_served_in_the_order_they_came(host: SimulatedHost) -> None:
    served: list[str] = []

    async def ask(verb: Verb, container: str) -> None:
        await host.ask(verb, container)
        served.append(container)

    names = [f"c{n:02}" for n in range(50)]
    for verb in (Verb.ADD, Verb.DEL):
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(ask(verb, name))
        assert served == names
        served.clear()


@on_host()
async def test_a_repeated_add_whose_link_is_lost_gets_another_nic(host: SimulatedHost) -> None:
    """The table is not the answer: the container does not have that interface."""
    await host.ask(Verb.ADD, "c0")
    host.kernel.change(netns_of("c0"), "eth0", name="net9")
    result = await host.ask(Verb.ADD, "c0")
    assert result
    assert [link.name for link in host.kernel.links_in(netns_of("c0"))] == ["eth0"]
