"""ADD against obstacles: it is refused or killed at every step, and each time nothing is held afterwards."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from machines.hosts import Host
from machines.simulator import eventually, links, needs_root, run

pytestmark = needs_root


# --- obstacles in the container --------------------------------------------------------------------------


@pytest.mark.cni(31, 32)
@pytest.mark.parametrize("ifname", ["eth0", "a-long-name"])
def test_an_altname_is_a_name_that_is_taken(host: Host, ifname: str) -> None:
    """The kernel keeps both kinds of names in one list. Once it is gone the same ADD succeeds."""
    container = host.container()
    run("ip", "-n", container.name, "link", "add", "mine", "type", "veth", "peer", "name", "other")
    run("ip", "-n", container.name, "link", "property", "add", "dev", "mine", "altname", ifname)
    before = container.picture()
    host.cni("ADD", container, ifname).refused(7, ifname, container.path, "taken")
    assert container.picture() == before
    assert host.is_untouched()
    run("ip", "-n", container.name, "link", "property", "del", "dev", "mine", "altname", ifname)
    host.add(container, ifname)
    assert sorted(container.names) == sorted(["lo", "mine", "other", ifname])


@pytest.mark.cni(31)
def test_the_loopback_interface_is_a_name_that_is_taken(host: Host) -> None:
    container = host.container()
    before = container.picture()
    host.cni("ADD", container, "lo").refused(7, "lo", "taken")
    host.delete(container, "lo")
    assert container.picture() == before
    assert host.is_untouched()


@pytest.mark.cni(32)
@pytest.mark.parametrize("ifname", ["all", "default"])
def test_a_name_that_the_kernel_takes_for_its_settings_is_undone(host: Host, ifname: str) -> None:
    """An interface may be called so, but can have no IPv4: afterwards the NICs serve as before."""
    container, *others = (host.container() for _ in range(3))
    for _ in range(3):  # more often than there are NICs
        answer = host.cni("ADD", container, ifname)
        assert answer.code in (4, 7, 101), answer
        assert ifname in answer.message
        assert container.names == ["lo"]
    host.delete(container, ifname)
    host.wait_idle(2)
    for other in others:
        assert other.reaches(host.add(other)["ips"][0]["gateway"])


def odd_paths(tmp_path: Path) -> dict[str, str]:
    """Paths that lead to no network namespace, by what they are."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("netns")
    return {
        "fifo": str(tmp_path / "fifo"),
        "dangling link": str(tmp_path / "dangling"),
        "loop of links": str(tmp_path / "loop"),
        "file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file" / "netns"),
        "directory": str(tmp_path),
        "device": "/dev/zero",
        "terminal": "/dev/ptmx",
        "mount namespace": "/proc/self/ns/mnt",
        "ended process": "/proc/4194305/ns/net",
        "too long": "/run/netns/" + "x" * 5000,
        "odd letters": "/run/netns/ ü'\"\\",
        "relative": "run/netns/x",
    }


@pytest.mark.cni(34)
def test_what_is_no_network_namespace_is_refused_and_nothing_is_held(host: Host, tmp_path: Path) -> None:
    for kind, path in odd_paths(tmp_path).items():
        answer = host.cni("ADD", "c1", CNI_NETNS=path).refused(8, "netns")
        assert answer.seconds < 10.0, kind
    assert host.is_untouched()


OWN: dict[str, Callable[[Host], str]] = {
    "by its process": lambda host: f"/proc/{host.agent.pid}/ns/net",
    "by the plugin's": lambda _: "/proc/self/ns/net",
    "the parking place": lambda host: str(host.parking),
}


@pytest.mark.cni(35)
@pytest.mark.parametrize("way", OWN)
def test_the_hosts_own_namespaces_are_refused_by_whichever_path(host: Host, way: str) -> None:
    """`eth0` is there already, so a plugin that stopped there would report something else."""
    before = links(host.netns)
    host.cni("ADD", "c1", CNI_NETNS=OWN[way](host)).refused(8, "netns")
    assert links(host.netns) == before
    assert host.is_untouched()


# --- refused at a step, then the same again --------------------------------------------------------------


@pytest.mark.cni(32)
def test_an_add_whose_namespace_goes_while_it_waits_holds_nothing_and_succeeds_in_a_new_one(host: Host) -> None:
    others = [host.container(), host.container()]
    for other in others:
        host.add(other)
    container = host.container()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(host.cni, "ADD", container)
        eventually(lambda: host.status()["waiting"] == 1, "an ADD that waits")
        container.delete()
        host.delete(others[0])
        waiting.result(timeout=20).refused(8, container.path)
    host.delete(others[1])
    host.wait_idle(2)
    assert host.is_untouched()
    run("ip", "netns", "add", container.name)
    host.add(container)
    assert container.names == ["lo", "eth0"]


@pytest.mark.cni(32)
@pytest.mark.defect("others-7")
def test_an_add_that_the_kernel_refuses_at_its_last_step_is_undone(host: Host) -> None:
    """A rule of the container swallows all: no route is to be had, when the NIC has its name and address already."""
    container = host.container()
    run("ip", "-n", container.name, "rule", "add", "pref", "1", "blackhole")
    for _ in range(3):  # more often than there are NICs
        host.cni("ADD", container).refused(101, "add route 0.0.0.0/0 via 172.20.1.1", container.path)
        assert container.names == ["lo"]
    host.wait_idle(2)
    assert host.is_untouched()
    run("ip", "-n", container.name, "rule", "del", "pref", "1")
    host.add(container)
    assert container.routes() == {"default": "172.20.1.1"}


@pytest.mark.cni(32)
@pytest.mark.parametrize("gateway", ["172.20.1.0", "172.20.1.255", "172.20.9.1"])
def test_a_gateway_that_can_be_none_is_refused_before_the_nic_is_moved(host: Host, gateway: str) -> None:
    """It needs no cooldown: repeats would use up the pool."""
    container = host.container()
    conf = host.conf(routes=[{"dst": "10.96.0.0/12", "gw": gateway}])
    host.cni("ADD", container, conf=conf).refused(7, gateway, "172.20.1.0/24", "vxnet-pods001")
    assert container.names == ["lo"]
    assert host.is_untouched()


# --- killed ----------------------------------------------------------------------------------------------


@pytest.mark.cni(33)
@pytest.mark.defect("hostnic-8", "ancestor-1")
def test_an_add_killed_while_it_waits_holds_nothing(host: Host) -> None:
    """Its place in the queue is given up: the next NIC goes to the next one."""
    first, second, killed, later = (host.container() for _ in range(4))
    host.add(first)
    host.add(second)
    plugin = host.begin("ADD", killed)
    eventually(lambda: host.status()["waiting"] == 1, "an ADD that waits")
    plugin.kill()
    plugin.wait()
    eventually(lambda: host.status()["waiting"] == 0, "the place given up")
    host.delete(killed)
    host.delete(first)
    host.add(later)
    assert killed.names == ["lo"]
    assert {a["container_id"] for a in host.attachments()} == {second.name, later.name}


@pytest.mark.cni(33)
def test_an_add_whose_caller_had_gone_before_it_was_heard_is_not_begun(host: Host) -> None:
    """The agent stands still; ADD is killed, the DEL that follows waits as well; then both are heard at once."""
    container = host.container()
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        killed = host.begin("ADD", container)
        eventually(lambda: unread(host) == 1, "the connection of ADD")
        killed.kill()
        killed.wait()
        deleting = host.begin("DEL", container)
        eventually(lambda: unread(host) == 2, "the connection of DEL")
    finally:
        host.agent.process.send_signal(signal.SIGCONT)
    assert deleting.wait(timeout=30) == 0
    assert container.names == ["lo"]
    assert host.is_untouched()


def unread(host: Host) -> int:
    """How many connections to the agent's socket it has not accepted."""
    rows = run(*host.command("ss", "-Hxln")).stdout.splitlines()
    (row,) = (row.split() for row in rows if str(host.socket) in row)
    return int(row[2])
