"""Gateway NICs of a whole agent, on a virtual clock."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, netns_of, on_host, set_faults, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.api.views import status_view
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.errors import InvalidConfig, KernelRefused, Unavailable
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.seams.kernel import ServicePath
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import FaultSpec, Latencies, default_topology

SERVICES = "10.96.0.0/12"
CONF = {"cniVersion": "0.3.1", "name": "net", "ipam": {"routes": [{"dst": SERVICES, "gw": "0.0.0.0"}]}}
CONFIG = read_config(CONF)
MASQUERADED = {"cniVersion": "0.3.1", "name": "net", "ipMasq": True}


def gateways(host: SimulatedHost) -> list[Nic]:
    return [n for n in host.nics.values() if n.is_gateway]


def gateway_address(host: SimulatedHost, container: str) -> str:
    _, routes = host.kernel.addresses_in(netns_of(container))["eth0"]
    return next(r.gw for r in routes if r.dst == SERVICES)


@pytest.mark.defect("slow-5")
@on_host()
async def test_the_first_add_makes_one_gateway_and_all_others_share_it(host: SimulatedHost) -> None:
    attachments = await asyncio.gather(*(host.add(f"c{n}", config=CONFIG) for n in range(3)))
    (gateway,) = gateways(host)
    assert gateway.state is NicState.GATEWAY
    assert gateway.name.startswith("hostnic_")
    own = gateway.address.partition("/")[0]
    assert {gateway_address(host, f"c{n}") for n in range(3)} == {own}
    assert all(any(r.gw == own for r in a.routes) for a in attachments)  # in the result too
    assert host.model.state.nics[gateway.nic_id].enable_aspoof is False
    others = [n for n in host.model.state.nics.values() if n.nic_id != gateway.nic_id]
    assert all(n.enable_aspoof for n in others)
    path = host.kernel.path
    assert [(g.mac, g.link_name, g.address) for g in path.gateways] == [(gateway.nic_id, "hostnic", gateway.address)]
    assert (path.masquerade, path.services) == ((), ())


@on_host()
async def test_ip_masq_follows_the_containers_that_ask_for_it(host: SimulatedHost) -> None:
    await host.add("c0", config=CONFIG)
    await host.add("c1", config=read_config(CONF | {"ipMasq": True}))
    assert (host.kernel.path.masquerade, host.kernel.path.services) == (("172.20.1.0/24",), (SERVICES,))
    await host.delete("c1")
    await host.clock.sleep(1)
    assert (host.kernel.path.masquerade, host.kernel.path.services) == ((), ())


async def end_by_del(host: SimulatedHost) -> None:
    await host.delete("c0")


async def end_by_its_namespace(host: SimulatedHost) -> None:
    host.kernel.kill_netns(netns_of("c0"))


async def end_by_a_repeated_add(host: SimulatedHost) -> None:
    """It finds the link changed, and gets another NIC without ipMasq."""
    host.kernel.change(netns_of("c0"), "eth0", address="10.9.9.9/24")
    await host.add("c0")


async def end_by_gc(host: SimulatedHost) -> None:
    host.kernel.unseen.add(netns_of("c0"))
    host.kernel.kill_netns(netns_of("c0"))
    await host.ask("GC", "", {"cni.dev/valid-attachments": []})


@pytest.mark.parametrize(
    "end", [end_by_del, end_by_its_namespace, end_by_a_repeated_add, end_by_gc], ids=lambda end: end.__name__
)
@on_host()
async def test_masquerading_without_services_ends_within_2_seconds_of_any_end(
    host: SimulatedHost, end: Callable[[SimulatedHost], Awaitable[None]]
) -> None:
    await host.add("c0", config=read_config(MASQUERADED))
    await host.until(lambda: host.kernel.path == ServicePath((), ("172.20.1.0/24",)), "masqueraded")
    assert host.kernel.settings["net/ipv4/ip_forward"] == "1"
    await end(host)
    begun = host.clock.now()
    await host.until(lambda: host.kernel.path == ServicePath(), "not masqueraded")
    assert host.clock.now() - begun < 2.0


@on_host()
async def test_containers_one_after_another_change_the_path_once(host: SimulatedHost) -> None:
    """Each change of the rules takes the kernel thread 15 ms."""
    serving = host.kernel.observe("serve")
    for n in range(3):
        await host.add(f"c{n}", config=read_config(MASQUERADED))
        await host.clock.sleep(0.1)
        await host.delete(f"c{n}")
    assert [path for (path,) in serving.calls] == [ServicePath((), ("172.20.1.0/24",))]


@on_host()
async def test_a_lost_table_goes_on_masquerading(host: SimulatedHost) -> None:
    """Nothing shows whether the container asked for it, and without it its host ports answer nobody."""
    await host.add("c0", config=read_config(MASQUERADED))
    await host.kill()
    host.settings.database.unlink()
    await host.start()
    await host.until(lambda: bool(host.table.attachments), "found")
    await host.until(lambda: host.kernel.path.masquerade == ("172.20.1.0/24",), "masqueraded")


@in_virtual_time
async def test_each_vxnet_has_a_gateway_and_a_link_name_of_its_own(tmp_path: Path) -> None:
    vxnets = ["vxnet-pods001", "vxnet-pods002"]
    async with simulated(tmp_path, vxnet=vxnets, policy="RoundRotate", min_idle=4, max_idle=4) as host:
        await asyncio.gather(*(host.add(f"c{n}", config=CONFIG) for n in range(4)))
        assert sorted(n.vxnet_id for n in gateways(host)) == vxnets
        assert sorted(g.link_name for g in host.kernel.path.gateways) == ["hostnic", "hostnic1"]


@pytest.mark.defect("hostnic-20")
@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(attach=(5.0, 5.0))))
async def test_nobody_else_waits_while_a_gateway_is_made(host: SimulatedHost) -> None:
    """An earlier program held a lock meanwhile."""
    wants_one = asyncio.create_task(host.add("c0", config=CONFIG))
    await host.until(lambda: bool(gateways(host)), "a gateway is created")
    begun = host.clock.now()
    await host.add("c1")
    await host.delete("c1")
    assert host.clock.now() - begun < 1.0
    assert not wants_one.done()
    await wants_one


@on_host()
async def test_is_gateway_false_forbids_one(host: SimulatedHost) -> None:
    with pytest.raises(InvalidConfig, match="isGateway is false"):
        await host.add("c0", config=read_config(CONF | {"isGateway": False}))
    assert not gateways(host)
    assert host.states() == ["idle"] * 3


@pytest.mark.defect("slow-5")
@on_host()
async def test_a_restarted_agent_finds_its_gateway_again(host: SimulatedHost) -> None:
    await host.add("c0", config=CONFIG)
    (gateway,) = gateways(host)
    await host.kill()
    host.kernel.path = ServicePath()  # whatever the kernel forgot meanwhile
    await host.start()
    await host.add("c1", config=CONFIG)
    await host.until(lambda: len(host.kernel.path.gateways) == 1, "served again")
    assert [n.nic_id for n in gateways(host)] == [gateway.nic_id]


@pytest.mark.parametrize("after", [0.05, 0.5, 2.0, 3.5])
@on_host()
async def test_an_agent_killed_while_it_makes_a_gateway_has_one_in_the_end(host: SimulatedHost, after: float) -> None:
    adding = asyncio.create_task(host.add("c0", config=CONFIG))
    await host.clock.sleep(after)
    adding.cancel()
    await host.kill()
    await asyncio.gather(adding, return_exceptions=True)
    await host.start()
    await host.add("c0", config=CONFIG)
    assert len(gateways(host)) == 1
    await host.until_calm()
    assert set(host.ours_in_cloud() | _gateways_in_cloud(host)) == set(host.nics)


@pytest.mark.parametrize("refusals", [0, 2])
@on_host()
async def test_a_gateway_that_is_detached_in_the_console_is_attached_again(
    host: SimulatedHost, refusals: int
) -> None:
    """Without any ADD: containers have its address as their gateway. Refused is what the console still detaches."""
    await host.add("c0", config=CONFIG)
    (lost,) = gateways(host)
    before = host.kernel.path
    set_faults(host, *[FaultSpec("DetachNics", "refuse", nth=n + 1) for n in range(refusals)])
    host.console("DetachNics", lost.nic_id)
    await host.until(lambda: not host.kernel.path.gateways, "its link is gone")
    await host.until(lambda: host.kernel.path == before, "it serves again", seconds=25.0)
    assert gateway_address(host, "c0") == lost.address.partition("/")[0]
    await host.until_calm()
    assert set(host.ours_in_cloud() | _gateways_in_cloud(host)) == set(host.nics)


@pytest.mark.parametrize("pause", [0.0, 0.5, 10.0, 60.0])
@on_host()
async def test_a_gateway_deleted_in_the_console_is_replaced(host: SimulatedHost, pause: float) -> None:
    await host.add("c0", config=CONFIG)
    (lost,) = gateways(host)
    set_faults(host, FaultSpec("AttachNics", "refuse", times=2))  # or the agent is quicker with its remedy
    host.console("DetachNics", lost.nic_id)
    await host.until(lambda: host.console("DeleteNics", lost.nic_id)["ret_code"] == 0, "deleted")
    await host.clock.sleep(pause)
    await host.add("c1", config=CONFIG)
    await host.until(lambda: lost.nic_id not in host.nics, "forgotten")
    await host.add("c2", config=CONFIG)
    assert gateway_address(host, "c2") == gateways(host)[0].address.partition("/")[0]
    await host.until_calm()
    assert len(gateways(host)) == 1
    assert set(host.ours_in_cloud() | _gateways_in_cloud(host)) == set(host.nics)


@pytest.mark.parametrize("pause", [0.0, 0.5, 2.0, 5.0])
@on_host()
async def test_an_add_while_the_gateway_is_away_waits_for_it(host: SimulatedHost, pause: float) -> None:
    await host.add("c0", config=CONFIG)
    (lost,) = gateways(host)
    host.console("DetachNics", lost.nic_id)
    await host.clock.sleep(pause)
    await host.add("c1", config=CONFIG)
    await host.until_calm()
    assert [n.nic_id for n in gateways(host)] == [lost.nic_id]
    assert gateway_address(host, "c1") == lost.address.partition("/")[0]


@pytest.mark.parametrize("effect", ["refuse", "fail-job", "lose-reply", "silence"])
@on_host()
async def test_a_gateway_that_the_cloud_does_not_detach_goes_on_serving_until_it_does(
    host: SimulatedHost, effect: str
) -> None:
    await host.add("c0", config=CONFIG)
    await host.delete("c0")
    set_faults(host, FaultSpec("DetachNics", effect, times=3))
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "drained")
    await host.clock.sleep(1)
    assert host.kernel.path == ServicePath()
    assert not host.ours_in_cloud()
    assert not _gateways_in_cloud(host)


@pytest.mark.defect("hostnic-4")
@pytest.mark.parametrize("action", ["CreateNics", "AttachNics", "ModifyNicAttributes"])
@pytest.mark.parametrize("effect", ["refuse", "lose-reply"])
@on_host(max_nics=5, min_idle=1, max_idle=4)
async def test_a_failed_call_delays_the_gateway_and_leaks_nothing(
    host: SimulatedHost, action: str, effect: str
) -> None:
    set_faults(host, FaultSpec(action, effect))
    await host.add("c0", config=CONFIG)
    await host.until_calm()
    assert len(gateways(host)) == 1
    assert set(host.ours_in_cloud() | _gateways_in_cloud(host)) == set(host.nics)


@pytest.mark.defect("hostnic-4")
@on_host()
async def test_an_add_says_why_its_gateway_is_not_there(host: SimulatedHost) -> None:
    refusal = FaultSpec("ModifyNicAttributes", "refuse", times=1000, code=1400, message="PermissionDenied")
    set_faults(host, refusal)
    with pytest.raises(Unavailable, match=r"vxnet-pods001.*PermissionDenied"):
        await host.add("c0", config=CONFIG, seconds=30.0)
    host.check_invariants()
    set_faults(host)
    await host.add("c0", config=CONFIG, seconds=100.0)


@on_host(max_nics=10)
async def test_refused_calls_are_retried_ever_more_rarely(host: SimulatedHost) -> None:
    """Links that come and go are no reason to ask again at once: calls are scarce."""
    refusal = FaultSpec("ModifyNicAttributes", "refuse", times=1000, code=1400, message="PermissionDenied")
    set_faults(host, refusal)
    before = host.model.calls["ModifyNicAttributes"]
    adding = asyncio.create_task(host.add("c0", config=CONFIG, seconds=100.0))
    for n in range(1, 90):
        await host.add(f"c{n}")
        await host.clock.sleep(1)
        await host.delete(f"c{n}")
    assert host.model.calls["ModifyNicAttributes"] - before in range(4, 10)
    with pytest.raises(Unavailable, match="PermissionDenied"):
        await adding


@on_host()
async def test_anti_spoofing_is_off_before_the_nic_is_attached(host: SimulatedHost) -> None:
    """A NIC that the cloud is still attaching cannot be changed, though its link may be there."""
    adding = asyncio.create_task(host.add("c0", config=CONFIG))
    await host.until(lambda: [n for n in gateways(host) if n.state is NicState.ATTACHING], "attaching")
    assert host.model.state.nics[gateways(host)[0].nic_id].enable_aspoof is False
    await adding
    assert host.model.calls["ModifyNicAttributes"] == 1
    host.console("DetachNics", gateways(host)[0].nic_id)
    await host.until(lambda: not host.kernel.path.gateways, "its link is gone")
    await host.until(lambda: len(host.kernel.path.gateways) == 1, "it serves again")
    assert host.model.calls["ModifyNicAttributes"] == 1


@on_host(max_nics=3)
async def test_without_room_the_add_says_so(host: SimulatedHost) -> None:
    with pytest.raises(Unavailable, match="no room"):
        await host.add("c0", config=CONFIG, seconds=10.0)


@on_host(
    topology=replace(default_topology("sim", 1), latencies=Latencies()),
    vxnet=[replace(default_topology("sim", 1), latencies=Latencies()).hosts[0].vxnet_id],
)
async def test_the_hosts_own_nic_serves_if_its_anti_spoofing_is_off(host: SimulatedHost) -> None:
    primary = next(n for n in host.model.state.nics.values() if n.role == 1)
    host.kernel.set_address(primary.nic_id, f"{primary.private_ip}/24")
    with pytest.raises(InvalidConfig, match=f"{primary.nic_id}.*anti-spoofing"):
        await host.add("c0", config=CONFIG)
    call = {"action": "ModifyNicAttributes", "zone": "pek3a", "nic": primary.nic_id, "enable_aspoof": "0"}
    host.model.call(call)
    await host.clock.sleep(60)  # the next comparison shows it: no event does
    await host.add("c0", config=read_config(CONF | {"isGateway": False}))
    assert gateway_address(host, "c0") == primary.private_ip
    assert [(g.mac, g.link_name) for g in host.kernel.path.gateways] == [(primary.nic_id, "")]
    assert not gateways(host)


@on_host(
    topology=replace(default_topology("sim", 1), latencies=Latencies()),
    vxnet=[replace(default_topology("sim", 1), latencies=Latencies()).hosts[0].vxnet_id],
)
async def test_a_restart_during_an_outage_retains_the_path_through_the_hosts_nic(host: SimulatedHost) -> None:
    """Only the cloud knows the host's own NICs: until it answers, the kernel's path stays."""
    primary = next(n for n in host.model.state.nics.values() if n.role == 1)
    host.kernel.set_address(primary.nic_id, f"{primary.private_ip}/24")
    host.console("ModifyNicAttributes", nic=primary.nic_id, enable_aspoof="0")
    await host.kill()
    await host.start()
    await host.until(lambda: host.agent.is_cloud_compared, "compared")
    await host.add("c0", config=CONFIG)
    before = host.kernel.path
    assert before.gateways
    await host.kill()
    set_faults(host, FaultSpec("*", "refuse", times=1000))
    await host.start()
    await host.clock.sleep(120)
    assert host.kernel.path == before
    await host.add("c1")
    with pytest.raises(Unavailable, match="cloud"):
        await host.add("c2", config=CONFIG, seconds=10.0)
    set_faults(host)
    await host.add("c2", config=CONFIG)
    assert gateway_address(host, "c2") == primary.private_ip
    assert not gateways(host)


@on_host()
async def test_a_drain_releases_the_gateway_once_it_is_unused(host: SimulatedHost) -> None:
    await host.add("c0", config=CONFIG)
    host.agent.pool.drain()
    await host.until(lambda: len(host.nics) == 2, "the container's NIC and its gateway stay")
    await host.clock.sleep(60)
    assert {n.state for n in host.nics.values()} == {NicState.ASSIGNED, NicState.GATEWAY}
    await host.delete("c0")
    await host.until(lambda: not host.nics, "drained")
    await host.clock.sleep(1)
    assert host.kernel.path == ServicePath()
    assert not host.ours_in_cloud()
    assert not _gateways_in_cloud(host)
    assert len(host.kernel.links_in(HOST_PATH)) == 1


def _gateways_in_cloud(host: SimulatedHost) -> dict[str, str]:
    prefix = f"hostnic_{host.instance_id}_"
    return {n.nic_id: n.status for n in host.model.state.nics.values() if n.name.startswith(prefix)}


@pytest.mark.parametrize("is_full", [False, True])
@on_host()
async def test_former_sysctls_are_on_disk_before_they_change(host: SimulatedHost, *, is_full: bool) -> None:
    """A crash in between would else take the agent's values for the host's own, and leave them at a cleanup."""
    before = dict(host.kernel.settings)
    known: list[Mapping[str, str]] = []

    def see(path: ServicePath) -> None:
        if path.gateways:
            known.append(host.store.on_disk().settings)

    host.kernel.observe("serve", see)
    if is_full:
        gateway = asyncio.create_task(host.add("c0", config=CONFIG, seconds=60.0))
        await host.until(lambda: any(n.is_gateway for n in host.nics.values()), "it is coming")
        host.disk.obstacle = "database or disk is full"
        with pytest.raises(Unavailable):
            await gateway
        assert not known
        assert host.kernel.settings == before
        host.disk.obstacle = ""
        await host.until(lambda: not host.journal.error, "written")
    await host.add("c0", config=CONFIG)
    assert host.kernel.settings != before
    assert known
    assert all(settings == before for settings in known)


@on_host()
async def test_an_earlier_refusal_of_the_kernel_does_not_explain_a_later_wait(host: SimulatedHost) -> None:
    record = host.agent.gateways.record
    with host.kernel.fail("serve", KernelRefused("no buffer space")):
        await host.until(lambda: record.failures > 0, "refused", 60.0)
    await host.until(lambda: record.failures == 0, "checked", 120.0)
    set_faults(host, FaultSpec("AttachNics", "endless-job"))
    with pytest.raises(Unavailable, match="the cloud has not attached it yet"):
        await host.add("c0", config=CONFIG, seconds=20.0)


# --- a path that others change ---------------------------------------------------------------------------


@on_host()
async def test_what_somebody_changed_is_put_back_within_the_period_and_told(host: SimulatedHost) -> None:
    await host.add("c0", config=CONFIG)
    host.kernel.path_harms = ["nic 52:54:00:00:00:01: restore hostnic: flags NOARP instead of MULTICAST"]
    await host.clock.sleep(31)
    assert host.kernel.path_harms == []
    assert await details(host, "gateway.restored") == [
        "nic 52:54:00:00:00:01: restore hostnic: flags NOARP instead of MULTICAST"
    ]


@on_host()
async def test_what_is_an_operators_is_in_status_until_it_is_over(host: SimulatedHost) -> None:
    await host.add("c0", config=CONFIG)
    assert host.agent.gateways.fault == ""
    host.kernel.path_faults = ("hostnic: it has no carrier",)
    await host.clock.sleep(91)
    assert host.agent.gateways.fault == "hostnic: it has no carrier"
    assert status_view(host.agent, "1", 1).gateway_error == "hostnic: it has no carrier"
    host.kernel.path_faults = ()
    await host.clock.sleep(31)
    assert host.agent.gateways.fault == ""
    assert await details(host, "gateway.impaired") == ["hostnic: it has no carrier"]
    assert await details(host, "gateway.sound") == [""]


@on_host()
async def test_a_path_that_the_kernel_refuses_is_in_status(host: SimulatedHost) -> None:
    await host.add("c0", config=CONFIG)

    async def refuse(_path: ServicePath) -> None:
        raise KernelRefused("nft: start failed: not found")

    serve, host.kernel.serve = host.kernel.serve, refuse  # type: ignore[method-assign, assignment]
    await host.clock.sleep(31)
    assert status_view(host.agent, "1", 1).gateway_error == "nft: start failed: not found"
    host.kernel.serve = serve  # type: ignore[method-assign]
    await host.until(lambda: not host.agent.gateways.fault, "it works again", 120.0)


async def details(host: SimulatedHost, name: str) -> list[str]:
    await host.clock.sleep(1)
    return [event.detail for event in await host.store.events(EventFilter(10_000, name=name))]
