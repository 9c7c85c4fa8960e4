"""Requests that overtake each other, wait for each other, or whose callers go away: on a virtual clock."""

import asyncio
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, key_of, lived, netns_of, set_faults
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import Unavailable
from qingcloud_cni.core.nics.model import Netns, NicState
from qingcloud_cni.sim.topology import FaultSpec


def containers_of(host: SimulatedHost) -> set[str]:
    return {key.container_id for key in host.agent.context.table.attachments}


def test_an_add_that_waits_ends_soon_after_its_caller_has_gone_and_takes_no_nic(tmp_path: Path) -> None:
    async def test(host: SimulatedHost) -> None:
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

    lived(test, tmp_path, max_nics=1, min_idle=1)


def test_a_del_ends_the_adds_that_wait_for_a_nic_at_once(tmp_path: Path) -> None:
    """Also one that waits for the other's turn; one that comes after the DEL is not touched."""

    async def test(host: SimulatedHost) -> None:
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

    lived(test, tmp_path, max_nics=1, min_idle=1)


@pytest.mark.defect("others-24")
@pytest.mark.parametrize("looks", range(12))
def test_a_del_at_any_moment_of_an_add_leaves_nothing(tmp_path: Path, looks: int) -> None:
    """Whether the ADD is in its queue, moves a link, or writes to the disk."""

    async def test(host: SimulatedHost) -> None:
        add = asyncio.create_task(host.ask(Verb.ADD, "c0"))
        await host.clock.sleep(looks * 0.005)
        await host.ask(Verb.DEL, "c0")
        answer = (await asyncio.gather(add, return_exceptions=True))[0]
        assert isinstance(answer, dict | Unavailable), answer
        assert containers_of(host) == set()
        assert not host.kernel.links_in(netns_of("c0"))
        assert not host.agent.context.moves
        await host.until(lambda: host.states().count("idle") >= 3, "all at rest")

    lived(test, tmp_path, disk_seconds=0.01, cooldown=0)


@pytest.mark.parametrize("cause", ["DEL", "caller"])
def test_an_add_that_waits_for_a_gateway_ends_too_and_its_nic_is_free_again(tmp_path: Path, cause: str) -> None:
    async def test(host: SimulatedHost) -> None:
        set_faults(
            host, FaultSpec("ModifyNicAttributes", "refuse", times=1000, code=1400, message="PermissionDenied")
        )
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
        assert not host.agent.context.moves
        assert host.states().count("idle") >= 3

    lived(test, tmp_path)


def test_a_nic_that_comes_at_the_moment_the_add_is_called_off_is_not_lost(tmp_path: Path) -> None:
    async def test(host: SimulatedHost) -> None:
        first = await host.ask(Verb.ADD, "c0")
        add = asyncio.create_task(host.ask(Verb.ADD, "c1"))
        await host.clock.sleep(1)
        (nic_id,) = host.nics
        host.agent.context.table.released(key_of("c0"), host.clock.now(), is_parked=True, cause="test")
        host.agent.context.table.rested(nic_id, host.clock.now())
        host.agent.pool.hand_out()  # the NIC is the ADD's from here on, and it does not know yet
        host.agent.attachments._lock.call_off_adds(key_of("c1"), "called off")
        with pytest.raises(Unavailable, match="called off"):
            await add
        assert first
        assert host.nics[nic_id].state is NicState.IDLE
        assert not host.agent.context.moves
        assert containers_of(host) == set()

    lived(test, tmp_path, max_nics=1, min_idle=1)


@pytest.mark.parametrize("verb", [Verb.DEL, Verb.CHECK, Verb.ADD])
def test_a_request_that_waits_for_another_one_answers_before_its_deadline(
    tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(host: SimulatedHost) -> None:
        result = await host.ask(Verb.ADD, "c0")
        detach = host.kernel.detach

        async def stuck(mac: str, netns: Netns, ifindex: int, alias: str) -> bool:
            await host.clock.sleep(500)
            return await detach(mac, netns, ifindex, alias)

        monkeypatch.setattr(host.kernel, "detach", stuck)
        first = asyncio.create_task(host.ask(Verb.DEL, "c0"))
        await host.clock.sleep(1)
        begun = host.clock.now()
        with pytest.raises(Unavailable, match=f"{verb} of net/c0/eth0: not begun within 19 s, for its DEL is still"):
            await host.ask(verb, "c0", timeout=20.0, prevResult=None if verb is Verb.ADD else result)
        assert host.clock.now() - begun == pytest.approx(19.0)
        await first
        assert containers_of(host) == set()

    lived(test, tmp_path)


def test_fifty_containers_at_once_are_served_in_the_order_they_came(tmp_path: Path) -> None:
    async def test(host: SimulatedHost) -> None:
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

    lived(test, tmp_path, min_idle=3, max_idle=50)


def test_an_add_whose_link_was_lost_meanwhile_is_served_anew(tmp_path: Path) -> None:
    """Not answered from the table: the container would be told of an interface that it has not."""

    async def test(host: SimulatedHost) -> None:
        await host.ask(Verb.ADD, "c0")
        host.kernel.change(netns_of("c0"), "eth0", name="net9")
        result = await host.ask(Verb.ADD, "c0")
        assert result
        assert [link.name for link in host.kernel.links_in(netns_of("c0"))] == ["eth0"]

    lived(test, tmp_path)
