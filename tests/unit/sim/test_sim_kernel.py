"""The kernel in memory, on a virtual clock: it keeps the contract of core.seams.kernel and has its faults."""

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from qingcloud_cni.core.errors import InvalidConfig, InvalidNetns, KernelRefused, LinkNotFound
from qingcloud_cni.core.nics.model import Netns, Route
from qingcloud_cni.core.seams.kernel import Inspection, Kernel, LinkOrder, NicRecord
from qingcloud_cni.sim.memory.kernel import MOVE, PROBE, FakeKernel
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import FilterNic, Latencies, PlugNic, UnplugNic

PRIMARY, NIC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"
ALIAS = "net/abc/eth0"
PATH = "/run/netns/pod"


class JumpSelector(selectors.DefaultSelector):
    """Turns waiting into moving the clock; a wait without end is a deadlock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("simulation stuck: no task can ever run again")
        self.now += max(timeout, 0.0)
        return super().select(0)


def simulated(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test on a loop whose time is that of a JumpSelector."""

    def run() -> None:
        selector = JumpSelector()

        def factory() -> asyncio.AbstractEventLoop:
            loop = asyncio.SelectorEventLoop(selector)
            loop.time = lambda: selector.now  # type: ignore[method-assign]
            return loop

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(test())

    run.__doc__ = test.__doc__
    return run


def plug(nic_id: str, instance_id: str = "i-1") -> PlugNic:
    return PlugNic(nic_id, instance_id, "vxnet-p", "10.0.1.2", enable_aspoof=True)


def make_kernel(*nics: str, is_hardware: bool = False) -> FakeKernel:
    latencies = Latencies(replug=(0.2, 0.2))
    kernel = FakeKernel(
        "i-1", rng=random.Random(1), sleep=asyncio.sleep, latencies=latencies, is_hardware=is_hardware
    )
    kernel.apply(*(plug(nic) for nic in (PRIMARY, *nics)))
    return kernel


def order(netns: Netns, mac: str = NIC, **changes: Any) -> LinkOrder:
    parts: dict[str, Any] = {
        "ifname": "eth0",
        "address": "10.0.1.2/24",
        "routes": (Route("0.0.0.0/0", "10.0.1.1"),),
    }
    return LinkOrder(nic=NicRecord(mac, ALIAS), netns=netns, **{**parts, **changes})


def names(kernel: FakeKernel, path: str = HOST_PATH) -> dict[str, str]:
    return {link.mac: link.name for link in kernel.links_in(path)}


def now() -> float:
    return asyncio.get_running_loop().time()


async def raises(error: type[Exception], awaitable: Awaitable[object]) -> None:
    with pytest.raises(error):
        await awaitable


def test_it_is_a_kernel() -> None:
    kernel: Kernel = make_kernel()
    assert "eth0" in repr(kernel)


@simulated
async def test_plugged_nics_appear_up_under_the_next_free_name() -> None:
    kernel = make_kernel(NIC)
    kernel.apply(plug(OTHER, "i-2"), plug(NIC), FilterNic(NIC, "10.0.1.2", enable_aspoof=False))
    survey = await kernel.survey()
    assert [(link.mac, link.name, link.is_up) for link in survey.host] == [
        (PRIMARY, "eth0", True),
        (NIC, "eth1", True),
    ]
    assert survey.parked == ()
    kernel.apply(UnplugNic(NIC), plug(OTHER))
    assert names(kernel) == {PRIMARY: "eth0", OTHER: "eth1"}


@simulated
async def test_parking_takes_a_move_and_is_idempotent() -> None:
    kernel = make_kernel(NIC)
    await kernel.park(NicRecord(NIC))
    assert now() == pytest.approx(MOVE)
    await kernel.park(NicRecord(NIC))
    assert now() == pytest.approx(MOVE)
    (parked,) = (await kernel.survey()).parked
    assert (parked.mac, parked.is_up, parked.alias) == (NIC, False, "")
    assert names(kernel) == {PRIMARY: "eth0"}
    await raises(LinkNotFound, kernel.park(NicRecord(OTHER)))


@simulated
async def test_a_link_is_placed_and_brought_back() -> None:
    kernel = make_kernel(NIC)
    netns = kernel.make_netns(PATH)
    assert await kernel.identify(PATH) == netns
    await kernel.park(NicRecord(NIC))
    placed = await kernel.attach(order(netns))
    assert now() == pytest.approx(2 * MOVE)
    (link,) = kernel.links_in(PATH)
    assert (link.mac, link.name, link.ifindex, link.is_up) == (NIC, "eth0", placed.ifindex, True)
    assert link.alias == ALIAS
    assert kernel.addresses_in(PATH) == {"eth0": ("10.0.1.2/24", (Route("0.0.0.0/0", "10.0.1.1"),))}
    assert await kernel.attach(order(netns)) == placed  # again: there already
    assert (await kernel.detach(NicRecord(NIC, link.alias), netns, placed.ifindex)).is_parked
    assert (await kernel.detach(NicRecord(NIC, link.alias), netns, placed.ifindex)).is_parked
    assert kernel.links_in(PATH) == ()
    assert kernel.addresses_in(kernel.parking_path) == {}


@simulated
async def test_moves_are_made_one_at_a_time() -> None:
    nics = [f"52:54:00:00:01:{n:02x}" for n in range(10)]
    kernel = make_kernel(*nics)
    await asyncio.gather(*(kernel.park(NicRecord(nic)) for nic in nics))
    assert now() == pytest.approx(10 * MOVE)
    assert len((await kernel.survey()).parked) == 10


@simulated
async def test_identify_refuses_what_is_no_container() -> None:
    kernel = make_kernel()
    for path in ("/run/netns/none", HOST_PATH, kernel.parking_path):
        await raises(InvalidNetns, kernel.identify(path))


@simulated
async def test_a_failed_attach_leaves_the_link_parked() -> None:
    kernel = make_kernel(NIC, OTHER)
    netns = kernel.make_netns(PATH)
    await kernel.attach(order(netns, OTHER))
    await raises(InvalidConfig, kernel.attach(order(netns)))
    assert NIC in names(kernel, kernel.parking_path)
    bad_route = (Route("10.96.0.0/12", "10.0.2.1"),)
    await raises(KernelRefused, kernel.attach(order(netns, ifname="eth1", routes=bad_route)))
    await raises(LinkNotFound, kernel.attach(order(netns, "52:54:ff:ff:ff:ff", ifname="eth1")))
    assert names(kernel, PATH) == {OTHER: "eth0"}
    assert names(kernel, kernel.parking_path).keys() == {NIC}


@simulated
async def test_a_namespace_made_anew_at_the_same_path_is_another() -> None:
    kernel = make_kernel(NIC)
    old = kernel.make_netns(PATH)
    kernel.kill_netns(PATH)
    new = kernel.make_netns(PATH)
    assert old != new
    await raises(InvalidNetns, kernel.attach(order(old)))
    await kernel.attach(order(new))
    assert (await kernel.detach(NicRecord(NIC, ""), old, 0)).is_parked  # found though recorded elsewhere


@simulated
async def test_a_dead_namespace_gives_its_nics_back_late_and_down() -> None:
    kernel = make_kernel(NIC, is_hardware=True)
    netns = kernel.make_netns(PATH)
    placed = await kernel.attach(order(netns))
    died = now()
    kernel.kill_netns(PATH)
    assert not (await kernel.detach(NicRecord(NIC, ALIAS), netns, placed.ifindex)).is_parked
    await asyncio.sleep(0.19)
    assert names(kernel) == {PRIMARY: "eth0"}
    await asyncio.sleep(0.02)
    back = next(link for link in kernel.links_in(HOST_PATH) if link.mac == NIC)
    assert (back.name, back.is_up, back.alias) == (f"dev{back.ifindex}", False, ALIAS)
    assert now() - died == pytest.approx(0.21)
    assert (await kernel.detach(NicRecord(NIC, ALIAS), netns, placed.ifindex)).is_parked
    assert names(kernel, kernel.parking_path).keys() == {NIC}


@simulated
async def test_hardware_that_comes_back_keeps_mac_and_alias_and_its_name_if_that_is_free() -> None:
    kernel = make_kernel(NIC, is_hardware=True)
    placed = await kernel.attach(order(kernel.make_netns(PATH)))
    kernel.change(PATH, "eth0", mac=OTHER, name="net7")
    kernel.kill_netns(PATH)
    await asyncio.sleep(0.3)
    back = next(link for link in kernel.links_in(HOST_PATH) if link.mac == OTHER)
    assert (back.name, back.is_up, back.alias) == ("net7", False, ALIAS)
    assert (back.permanent_mac, back.fingerprint) == (NIC, placed.arrival.fingerprint)
    await raises(LinkNotFound, kernel.park(NicRecord(OTHER)))
    assert await kernel.park(NicRecord(NIC)) == placed.arrival
    assert names(kernel, kernel.parking_path).keys() == {NIC}


@simulated
async def test_a_nic_of_the_simulator_comes_back_as_another_link_of_the_same_mac() -> None:
    kernel = make_kernel(NIC)
    placed = await kernel.attach(order(kernel.make_netns(PATH)))
    kernel.change(PATH, "eth0", mac=OTHER, name="net7")
    kernel.kill_netns(PATH)
    await asyncio.sleep(0.3)
    assert names(kernel) == {PRIMARY: "eth0", NIC: "net7"}
    await raises(LinkNotFound, kernel.park(NicRecord(NIC, ALIAS, placed.arrival.fingerprint)))
    assert await kernel.park(NicRecord(NIC)) != placed.arrival


@simulated
async def test_a_link_that_looks_like_a_nic_is_named_and_left_alone() -> None:
    kernel = make_kernel(NIC)
    netns = kernel.make_netns(PATH)
    placed = await kernel.attach(order(netns))
    record = NicRecord(NIC, ALIAS, placed.arrival.fingerprint)
    kernel.make_netns("/run/netns/inner")
    kernel.move(PATH, "eth0", "/run/netns/inner")
    kernel.add_link(PATH, NIC, "eth0", ALIAS, ifindex=placed.ifindex)
    assert (await kernel.search([record])).keys() == {NIC}
    kernel.kill_netns("/run/netns/inner")
    gone = await kernel.detach(record, netns, placed.ifindex)
    assert (gone.is_parked, gone.spoofs) == (False, (f"eth0 in {PATH}",))
    assert await kernel.search([record]) == {}
    assert [link.name for link in kernel.links_in(PATH)] == ["eth0"]


@simulated
async def test_a_wide_survey_shows_containers_but_not_those_that_cannot_be_looked_into() -> None:
    kernel = make_kernel(NIC, OTHER)
    netns = kernel.make_netns(PATH)
    await kernel.attach(order(netns))
    kernel.make_netns("/run/netns/other")
    kernel.move(HOST_PATH, names(kernel)[OTHER], "/run/netns/other")
    seen = await kernel.survey_all(())
    assert {p.netns.path: [link.mac for link in p.links] for p in seen.elsewhere} == {
        PATH: [NIC], "/run/netns/other": [OTHER],
    }  # fmt: skip
    assert (seen.is_wide, seen.unseen) == (True, ())
    kernel.unseen.add(PATH)
    seen = await kernel.survey_all(())
    assert ([p.netns.path for p in seen.elsewhere], seen.unseen) == (["/run/netns/other"], (PATH,))
    assert not (await kernel.survey()).is_wide


@simulated
async def test_a_boot_leaves_nothing_but_the_hardware() -> None:
    kernel = make_kernel(NIC, OTHER)
    first = kernel.make_netns(PATH)
    await kernel.attach(order(first))
    await kernel.park(NicRecord(OTHER))
    kernel.add_link(HOST_PATH, "02:00:00:00:00:01", "veth9")
    kernel.settings["net/ipv4/ip_forward"] = "1"
    kernel.reboot()
    assert set(names(kernel)) == {PRIMARY, NIC, OTHER}
    assert names(kernel, kernel.parking_path) == {}
    assert kernel.settings["net/ipv4/ip_forward"] == "0"
    assert not any(link.alias for link in kernel.links_in(HOST_PATH))
    assert kernel.make_netns(PATH).inode == first.inode  # identities begin anew


@simulated
async def test_an_odd_name_is_the_links_again_when_it_comes_back() -> None:
    kernel = make_kernel()
    kernel.apply(replace(plug(NIC), link_name="wlan"), replace(plug(OTHER), link_name="wlan"))
    assert (names(kernel)[NIC], names(kernel)[OTHER]) == ("wlan0", "wlan1")
    await kernel.attach(order(kernel.make_netns(PATH)))
    kernel.kill_netns(PATH)
    await asyncio.sleep(1)
    assert names(kernel)[NIC] == "wlan0"


@simulated
async def test_a_nic_unplugged_on_its_way_back_does_not_come() -> None:
    kernel = make_kernel(NIC)
    await kernel.attach(order(kernel.make_netns(PATH)))
    kernel.kill_netns(PATH)
    kernel.apply(UnplugNic(NIC))
    await asyncio.sleep(1)
    assert names(kernel) == {PRIMARY: "eth0"}


@simulated
async def test_unplugging_reaches_into_containers() -> None:
    kernel = make_kernel(NIC)
    netns = kernel.make_netns(PATH)
    placed = await kernel.attach(order(netns))
    kernel.apply(UnplugNic(NIC))
    assert kernel.links_in(PATH) == ()
    assert not (await kernel.detach(NicRecord(NIC, ALIAS), netns, placed.ifindex)).is_parked


@simulated
async def test_what_dies_during_a_move_is_noticed() -> None:
    kernel = make_kernel(NIC, OTHER)
    netns = kernel.make_netns(PATH)
    parking = asyncio.create_task(kernel.park(NicRecord(NIC)))
    attaching = asyncio.create_task(kernel.attach(order(netns, OTHER)))
    await asyncio.sleep(MOVE / 2)
    kernel.apply(UnplugNic(NIC))
    await raises(LinkNotFound, parking)
    await asyncio.sleep(MOVE / 2)
    kernel.kill_netns(PATH)
    await raises(InvalidNetns, attaching)
    assert names(kernel, kernel.parking_path).keys() == {OTHER}


@simulated
async def test_changes_are_told_to_every_watcher_and_none_is_missed() -> None:
    kernel = make_kernel()

    async def count(changes: AsyncIterator[bool], seen: list[int]) -> None:
        async for _ in changes:
            links = kernel.links_in(HOST_PATH)
            seen.append(len(links))

    early, late = kernel.changes(), kernel.changes()
    kernel.apply(plug(NIC), plug(OTHER))  # before anyone listens
    seen: tuple[list[int], list[int]] = ([], [])
    watchers = [asyncio.create_task(count(*pair)) for pair in zip((early, late), seen, strict=True)]
    await asyncio.sleep(1)
    kernel.apply(UnplugNic(OTHER))
    await asyncio.sleep(1)
    await kernel.park(NicRecord(NIC))
    await asyncio.sleep(1)
    assert seen == ([3, 2, 1], [3, 2, 1])
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    await kernel.close()


# --- looking -----------------------------------------------------------------------------------------


@simulated
async def test_an_interface_is_inspected_as_it_is() -> None:
    kernel = make_kernel(NIC)
    netns = kernel.make_netns(PATH)
    assert await kernel.inspect(PATH, "eth0") == Inspection(netns)
    placed = await kernel.attach(order(netns))
    seen = await kernel.inspect(PATH, "eth0")
    assert seen.link is not None
    assert (seen.link.mac, seen.link.ifindex, seen.link.is_up) == (NIC, placed.ifindex, True)
    assert (seen.addresses, seen.routes) == ((order(netns).address,), placed.routes)
    kernel.change(PATH, "eth0", is_up=False, address="", routes=())
    seen = await kernel.inspect(PATH, "eth0")
    assert seen.link is not None
    assert (seen.link.is_up, seen.addresses, seen.routes) == (False, (), ())
    for path in (HOST_PATH, kernel.parking_path, "/run/netns/none"):
        with pytest.raises(InvalidNetns):
            await kernel.inspect(path, "eth0")


@simulated
async def test_a_namespace_is_gone_when_it_died_and_not_before() -> None:
    kernel = make_kernel(NIC)
    netns = kernel.make_netns(PATH)
    wanted = order(netns)
    await kernel.attach(wanted)
    assert not await kernel.is_gone(wanted.nic, netns)
    assert not await kernel.is_gone(wanted.nic, Netns("/run/netns/elsewhere", netns.dev, netns.inode))
    kernel.kill_netns(PATH)
    assert await kernel.is_gone(wanted.nic, netns)  # its NIC is on its way
    await asyncio.sleep(1)
    assert NIC in {link.mac for link in kernel.links_in(HOST_PATH)}
    assert await kernel.is_gone(wanted.nic, netns)


@simulated
async def test_a_probe_hears_who_has_the_address_and_waits_for_nobody_else() -> None:
    kernel = make_kernel(NIC)
    await raises(LinkNotFound, kernel.probe(NIC, "10.0.1.2"))  # still on the host
    await kernel.park(NicRecord(NIC))
    begun = now()
    asking = asyncio.create_task(kernel.probe(NIC, "10.0.1.2"))
    await asyncio.sleep(0.1)
    assert [link.is_up for link in kernel.links_in(kernel.parking_path)] == [True]
    assert await asking == ""
    assert now() - begun == pytest.approx(PROBE)
    kernel.claims["10.0.1.2"] = OTHER
    assert await kernel.probe(NIC, "10.0.1.2") == OTHER
    assert now() - begun == pytest.approx(PROBE)
    assert [link.is_up for link in kernel.links_in(kernel.parking_path)] == [False]


@simulated
async def test_a_probe_ends_where_the_nic_is_taken() -> None:
    kernel = make_kernel(NIC)
    netns = kernel.make_netns(PATH)
    await kernel.park(NicRecord(NIC))
    asking = asyncio.create_task(kernel.probe(NIC, "10.0.1.2"))
    await asyncio.sleep(0.1)
    await kernel.attach(order(netns))
    await raises(LinkNotFound, asking)
    assert [link.is_up for link in kernel.links_in(PATH)] == [True]


@simulated
async def test_a_container_leaves_flows_behind_and_the_next_one_that_meets_them_is_noticed() -> None:
    kernel = make_kernel(NIC)
    netns = kernel.make_netns(PATH)
    for is_flushed in (True, False):
        placed = await kernel.attach(order(netns))
        await kernel.detach(NicRecord(NIC, ALIAS), netns, placed.ifindex)
        assert kernel.flows == {"10.0.1.2"}
        if is_flushed:
            assert await kernel.flush(["10.0.1.2", "10.0.1.3"]) == 1
    assert kernel.stale == []
    await kernel.attach(order(netns))
    assert kernel.stale == ["10.0.1.2"]


@simulated
async def test_only_what_is_so_is_announced() -> None:
    kernel = make_kernel(NIC)
    wanted = order(kernel.make_netns(PATH))
    placed = await kernel.attach(wanted)
    assert await kernel.announce(wanted, placed.ifindex)
    kernel.change(PATH, "eth0", is_up=False)
    assert not await kernel.announce(wanted, placed.ifindex)
    kernel.kill_netns(PATH)
    assert not await kernel.announce(wanted, placed.ifindex)
    assert kernel.announced == ["10.0.1.2/24"]
