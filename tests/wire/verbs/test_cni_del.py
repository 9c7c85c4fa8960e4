"""DEL in every condition in which runtimes send it: it succeeds, frees what was recorded, and nothing else."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.results import VERSIONS
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import eventually, links, needs_root, run

pytestmark = needs_root

SERVICES = "10.96.0.0/12"


def assert_free(host: Host) -> None:
    """Both NICs are idle again; one whose link died is back after a moment."""
    assert host.attachments() == []
    assert host.is_untouched()


@pytest.mark.cni(41, 54)
@pytest.mark.defect("ancestor-3")
def test_del_takes_the_interface_away_and_frees_the_nic(host: Host) -> None:
    """In the namespace, the parking place, the table and the cloud; no `CNI_ARGS` are given."""
    container = host.container()
    cloud = host.cloud_nics()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    assert nic_id not in links(host.parking.name)
    answer = host.cni("DEL", container, CNI_ARGS=None).succeeded()
    assert answer.stdout == b""
    assert container.names == ["lo"]
    assert container.routes() == {}
    assert "UP" not in links(host.parking.name)[nic_id]["flags"]
    assert nic_id not in links(host.netns)
    host.wait_idle(2)
    assert_free(host)
    assert host.cloud_nics() == cloud


@pytest.mark.cni(49)
@pytest.mark.parametrize("version", VERSIONS)
def test_del_needs_no_previous_result(host: Host, version: str) -> None:
    container = host.container()
    host.add(container, conf=host.conf(version))
    host.delete(container, conf=host.conf(version))
    assert container.names == ["lo"]
    assert_free(host)


# --- the namespace ---------------------------------------------------------------------------------------


@pytest.mark.cni(43)
def test_del_of_a_container_never_added_leaves_the_interface_of_another_alone(host: Host) -> None:
    """Although it has the name and the namespace of the request."""
    container = host.container()
    host.add(container)
    before = container.picture()
    host.cni("DEL", "never-added", CNI_NETNS=container.path).succeeded()
    assert container.picture() == before
    assert [a["container_id"] for a in host.attachments()] == [container.name]


@pytest.mark.cni(45)
def test_del_succeeds_where_a_file_was_left_of_the_namespace(host: Host) -> None:
    container = host.container()
    host.add(container)
    container.delete()
    Path(container.path).touch()
    try:
        host.delete(container)
    finally:
        Path(container.path).unlink()
    assert_free(host)


@pytest.mark.cni(44, 45)
def test_del_finds_the_nic_in_a_namespace_that_lost_its_path(host: Host) -> None:
    """The mount is gone and a file is left, but a process keeps the namespace alive, and the NIC in it."""
    container = host.container()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    with container.process("sleep", "60"):
        container.delete()
        Path(container.path).touch()
        try:
            host.delete(container)
        finally:
            Path(container.path).unlink()
        assert nic_id in links(host.parking.name)
    assert_free(host)


OTHERS: dict[str, Callable[[Host, Container], str]] = {
    "the host's": lambda host, _: f"/run/netns/{host.netns}",
    "the agent's process": lambda host, _: f"/proc/{host.agent.pid}/ns/net",
    "the plugin's own": lambda *_: "/proc/self/ns/net",
    "the parking place": lambda host, _: str(host.parking),
    "another container's": lambda _, other: other.path,
}


@pytest.mark.cni(46)
@pytest.mark.defect("others-23")
@pytest.mark.parametrize("whose", OTHERS)
@pytest.mark.parametrize("is_known", [True, False])
def test_del_with_somebody_elses_namespace_frees_and_touches_nothing_there(
    host: Host, whose: str, *, is_known: bool
) -> None:
    """As where a process id has been used again: there is an `eth0` in it too, and it stays as it is."""
    container, other = host.container(), host.container()
    kept = host.add(other)["interfaces"][0]["mac"]
    if is_known:
        host.add(container)
    before = links(host.netns), other.picture(), links(host.parking.name).get(kept)
    host.cni("DEL", container, CNI_NETNS=OTHERS[whose](host, other)).succeeded()
    after = links(host.netns), other.picture(), links(host.parking.name).get(kept)
    assert after == before
    assert container.names == ["lo"]
    assert [a["container_id"] for a in host.attachments()] == [other.name]


@pytest.mark.cni(47)
@pytest.mark.defect("hostnic-11")
@pytest.mark.parametrize("name", ["dev", "taken-by-udev"])
def test_a_nic_whose_namespace_died_is_found_on_the_host_by_its_mac(host: Host, name: str) -> None:
    """It comes back as `dev<N>`, while the agent stands still, and may be renamed; then it serves again."""
    container, other, later = host.container(), host.container(), host.container()
    host.add(other)  # so that there is no other NIC for the last ADD
    nic_id = host.add(container)["interfaces"][0]["mac"]
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        container.delete()
        back = eventually(lambda: links(host.netns).get(nic_id), "the link back on the host")
        assert back["ifname"].startswith("dev")
        if name != "dev":
            run("ip", "-n", host.netns, "link", "set", back["ifname"], "name", name)
    finally:
        host.agent.process.send_signal(signal.SIGCONT)
    host.delete(container)
    assert host.add(later)["interfaces"][0]["mac"] == nic_id
    assert later.link()["address"] == nic_id


# --- the interface ---------------------------------------------------------------------------------------


def rename(container: Container, _: Container) -> None:
    run("ip", "-n", container.name, "link", "set", "eth0", "down")
    run("ip", "-n", container.name, "link", "set", "eth0", "name", "mine")


def rename_and_replace(container: Container, other: Container) -> None:
    rename(container, other)
    run("ip", "-n", container.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")


def disguise(container: Container, other: Container) -> None:
    rename(container, other)
    run("ip", "-n", container.name, "link", "set", "mine", "address", "02:00:00:00:00:07", "alias", "")


def move(container: Container, other: Container) -> None:
    run("ip", "-n", container.name, "link", "set", "eth0", "netns", other.name)


def delete(container: Container, _: Container) -> None:
    run("ip", "-n", container.name, "link", "delete", "eth0")


@pytest.mark.cni(48)
@pytest.mark.defect("hostnic-11")
@pytest.mark.parametrize("meddle", [rename, rename_and_replace, disguise, move, delete], ids=lambda f: f.__name__)
def test_del_succeeds_whatever_the_workload_did_to_its_interface(
    host: Host, meddle: Callable[[Container, Container], None]
) -> None:
    container, other = host.container(), host.container()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    meddle(container, other)
    host.delete(container)
    assert nic_id not in links(container.name)
    assert nic_id not in links(other.name)
    assert_free(host)
    assert nic_id in links(host.parking.name)


@pytest.mark.cni(51)
@pytest.mark.parametrize(
    "argv", [("sleep", "60"), ("ping", "-n", "-q", "-i", "0.02", "172.20.1.1")], ids=lambda a: a[0]
)
def test_del_succeeds_while_processes_run_in_the_namespace(host: Host, argv: tuple[str, ...]) -> None:
    """CRI-O takes the network away before the containers. The process is let alone."""
    container = host.container()
    host.add(container)
    with container.process(*argv) as process:
        host.delete(container)
        assert container.names == ["lo"]
        assert process.poll() is None
        assert_free(host)


# --- the configuration -----------------------------------------------------------------------------------

GARBAGE: tuple[object, ...] = (5, "x", [], {"ips": "x"}, {"cniVersion": "9.9.9"}, {"cniVersion": 3, "interfaces": {}})


def looks(container: Container) -> tuple[Any, ...]:
    """Its interface, without what the kernel goes on to do by itself: operational state, link-local address."""
    link = container.link()
    addresses = [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["family"] == "inet"]
    return link["address"], "UP" in link["flags"], addresses, container.routes()


@pytest.mark.cni(50)
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_a_previous_result_that_contradicts_the_table_frees_what_is_recorded(host: Host, version: str) -> None:
    """It speaks of another container's NIC from end to end; that one keeps it."""
    container, other = host.container(), host.container()
    conf = host.conf(version)
    host.add(container, conf=conf)
    foreign = host.add(other, conf=conf)
    before = looks(other)
    host.delete(container, conf=conf | {"prevResult": foreign})
    assert container.names == ["lo"]
    assert looks(other) == before
    assert [a["container_id"] for a in host.attachments()] == [other.name]


@pytest.mark.cni(50)
@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_a_previous_result_that_is_none_is_no_obstacle_to_del(host: Host, garbage: object) -> None:
    container = host.container()
    host.add(container)
    host.delete(container, conf=host.conf("1.0.0") | {"prevResult": garbage})
    assert container.names == ["lo"]
    assert_free(host)


CHANGED: dict[str, Callable[[Host], dict[str, Any]]] = {
    "other routes": lambda host: host.conf(routes=[{"dst": "10.0.0.0/8", "gw": "9.9.9.9"}]),
    "placeholders put back": lambda host: host.conf(routes=[{"dst": "kubernetes service cidr", "gw": "hostip"}]),
    "ipam of another kind": lambda host: host.conf() | {"ipam": {"type": "host-local", "routes": "x"}},
    "ipam that is none": lambda host: host.conf() | {"ipam": [1]},
    "dns that is none": lambda host: host.conf() | {"dns": "10.96.0.10"},
    "flags that are none": lambda host: host.conf() | {"isGateway": "maybe", "ipMasq": 7},
    "an older version": lambda host: host.conf("0.1.0"),
    "a newer version": lambda host: host.conf("1.1.0"),
    "no version": lambda host: host.conf(None),
    "another way to the agent": lambda host: host.conf(BindAddr=f"unix://{host.socket}"),
    "a wish": lambda host: host.conf("1.0.0") | {"runtimeConfig": {"ips": ["1.2.3.4"], "mac": "x", "dns": 5}},
    "arguments": lambda host: host.conf(cni={"labels": "x", "ips": 5}),
    "nothing but the name": lambda host: {"name": "mynet", "args": host.conf()["args"]},
}


@pytest.mark.cni(52)
@pytest.mark.parametrize("how", CHANGED)
def test_del_frees_though_the_configuration_has_changed(host: Host, how: str) -> None:
    """An ADD with it may even be refused."""
    container = host.container()
    host.add(container, conf=host.conf(routes=[{"dst": SERVICES, "gw": "172.20.1.1"}]))
    host.delete(container, conf=CHANGED[how](host))
    assert container.names == ["lo"]
    assert_free(host)
