"""Containers of a real podman with its CNI backend on two hosts, with NICs of the agents.

podman is the one installed, configured as `examples/podman` says. Each test begins and ends without containers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from machines.agents import attached_address
from machines.machine import EXAMPLES, Before, Machine, left_as_found
from machines.simulator import eventually, needs_root
from pages import page, table
from runtimes.podman import IMAGE, Container, Podman

pytestmark = [needs_root, pytest.mark.timeout(300)]

NETWORK = EXAMPLES / "podman" / "mynet.conflist"
IDLE = 3
POOL = {"min_idle": IDLE, "max_idle": IDLE, "max_nics": IDLE}


@dataclass(frozen=True)
class Hosts:
    podmans: tuple[Podman, ...]
    before: Before


@pytest.fixture(scope="module")
def hosts(machines: tuple[Machine, ...]) -> Hosts:
    """Two of them, ready for containers."""
    podmans = tuple(Podman(machine) for machine in machines)
    for podman in podmans:
        podman.install()
    before = Before.of(machines)
    for machine in machines:
        machine.start(**POOL)
    return Hosts(podmans, before)


@pytest.fixture
def podmans(hosts: Hosts) -> Iterator[tuple[Podman, ...]]:
    with left_as_found(hosts.podmans, IDLE):
        yield hosts.podmans


@pytest.fixture
def podman(podmans: tuple[Podman, ...]) -> Podman:
    return podmans[0]


@pytest.fixture
def second(podman: Podman) -> Iterator[str]:
    """A network besides the example's."""
    file = podman.machine.root / "etc/cni/net.d/second.conflist"
    file.write_text(json.dumps(json.loads(NETWORK.read_text()) | {"name": "second"}))
    yield "second"
    podman.end_all()
    file.unlink(missing_ok=True)


@contextmanager
def version_of(podman: Podman, version: str) -> Iterator[None]:
    """The example's network in this version of CNI."""
    file = podman.machine.root / "etc/cni/net.d/mynet.conflist"
    file.write_text(json.dumps(json.loads(NETWORK.read_text()) | {"cniVersion": version}))
    try:
        yield
    finally:
        podman.end_all()
        file.write_bytes(NETWORK.read_bytes())


def attachments(container: Container) -> dict[str, dict[str, Any]]:
    """A container's attachments, as the agent shows them, by network."""
    known = container.podman.machine.attachments()
    return {a["network"]: a for a in known if a["container_id"] == container.container_id}


def test_the_page_of_runtimes_names_this_version(podman: Podman) -> None:
    version, backend = podman("info", "--format={{.Version.Version}} {{.Host.NetworkBackend}}").split()
    assert backend == "cni"
    (row,) = [cells for cells in table(page("docs/runtimes.md"), "Runtime", "Proven") if cells[0] == "podman"]
    assert row[1].startswith(f"{version}, ")


def test_a_container_has_the_address_its_nic_has_in_the_cloud(podman: Podman) -> None:
    container = podman.run("web")
    (known,) = attachments(container).values()
    nic = podman.machine.cloud_nics()[known["nic_id"]]
    shown = container.networks()["mynet"]
    assert shown["IPAddress"] == nic["private_ip"] == attached_address(known)
    assert shown["MacAddress"] == nic["nic_id"]
    assert container.addresses() == {"eth0": known["address"]}
    assert known["netns"] == container.inspect()["NetworkSettings"]["SandboxKey"]


def test_containers_on_two_hosts_reach_each_other(podmans: tuple[Podman, ...]) -> None:
    may_ping = ("--cap-add=NET_RAW",)
    one, other = (podman.run(f"peer-{podman.machine.name}", flags=may_ping) for podman in podmans)
    addresses = [attached_address(attachments(container)["mynet"]) for container in (one, other)]
    assert len(set(addresses)) == 2
    assert one.reaches(addresses[1])
    assert other.reaches(addresses[0])


def test_the_containers_name_reaches_the_agent(podman: Podman) -> None:
    container = podman.run("by-its-name")
    assert attachments(container)["mynet"]["pod"]["name"] == "by-its-name"
    assert "by-its-name" in podman.machine.qingagent("attachments").stdout


def test_a_container_has_a_nic_while_it_runs(podman: Podman) -> None:
    container = podman.run("web")
    podman("stop", "--time=5", "web")
    assert podman.machine.attachments() == []
    podman("start", "web")
    assert container.addresses() == {"eth0": attachments(container)["mynet"]["address"]}
    podman("restart", "--time=5", "web")
    assert container.addresses() == {"eth0": attachments(container)["mynet"]["address"]}
    podman("rm", "--force", "--time=0", "web")
    assert podman.machine.attachments() == []


def test_a_container_that_ends_by_itself_gives_its_nic_back(podman: Podman) -> None:
    container = podman.run("web")
    podman.machine.run("kill", "-KILL", str(container.inspect()["State"]["Pid"]))
    eventually(lambda: not podman.machine.attachments(), "podman cleans up after its container")


def test_a_container_in_two_networks_has_a_nic_of_each(podman: Podman, second: str) -> None:
    container = podman.run("both", "mynet", second)
    known = attachments(container)
    assert sorted(a["ifname"] for a in known.values()) == ["eth0", "eth1"]
    assert container.addresses() == {a["ifname"]: a["address"] for a in known.values()}
    shown = container.networks()
    assert {name: shown[name]["IPAddress"] for name in known} == {
        name: attached_address(a) for name, a in known.items()
    }
    # podman adds networks in no fixed order, and the first one's NIC gets the default route.
    (default,) = [line for line in container.exec("ip", "route").splitlines() if line.startswith("default ")]
    (expected,) = [f"default via {route['gw']} dev {a['ifname']}" for a in known.values() for route in a["routes"]]
    assert f"{default} ".startswith(f"{expected} ")


def test_interfaces_are_named_as_the_operator_wants(podman: Podman, second: str) -> None:
    container = podman.run("both", "mynet:interface_name=data0", f"{second}:interface_name=eth0")
    known = attachments(container)
    assert {name: a["ifname"] for name, a in known.items()} == {"mynet": "data0", second: "eth0"}
    assert container.addresses() == {a["ifname"]: a["address"] for a in known.values()}


def test_a_running_container_joins_and_leaves_networks(podman: Podman, second: str) -> None:
    container = podman.run("web")
    podman("network", "connect", second, "web")
    assert container.addresses() == {a["ifname"]: a["address"] for a in attachments(container).values()}
    podman("network", "disconnect", "mynet", "web")
    assert list(attachments(container)) == [second]
    assert list(container.addresses()) == ["eth1"]
    podman("network", "connect", "mynet", "web")
    assert container.addresses() == {a["ifname"]: a["address"] for a in attachments(container).values()}
    podman("network", "reload", "web")
    assert container.addresses() == {a["ifname"]: a["address"] for a in attachments(container).values()}


def test_podman_reads_our_network(podman: Podman) -> None:
    assert "mynet" in podman("network", "ls", "--format={{.Name}}").splitlines()
    (network,) = podman.json("network", "inspect", "mynet")
    assert (network["name"], network["driver"]) == ("mynet", "qingcni")
    assert podman.call("network", "exists", "mynet").returncode == 0


def test_an_address_is_given_if_a_nic_has_it_and_refused_if_none_has(podman: Podman) -> None:
    wanted = str(podman.machine.nics("idle")[-1]["address"])
    container = podman.run("web", flags=[f"--ip={wanted.partition('/')[0]}"])
    assert container.addresses() == {"eth0": wanted}
    refused = podman.call("run", "--name=other", *podman.options(), "--ip=172.20.1.200", IMAGE, check=False)
    assert refused.returncode != 0
    assert "address 172.20.1.200" in refused.stderr
    assert [a["container_id"] for a in podman.machine.attachments()] == [container.container_id]


def test_without_the_agent_no_container_starts_and_those_that_end_give_their_nics_back_later(podman: Podman) -> None:
    podman.run("web")
    podman.machine.agent.kill()
    refused = podman.call("run", "--name=late", *podman.options(), IMAGE, check=False)
    assert refused.returncode != 0
    assert "agent.sock: connect failed: connection refused; is qingagent running?" in refused.stderr
    podman("rm", "--force", "--time=0", "web")
    podman.machine.start(idle=0, **POOL)
    eventually(lambda: not podman.machine.attachments(), "the release that was left for the agent")


@pytest.mark.cni(47)
def test_a_container_whose_namespace_vanished_is_removed_and_gives_its_nic_back(podman: Podman) -> None:
    container = podman.run("web")
    details = container.inspect()
    podman.machine.run("umount", "--lazy", details["NetworkSettings"]["SandboxKey"])  # a survey may have it open
    podman.machine.run("rm", "--force", details["NetworkSettings"]["SandboxKey"])
    podman.machine.run("kill", "-KILL", str(details["State"]["Pid"]))
    podman("rm", "--force", "--time=0", "web")
    eventually(lambda: not podman.machine.attachments(), "its NIC is released")


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_containers_are_the_same_in_every_version_that_podman_speaks(podman: Podman, version: str) -> None:
    with version_of(podman, version):
        container = podman.run("web")
        assert container.networks()["mynet"]["IPAddress"] == attached_address(attachments(container)["mynet"])
        podman("rm", "--force", "--time=0", "web")
        assert podman.machine.attachments() == []


def test_in_older_versions_podman_knows_no_address_and_the_container_has_it(podman: Podman) -> None:
    with version_of(podman, "0.2.0"):
        container = podman.run("web")
        assert container.networks()["mynet"]["IPAddress"] == ""
        assert container.addresses() == {"eth0": attachments(container)["mynet"]["address"]}


def test_afterwards_hosts_and_cloud_are_as_they_were_before(hosts: Hosts) -> None:
    assert hosts.before.is_again()
