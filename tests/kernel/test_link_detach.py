"""Detach parks a NIC from any namespace, reset, and no other link."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from machines.nics import Lab, flood_altnames, ip, ip_json, kernel, lab, refusing, until
from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import NicRecord, PlacedLink
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.namespaces.namespaces import Namespace

__all__ = ["kernel", "lab"]  # fixtures

FOREIGN_MAC = "52:54:00:ff:ff:ff"


@pytest.fixture
def pod(lab: Lab) -> str:
    return lab.make_netns("pod")


@contextmanager
def process_in(lab: Lab, netns: str) -> Iterator[int]:
    """A process that lives in *netns*."""
    sleeper = subprocess.Popen(("nsenter", f"--net={lab.path(netns)}", "sleep", "60"))
    try:
        with Namespace.open(lab.path(netns)) as wanted:
            until(lambda: identity(sleeper.pid) == wanted.identity)
        yield sleeper.pid
    finally:
        sleeper.kill()
        sleeper.wait()


def identity(pid: int) -> tuple[int, int]:
    with Namespace.open(f"/proc/{pid}/ns/net") as namespace:
        return namespace.identity


async def placed(lab: Lab, kernel: HostKernel, pod: str, mtu: int = 1500) -> tuple[str, Netns, PlacedLink]:
    mac = lab.plug(mtu=mtu)
    netns = await kernel.identify(lab.path(pod))
    return mac, netns, await kernel.attach(lab.order(mac, netns))


DOWN = "link set eth0 down"
CHANGES = {  # what a container, or a chained plugin, may do to its NIC
    "nothing": [],
    "renamed": [DOWN, "link set eth0 name net9"],
    "mac": [f"link set eth0 address {FOREIGN_MAC}"],
    "alias": ["link set eth0 alias mine"],
    "alias gone": ["link set eth0 alias ''"],
    "mac and alias": [f"link set eth0 address {FOREIGN_MAC}", "link set eth0 alias mine"],
    "mac and name": [DOWN, f"link set eth0 address {FOREIGN_MAC}", "link set eth0 name net9"],
    "mtu": ["link set eth0 mtu 1280"],
    "flags": ["link set eth0 promisc on", "link set eth0 allmulticast on"],
    "altname": ["link property add dev eth0 altname a-name-of-more-than-fifteen-bytes"],
    "addresses": ["addr add 10.1.1.1/24 dev eth0", "route add 10.2.0.0/16 via 10.1.1.2"],
    "qdisc": ["qdisc"],
    "macvlan on top": ["link add link eth0 name macvlan0 type macvlan"],
}


@pytest.mark.parametrize("change", CHANGES)
async def test_nic_comes_back_as_it_was(lab: Lab, kernel: HostKernel, pod: str, change: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    for command in CHANGES[change]:
        if command == "qdisc":
            subprocess.run(("ip", "netns", "exec", pod, "tc", "qdisc", "add", "dev", "eth0", "clsact"), check=True)
        else:
            ip("-n", pod, *(word.strip("'") for word in command.split(" ")))
    assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
    assert lab.is_parked(mac)
    (parked,) = lab.links(lab.parking).values()
    assert parked["mtu"] == 1500
    assert not {"PROMISC", "ALLMULTI", "UP"} & set(parked["flags"])
    assert "eth0" not in lab.links(pod)
    (survey,) = (await kernel.survey()).parked
    assert (survey.mac, survey.is_up, survey.alias) == (mac, False, "")


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_unusual_mtu_is_restored(lab: Lab, kernel: HostKernel, pod: str, is_restarted: bool) -> None:
    """By memory or, in another process, by the link's own alias."""
    mac, netns, link = await placed(lab, kernel, pod, mtu=8950)
    ip("-n", pod, "link", "set", "eth0", "mtu", "1400")
    if is_restarted:
        await kernel.close()
        kernel = await lab.open_kernel()
    try:
        assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
    finally:
        await kernel.close()
    assert lab.links(lab.parking)["q" + mac.replace(":", "")]["mtu"] == 8950


async def test_repeated_detach_is_true(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    for _ in range(2):
        assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
        assert lab.is_parked(mac)


@pytest.mark.parametrize("is_changed", [False, True])
@pytest.mark.parametrize("place", ["another container", "the host"])
async def test_nic_that_moved_is_found(lab: Lab, kernel: HostKernel, pod: str, place: str, is_changed: bool) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    if is_changed:
        ip("-n", pod, "link", "set", "eth0", "address", FOREIGN_MAC)
    target = lab.host if place == "the host" else lab.make_netns("other")
    ip("-n", pod, "link", "set", "eth0", "netns", target)
    assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
    assert lab.is_parked(mac)


@pytest.mark.parametrize("place", ["at its place", "renumbered", "in another namespace"])
async def test_a_nic_with_a_description_above_64_kib_comes_back(
    lab: Lab, kernel: HostKernel, pod: str, place: str
) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    flood_altnames(pod, "eth0")
    if place == "in another namespace":
        ip("-n", pod, "link", "set", "eth0", "netns", lab.make_netns("other"))
    index = link.ifindex + 4711 if place == "renumbered" else link.ifindex
    assert (await kernel.detach(lab.record(mac), netns, index)).is_parked
    assert lab.is_parked(mac)
    assert not lab.links(lab.parking)["q" + mac.replace(":", "")].get("altnames")


@pytest.mark.parametrize("is_back", [False, True])
async def test_a_foreign_link_with_a_long_description_does_not_keep_a_nic(
    lab: Lab, kernel: HostKernel, pod: str, is_back: bool
) -> None:
    """Its container is gone: the NIC is on the host or, as a veth, nowhere."""
    mac, netns, link = await placed(lab, kernel, pod)
    foreign = lab.make_netns("a-foreign")
    ip("-n", foreign, "link", "add", "f0", "type", "veth", "peer", "name", "f1")
    flood_altnames(foreign, "f0")
    if is_back:
        ip("-n", pod, "link", "set", "eth0", "netns", lab.host)
    ip("netns", "del", pod)
    assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked == is_back
    assert await kernel.is_gone(lab.record(mac), netns)


@pytest.mark.parametrize("step", ["enter", "list"])
async def test_foreign_namespaces_that_refuse_do_not_keep_a_nic(
    lab: Lab, kernel: HostKernel, pod: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Without a fingerprint nothing is taken from a container: the same claim may be in an unseen namespace."""
    mac, netns, link = await placed(lab, kernel, pod)
    foreign = [lab.make_netns(f"foreign{number}") for number in range(5)]  # one is visited before the NIC's, usually
    ip("-n", pod, "link", "set", "eth0", "netns", lab.make_netns("hidden"))
    for name in foreign:
        refusing(monkeypatch, lab.path(name), step)
    assert not await kernel.search([NicRecord(mac)])
    assert not (await kernel.detach(NicRecord(mac), netns, link.ifindex)).is_parked
    assert (await kernel.search([lab.record(mac)])).keys() == {mac}
    assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
    assert lab.is_parked(mac)


async def test_process_in_a_nameless_namespace_gives_the_nic_back(lab: Lab, kernel: HostKernel, pod: str) -> None:
    """Its path is gone, but the namespace is not."""
    mac, netns, link = await placed(lab, kernel, pod)
    with process_in(lab, pod):
        ip("netns", "del", pod)
        assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
        assert lab.is_parked(mac)


async def test_nic_moved_to_a_process_is_found(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    hidden = lab.make_netns("hidden")
    with process_in(lab, hidden) as pid:
        ip("netns", "del", hidden)
        ip("-n", pod, "link", "set", "eth0", "netns", str(pid))
        assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
        assert lab.is_parked(mac)


async def test_deleted_link_is_nowhere(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "del", "eth0")
    assert not (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
    assert await kernel.survey() == replace(await kernel.survey(), host=(), parked=())


async def test_dead_container_took_its_veth_along(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    ip("netns", "del", pod)
    until(lambda: "p1" not in lab.links(lab.vxnet))
    assert not (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked


async def test_other_links_in_the_container_are_left_alone(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "del", "eth0")
    other = lab.plug(2)
    await kernel.attach(replace(lab.order(other, netns, "eth1"), nic=NicRecord(other, "mynet/another/eth1")))
    ip("-n", pod, "link", "add", "lower", "address", mac, "type", "bridge")  # its MAC, but no NIC
    before = lab.links(pod)
    assert before["eth1"]["ifindex"] != link.ifindex
    assert not (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
    assert lab.links(pod) == before


async def test_a_namespace_with_the_number_of_one_that_died_keeps_its_links(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    """The kernel reuses inodes at once, and the index of a vanished NIC may be another link's there."""
    mac, _, link = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "del", "eth0")
    other = lab.make_netns("other")
    veth = f"link add eth0 index {link.ifindex} address {FOREIGN_MAC} type veth peer name x netns {pod}"
    ip("-n", other, *veth.split())
    with Namespace.open(lab.path(other)) as namespace:
        died = Netns(lab.path("died"), *namespace.identity)
    before = lab.links(other)
    assert not (await kernel.detach(lab.record(mac), died, link.ifindex)).is_parked
    assert lab.links(other) == before


async def test_recorded_namespace_that_is_the_hosts_is_not_searched(lab: Lab, kernel: HostKernel) -> None:
    """A record with a pid used again must not cost the host one of its links."""
    ip("-n", lab.host, "link", "add", "uplink", "address", FOREIGN_MAC, "type", "veth", "peer", "name", "x1")
    index = lab.links(lab.host)["uplink"]["ifindex"]
    with Namespace.open(lab.path(lab.host)) as host:
        netns = Netns(lab.path(lab.host), *host.identity)
    assert not (await kernel.detach(lab.record("52:54:00:00:00:09"), netns, index)).is_parked
    assert "uplink" in lab.links(lab.host)


@pytest.mark.defect("hostnic-11")
@pytest.mark.parametrize("peer", ["eth0", "other"])  # the name it comes with is taken as well, or is not
async def test_clash_in_parking_does_not_lose_the_nic(lab: Lab, kernel: HostKernel, pod: str, peer: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    squatter = "q" + mac.replace(":", "")
    ip("-n", lab.parking, "link", "add", squatter, "address", FOREIGN_MAC, "type", "veth", "peer", "name", peer)
    for _ in range(2):
        assert (await kernel.detach(lab.record(mac), netns, link.ifindex)).is_parked
        (found,) = (parked for parked in lab.links(lab.parking).values() if parked["address"] == mac)
        assert found["ifname"].startswith("qnic")
        assert "UP" not in found["flags"]
        assert "ifalias" not in found
    again = await kernel.attach(lab.order(mac, netns))
    ip("-n", lab.parking, "link", "del", squatter)
    assert (await kernel.detach(lab.record(mac), netns, again.ifindex)).is_parked
    assert lab.is_parked(mac)


# --- park --------------------------------------------------------------------------------------------


async def test_arrived_nic_is_parked_clean(lab: Lab, kernel: HostKernel) -> None:
    """As stock images leave it: up, with an address of a dhcp client and an altname of udev."""
    mac = lab.plug(mtu=8950)
    ip("-n", lab.host, "addr", "add", "172.16.3.7/24", "dev", "eth1")
    ip("-n", lab.host, "link", "property", "add", "dev", "eth1", "altname", "enp0s9")
    assert [link.mac for link in (await kernel.survey()).host] == [mac]
    for _ in range(2):
        await kernel.park(lab.record(mac))
        assert lab.is_parked(mac)
    assert lab.links(lab.parking)["q" + mac.replace(":", "")]["mtu"] == 8950
    assert lab.links(lab.host) == {}


async def test_nic_of_a_dead_container_is_parked_clean(lab: Lab, kernel: HostKernel, pod: str) -> None:
    """It comes back to the host under its name and alias of then, with the MTU of then."""
    mac, _netns, _ = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "set", "eth0", "mtu", "1280", "netns", lab.host)
    assert [(link.name, link.alias) for link in (await kernel.survey()).host] == [("eth0", lab.alias)]
    await kernel.park(lab.record(mac))
    assert lab.is_parked(mac)
    assert lab.links(lab.parking)["q" + mac.replace(":", "")]["mtu"] == 1500


async def test_others_are_not_parked(lab: Lab, kernel: HostKernel) -> None:
    """Neither a link with another MAC, nor a bridge, macvlan or vlan that shows the NIC's MAC."""
    mac = "52:54:00:00:00:09"
    ip("-n", lab.host, "link", "add", "br0", "address", mac, "type", "bridge")
    lab.plug()
    ip("-n", lab.host, "link", "add", "link", "eth1", "name", "mv0", "address", mac, "type", "macvlan")
    with pytest.raises(LinkNotFound, match=mac):
        await kernel.park(lab.record(mac))
    assert {"br0", "mv0", "eth1"} <= lab.links(lab.host).keys()
    assert [link.name for link in (await kernel.survey()).host] == ["eth1"]


async def test_refusal_has_the_kernels_words(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac = lab.plug()
    bad = replace(lab.order(mac, await kernel.identify(lab.path(pod))), ifname="name-of-sixteen-")
    with pytest.raises(KernelRefused, match=rf"^nic {mac}: move to .*|^find link .* \(\w+\)$"):
        await kernel.attach(bad)
    assert lab.is_parked(mac)
    assert not ip_json("-n", pod, "-4", "addr", "show", "up")
