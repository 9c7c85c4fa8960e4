"""CHECK, GC and STATUS, every version, chains and wishes: whole requests on a virtual clock."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, on_host, set_faults, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.cni.protocol import VERSIONS, Verb
from qingcloud_cni.core.errors import (
    CannotServe,
    CheckFailed,
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    InvalidNetns,
    KernelRefused,
    Unavailable,
)
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.topology import FaultSpec, Latencies, default_topology

LIST = "cni.dev/valid-attachments"


def listed(*containers: str) -> list[dict[str, str]]:
    return [{"containerID": container, "ifname": "eth0"} for container in containers]


def containers_of(host: SimulatedHost) -> set[str]:
    return {key.container_id for key in host.table.attachments}


# --- versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@on_host()
async def test_every_version_is_answered_in_itself(host: SimulatedHost, version: str) -> None:
    result = await host.ask(Verb.ADD, "c0", cniVersion=version)
    assert result is not None
    assert result["cniVersion"] == version
    assert ("mtu" in str(result)) == (version == "1.1.0")
    assert await host.ask(Verb.ADD, "c0", cniVersion=version) == result
    for verb in (Verb.CHECK, Verb.GC, Verb.STATUS):
        more = {"prevResult": result} if verb is Verb.CHECK else {LIST: listed("c0")}
        if verb in VERSIONS[version].verbs:
            assert await host.ask(verb, "c0", cniVersion=version, **more) is None
        else:
            with pytest.raises(IncompatibleVersion, match=f"cniVersion {version} does not allow {verb}"):
                await host.ask(verb, "c0", cniVersion=version, **more)
    assert await host.ask(Verb.DEL, "c0", cniVersion=version) is None


# --- CHECK -------------------------------------------------------------------------------------------


@on_host()
async def test_check_right_after_add_is_fine_and_changes_nothing(host: SimulatedHost) -> None:
    result = await host.ask(Verb.ADD, "c0")
    await host.journal.save()
    before = (host.table.attachments[key_of("c0")], host.kernel.links_in(netns_of("c0")))
    await host.ask(Verb.CHECK, "c0", prevResult=result)
    assert (host.table.attachments[key_of("c0")], host.kernel.links_in(netns_of("c0"))) == before
    assert not host.table.take_changes()


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "down": ({"is_up": False}, "interface eth0 is down"),
    "renamed": ({"name": "net9"}, "interface eth0 is missing"),
    "mac": ({"mac": "52:54:00:ff:ff:ff"}, "has MAC 52:54:00:ff:ff:ff instead of"),
    "address": ({"address": "10.0.0.1/8"}, "address 172.20."),
    "routes": ({"routes": ()}, "route to 0.0.0.0/0 via"),
}


@pytest.mark.parametrize("change", CHANGES)
@in_virtual_time
async def test_check_names_what_a_container_changed(tmp_path: Path, change: str) -> None:
    fields, says = CHANGES[change]
    async with simulated(tmp_path) as host:
        result = await host.ask(Verb.ADD, "c0")
        host.kernel.change(netns_of("c0"), "eth0", **fields)
        with pytest.raises(CheckFailed, match="attachment net/c0/eth0: ") as failure:
            await host.ask(Verb.CHECK, "c0", prevResult=result)
        assert says in str(failure.value)
        host.check_invariants()


@on_host()
async def test_check_fails_without_an_attachment_and_without_a_previous_result(
    host: SimulatedHost,
) -> None:
    result = await host.ask(Verb.ADD, "c0")
    with pytest.raises(InvalidConfig, match="CHECK of net/c0/eth0: prevResult, the result of its ADD"):
        await host.ask(Verb.CHECK, "c0")
    with pytest.raises(InvalidEnvironment, match="CNI_NETNS is missing"):
        await host.ask(Verb.CHECK, "c0", netns="", prevResult=result)
    with pytest.raises(InvalidNetns):
        await host.ask(Verb.CHECK, "c0", netns="/run/netns/none", prevResult=result)
    host.kernel.make_netns(netns_of("c1"))
    with pytest.raises(CheckFailed, match="is not the namespace of its ADD"):
        await host.ask(Verb.CHECK, "c0", netns=netns_of("c1"), prevResult=result)
    with pytest.raises(CheckFailed, match="the agent has no such attachment"):
        await host.ask(Verb.CHECK, "c1", prevResult=result)
    await host.ask(Verb.DEL, "c0")
    with pytest.raises(CheckFailed, match="the agent has no such attachment"):
        await host.ask(Verb.CHECK, "c0", prevResult=result)


# --- GC ----------------------------------------------------------------------------------------------


@on_host(min_idle=4)
async def test_gc_releases_unlisted_dead_attachments_and_no_living_ones(host: SimulatedHost) -> None:
    for container in ("listed", "dead", "alive"):
        await host.ask(Verb.ADD, container)
    await host.ask(Verb.ADD, "dead-elsewhere", name="other")
    for container in ("dead", "dead-elsewhere"):
        host.kernel.kill_netns(netns_of(container))
    await host.ask(Verb.GC, "", {LIST: listed("listed")})
    assert containers_of(host) == {"listed", "alive", "dead-elsewhere"}
    kept = await host.journal.events(EventFilter(50, name="attachment.kept"))
    assert [(event.subject, event.detail.split(",")[0]) for event in kept] == [
        ("net/alive/eth0", "a GC did not list it")
    ]


@pytest.mark.parametrize("key", [LIST, "cni.dev/attachments"])
@pytest.mark.parametrize("nothing", [None, []])
@on_host()
async def test_gc_of_an_empty_list_frees_all_that_is_gone_in_its_network(
    host: SimulatedHost, key: str, nothing: list[object] | None
) -> None:
    for container in ("c0", "c1"):
        await host.ask(Verb.ADD, container)
    host.kernel.kill_netns(netns_of("c0"))
    await host.ask(Verb.GC, "", {key: nothing})
    assert containers_of(host) == {"c1"}


@on_host()
async def test_gc_without_a_list_and_one_that_is_switched_off_free_nothing(host: SimulatedHost) -> None:
    await host.ask(Verb.ADD, "c0")
    host.kernel.kill_netns(netns_of("c0"))
    await host.ask(Verb.GC, "")
    await host.ask(Verb.GC, "", {LIST: None}, args={"DisableGC": True})
    await host.ask(Verb.GC, "", args={"DisableGC": True})
    assert containers_of(host) == {"c0"}


@pytest.mark.cni(70)
@on_host()
async def test_gc_continues_after_a_failure_and_reports_it_at_the_end(host: SimulatedHost) -> None:
    for container in ("c0", "c1", "c2"):
        await host.ask(Verb.ADD, container)
        host.kernel.kill_netns(netns_of(container))
    nic_id = host.table.attachments[key_of("c1")].nic_id
    host.kernel.fail("is_gone", KernelRefused("netns /run/netns/c1: open: too many open files"), nic_id=nic_id)
    with pytest.raises(KernelRefused, match="GC of net: 1 of 3 unlisted attachments not released: ") as failure:
        await host.ask(Verb.GC, "", {LIST: []})
    assert "net/c1/eth0: netns /run/netns/c1: open: too many open files" in str(failure.value)
    assert containers_of(host) == {"c1"}


@on_host()
async def test_gc_stops_at_its_deadline_and_reports_the_remainder(host: SimulatedHost) -> None:
    for container in ("c0", "c1", "c2"):
        await host.ask(Verb.ADD, container)
    host.kernel.delay("is_gone", 6.0)
    with pytest.raises(Unavailable, match="GC of net: 1 of 3 unlisted attachments not checked within 9 s"):
        await host.ask(Verb.GC, "", {LIST: []}, timeout=10.0)
    assert containers_of(host) == {"c0", "c1", "c2"}


@on_host()
async def test_gc_skips_attachments_with_a_request_under_way(host: SimulatedHost) -> None:
    add = asyncio.create_task(host.ask(Verb.ADD, "c0"))
    await host.until(lambda: containers_of(host) == {"c0"}, "the ADD under way", 5.0)
    await host.ask(Verb.GC, "", {LIST: []})
    assert (await add or {})["ips"]
    assert containers_of(host) == {"c0"}


# --- STATUS ------------------------------------------------------------------------------------------


@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(call=(0.2, 0.2))), is_warm=False)
async def test_status_fails_until_the_agent_is_initialised_and_not_after(host: SimulatedHost) -> None:
    assert not host.agent.is_initialised
    with pytest.raises(CannotServe, match="the agent is not ready yet"):
        await host.ask(Verb.STATUS, "")
    await host.until(lambda: host.agent.is_initialised, "initialised")
    await host.ask(Verb.STATUS, "")


@pytest.mark.parametrize("trouble", ["empty pool", "quota", "silent cloud", "draining"])
@on_host(max_nics=3)
async def test_status_is_fine_whatever_the_pool_and_the_cloud_are(host: SimulatedHost, trouble: str) -> None:
    match trouble:
        case "quota":
            set_faults(host, FaultSpec("CreateNics", "nic-quota", times=100_000))
        case "silent cloud":
            set_faults(host, FaultSpec("*", "silence", times=100_000))
        case "draining":
            host.agent.pool.drain()
    if trouble != "draining":
        for n in range(3):
            await host.ask(Verb.ADD, f"c{n}")
        assert "idle" not in host.states()
    await host.ask(Verb.STATUS, "")
    await host.clock.sleep(60)
    await host.ask(Verb.STATUS, "")


# --- chains and wishes -------------------------------------------------------------------------------

PREVIOUS = {
    "cniVersion": "0.4.0",
    "interfaces": [{"name": "lo0", "sandbox": "/run/netns/c0"}],
    "ips": [{"version": "4", "interface": 0, "address": "10.1.0.2/24"}],
    "routes": [{"dst": "10.2.0.0/16", "gw": "10.1.0.1"}],
    "dns": {"nameservers": ["10.1.0.9"]},
}


@on_host()
async def test_a_result_of_plugins_before_us_is_extended(host: SimulatedHost) -> None:
    result: dict[str, Any] = await host.ask(Verb.ADD, "c0", prevResult=PREVIOUS, dns={"domain": "x"}) or {}
    own = host.table.attachments[key_of("c0")]
    assert [i["name"] for i in result["interfaces"]] == ["lo0", "eth0"]
    assert result["ips"][0] == {"interface": 0, "address": "10.1.0.2/24"}
    assert (result["ips"][1]["interface"], result["ips"][1]["address"]) == (1, host.nics[own.nic_id].address)
    assert result["routes"][0] == {"dst": "10.2.0.0/16", "gw": "10.1.0.1"}
    assert result["routes"][1]["dst"] == "0.0.0.0/0"
    assert result["dns"] == {"nameservers": ["10.1.0.9"], "domain": "x"}
    await host.ask(Verb.CHECK, "c0", prevResult=result)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"prevResult": PREVIOUS | {"interfaces": [{"name": "eth0"}]}}, "prevResult has an interface eth0 already"),
        ({"prevResult": PREVIOUS, "cniVersion": "0.2.0"}, "cniVersion 0.2.0 holds one address of each family"),
        ({"prevResult": PREVIOUS | {"cniVersion": "9"}}, "prevResult.cniVersion '9' is not supported"),
        ({"prevResult": PREVIOUS | {"interfaces": []}}, r"prevResult.ips\[0\].interface 0 is beyond"),
        ({"runtimeConfig": {"ips": ["172.20.1.250"]}}, "address 172.20.1.250 .*: no idle NIC of this host has it"),
        ({"runtimeConfig": {"mac": "52:54:00:ff:ff:ff"}}, "MAC 52:54:00:ff:ff:ff .*: no idle NIC of this host"),
    ],
)  # fmt: skip
@on_host()
async def test_an_unavailable_address_is_rejected_and_no_nic_assigned(
    host: SimulatedHost, keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidConfig, match=says):
        await host.ask(Verb.ADD, "c0", **keys)
    assert host.states() == ["idle"] * 3
    assert not host.kernel.links_in(netns_of("c0"))


@on_host(min_idle=1, max_nics=1, cooldown=0)
async def test_an_add_that_requests_the_nic_of_the_del_before_waits_for_it(
    host: SimulatedHost,
) -> None:
    """`podman network reload` does this."""
    (nic,) = host.nics.values()
    await host.ask(Verb.ADD, "c0")
    await host.ask(Verb.DEL, "c0")
    assert host.states() == ["cooling"]
    result = await host.ask(Verb.ADD, "c0", cni_args=f"IP={nic.address};MAC={nic.nic_id}")
    assert (result or {})["ips"][0]["address"] == nic.address
    with pytest.raises(InvalidConfig, match="no idle NIC of this host has it"):
        await host.ask(Verb.ADD, "c1", runtimeConfig={"mac": nic.nic_id})


@on_host(max_nics=3)
async def test_an_add_that_requests_an_address_or_mac_gets_that_idle_nic(host: SimulatedHost) -> None:
    first, second, third = host.nics.values()
    by_mac = await host.ask(Verb.ADD, "c0", runtimeConfig={"mac": third.nic_id.upper()})
    by_address = await host.ask(Verb.ADD, "c1", args={"cni": {"ips": [second.address.partition("/")[0]]}})
    by_args = await host.ask(Verb.ADD, "c2", cni_args=f"IP={first.address};MAC={first.nic_id}")
    for result, nic in ((by_mac, third), (by_address, second), (by_args, first)):
        assert (result or {})["ips"][0]["address"] == nic.address
    with pytest.raises(InvalidConfig, match="no idle NIC of this host has it"):
        await host.ask(Verb.ADD, "c3", runtimeConfig={"ips": [first.address]})
    again = await host.ask(Verb.ADD, "c0", runtimeConfig={"mac": third.nic_id})
    assert again == by_mac
