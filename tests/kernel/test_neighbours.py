"""ARP of parked and attached NICs: probes before an address is used, announcements afterwards."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from machines.nics import ADDRESS, Lab, fd_count, ip, ip_json, kernel, lab, until
from qingcloud_cni.core.errors import LinkNotFound
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.links.link_operations import LinkOperations
from qingcloud_cni.kernel.neighbours.probes import PROBES
from qingcloud_cni.sim.fabric.shell import inside

__all__ = ["kernel", "lab"]  # fixtures

IP = ADDRESS.partition("/")[0]
STALE = "02:00:00:00:00:99"
ETH_P_ALL = 0x0003
BROADCAST, NOBODY = b"\xff" * 6, bytes(4)


@contextmanager
def wire(lab: Lab, number: int = 1) -> Iterator[socket.socket]:
    """The other end of a NIC's wire: hears all frames that leave it."""

    def open_arp_socket() -> socket.socket:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        ear.bind((f"p{number}", ETH_P_ALL))
        ear.setblocking(False)
        return ear

    with inside(lab.vxnet, open_arp_socket) as ear:
        yield ear


def heard(ear: socket.socket, mac: str) -> list[bytes]:
    frames = []
    with suppress(BlockingIOError):
        while True:
            frame = ear.recv(2048)
            if frame[6:12] == packed(mac):
                frames.append(frame)
    return frames


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def claim(lab: Lab, number: int = 1, address: str = ADDRESS) -> str:
    """Add a user of the address to the vxnet; returns its MAC."""
    ip("-n", lab.vxnet, "address", "add", address, "dev", f"p{number}")
    return str(lab.links(lab.vxnet)[f"p{number}"]["address"])


def neighbour(lab: Lab) -> str:
    """The MAC that the vxnet remembers for the address."""
    (entry,) = ip_json("-n", lab.vxnet, "neighbour", "show", IP, "dev", "p1")
    return str(entry["lladdr"])


# --- probes --------------------------------------------------------------------------------------------


async def test_an_address_that_nobody_has_is_probed_for_in_the_name_of_nobody(lab: Lab, kernel: HostKernel) -> None:
    """Nothing else leaves the NIC meanwhile, and it is parked as before afterwards."""
    mac = lab.plug()
    await kernel.park(lab.record(mac))
    with wire(lab) as ear:
        heard(ear, mac)  # what it said on the host
        assert await kernel.probe(mac, IP) == ""
        frames = heard(ear, mac)
    assert len(frames) == PROBES
    for frame in frames:
        assert (frame[:6], frame[12:14], frame[20:22]) == (BROADCAST, b"\x08\x06", b"\0\1")
        assert (frame[22:28], frame[28:32], frame[38:42]) == (packed(mac), NOBODY, socket.inet_aton(IP))
    assert lab.is_parked(mac)


async def test_who_has_the_address_is_told(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    await kernel.park(lab.record(mac))
    owner = claim(lab)
    assert await kernel.probe(mac, IP) == owner
    assert lab.is_parked(mac)


async def test_another_who_probes_for_it_at_the_same_time_counts_as_well(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    await kernel.park(lab.record(mac))
    probe = BROADCAST + packed(STALE) + b"\x08\x06\0\1\x08\0\6\4\0\1" + packed(STALE) + NOBODY + bytes(6)
    with wire(lab) as ear:
        asking = asyncio.create_task(kernel.probe(mac, IP))
        while not asking.done():
            with suppress(OSError):  # the NIC is not up yet
                ear.send(probe + socket.inet_aton(IP))
            await asyncio.sleep(0.02)
    assert await asking == STALE


async def test_many_are_probed_at_once_over_one_socket_and_a_move_does_not_wait_for_them(
    lab: Lab, kernel: HostKernel
) -> None:
    macs = [lab.plug(number) for number in range(1, 21)]
    spare, pod = lab.plug(30), lab.make_netns("pod")
    for mac in (*macs, spare):
        await kernel.park(lab.record(mac))
    owner = claim(lab, 7, "172.16.3.107/24")
    before = fd_count()
    asking = [asyncio.create_task(kernel.probe(mac, f"172.16.3.{100 + n}")) for n, mac in enumerate(macs, 1)]
    # The links are set up before the socket is opened.
    await asyncio.to_thread(until, lambda: len(up(lab)) == len(macs) and fd_count() == before + 1)
    await kernel.attach(lab.order(spare, await kernel.identify(lab.path(pod))))
    assert not any(task.done() for task in asking if task is not asking[6])
    answers = await asyncio.gather(*asking)
    assert answers == [owner if n == 7 else "" for n in range(1, 21)]
    assert up(lab) == []
    await kernel.flush([])  # the socket was closed in the thread that does this
    assert fd_count() == before


def up(lab: Lab) -> list[str]:
    return [name for name, link in lab.links(lab.parking).items() if "UP" in link["flags"]]


async def test_a_nic_that_is_taken_while_it_is_probed_serves_its_container(lab: Lab, kernel: HostKernel) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    await kernel.park(lab.record(mac))
    asking = asyncio.create_task(kernel.probe(mac, IP))
    await asyncio.to_thread(until, lambda: up(lab))
    await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))
    with pytest.raises(LinkNotFound):
        await asking
    link = lab.links(pod)["eth0"]
    assert (link["address"], "UP" in link["flags"]) == (mac, True)


async def test_a_probe_that_is_called_off_leaves_the_link_down_and_nothing_open(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    await kernel.park(lab.record(mac))
    before = fd_count()
    asking = asyncio.create_task(kernel.probe(mac, IP))
    await asyncio.to_thread(until, lambda: up(lab))
    asking.cancel()
    await asyncio.wait({asking})
    await kernel.survey()  # comes after the link was set down
    await kernel.flush([])
    assert lab.is_parked(mac)
    assert fd_count() == before


async def test_a_nic_that_is_not_parked_is_not_probed(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    with pytest.raises(LinkNotFound):
        await kernel.probe(mac, IP)
    assert "UP" in lab.links(lab.host)["eth1"]["flags"]


async def test_links_left_up_by_an_agent_that_was_killed_are_down_after_the_next_start(lab: Lab) -> None:
    mac = lab.plug()
    kernel = await lab.open_kernel()
    await kernel.park(lab.record(mac))
    await kernel._operations.do(LinkOperations.set_up, mac)
    await kernel.close()
    assert up(lab)
    kernel = await lab.open_kernel()
    await kernel.close()
    assert lab.is_parked(mac)


# --- announcements -------------------------------------------------------------------------------------


async def attached(lab: Lab, kernel: HostKernel) -> tuple[str, str, Any, int]:
    """A NIC in a container, and a neighbour that remembers its address with another MAC."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    order = lab.order(mac, await kernel.identify(lab.path(pod)))
    placed = await kernel.attach(order)
    claim(lab, address="172.16.3.1/24")
    remember_wrongly(lab)
    return mac, pod, order, placed.ifindex


def remember_wrongly(lab: Lab) -> None:
    ip("-n", lab.vxnet, "neighbour", "replace", IP, "lladdr", STALE, "dev", "p1", "nud", "reachable")


async def test_a_neighbour_that_remembers_another_mac_learns_the_right_one(lab: Lab, kernel: HostKernel) -> None:
    mac, _, order, ifindex = await attached(lab, kernel)
    before = fd_count()
    assert await kernel.announce(order, ifindex)
    await asyncio.to_thread(until, lambda: neighbour(lab) == mac)
    assert fd_count() == before


async def test_what_is_announced_is_the_mac_that_the_link_has_now(lab: Lab, kernel: HostKernel) -> None:
    """A chained plugin may have changed it."""
    _, pod, order, ifindex = await attached(lab, kernel)
    ip("-n", pod, "link", "set", "eth0", "address", "02:00:00:00:00:07")
    remember_wrongly(lab)
    assert await kernel.announce(order, ifindex)
    await asyncio.to_thread(until, lambda: neighbour(lab) == "02:00:00:00:00:07")


@pytest.mark.parametrize(
    "change",
    [
        "link set eth0 down",
        f"address del {ADDRESS} dev eth0",
    ],
)
async def test_what_is_so_no_longer_is_not_announced(lab: Lab, kernel: HostKernel, change: str) -> None:
    mac, pod, order, ifindex = await attached(lab, kernel)
    ip("-n", pod, *change.split())
    with wire(lab) as ear:
        assert not await kernel.announce(order, ifindex)
        assert [frame for frame in heard(ear, mac) if frame[12:14] == b"\x08\x06"] == []


async def test_where_link_or_namespace_is_gone_nothing_is_announced(lab: Lab, kernel: HostKernel) -> None:
    _, pod, order, ifindex = await attached(lab, kernel)
    ip("-n", pod, "link", "delete", "eth0")
    assert not await kernel.announce(order, ifindex)
    ip("netns", "del", pod)
    assert not await kernel.announce(order, ifindex)
    ip("netns", "add", pod)  # another one at the same place
    assert not await kernel.announce(order, ifindex)
