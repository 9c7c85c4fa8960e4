"""A container inherits nothing from the one that had its NIC before."""

from contextlib import contextmanager

import pytest

from machines.nics import Lab, ip, kernel, lab, within
from machines.soils import SOILS, UPPERS
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.netlink.socket import Netlink
from qingcloud_cni.kernel.nic_state.states import LinkStates

__all__ = ["kernel", "lab"]  # fixtures

HARMFUL = ("NOARP", "dynamic", "no multicast", "promiscuous", *(s for s in SOILS if s.startswith(("xdp", "tcx"))))


def differences(lab: Lab, netns: str) -> list[str]:
    """What ``eth0`` has in a container that a NIC as plugged has not."""

    def read() -> list[str]:
        with Netlink() as netlink, LinkStates(netlink, contextmanager(lambda: iter([None]))) as states:
            link = netlink.link(name="eth0")
            assert link is not None
            return list(states.differences(link, None))

    found: list[str] = within(lab, netns, read)
    return found


@pytest.mark.parametrize("soil", HARMFUL)
async def test_next_container_gets_the_nic_as_plugged(lab: Lab, kernel: HostKernel, soil: str) -> None:
    mac, first, second = lab.plug(), lab.make_netns("first"), lab.make_netns("second")
    netns = await kernel.identify(lab.path(first))
    placed = await kernel.attach(lab.order(mac, netns))
    with SOILS[soil](lab, first):
        assert differences(lab, first)
        await kernel.detach(lab.record(mac), netns, placed.ifindex)
        await kernel.attach(lab.order(mac, await kernel.identify(lab.path(second))))
        assert differences(lab, second) == []


@pytest.mark.parametrize("kind", UPPERS)
async def test_link_above_a_nic_ends_with_its_container(lab: Lab, kernel: HostKernel, kind: str) -> None:
    """Its namespace lives on: with a macvlan the old container would use the address that it no longer has."""
    mac, first = lab.plug(), lab.make_netns("first")
    netns = await kernel.identify(lab.path(first))
    placed = await kernel.attach(lab.order(mac, netns))
    ip("-n", first, "link", "add", "link", "eth0", "name", "above", "type", *kind.split())
    await kernel.detach(lab.record(mac), netns, placed.ifindex)
    assert lab.links(first) == {}


@pytest.mark.parametrize("soil", ["NOARP", "xdp", "xdp link", "tcx ingress", "tcx egress link"])
@pytest.mark.parametrize("is_parked_first", [False, True])
async def test_container_gets_nothing_that_a_host_agent_hung_on_a_new_nic(
    lab: Lab, kernel: HostKernel, soil: str, is_parked_first: bool
) -> None:
    mac, pod = lab.plug(name="eth0"), lab.make_netns("pod")
    with SOILS[soil](lab, lab.host):
        if is_parked_first:
            await kernel.park(lab.record(mac))
        await kernel.attach(lab.order(mac, await kernel.identify(lab.path(pod))))
        assert differences(lab, pod) == []
