"""First in a list of plugins: portmap, tuning, firewall, sbr and bandwidth after `qingcni`, as libcni runs them."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cni.chains import call_of, chain, ours, wait_until_all_is_back
from cni.libcni import Libcni
from cni.networks import Failed
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import links, needs_root, run

pytestmark = needs_root
NICS = 3

LISTS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")  # that know lists, and that Debian's plugins speak
CHECKED = ("0.4.0", "1.0.0")
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
PORTS = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
SERVICES = {"dst": "10.96.0.0/12", "gw": "172.20.1.1"}
OTHER_MAC = "02:11:22:33:44:55"
FOLLOWER = """
import json, os, sys
conf = json.load(sys.stdin)
answers = {"ADD": conf.get("prevResult"), "VERSION": {"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}}
if answer := answers.get(os.environ["CNI_COMMAND"]):
    json.dump(answer, sys.stdout)
"""


def tuning(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    """It keeps what it has changed in a file."""
    return {"type": "tuning", "dataDir": str(tmp_path / "tuning"), **keys}


def without_ip6tables(tmp_path: Path) -> str:
    """A PATH. Where ip6tables is there too, CHECK of portmap 1.1.1 expects rules of IPv6, which nobody made."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "iptables").symlink_to(shutil.which("iptables") or "")
    return str(programs)


def rules(host: Host, table: str) -> str:
    return run("nsenter", f"--net=/run/netns/{host.netns}", "iptables", "-t", table, "-S").stdout


def setting(container: Container, name: str) -> str:
    return run("nsenter", f"--net={container.path}", "sysctl", "-n", name).stdout.strip()


def address(container: Container, ifname: str = "eth0") -> str:
    (inet,) = [a for a in container.link(ifname)["addr_info"] if a["family"] == "inet"]
    return str(inet["local"])


# --- portmap and tuning ----------------------------------------------------------------------------------


@pytest.mark.cni(79)
@pytest.mark.parametrize("version", LISTS)
def test_portmap_and_tuning_follow(host: Host, library: Libcni, tmp_path: Path, version: str) -> None:
    """ADD, CHECK of the whole list where the version has it, STATUS, DEL, DEL."""
    container = host.container()
    library.environment = {"PATH": without_ip6tables(tmp_path)}
    network = chain(version, ours(host), PORTMAP, tuning(tmp_path, sysctl={"net.core.somaxconn": "500"}, mtu=1400))
    call = call_of(container, portMappings=PORTS)
    library.validate(network)
    result = library.add(network, call)
    assert [ip["address"] for ip in result["ips"]] == [f"{address(container)}/24"]
    assert f"--to-destination {address(container)}:80" in rules(host, "nat")
    assert (setting(container, "net.core.somaxconn"), container.link()["mtu"]) == ("500", 1400)
    if version in CHECKED:
        library.check(network, call)
    library.status(network)
    for _ in range(2):
        library.delete(network, call)
    assert "--to-destination" not in rules(host, "nat")
    wait_until_all_is_back(host)


@pytest.mark.cni(79)
def test_a_list_of_1_1_0_has_status_and_gc_too(host: Host, library: Libcni, tmp_path: Path) -> None:
    """Debian's plugins do not speak it, so the one that follows does no more than hand on what it is given."""
    follower = tmp_path / "follower"
    follower.write_text(f"#!{sys.executable} -IS\n{FOLLOWER}")
    follower.chmod(0o755)
    library.path = (*library.path, tmp_path)
    network = chain("1.1.0", ours(host), {"type": "follower"})
    gone, kept = host.container(), host.container()
    library.validate(network)
    for container in (gone, kept):
        library.add(network, call_of(container))
        library.check(network, call_of(container))
    library.status(network)
    gone.delete()
    library.gc(network, [(kept.name, "eth0")])
    assert [held["container_id"] for held in host.attachments()] == [kept.name]
    library.check(network, call_of(kept))
    for _ in range(2):
        library.delete(network, call_of(kept))
    wait_until_all_is_back(host)


@pytest.mark.cni(61)
@pytest.mark.parametrize("version", CHECKED)
def test_tuning_may_change_the_mac_and_del_restores_it(
    host: Host, library: Libcni, tmp_path: Path, version: str
) -> None:
    """CHECK takes the MAC that the result lists. The cloud does not: its anti-spoofing drops what the NIC sends."""
    container, peer = host.container(), host.container()
    network = chain(version, ours(host), tuning(tmp_path, mac=OTHER_MAC))
    host.add(peer)
    result = library.add(network, call_of(container))
    assert [each["mac"] for each in result["interfaces"]] == [OTHER_MAC]
    library.check(network, call_of(container))
    assert not container.reaches(address(peer))
    library.delete(network, call_of(container))
    host.delete(peer)
    wait_until_all_is_back(host)


def test_a_changed_mac_is_restored_without_tuning_too(host: Host, library: Libcni, tmp_path: Path) -> None:
    container = host.container()
    network = chain("1.0.0", ours(host), tuning(tmp_path, mac=OTHER_MAC, mtu=1400))
    library.add(network, call_of(container))
    (held,) = host.attachments()
    host.delete(container)
    assert links(host.parking.name)[held["nic_id"]]["mtu"] == 1500
    library.delete(network, call_of(container))
    wait_until_all_is_back(host)


# --- firewall --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", CHECKED)
def test_firewall_follows_from_0_4_0_on(host: Host, library: Libcni, version: str) -> None:
    container = host.container()
    network = chain(version, ours(host), {"type": "firewall", "backend": "iptables"})
    library.add(network, call_of(container))
    accepted = f"-d {address(container)}/32"
    assert accepted in rules(host, "filter")
    library.check(network, call_of(container))
    for _ in range(2):
        library.delete(network, call_of(container))
    assert accepted not in rules(host, "filter")
    wait_until_all_is_back(host)


def test_firewall_leaves_its_rules_if_the_runtime_lost_the_result(host: Host, library: Libcni) -> None:
    """It reads the addresses of its rules from the result. DEL succeeds, and ours needs no result."""
    container = host.container()
    network = chain("1.0.0", ours(host), {"type": "firewall", "backend": "iptables"})
    library.add(network, call_of(container))
    accepted = f"-d {address(container)}/32"
    for entry in (library.cache / "results").iterdir():
        entry.unlink()
    library.delete(network, call_of(container))
    wait_until_all_is_back(host)
    assert accepted in rules(host, "filter")


def test_firewall_refuses_an_older_list_and_the_agent_frees_what_no_del_reaches(host: Host, library: Libcni) -> None:
    """It refuses the DEL as well, so libcni never asks us; the NIC is held until the namespace goes."""
    container = host.container()
    network = chain("0.3.1", ours(host), {"type": "firewall"})
    with pytest.raises(Failed, match="does not support config version"):
        library.validate(network)
    for verb in (library.add, library.delete):
        with pytest.raises(Failed, match="incompatible CNI versions"):
            verb(network, call_of(container))
    assert [held["container_id"] for held in host.attachments()] == [container.name]
    container.delete()
    wait_until_all_is_back(host)


# --- sbr -------------------------------------------------------------------------------------------------


@pytest.mark.cni(58)
@pytest.mark.parametrize("version", CHECKED)
def test_sbr_moves_routes_of_a_second_nic_to_a_table_and_check_finds_them(
    host: Host, library: Libcni, version: str
) -> None:
    """Answers to what came in at the second NIC leave by it; else they would leave by the first, and be dropped."""
    container, peer = host.container(), host.container()
    host.add(peer)
    first = chain(version, ours(host))
    second = chain(version, ours(host, ipam={"routes": [SERVICES]}), {"type": "sbr"}, name="second")
    library.add(first, call_of(container))
    result = library.add(second, call_of(container, "net1"))
    assert SERVICES in result["routes"]
    moved = {
        row["dst"]: row["table"]
        for row in container.ip("route", "show", "table", "all", "dev", "net1")
        if "gateway" in row
    }
    assert moved.keys() == {"default", SERVICES["dst"]}
    assert set(moved.values()) == {"100"}
    assert peer.reaches(address(container, "net1"))
    library.check(first, call_of(container))
    library.check(second, call_of(container, "net1"))
    run("ip", "-n", container.name, "route", "del", SERVICES["dst"], "table", "100")
    with pytest.raises(Failed, match=SERVICES["dst"]):
        library.check(second, call_of(container, "net1"))
    library.delete(second, call_of(container, "net1"))
    with pytest.raises(Failed, match='type="sbr" failed'):  # it wants the interface, which is gone
        library.delete(second, call_of(container, "net1"))
    for _ in range(2):
        library.delete(first, call_of(container))
    host.delete(peer)
    wait_until_all_is_back(host)


def test_sbr_fails_without_a_namespace_and_the_agent_frees_what_no_del_reaches(host: Host, library: Libcni) -> None:
    """It leaves a plain file where the namespace was; a DEL that reaches us succeeds all the same."""
    container = host.container()
    network = chain("1.0.0", ours(host), {"type": "sbr"})
    library.add(network, call_of(container))
    assert not container.reaches(host.address)  # which is why it is no help to the only NIC
    container.delete()
    with pytest.raises(Failed, match='type="sbr" failed'):
        library.delete(network, call_of(container))
    assert [e.plugin for e in library.executions if e.verb == "DEL"] == ["sbr"]
    wait_until_all_is_back(host)
    remains = Path(container.path)
    assert remains.is_file()
    host.delete(container)
    remains.unlink()


# --- bandwidth -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", LISTS)
def test_bandwidth_cannot_follow_and_nothing_is_left_of_the_add(host: Host, library: Libcni, version: str) -> None:
    """It wants a veth with a peer on the host. Nobody undoes the ADD: the runtime's DEL passes it and reaches us."""
    container = host.container()
    network = chain(version, ours(host), {"type": "bandwidth", "ingressRate": 1_000_000, "ingressBurst": 1_000_000})
    with pytest.raises(Failed, match=r'type="bandwidth" failed \(add\): .*veth peer'):
        library.add(network, call_of(container))
    assert container.names == ["lo", "eth0"]
    library.delete(network, call_of(container))
    assert container.names == ["lo"]
    wait_until_all_is_back(host)


@pytest.mark.parametrize("version", LISTS)
@pytest.mark.parametrize("limits", [None, {}], ids=["no-limits", "empty"])
def test_bandwidth_without_limits_passes_all_but_check(
    host: Host, library: Libcni, version: str, limits: dict[str, int] | None
) -> None:
    """Its CHECK looks for the veth's peer before it looks for limits."""
    container = host.container()
    network = chain(version, ours(host), {"type": "bandwidth", "capabilities": {"bandwidth": True}})
    call = call_of(container) if limits is None else call_of(container, bandwidth=limits)
    library.add(network, call)
    if version in CHECKED:
        with pytest.raises(Failed, match="veth peer"):
            library.check(network, call)
    for _ in range(2):
        library.delete(network, call)
    wait_until_all_is_back(host)


def test_a_limit_set_inside_ends_with_the_container(host: Host) -> None:
    """What to use instead of `bandwidth`: the NIC comes to the next container without it."""
    first, second = host.container(), host.container()
    host.add(first)
    tc = ("qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "100mbit", "burst", "256kb", "latency", "50ms")
    run("tc", "-n", first.name, *tc)
    (held,) = host.attachments()
    host.delete(first)
    for other in iter(lambda: host.add(second)["interfaces"][0]["mac"], held["nic_id"]):
        assert other != held["nic_id"]
        host.delete(second)
    assert "tbf" not in run("tc", "-n", second.name, "qdisc", "show", "dev", "eth0").stdout
    host.delete(second)
