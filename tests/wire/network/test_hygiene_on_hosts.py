"""Addresses on the wire: announced to neighbours, their flows removed, duplicates found and quarantined."""

import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from machines.agents import open_files
from machines.containers import Container, address_of
from machines.flows import addresses, send_syn, send_udp, track
from machines.hosts import Host, NewHost
from machines.simulator import Sim, eventually, links, needs_root, run
from qingcloud_cni.kernel.neighbours.probes import PROBES
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root
HOSTS = 12

STALE = "02:00:00:00:00:99"
ETH_P_ALL = 0x0003
FIVE = {"min_idle": 5, "max_idle": 5, "max_nics": 5}
ONE = {"min_idle": 1, "max_idle": 1, "max_nics": 1}


def bare(nic: dict[str, str]) -> str:
    """Its address without the prefix length."""
    return nic["address"].partition("/")[0]


def neighbour(container: Container, address: str) -> str:
    rows = container.ip("neighbour", "show", address, "dev", "eth0")
    return str(rows[0].get("lladdr")) if rows else ""


def is_dark(host: Host) -> bool:
    """Whether every parked link is down."""
    return not any("UP" in link["flags"] for link in links(host.parking.name).values() if link["ifname"] != "lo")


# --- neighbours ----------------------------------------------------------------------------------------


@pytest.mark.defect("others-21")
def test_a_neighbour_on_another_host_that_remembers_another_mac_learns_the_right_one(new_host: NewHost) -> None:
    """Though a bridge's port drops what the kernel says first, and nobody asks."""
    here, there = new_host(), new_host()
    here.start(duplicate_probe="false", **ONE)  # the port of a NIC that is being probed forwards already
    there.start(**ONE)
    (nic,) = here.nics("idle")
    far = there.container()
    there.add(far)
    run("ip", "-n", far.name, *f"neighbour replace {bare(nic)} lladdr {STALE} dev eth0 nud reachable".split())
    here.add(here.container())
    eventually(lambda: neighbour(far, bare(nic)) == nic["nic_id"], "the neighbour knows the new MAC")


def test_nothing_of_a_container_is_held_open_for_its_announcements(new_host: NewHost) -> None:
    """However soon it ends: its namespace goes with its last link, which shows by the other end of a pair."""
    host = new_host()
    host.start(duplicate_probe="false", **ONE)
    before, outside = sockets(host), host.container()
    for _ in range(3):
        container = host.container()
        host.add(container)
        pair = f"link add inner type veth peer name outer netns {outside.name}"
        run("ip", "-n", container.name, *pair.split())
        host.delete(container)
        container.delete()
        eventually(lambda: "outer" not in outside.names, "the namespace is gone")
    eventually(lambda: sockets(host) <= before, "no socket is left")


# --- flows ---------------------------------------------------------------------------------------------


@pytest.mark.defect("others-19")
@pytest.mark.parametrize("end", ["DEL", "orphan", "restart"])
def test_the_host_forgets_the_flows_of_a_released_address(new_host: NewHost, end: str) -> None:
    """Half-open connections and datagrams of its own toward the container; those of others stay."""
    host = new_host()
    host.start(min_idle=2, max_idle=2, max_nics=2, cooldown="1h")
    track(host.netns)
    first, second = host.container(), host.container()
    gone, kept = address_of(host.add(first)), address_of(host.add(second))
    for container in (first, second):
        run("ip", "-n", container.name, *["link", "set", "eth0", "down"])  # nobody answers
    with send_syn(host.netns, gone), send_syn(host.netns, kept):
        for address in (gone, kept):
            send_udp(host.netns, address)
        assert {gone, kept} <= addresses(host.netns)
    # The sockets are closed: an open one repeats its SYN, which begins the flow again after the agent deleted it.
    if end == "DEL":
        host.delete(first)
    elif end == "orphan":
        first.delete()
    else:
        host.agent.kill()
        first.delete()
        host.start(idle=0, min_idle=2, max_idle=2, max_nics=2, cooldown="1h")
    eventually(lambda: host.nics("cooling"), "the address rests", seconds=60.0)
    eventually(lambda: gone not in addresses(host.netns), "the flows are forgotten")
    assert kept in addresses(host.netns)
    host.delete(second)


# --- duplicates ----------------------------------------------------------------------------------------


def claim(sim: Sim, container: Container, address: str) -> str:
    """Have a container use an address that is not its own; its MAC. The cloud has to be told not to mind."""
    nic_id = str(container.link()["address"])
    sim.call("ModifyNicAttributes", nic=nic_id, enable_aspoof=0)
    run("ip", "-n", container.name, "address", "add", f"{address}/24", "dev", "eth0")
    return nic_id


def test_a_nic_whose_address_somebody_uses_is_quarantined_until_nobody_does(new_host: NewHost, sim: Sim) -> None:
    """It is counted and shown, replaced, and not used; probes pass the cloud's anti-spoofing."""
    here, there = new_host(), new_host()
    settings = {"min_idle": 1, "max_idle": 1, "max_nics": 2}
    here.start(**settings)
    there.start(**ONE)
    far = there.container()
    there.add(far)
    (nic,) = here.nics("idle")
    robber = claim(sim, far, bare(nic))
    container = here.container()
    here.add(container)
    here.delete(container)

    eventually(lambda: here.nics("quarantined"), "the NIC is quarantined")
    (found,) = here.nics("quarantined")
    assert (found["nic_id"], found["claimant"]) == (nic["nic_id"], robber)
    assert f"address used by {robber}" in here.qingagent("nics").stdout
    assert "1 quarantined" in here.qingagent("status").stdout
    assert gauge(here, "quarantined") == 1
    (event,) = here.agent.events("nic.quarantined")
    assert event["detail"] == f"{bare(nic)} is used by {robber}"

    here.wait_idle(1)  # another one in its place
    container = here.container()
    assert address_of(here.add(container)) != bare(nic)
    here.delete(container)

    run("ip", "-n", far.name, "address", "del", f"{bare(nic)}/24", "dev", "eth0")
    here.agent.stop()
    here.start(idle=0, **settings)  # a start probes at once
    eventually(lambda: nic["nic_id"] in {n["nic_id"] for n in here.nics("idle")}, "the NIC is back")
    eventually(lambda: is_dark(here), "its link is down again")


def test_without_the_probe_a_nic_is_idle_although_its_address_is_used(new_host: NewHost, sim: Sim) -> None:
    here, there = new_host(), new_host()
    here.start(duplicate_probe="false", **ONE)
    there.start(**ONE)
    far = there.container()
    there.add(far)
    (nic,) = here.nics("idle")
    claim(sim, far, bare(nic))
    container = here.container()
    here.add(container)
    here.delete(container)
    here.wait_idle(1)
    assert not here.agent.events("nic.quarantined")
    assert is_dark(here)


def gauge(host: Host, state: str) -> float:
    text = host.metrics()
    (family,) = (f for f in text_string_to_metric_families(text) if f.name == "qingagent_nics")
    return next(float(s.value) for s in family.samples if s.labels["state"] == state)


def test_every_nic_is_probed_as_it_enters_the_pool_and_nothing_is_left_of_it(new_host: NewHost, sim: Sim) -> None:
    """Neither a link that is up nor a socket, even if the agent is stopped or killed meanwhile."""
    host = new_host()
    with inside(Path(sim.info["namespaces"]["router"]).name, all_frames) as ear:
        host.start(**FIVE)
        eventually(lambda: packet_sockets(host) == 1, "it listens for answers")
        probed = await_probes(host, ear)
        eventually(lambda: not packet_sockets(host), "it listens no more")
        host.agent.stop()
        assert is_dark(host)
        for _ in range(2):
            host.start(**FIVE)
            eventually(lambda: not is_dark(host), "it probes again")
            host.agent.kill()
        host.start(**FIVE)
        await_probes(host, ear)
        eventually(lambda: not packet_sockets(host), "it listens no more, either")
    assert {nic["nic_id"] for nic in host.nics("idle")} == probed
    assert not host.agent.events("nic.probe-failed")


def all_frames() -> socket.socket:
    ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    ear.setblocking(False)
    return ear


def await_probes(host: Host, ear: socket.socket) -> set[str]:
    """Hear three probes of each of the host's NICs, and see the last of it; the NICs."""
    heard: Counter[str] = Counter()

    def are_all_heard() -> bool:
        with suppress(BlockingIOError):
            while True:
                frame = ear.recv(128)
                if frame[12:14] == b"\x08\x06" and frame[28:32] == bytes(4):
                    heard[frame[6:12].hex(":")] += 1
        return all(heard[nic["nic_id"]] >= PROBES for nic in host.nics())

    eventually(are_all_heard, "all NICs are probed")
    eventually(lambda: is_dark(host), "the probes are over")
    return {nic_id for nic_id, count in heard.items() if count >= PROBES}


def packet_sockets(host: Host) -> int:
    """Open in the parking namespace."""
    listed = run("ip", "netns", "exec", host.parking.name, "cat", "/proc/net/packet")
    return len(listed.stdout.splitlines()) - 1


def sockets(host: Host) -> int:
    return open_files(host.agent.pid)["socket"]
