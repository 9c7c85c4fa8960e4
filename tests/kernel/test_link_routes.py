"""Routes of a container: what other programs installed stays, and what the configuration asks for is there."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from inprocess.rows import make_nic
from machines.nics import ADDRESS, ROUTES, Lab, ip, ip_json, kernel, lab
from qingcloud_cni.core.cni.check import mismatches
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.cni.results import render, result_of
from qingcloud_cni.core.cni.routes import routes_for
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, NicState, Route
from qingcloud_cni.kernel import HostKernel

__all__ = ["kernel", "lab"]  # fixtures

OTHER = "10.9.0.1"  # the router of another plugin's network
VIA_OTHER = ("via", OTHER, "dev", "eth0")
PRESENT: dict[str, tuple[str, ...]] = {
    "as ours": VIA_OTHER,
    "with a metric": (*VIA_OTHER, "metric", "100"),
    "of a DHCP client": (*VIA_OTHER, "metric", "1024", "proto", "dhcp"),
    "over several links": ("nexthop", *VIA_OTHER, "weight", "1", "nexthop", "via", "10.9.0.2", "dev", "eth0"),
    "on the link": ("dev", "eth0", "scope", "link", "metric", "7"),
    "by a next hop that is a neighbour by word": ("via", "192.0.2.1", "dev", "eth0", "onlink", "metric", "9"),
    "with a size": (*VIA_OTHER, "metric", "50", "mtu", "1400"),
}
REJECTING = ("blackhole", "unreachable", "prohibit", "throw")
DESTINATIONS = ("default", "10.96.0.0/12")


def netns_with_eth0(lab: Lab) -> str:
    """A container to which another plugin gave eth0."""
    pod = lab.make_netns("pod")
    ip("-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "other0", "netns", lab.vxnet)
    ip("-n", pod, "addr", "add", "10.9.0.7/24", "dev", "eth0")
    ip("-n", pod, "link", "set", "eth0", "up")
    return pod


def shown(pod: str, dst: str, table: str = "main") -> list[dict[str, Any]]:
    return [r for r in ip_json("-n", pod, "-d", "route", "show", "table", table) if r["dst"] == dst]


async def attach(lab: Lab, kernel: HostKernel, pod: str, routes: tuple[Route, ...] = ROUTES) -> Attachment:
    mac = lab.plug()
    netns = await kernel.identify(lab.path(pod))
    placed = await kernel.attach(lab.order(mac, netns, "net1", routes))
    key = AttachmentKey("net", "c1", "net1")
    return Attachment(key, mac, netns, 1.0, routes=placed.routes, ifindex=placed.ifindex, mtu=1500, is_ready=True)


async def faults(lab: Lab, kernel: HostKernel, pod: str, attachment: Attachment) -> tuple[str, ...]:
    nic = replace(make_nic(state=NicState.ASSIGNED, nic_id=attachment.nic_id), address=ADDRESS)
    seen = await kernel.inspect(lab.path(pod), "net1")
    return mismatches(attachment, nic, seen, result_of(attachment, nic), "net1")


@pytest.mark.parametrize("dst", DESTINATIONS)
@pytest.mark.parametrize("route", [*PRESENT.values(), *REJECTING], ids=[*PRESENT, *REJECTING])
async def test_a_destination_that_is_there_stays_as_it_is(
    lab: Lab, kernel: HostKernel, dst: str, route: Sequence[str]
) -> None:
    """Neither metric nor protocol nor kind decide. The result lists what was installed, and CHECK agrees."""
    pod = netns_with_eth0(lab)
    words = (route, dst) if isinstance(route, str) else (dst, *route)
    ip("-n", pod, "route", "add", *words)
    before = shown(pod, dst)
    attachment = await attach(lab, kernel, pod)
    assert shown(pod, dst) == before
    assert attachment.routes == tuple(r for r in ROUTES if r.dst != dst.replace("default", "0.0.0.0/0"))
    assert await faults(lab, kernel, pod, attachment) == ()


ELSEWHERE = {
    "another table": (*VIA_OTHER, "table", "100"),
    "some packets only": (*VIA_OTHER, "tos", "0x10"),
}


@pytest.mark.parametrize("route", ELSEWHERE.values(), ids=ELSEWHERE)
async def test_a_route_of_another_table_or_for_some_packets_is_no_obstacle(
    lab: Lab, kernel: HostKernel, route: Sequence[str]
) -> None:
    pod = netns_with_eth0(lab)
    ip("-n", pod, "route", "add", "default", *route)
    assert (await attach(lab, kernel, pod)).routes == ROUTES


ROUTER = ROUTES[0].gw
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "priority": ({"priority": 100}, {"metric": 100}),
    "table": ({"table": 100}, {"table": "100"}),
    "main table by number": ({"table": 254}, {}),
    "main table as 0": ({"table": 0}, {}),
    "large table": ({"table": 4_000_000_000}, {"table": "4000000000"}),
    "mtu": ({"mtu": 1400}, {"metrics": [{"mtu": 1400}]}),
    "advmss": ({"advmss": 1300}, {"metrics": [{"advmss": 1300}]}),
    "scope": ({"scope": 0}, {"scope": "global"}),
    "scope link": ({"scope": 253, "gw": ""}, {"scope": "link", "gateway": None}),
    "all": (
        {"priority": 7, "table": 100, "mtu": 1400, "advmss": 1300, "scope": 0},
        {"metric": 7, "table": "100", "metrics": [{"mtu": 1400, "advmss": 1300}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
async def test_what_a_route_asks_for_is_installed_told_and_checked(lab: Lab, kernel: HostKernel, what: str) -> None:
    asked, expected = ASKED[what]
    entry = {"dst": "10.96.0.0/12", "gw": ROUTER, **asked}
    config = read_config({"cniVersion": "1.1.0", "name": "net", "ipam": {"routes": [entry]}})
    nic = replace(make_nic(), address=ADDRESS)
    pod = lab.make_netns("pod")
    attachment = await attach(lab, kernel, pod, routes_for(nic, config.routes))
    (route,) = shown(pod, "10.96.0.0/12", "all")
    told = {key: route.get(key) for key in expected}
    assert told == expected, json.dumps(route)
    assert shown(pod, "default")[0]["gateway"] == ROUTER
    (answered,) = (r for r in _routes_of(render(result_of(attachment, nic), "1.1.0")) if r["dst"] == entry["dst"])
    assert answered == {key: value for key, value in entry.items() if value != ""}
    assert await faults(lab, kernel, pod, attachment) == ()


def _routes_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    routes: list[dict[str, Any]] = result["routes"]
    return routes


@pytest.mark.parametrize("changed", ["priority", "mtu", "advmss"])
async def test_check_finds_a_route_that_has_lost_what_was_asked_for(
    lab: Lab, kernel: HostKernel, changed: str
) -> None:
    pod = lab.make_netns("pod")
    wanted = Route("10.96.0.0/12", ROUTER, priority=7, mtu=1400, advmss=1300)
    attachment = await attach(lab, kernel, pod, (wanted,))
    values = {"priority": ("metric", "7"), "mtu": ("mtu", "1400"), "advmss": ("advmss", "1300")}
    ip("-n", pod, "route", "del", "10.96.0.0/12")
    left = [word for key, words in values.items() if key != changed for word in words]
    ip("-n", pod, "route", "add", "10.96.0.0/12", "via", ROUTER, *left)
    (fault,) = await faults(lab, kernel, pod, attachment)
    assert fault == f"route to 10.96.0.0/12 via {ROUTER} mtu 1400 advmss 1300 priority 7 is missing"


async def test_two_priorities_of_one_network_are_both_installed(lab: Lab, kernel: HostKernel) -> None:
    """Only what was there before the ADD counts as taken."""
    pod = lab.make_netns("pod")
    routes = tuple(Route("10.96.0.0/12", f"172.16.3.{n}", priority=n) for n in (1, 2))
    assert (await attach(lab, kernel, pod, routes)).routes == routes
    assert [r["metric"] for r in shown(pod, "10.96.0.0/12")] == [1, 2]
