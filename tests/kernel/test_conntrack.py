"""Flows of a released address are deleted, and no others; pyroute2 reads them back."""

import ctypes
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from machines.flows import addresses, flows, send_syn, send_udp, track, write_flows
from machines.nics import Lab, fd_count, ip, kernel, lab
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.netlink import conntrack
from qingcloud_cni.kernel.netlink.messages import Request
from qingcloud_cni.sim.fabric.shell import inside

__all__ = ["kernel", "lab"]  # fixtures

POD, OTHER, HOST, SERVICE, CLIENT = "172.16.3.7", "172.16.3.8", "172.16.3.1", "10.96.0.10", "10.9.9.9"
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
NAT = f"""
table ip nat {{
  chain out {{ type nat hook output priority -100;
    ip daddr {SERVICE} udp dport 53 dnat to {POD}
    ip daddr {SERVICE} udp dport 54 dnat to {OTHER}; }}
  chain leave {{ type nat hook postrouting priority 100; udp dport 55 snat to {POD}; }}
}}
"""


@pytest.fixture
def host(lab: Lab) -> Iterator[str]:
    """A host with flows from and to the addresses of two pods, all of them half open."""
    lab.plug()
    ip("-n", lab.host, "address", "add", f"{HOST}/24", "dev", "eth1")
    ip("-n", lab.host, "route", "add", "default", "via", OTHER, "dev", "eth1")
    for address in (POD, OTHER):
        words = f"neighbour add {address} lladdr 02:00:00:00:00:07 dev eth1 nud permanent"
        ip("-n", lab.host, *words.split())
    track(lab.host, NAT)
    ip("-n", lab.vxnet, "address", "add", f"{POD}/24", "dev", "p1")
    send_udp(lab.vxnet, HOST)  # from the pod
    with send_syn(lab.host, POD), send_syn(lab.host, OTHER):
        send_udp(lab.host, POD)
        send_udp(lab.host, OTHER)
        send_udp(lab.host, SERVICE, 53)  # what answers is the pod
        send_udp(lab.host, SERVICE, 54)
        send_udp(lab.host, CLIENT, 55)  # is answered to the pod's address
        yield lab.host


BEFORE = [
    (TCP, (HOST, POD), (POD, HOST)),
    (TCP, (HOST, OTHER), (OTHER, HOST)),
    (UDP, (HOST, SERVICE), (OTHER, HOST)),
    (UDP, (HOST, SERVICE), (POD, HOST)),
    (UDP, (HOST, CLIENT), (CLIENT, POD)),
    (UDP, (HOST, POD), (POD, HOST)),
    (UDP, (HOST, OTHER), (OTHER, HOST)),
    (UDP, (POD, HOST), (HOST, POD)),
]
AFTER = sorted(flow for flow in BEFORE if POD not in flow[1] + flow[2])


@pytest.mark.parametrize("worth_picking", [conntrack.FILTER_THRESHOLD, 0], ids=["listed", "picked"])
async def test_every_flow_of_an_address_is_forgotten_and_no_other(
    host: str, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch, worth_picking: int
) -> None:
    """Half-open connections and datagrams, whether the address is source or target, before or after translation."""
    monkeypatch.setattr(conntrack, "FILTER_THRESHOLD", worth_picking)
    assert flows(host) == sorted(BEFORE)
    assert await kernel.flush([POD]) == len(BEFORE) - len(AFTER)
    assert flows(host) == AFTER
    assert await kernel.flush([POD]) == 0


async def test_an_older_kernel_that_picks_nothing_is_asked_once(
    host: str, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def list_everything(*_pick: Any) -> Request:
        asked.append(list_flows())
        return asked[-1]

    list_flows = conntrack.list_flows
    monkeypatch.setattr(conntrack, "FILTER_THRESHOLD", 0)
    monkeypatch.setattr(conntrack, "list_flows", list_everything)
    assert await kernel.flush([POD, "172.16.3.9"]) == len(BEFORE) - len(AFTER)
    assert flows(host) == AFTER
    assert len(asked) == 1


async def test_of_many_flows_only_those_of_the_address_go(
    lab: Lab, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "FILTER_THRESHOLD", 500)
    count = 700
    track(lab.host)
    write_flows(lab.host, [(f"10.{n >> 8 & 255}.{n & 255}.1", "192.0.2.1") for n in range(count - 3)])
    write_flows(lab.host, [(POD, "192.0.2.1"), ("192.0.2.1", POD), (OTHER, "192.0.2.1")])
    assert await kernel.flush([POD]) == 2
    assert len(flows(lab.host)) == count - 2
    assert {OTHER, "10.0.1.1"} <= addresses(lab.host) - {POD}
    assert POD not in addresses(lab.host)


async def test_several_addresses_are_flushed_at_once_and_nothing_stays_open(host: str, kernel: HostKernel) -> None:
    before = fd_count()
    assert await kernel.flush([POD, OTHER]) == len(BEFORE)
    assert flows(host) == []
    assert await kernel.flush([]) == 0
    assert fd_count() == before


async def test_where_nothing_is_tracked_there_is_nothing_to_do(
    kernel: HostKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await kernel.flush([POD]) == 0
    monkeypatch.setattr(conntrack, "TRACKED", "net/netfilter/absent")  # as without the module
    assert await kernel.flush([POD]) == 0


def test_without_the_right_to_it_the_kernels_words_are_told(host: str, lab: Lab) -> None:
    def delete_flows() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        this_thread = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the structure
        assert libc.capset(this_thread, (ctypes.c_uint32 * 6)()) == 0
        with pytest.raises(KernelRefused, match=r"list tracked flows failed: .*\(EPERM\)"):
            conntrack.delete_flows([POD])

    inside(lab.host, delete_flows)
    assert flows(host) == sorted(BEFORE)
