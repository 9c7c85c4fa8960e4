"""A container inherits nothing from the one that had its NIC before."""

from dataclasses import replace

import pytest

from machines.bpf_programs import ATTACH_XDP, left_on
from machines.nics import Lab, ip, kernel, lab, within
from machines.soils import SOILS, UPPERS
from qingcloud_cni.core.errors import NicSoiled
from qingcloud_cni.core.seams.kernel import NicRecord
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.namespaces.namespaces import Namespace
from qingcloud_cni.kernel.netlink.messages import RTM_DELLINK, U32, Message, Request, delete_group
from qingcloud_cni.kernel.netlink.socket import Netlink
from qingcloud_cni.kernel.nic_state import uppers

__all__ = ["kernel", "lab"]  # fixtures

HARMFUL = ("NOARP", "dynamic", "no multicast", "promiscuous", *(s for s in SOILS if s.startswith(("xdp", "tcx"))))


async def differences(kernel: HostKernel, lab: Lab, netns: str, nic: NicRecord) -> tuple[str, ...]:
    """What ``eth0`` has in a container that the NIC as plugged has not."""
    return (await kernel.inspect(lab.path(netns), "eth0", nic)).differences


@pytest.mark.parametrize("soil", SOILS)
async def test_next_container_gets_the_nic_as_plugged(lab: Lab, kernel: HostKernel, soil: str) -> None:
    """The comparison in between is that of a NIC which cools down."""
    mac, first, second = lab.plug(), lab.make_netns("first"), lab.make_netns("second")
    arrival = await kernel.park(lab.record(mac))
    nic = replace(lab.record(mac), plugged=arrival.plugged)
    netns = await kernel.identify(lab.path(first))
    placed = await kernel.attach(replace(lab.order(mac, netns), nic=nic))
    with SOILS[soil](lab, first):
        assert bool(await differences(kernel, lab, first, nic)) == (soil != "nothing")
        await kernel.detach(nic, netns, placed.ifindex)
        compared = await kernel.compare([nic])
        assert (compared[mac].plugged, compared[mac].soil) == (arrival.plugged, "")
        await kernel.attach(replace(lab.order(mac, await kernel.identify(lab.path(second))), nic=nic))
        assert await differences(kernel, lab, second, nic) == ()


@pytest.mark.parametrize("soil", HARMFUL)
async def test_container_that_comes_at_once_gets_the_nic_without_the_worst(
    lab: Lab, kernel: HostKernel, soil: str
) -> None:
    """Without cooldown, and without a description: the comparison before a NIC is handed out finds it."""
    mac, first, second = lab.plug(), lab.make_netns("first"), lab.make_netns("second")
    netns = await kernel.identify(lab.path(first))
    placed = await kernel.attach(lab.order(mac, netns))
    with SOILS[soil](lab, first):
        await kernel.detach(lab.record(mac), netns, placed.ifindex)
        await kernel.attach(lab.order(mac, await kernel.identify(lab.path(second))))
        assert await differences(kernel, lab, second, lab.record(mac)) == ()


async def test_nic_that_cannot_be_restored_is_given_to_nobody(lab: Lab, kernel: HostKernel) -> None:
    """An XDP program whose bpf_link may be that of another namespace stays; the NIC is parked again."""
    mac, pod = lab.plug(), lab.make_netns("pod")
    nic = replace(lab.record(mac), plugged=(await kernel.park(lab.record(mac))).plugged)
    other, parked = lab.make_netns("other"), "q" + mac.replace(":", "")
    index = str(lab.links(lab.parking)[parked]["ifindex"])
    ip("-n", other, "link", "add", parked, "index", index, "type", "veth", "peer", "name", "x", "netns", lab.vxnet)
    with left_on(lab, lab.parking, parked, ATTACH_XDP, is_link=True, also=other):
        with pytest.raises(NicSoiled, match=f"nic {mac}: not as the cloud plugged it in: XDP program"):
            await kernel.attach(replace(lab.order(mac, await kernel.identify(lab.path(pod))), nic=nic))
        assert lab.is_parked(mac)
        assert "XDP program" in (await kernel.compare([nic]))[mac].soil
        assert "XDP program" in (await kernel.park(nic)).soil
    assert (await kernel.compare([nic]))[mac].soil == ""


@pytest.mark.parametrize("kind", UPPERS)
@pytest.mark.parametrize("is_reachable", [True, False])
async def test_link_above_a_nic_that_was_moved_away_is_deleted_or_the_nic_given_up(
    lab: Lab, kernel: HostKernel, kind: str, is_reachable: bool
) -> None:
    """The container moves it into a namespace of its own, which the DEL does not visit."""
    mac, first, nested = lab.plug(), lab.make_netns("first"), lab.make_netns("nested")
    nic = replace(lab.record(mac), plugged=(await kernel.park(lab.record(mac))).plugged)
    netns = await kernel.identify(lab.path(first))
    placed = await kernel.attach(replace(lab.order(mac, netns), nic=nic))
    ip("-n", first, "link", "add", "link", "eth0", "name", "above", "netns", nested, "type", *kind.split())
    with within(lab, nested, Netlink) as held:  # a socket keeps a namespace that no path leads to
        if not is_reachable:
            ip("netns", "del", nested)
        await kernel.detach(nic, netns, placed.ifindex)
        soil = (await kernel.compare([nic]))[mac].soil
        assert {link.name for link in held.links()} == ({"lo"} if is_reachable else {"lo", "above"})
    assert bool(soil) != is_reachable, soil


async def test_comparison_leaves_out_nics_that_are_not_parked(lab: Lab, kernel: HostKernel) -> None:
    here, gone, parked = lab.plug(1), "52:54:00:00:00:09", lab.plug(2)
    await kernel.park(lab.record(parked))
    assert set(await kernel.compare([lab.record(mac) for mac in (here, gone, parked)])) == {parked}


@pytest.mark.parametrize("kind", UPPERS)
async def test_link_above_a_nic_ends_with_its_container(lab: Lab, kernel: HostKernel, kind: str) -> None:
    """Its namespace lives on: with a macvlan the old container would use its freed address."""
    mac, first = lab.plug(), lab.make_netns("first")
    netns = await kernel.identify(lab.path(first))
    placed = await kernel.attach(lab.order(mac, netns))
    ip("-n", first, "link", "add", "link", "eth0", "name", "above", "type", *kind.split())
    await kernel.detach(lab.record(mac), netns, placed.ifindex)
    assert lab.links(first) == {}


class Counting(Netlink):
    """Each deletion in the kernel waits for a grace period, whatever number of links it deletes."""

    deletions = 0

    def do(self, request: Request, action: str) -> list[Message]:
        self.deletions += request.kind == RTM_DELLINK
        return super().do(request, action)


@pytest.mark.parametrize("is_from_afar", [False, True])
@pytest.mark.parametrize("is_refused", [False, True])
def test_many_links_above_a_nic_are_deleted_at_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, is_from_afar: bool, is_refused: bool
) -> None:
    """Else 800 macvlans of one container hold up the DEL of every other. What else is in a group of links stays."""
    first, nested = lab.make_netns("first"), lab.make_netns("nested")
    lab.plug(name="eth0", netns=first)
    where = nested if is_from_afar else first
    for number in range(20):
        name = ("name", f"above{number}", "netns", where, "group", str(number))
        ip("-n", first, "link", "add", "link", "eth0", *name, "type", "macvlan")
    ip("-n", where, "link", "add", "other", "group", "7", "type", "veth", "peer", "name", "other1")
    if is_refused:
        monkeypatch.setattr(uppers, "delete_group", lambda _group: delete_group(U32.pack(0)))
    with within(lab, first, Netlink) as netlink, within(lab, where, Counting) as counting:
        link = netlink.link(name="eth0")
        assert link is not None
        if is_from_afar:
            with Namespace.open(lab.path(first)) as home:
                uppers.delete_from_afar(counting, home, [link.ifindex])
        else:
            uppers.delete_above(counting, link, "nic")
    assert set(lab.links(where)) == {"other", "other1"} | (set() if is_from_afar else {"eth0"})
    assert counting.deletions == (21 if is_refused else 1)


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
        assert await differences(kernel, lab, pod, lab.record(mac)) == ()
