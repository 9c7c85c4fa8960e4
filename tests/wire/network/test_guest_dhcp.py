"""Hosts whose own DHCP client configures every NIC it sees: pool, containers and host come through."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from machines.containers import address_of, new_namespace
from machines.hosts import Host, hosts_of
from machines.simulator import Sim, eventually, links, needs_root, run, running_sim

pytestmark = needs_root

PODS = "vxnet-pods001"
BURST = 12


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--guest-dhcp", "--seed", "11", "--hosts", "6") as running:
        yield running


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """Its DHCP clients are as quick as the agent: some leases come before a NIC is taken away, some after."""
    topology = tmp_path_factory.mktemp("quick") / "topology.yaml"
    topology.write_text("latencies: {dhcp: 0ms..60ms}\n")
    with running_sim("--guest-dhcp", "--seed", "12", "--topology", str(topology), "--hosts", "3") as running:
        yield running


@pytest.fixture
def raced(quick: Sim, quick_names: Iterator[str], plugin_file: Path, tmp_path: Path) -> Iterator[Host]:
    """A host with such a client."""
    leases = quick.status()["leases"]
    with hosts_of(quick, quick_names, tmp_path, plugin_file) as take:
        yield take()
        assert quick.status()["leases"] > leases, "the agent was never raced"


@pytest.fixture(scope="module")
def quick_names(quick: Sim) -> Iterator[str]:
    return iter(quick.info["namespaces"]["hosts"])


def ip(netns: str, *words: str) -> list[dict[str, Any]]:
    return [row for row in json.loads(run("ip", "-n", netns, "-j", *words).stdout or "[]") if row]


def addresses(netns: str) -> dict[str, list[str]]:
    """IPv4 addresses by MAC."""
    return {
        row["address"]: [a["local"] for a in row["addr_info"] if a["family"] == "inet"]
        for row in ip(netns, "addr", "show")
    }


def routes(netns: str) -> list[tuple[str, str]]:
    return [(row["dst"], row["dev"]) for row in ip(netns, "route", "show", "table", "all") if "dev" in row]


def own_state(netns: str) -> tuple[object, ...]:
    """All a host has of links, addresses, routes (of every table) and rules, without what counts down."""
    tables = [ip(netns, *words.split()) for words in ("-4 route show table all", "rule show", "-6 rule show")]
    return sorted(links(netns)), addresses(netns), tables


def leased(netns: str, nic: dict[str, str]) -> bool:
    name = links(netns).get(nic["nic_id"], {}).get("ifname")
    return addresses(netns).get(nic["nic_id"]) == [nic["private_ip"]] and ("default", name) in routes(netns)


# --- what the simulator does -------------------------------------------------------------------------


def test_an_arriving_and_a_returning_nic_get_address_connected_and_default_route(sim: Sim) -> None:
    host = sim.netns("host1")
    before = own_state(host)
    (nic,) = sim.new_nics("host1", PODS)
    eventually(lambda: leased(host, nic), "a lease for the new NIC")
    assert routes(host)[:2] == [("default", "eth1"), ("default", "eth0")], "it stands before the primary's"
    assert ("172.20.1.0/24", "eth1") in routes(host)
    with new_namespace() as pod:
        run("ip", "-n", host, "link", "set", "eth1", "netns", pod)
        assert own_state(host) == before, "what was leased goes with the link"
    eventually(lambda: nic["nic_id"] in links(host), "the NIC back on its host")
    eventually(lambda: leased(host, nic), "a lease for the NIC that returned down")
    assert "UP" in links(host)[nic["nic_id"]]["flags"]
    sim.remove_nics(nic["nic_id"])
    assert own_state(host) == before


def test_a_nic_that_has_left_gets_nothing_and_its_name_nothing_either(sim: Sim) -> None:
    """Leases of NICs that were taken away at once come to nobody, not even to the one that has their name now."""
    host = sim.netns("host2")
    nics = sim.new_nics("host2", PODS, count=6)
    with new_namespace() as pod:
        names = [links(host)[nic["nic_id"]]["ifname"] for nic in nics]
        run("ip", "-n", host, "-batch", "-", input="".join(f"link set {name} netns {pod}\n" for name in names))
        (other,) = sim.new_nics("host2", PODS)
        eventually(lambda: leased(host, other), "a lease for the one that stays")
        run("sleep", "0.6")
        assert links(host)[other["nic_id"]]["ifname"] in names
        assert addresses(host)[other["nic_id"]] == [other["private_ip"]]
        assert set(map(len, addresses(pod).values())) == {0}
        sim.remove_nics(*(nic["nic_id"] for nic in (*nics, other)))


# --- what the agent makes of it ----------------------------------------------------------------------


def parked(host: Host) -> dict[str, list[str]]:
    return addresses(host.parking.name)


def settle(host: Host, before: tuple[object, ...]) -> None:
    """The host is as it was before the agent came, and stays so although the last leases come late."""
    eventually(lambda: own_state(host.netns) == before, "the host as it was")
    last = [nic for nic in host.nics() if nic["state"] == "idle"]
    run("sleep", "0.6")
    assert own_state(host.netns) == before
    assert {nic["nic_id"]: [] for nic in last}.items() <= parked(host).items()


@pytest.mark.defect("others-8")
def test_a_burst_of_adds_leaves_pool_containers_and_host_clean(raced: Host) -> None:
    """Parked NICs have no address, containers exactly theirs; the host has its own routes and rules and no others."""
    host = raced
    before = own_state(host.netns)
    host.start(min_idle=3, max_idle=BURST + 3)
    containers = [host.container() for _ in range(BURST)]
    with ThreadPoolExecutor(BURST) as pool:
        results = list(pool.map(host.add, containers))
    for container, result in zip(containers, results, strict=True):
        inet = [a["local"] for a in container.link()["addr_info"] if a["family"] == "inet"]
        assert inet == [address_of(result)]
        assert container.routes() == {"default": "172.20.1.1"}
        assert len(container.ip("-4", "route", "show", "table", "main")) == 2
    assert containers[0].reaches(address_of(results[-1]))
    assert containers[-1].reaches(host.address)
    host.wait_idle(3)
    settle(host, before)
    assert all(not found for mac, found in parked(host).items() if mac.startswith("52:54"))


def test_nics_of_containers_that_died_come_back_clean(raced: Host) -> None:
    """They return to the host down, the DHCP client takes them up, and the agent parks them all the same."""
    host = raced
    before = own_state(host.netns)
    host.start(min_idle=2, max_idle=8)
    containers = [host.container() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(host.add, containers))
    for container in containers:
        container.delete()
    eventually(lambda: not host.attachments(), "attachments released", 60)
    host.wait_idle(6)
    settle(host, before)
    again = host.container()
    address = address_of(host.add(again))
    assert [a["local"] for a in again.link()["addr_info"] if a["family"] == "inet"] == [address]
    assert again.reaches("172.20.1.1")


def test_dels_and_the_end_of_the_agent_leave_the_host_clean(raced: Host) -> None:
    host = raced
    before = own_state(host.netns)
    agent = host.start(min_idle=2, max_idle=4)
    containers = [host.container() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(host.add, containers))
        list(pool.map(host.delete, containers))
    settle(host, before)
    agent.stop()
    host.start(min_idle=2, max_idle=4)
    settle(host, before)
