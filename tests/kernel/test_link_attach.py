"""Attach moves a NIC into a container as ordered, or parks it again; `ip` and pyroute2 read it back."""

import asyncio
import socket
import threading
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest
from pyroute2 import IPRoute

from machines.nics import ADDRESS, ROUTES, Lab, fd_count, ip, ip_json, kernel, lab, until, within
from qingcloud_cni.core.errors import InvalidConfig, InvalidNetns, KernelRefused, LinkNotFound
from qingcloud_cni.core.nics.model import Route
from qingcloud_cni.core.seams.kernel import LinkOrder, PlacedLink
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.links.link_operations import LinkOperations
from qingcloud_cni.kernel.namespaces.namespaces import Namespace
from qingcloud_cni.kernel.netlink.messages import LinkInfo
from qingcloud_cni.kernel.netlink.socket import Netlink

__all__ = ["kernel", "lab"]  # fixtures

ETH_P_ARP = 0x0806


async def test_container_gets_its_nic(lab: Lab, kernel: HostKernel) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    await kernel.park(lab.record(mac))
    placed = await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))

    def read() -> tuple[Any, Any, Any]:
        with IPRoute() as ipr:
            index = ipr.link_lookup(ifname="eth0")[0]
            return (
                ipr.get_links(index)[0],
                list(ipr.get_addr(index=index, family=socket.AF_INET)),
                list(ipr.get_routes(family=socket.AF_INET, table=254)),
            )

    link, addresses, routes = within(lab, pod, read)
    assert link.get_attr("IFLA_ADDRESS") == mac
    assert link.get_attr("IFLA_IFALIAS") == lab.alias
    assert link["flags"] & 1
    assert (placed.ifindex, placed.mtu) == (link["index"], 1500)
    (address,) = addresses
    assert (address.get_attr("IFA_LOCAL"), address["prefixlen"]) == ("172.16.3.7", 24)
    assert address.get_attr("IFA_BROADCAST") == "172.16.3.255"
    static = [route for route in routes if route["proto"] == 4]
    assert {(r.get_attr("RTA_DST"), r["dst_len"], r.get_attr("RTA_GATEWAY")) for r in static} == {
        (None, 0, "172.16.3.1"),
        ("10.96.0.0", 12, "172.16.3.254"),
    }
    assert lab.links(lab.host) == {}
    assert lab.links(lab.parking) == {}


async def test_nic_goes_straight_from_the_host(lab: Lab, kernel: HostKernel) -> None:
    """What the host gave it stays behind: addresses, altnames, being up."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    ip("-n", lab.host, "addr", "add", "10.9.9.9/24", "dev", "eth1")
    ip("-n", lab.host, "link", "property", "add", "dev", "eth1", "altname", "enp0s9")
    ip("-n", pod, "link", "add", "enp0s9", "type", "veth", "peer", "name", "x1")  # it would clash
    placed = await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))
    link = lab.links(pod)["eth0"]
    assert (link["address"], link["ifindex"]) == (mac, placed.ifindex)
    assert "altnames" not in link
    shown = ip_json("-n", pod, "-4", "addr", "show", "eth0")
    assert [info["local"] for item in shown for info in item["addr_info"]] == ["172.16.3.7"]


async def test_attach_and_detach_pass_the_parking_of_a_refill(lab: Lab, kernel: HostKernel) -> None:
    """Parking 13 NICs took half a second, and an ADD waited for all of them. One that has begun is finished."""
    first, *refill = [lab.plug(number) for number in range(1, 8)]
    pods = [await kernel.identify(lab.path(lab.make_netns(name))) for name in ("pod1", "pod2")]
    await kernel.park(lab.record(first))
    ended: list[str] = []

    async def note(name: str, work: Awaitable[object]) -> None:
        await work
        ended.append(name)

    records, order = [lab.record(mac) for mac in refill], lab.order(first, pods[0])
    parking = [asyncio.create_task(note("park", kernel.park(nic))) for nic in records]
    await asyncio.sleep(0)
    placed = asyncio.create_task(kernel.attach(order))
    await note("attach", placed)
    await note("detach", kernel.detach(order.nic, pods[0], placed.result().ifindex))
    assert ended.count("park") < len(refill), ended
    assert ended.index("attach") <= 1, ended
    assert len(lab.links(lab.host)) >= 1
    await asyncio.gather(*parking)
    assert len(lab.links(lab.parking)) == 7


@pytest.mark.defect("slow-1")
async def test_no_duplicate_detection_of_ipv6_is_waited_for(lab: Lab, kernel: HostKernel) -> None:
    """As the container has it set it would take hours; its link-local address is valid at once."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    for name, value in {"disable_ipv6": 0, "accept_dad": 1, "dad_transmits": 10_000}.items():
        ip("netns", "exec", pod, "sysctl", "-qw", f"net.ipv6.conf.default.{name}={value}")
    await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))

    def link_local() -> list[bool]:
        shown = ip_json("-n", pod, "-6", "addr", "show", "dev", "eth0", "scope", "link")
        return ["tentative" in info for item in shown for info in item["addr_info"]]

    until(link_local)  # once the carrier is seen
    assert link_local() == [False]


async def test_taken_index_is_told(lab: Lab, kernel: HostKernel) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    index = lab.links(lab.host)["eth1"]["ifindex"]
    ip(
        "-n",
        pod,
        "link",
        "add",
        "other",
        "index",
        str(index),
        "type",
        "veth",
        "peer",
        "name",
        "x1",
        "netns",
        lab.vxnet,
    )
    placed = await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))
    assert placed.ifindex != index
    assert lab.links(pod)["eth0"]["ifindex"] == placed.ifindex


async def test_unusual_mtu_is_kept_and_noted(lab: Lab, kernel: HostKernel) -> None:
    mac, pod = lab.plug(mtu=8950), lab.make_netns("pod")
    await kernel.park(lab.record(mac))
    placed = await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))
    link = lab.links(pod)["eth0"]
    assert (placed.mtu, link["mtu"], link["ifalias"]) == (8950, 8950, f"{lab.alias} mtu=8950")


@pytest.mark.defect("others-21")
async def test_neighbours_are_told_at_once(lab: Lab, kernel: HostKernel) -> None:
    """One gratuitous ARP, with the address and the NIC's MAC, reaches the other end of the wire."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    await kernel.park(lab.record(mac))
    ear: socket.socket = within(lab, lab.vxnet, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    with ear:
        ear.bind(("p1", ETH_P_ARP))
        ear.settimeout(5)
        await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))
        frame = await asyncio.to_thread(ear.recv, 2048)
    sender_mac, sender, target = frame[22:28], frame[28:32], frame[38:42]
    assert sender_mac.hex(":") == mac
    assert sender == target == socket.inet_aton("172.16.3.7")
    assert frame[:6] == b"\xff" * 6


@pytest.mark.parametrize("is_altname", [False, True])
async def test_taken_name_is_named_and_nothing_touched(lab: Lab, kernel: HostKernel, is_altname: bool) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    ip("-n", pod, "link", "add", "x0" if is_altname else "eth0", "type", "veth", "peer", "name", "x1")
    if is_altname:
        ip("-n", pod, "link", "property", "add", "dev", "x0", "altname", "eth0")
    before = lab.links(pod)
    with pytest.raises(InvalidConfig, match=f"ifname eth0: attach failed: taken in {lab.path(pod)}"):
        await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))
    assert lab.links(pod) == before
    assert lab.is_parked(mac)


async def test_name_taken_at_the_last_moment(lab: Lab, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has moved the link by the time it finds its new name taken."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    netns = await kernel.identify(lab.path(pod))
    look = Netlink.link

    def look_too_early(self: Netlink, *, ifindex: int = 0, name: str = "") -> LinkInfo | None:
        found = look(self, ifindex=ifindex, name=name)
        if name == "eth0" and not found:
            ip("-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "x1")
        return found

    monkeypatch.setattr(Netlink, "link", look_too_early)
    with pytest.raises(InvalidConfig, match="ifname eth0: attach failed: taken"):
        await kernel.attach(lab.order(mac, netns))
    assert lab.links(pod).keys() == {"eth0", "x1"}
    assert lab.is_parked(mac)


async def test_nic_unplugged_at_the_last_moment(
    lab: Lab, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    netns = await kernel.identify(lab.path(pod))
    look = Netlink.link

    def unplug(self: Netlink, *, ifindex: int = 0, name: str = "") -> LinkInfo | None:
        if name == "eth0":
            ip("-n", lab.vxnet, "link", "del", "p1")
        return look(self, ifindex=ifindex, name=name)

    monkeypatch.setattr(Netlink, "link", unplug)
    with pytest.raises(LinkNotFound, match=f"nic {mac}: .*(ENODEV|vanished)"):
        await kernel.attach(lab.order(mac, netns))
    assert lab.links(pod) == {}


@pytest.mark.parametrize("is_parked", [False, True])
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_vanished_container_leaves_the_nic_parked(
    lab: Lab, kernel: HostKernel, is_parked: bool, is_replaced: bool
) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    if is_parked:
        await kernel.park(lab.record(mac))
    netns = await kernel.identify(lab.path(pod))
    held = Namespace.open(netns.path)  # so that its inode is not given to the next one
    with held:
        ip("netns", "del", pod)
        if is_replaced:
            ip("netns", "add", pod)
        with pytest.raises(InvalidNetns, match=lab.path(pod)):
            await kernel.attach(lab.order(mac, netns))
    assert lab.is_parked(mac)
    if is_replaced:
        assert lab.links(pod) == {}


async def test_impossible_route_undoes_everything(lab: Lab, kernel: HostKernel) -> None:
    """The error has the kernel's words; the same NIC serves a better order afterwards."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    await kernel.park(lab.record(mac))
    netns = await kernel.identify(lab.path(pod))
    unreachable = (*ROUTES, Route("10.1.0.0/16", "192.168.77.1"))
    with pytest.raises(KernelRefused) as caught:
        await kernel.attach(lab.order(mac, netns, routes=unreachable))
    wish = f"nic {mac}: add route 10.1.0.0/16 via 192.168.77.1 in {lab.path(pod)}"
    assert str(caught.value) == f"{wish} failed: Nexthop has invalid gateway (ENETUNREACH)"
    assert lab.is_parked(mac)
    assert lab.links(pod) == {}
    await kernel.attach(lab.order(mac, netns))
    assert lab.links(pod)["eth0"]["address"] == mac


async def test_route_that_the_container_has_already_is_left_to_its_first_nic(lab: Lab, kernel: HostKernel) -> None:
    """The result has the installed routes only."""
    first, second, pod = lab.plug(1), lab.plug(2), lab.make_netns("pod")
    netns = await kernel.identify(lab.path(pod))
    routes = (await kernel.attach(lab.order(first, netns))).routes
    assert routes == ROUTES
    other = replace(lab.order(second, netns), ifname="net1", routes=(*ROUTES, Route("10.2.0.0/16", ROUTES[0].gw)))
    assert (await kernel.attach(other)).routes == (Route("10.2.0.0/16", ROUTES[0].gw),)


async def test_bug_in_an_order_undoes_everything_too(lab: Lab, kernel: HostKernel) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    netns = await kernel.identify(lab.path(pod))
    with pytest.raises(OSError, match="illegal IP address"):
        await kernel.attach(replace(lab.order(mac, netns), address="nonsense/24"))
    assert lab.is_parked(mac)


async def test_unknown_nic_is_not_found(lab: Lab, kernel: HostKernel) -> None:
    netns = await kernel.identify(lab.path(lab.make_netns("pod")))
    with pytest.raises(LinkNotFound, match="52:54:00:00:00:09"):
        await kernel.attach(lab.order("52:54:00:00:00:09", netns))


async def test_hosts_own_namespace_is_refused(lab: Lab, kernel: HostKernel) -> None:
    """Also where the record, not the caller of identify, leads to it: a pid that was used again."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    recorded = await kernel.identify(lab.path(pod))
    with Namespace.open(lab.path(lab.host)) as host:
        dev, inode = host.identity
    with pytest.raises(InvalidNetns):
        await kernel.attach(lab.order(mac, replace(recorded, path=lab.path(lab.host), dev=dev, inode=inode)))
    assert lab.is_parked(mac)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.004, 0.010])  # seconds
async def test_cancelled_attach_is_done_or_undone(lab: Lab, kernel: HostKernel, delay: float) -> None:
    first, second, pod = lab.plug(1), lab.plug(2), lab.make_netns("pod")
    await kernel.park(lab.record(first))
    await kernel.park(lab.record(second))
    netns = await kernel.identify(lab.path(pod))
    running = asyncio.create_task(kernel.attach(lab.order(first, netns)))
    queued = asyncio.create_task(
        kernel.attach(replace(lab.order(second, netns, "eth1", ()), address="172.16.3.8/24"))
    )
    await asyncio.sleep(delay)
    running.cancel()
    queued.cancel()
    assert isinstance((await asyncio.gather(running, queued, return_exceptions=True))[0], asyncio.CancelledError)
    await kernel.survey()  # its turn comes after theirs
    for mac, ifname in ((first, "eth0"), (second, "eth1")):
        inside = lab.links(pod).get(ifname)
        if inside is None:
            assert lab.is_parked(mac)
        else:
            assert (inside["address"], "UP" in inside["flags"]) == (mac, True)
        assert (await kernel.detach(lab.record(mac), netns, 0)).is_parked
        assert lab.is_parked(mac)


async def test_hundred_pairs_leave_nothing_behind(lab: Lab, kernel: HostKernel) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    netns = await kernel.identify(lab.path(pod))

    async def pair() -> None:
        placed = await kernel.attach(lab.order(mac, netns))
        assert (await kernel.detach(lab.record(mac), netns, placed.ifindex)).is_parked

    await pair()
    held = (fd_count(), threading.active_count())
    for _ in range(100):
        await pair()
    assert (fd_count(), threading.active_count()) == held
    assert lab.is_parked(mac)


@pytest.mark.parametrize("is_detached", [True, False])
async def test_container_can_die(lab: Lab, kernel: HostKernel, is_detached: bool) -> None:
    """Nothing of ours keeps a namespace alive: a veth in it goes as soon as its owner removes it."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    ip("-n", pod, "link", "add", "x0", "type", "veth", "peer", "name", "witness", "netns", lab.vxnet)
    netns = await kernel.identify(lab.path(pod))
    placed = await kernel.attach(lab.order(mac, netns))
    if is_detached:
        assert (await kernel.detach(lab.record(mac), netns, placed.ifindex)).is_parked
    ip("netns", "del", pod)
    until(lambda: "witness" not in lab.links(lab.vxnet), seconds=3)
    assert lab.is_parked(mac) == is_detached
    assert ("p1" in lab.links(lab.vxnet)) == is_detached


async def test_address_is_the_orders(lab: Lab, kernel: HostKernel) -> None:
    """An address without neighbours needs no broadcast address; routes may be none."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    netns = await kernel.identify(lab.path(pod))
    await kernel.attach(replace(lab.order(mac, netns, "net1", ()), address=ADDRESS.replace("/24", "/32")))
    (info,) = ip_json("-n", pod, "-4", "addr", "show", "net1")[0]["addr_info"]
    assert (info["local"], info["prefixlen"], "broadcast" in info) == ("172.16.3.7", 32, False)


async def test_moves_asked_for_at_once_are_made_one_at_a_time_in_their_order(
    lab: Lab, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    under_way: list[str] = []
    attach = LinkOperations.attach

    def watched(verbs: LinkOperations, order: LinkOrder) -> PlacedLink:
        begun.append(order.mac)
        under_way.append(order.mac)
        assert under_way == [order.mac]
        try:
            return attach(verbs, order)
        finally:
            under_way.remove(order.mac)

    monkeypatch.setattr(LinkOperations, "attach", watched)
    orders = []
    for number in range(5):
        netns = await kernel.identify(lab.path(lab.make_netns(f"pod{number}")))
        orders.append(lab.order(lab.plug(number), netns))
    await asyncio.gather(*(kernel.attach(order) for order in orders))
    assert begun == [order.mac for order in orders]
