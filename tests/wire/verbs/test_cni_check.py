"""CHECK: it finds what differs from ADD's result, ignores what others added, and changes nothing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni.results import VERSIONS
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import links, needs_root, run

pytestmark = needs_root

CHECKED = ("0.4.0", "1.0.0", "1.1.0")
SERVICES = "10.96.0.0/12"
ROUTER = "172.20.1.1"
OTHER_MAC = "02:00:00:00:00:07"
FAULTY = 104


@pytest.fixture
def container(host: Host) -> Container:
    return host.container()


def add(host: Host, container: Container, version: str = "1.0.0", ifname: str = "eth0") -> dict[str, Any]:
    """ADD; returns the configuration that CHECK gets."""
    conf = host.conf(version, routes=[{"dst": SERVICES, "gw": ROUTER}])
    return conf | {"prevResult": host.add(container, ifname, conf)}


def within(container: Container, *commands: str) -> None:
    for command in commands:
        run("ip", "-n", container.name, *command.split())


@pytest.mark.cni(55)
@pytest.mark.defect("hostnic-14")
@pytest.mark.parametrize("version", CHECKED)
def test_check_straight_after_add_succeeds(host: Host, container: Container, version: str) -> None:
    """And again, as an ADD that was repeated, by another path to the namespace, and by as many as ask at once."""
    conf = add(host, container, version)
    host.cni("CHECK", container, conf=conf).succeeded()
    assert host.add(container, conf={k: v for k, v in conf.items() if k != "prevResult"}) == conf["prevResult"]
    host.cni("CHECK", container, conf=conf, CNI_NETNS=f"/run/../run/netns/{container.name}").succeeded()
    with ThreadPoolExecutor(5) as pool:
        for answer in pool.map(lambda _: host.cni("CHECK", container, conf=conf), range(5)):
            answer.succeeded()


@pytest.mark.cni(55)
def test_each_interface_of_a_container_is_checked_by_itself(host: Host, container: Container) -> None:
    """The second one had its default route taken by the first one, and does not list it."""
    first, second = add(host, container), add(host, container, ifname="net1")
    for ifname, conf in (("eth0", first), ("net1", second)):
        host.cni("CHECK", container, ifname, conf).succeeded()
    within(container, "link set net1 down")
    host.cni("CHECK", container, "eth0", first).succeeded()
    assert host.cni("CHECK", container, "net1", second).refused(FAULTY, "net1", "down")


# --- what is wrong ---------------------------------------------------------------------------------------

WRONGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "interface deleted": (("link delete eth0",), ("eth0", "missing")),
    "interface renamed": (("link set eth0 down", "link set eth0 name mine", "link set mine up"), ("eth0", "missing")),
    "interface down": (("link set eth0 down",), ("eth0", "down")),
    "address removed": (("address flush dev eth0 scope global",), ("address", "missing", "eth0")),
    "address with another prefix": (
        ("address flush dev eth0 scope global", "address add 172.20.1.200/25 dev eth0"),
        ("address", "missing"),
    ),
    "route to Services removed": ((f"route delete {SERVICES}",), ("route", SERVICES, ROUTER, "missing")),
    "default route removed": (("route delete default",), ("route", "0.0.0.0/0", ROUTER, "missing")),
    "route by another gateway": (
        (f"route replace {SERVICES} via 172.20.1.2",),
        ("route", SERVICES, ROUTER, "missing"),
    ),
    "another MAC": ((f"link set eth0 address {OTHER_MAC}",), ("eth0", "MAC", OTHER_MAC)),
}


@pytest.mark.cni(58)
@pytest.mark.parametrize("wrong", WRONGS)
@pytest.mark.parametrize("version", CHECKED)
def test_check_finds_what_is_wrong_and_says_it(host: Host, container: Container, wrong: str, version: str) -> None:
    commands, words = WRONGS[wrong]
    conf = add(host, container, version)
    within(container, *commands)
    host.cni("CHECK", container, conf=conf).refused(FAULTY, container.name, *words)


@pytest.mark.cni(58)
def test_an_interface_of_that_name_that_is_another_one_is_found_out(host: Host, container: Container) -> None:
    """With the NIC's own address: only the MAC differs."""
    conf = add(host, container)
    address = conf["prevResult"]["ips"][0]["address"]
    within(
        container, "link set eth0 down", "link set eth0 name mine", "link add eth0 type veth peer name eth1",
        f"address add {address} dev eth0", "link set eth1 up", "link set eth0 up", f"route add default via {ROUTER}",
        f"route add {SERVICES} via {ROUTER}",
    )  # fmt: skip
    host.cni("CHECK", container, conf=conf).refused(FAULTY, "eth0", "MAC")


@pytest.mark.cni(58)
@pytest.mark.parametrize("lost", ["interface", "address", "all"])
def test_a_previous_result_without_the_nic_is_an_error(host: Host, container: Container, lost: str) -> None:
    conf = add(host, container)
    previous = conf["prevResult"]
    words = [
        "prevResult lists no interface eth0",
        f"prevResult does not list address {previous['ips'][0]['address']}",
    ]
    match lost:
        case "interface":
            previous["interfaces"][0]["name"] = "eth7"
        case "address":
            previous["ips"][0]["address"] = "172.20.1.250/24"
            del words[0]
        case _:
            conf["prevResult"] = {"cniVersion": "1.0.0", "interfaces": [], "ips": []}
    host.cni("CHECK", container, conf=conf).refused(FAULTY, *words)


@pytest.mark.cni(56)
@pytest.mark.parametrize("version", [v for v in VERSIONS if v not in CHECKED])
def test_a_version_without_check_is_code_1(host: Host, container: Container, version: str) -> None:
    conf = add(host, container, version)
    host.cni("CHECK", container, conf=conf).refused(1, "CHECK", version)


@pytest.mark.cni(57)
@pytest.mark.parametrize("bad", [None, 5, [], "x", {"ips": 5}, {"cniVersion": "9.9.9"}], ids=str)
@pytest.mark.parametrize("version", CHECKED)
def test_check_without_a_previous_result_that_can_be_read_is_code_7(
    host: Host, container: Container, version: str, bad: object
) -> None:
    conf = add(host, container, version)
    host.cni("CHECK", container, conf=conf | {"prevResult": bad}).refused(7, "prevResult")


@pytest.mark.cni(60)
@pytest.mark.parametrize("gone", ["after DEL", "another container id", "another ifname", "another network"])
def test_check_of_an_attachment_the_agent_has_not_fails(host: Host, container: Container, gone: str) -> None:
    """Kernel and `prevResult` may be in order."""
    conf = add(host, container)
    container_id, ifname = container.name, "eth0"
    match gone:
        case "after DEL":
            host.delete(container)
        case "another container id":
            container_id = "another"
        case "another ifname":
            ifname = "eth1"
        case _:
            conf["name"] = "another"
    answer = host.cni("CHECK", container_id, ifname, conf, CNI_NETNS=container.path)
    answer.refused(FAULTY, container_id, "no such attachment")


@pytest.mark.cni(58)
def test_check_in_another_namespace_fails(host: Host, container: Container, tmp_path: Path) -> None:
    conf = add(host, container)
    other = host.container()
    host.cni("CHECK", container, conf=conf, CNI_NETNS=other.path).refused(FAULTY, other.path, container.path)
    for path in (f"/run/netns/{host.netns}", "/run/netns/nowhere", str(tmp_path), "/proc/self/ns/net"):
        host.cni("CHECK", container, conf=conf, CNI_NETNS=path).refused(8, path)


# --- what is not wrong -----------------------------------------------------------------------------------

ADDITIONS: dict[str, tuple[str, ...]] = {
    "addresses": ("address add 10.9.9.9/24 dev eth0", "address add 127.0.0.2/8 dev lo"),
    "routes": ("route add 10.99.0.0/16 via 172.20.1.1", "route add blackhole 10.98.0.0/16"),
    "a better route": (f"route add {SERVICES} via 172.20.1.2 metric 0 tos 0x10",),
    "interfaces": ("link add net9 type veth peer name net8", "link set net9 up"),
    "another table": (
        "rule add from all lookup 100", f"route add {SERVICES} via {ROUTER} table 100", f"route delete {SERVICES}",
        f"route add default via {ROUTER} table 100", "route delete default",
    ),
    "settings of the link": ("link set eth0 mtu 1400 promisc on txqueuelen 7", "link set eth0 alias mine"),
}  # fmt: skip


@pytest.mark.cni(59)
@pytest.mark.parametrize("addition", ADDITIONS)
@pytest.mark.parametrize("version", CHECKED)
def test_what_others_added_is_no_fault(host: Host, container: Container, addition: str, version: str) -> None:
    conf = add(host, container, version)
    within(container, *ADDITIONS[addition])
    host.cni("CHECK", container, conf=conf).succeeded()


@pytest.mark.cni(59)
def test_what_others_added_to_the_result_is_no_fault(host: Host, container: Container) -> None:
    """Plugins behind us in the chain: interfaces before ours, addresses and routes that we know nothing of."""
    conf = add(host, container)
    previous = conf["prevResult"]
    previous["interfaces"].insert(0, {"name": "host0", "mac": OTHER_MAC})
    previous["ips"] = [ip | {"interface": 1} for ip in previous["ips"]] + [{"address": "10.9.9.9/24"}]
    previous["routes"].append({"dst": "10.99.0.0/16", "gw": "10.9.9.1"})
    previous["dns"] = {"nameservers": ["1.2.3.4"]}
    host.cni("CHECK", container, conf=conf).succeeded()


@pytest.mark.cni(59)
def test_a_route_that_others_took_from_the_result_need_not_be_there(host: Host, container: Container) -> None:
    conf = add(host, container)
    conf["prevResult"]["routes"] = [r for r in conf["prevResult"]["routes"] if r["dst"] != SERVICES]
    within(container, f"route delete {SERVICES}")
    host.cni("CHECK", container, conf=conf).succeeded()


@pytest.mark.cni(61)
@pytest.mark.parametrize("written", [str.lower, str.upper])
def test_another_mac_that_the_result_lists_is_no_fault(
    host: Host, container: Container, written: Callable[[str], str]
) -> None:
    """As `tuning` changes it."""
    conf = add(host, container)
    within(container, f"link set eth0 address {OTHER_MAC}")
    host.cni("CHECK", container, conf=conf).refused(FAULTY, OTHER_MAC)
    conf["prevResult"]["interfaces"][0]["mac"] = written(OTHER_MAC)
    host.cni("CHECK", container, conf=conf).succeeded()


# --- nothing changes -------------------------------------------------------------------------------------


def everything(host: Host, container: Container) -> list[object]:
    """Kernel, table and cloud."""
    outside = [links(host.netns), links(host.parking.name), run(*host.command("nft", "list", "ruleset")).stdout]
    cloud = host.sim.status()
    return [container.picture(), outside, host.nics(), host.attachments(), cloud["nics"], cloud["calls"]]


@pytest.mark.cni(62)
@pytest.mark.parametrize("commands", [(), ("link set eth0 down",), ("address flush dev eth0",)], ids=str)
def test_check_changes_nothing_whatever_it_finds(host: Host, container: Container, commands: tuple[str, ...]) -> None:
    conf = add(host, container)
    within(container, *commands)
    before = everything(host, container)
    answers = [host.cni("CHECK", container, conf=conf) for _ in range(3)]
    assert {answer.code for answer in answers} == ({FAULTY} if commands else {0})
    assert everything(host, container) == before
