"""The state of a NIC is described as plugged, and restored after whatever a container did to it."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from machines.bpf_programs import ATTACH_XDP, left_on
from machines.nics import Lab, ip, lab, within
from machines.soils import SOILS, UPPERS
from qingcloud_cni.kernel.namespaces.namespaces import Namespace, NetnsSwitcher
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.messages import LinkInfo
from qingcloud_cni.kernel.netlink.socket import Netlink
from qingcloud_cni.kernel.nic_state import bpf, sysfs
from qingcloud_cni.kernel.nic_state.link_attributes import LISTED, RESET, RESTORED
from qingcloud_cni.kernel.nic_state.states import LinkStates, strip
from qingcloud_cni.kernel.nic_state.uppers import delete_from_afar, is_occupied

__all__ = ["lab"]  # fixture


def veth_into(netns: str) -> tuple[str, ...]:
    return ("type", "veth", "peer", "name", "peer", "netns", netns)


class Bench:
    """Links of a lab's namespaces, read and restored in the test's own thread."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.switcher = NetnsSwitcher()
        self.park = lab.make_netns("park")
        self.pod = lab.make_netns("pod")
        self.namespace = Namespace.open(lab.path(self.park))
        self.netlink: Netlink = within(lab, self.park, Netlink)
        self.states = LinkStates(self.netlink, lambda: self.switcher.inside(self.namespace))
        lab.plug(name="eth0", netns=self.park)

    @property
    def link(self) -> LinkInfo:
        found = self.netlink.link(name="eth0")
        assert found is not None
        return found

    def lend(self) -> None:
        ip("-n", self.park, "link", "set", "eth0", "netns", self.pod)
        ip("-n", self.pod, "link", "set", "eth0", "up")

    def fetch(self) -> None:
        ip("-n", self.pod, "link", "set", "eth0", "netns", self.park)

    def close(self) -> None:
        for held in (self.states, self.netlink, self.namespace, self.switcher):
            held.close()


@pytest.fixture
def bench(lab: Lab) -> Iterator[Bench]:
    made = Bench(lab)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("soil", SOILS)
def test_container_leaves_nothing_on_its_nic(lab: Lab, bench: Bench, soil: str) -> None:
    assert bench.states.lacks == ()
    plugged = bench.states.arrive(bench.link, "")
    described = plugged.described
    assert plugged.soil == ""
    bench.lend()
    with SOILS[soil](lab, bench.pod):
        bench.fetch()
        found = list(bench.states.differences(bench.link, described, is_thorough=True))
        assert bool(found) == (soil != "nothing"), found
        assert bench.states.settle(bench.link, described, is_thorough=True).soil == ""
        assert bench.states.arrive(bench.link, "").described == described
        assert list(bench.states.differences(bench.link, described, is_thorough=True)) == []


@pytest.mark.parametrize("soil", ["NOARP", "xdp", "xdp link", "tcx ingress", "tcx egress link"])
def test_nic_arrives_without_what_a_host_agent_hung_on_it(lab: Lab, bench: Bench, soil: str) -> None:
    clean = bench.states.arrive(bench.link, "").described
    with SOILS[soil](lab, bench.park):
        arrived = bench.states.arrive(bench.link, "")
    assert (arrived.described, arrived.soil) == (clean, "")


def test_what_cannot_be_restored_is_named(bench: Bench) -> None:
    described = bench.states.arrive(bench.link, "").described
    assert described is not None
    impossible = replace(described, ethtool=dict(described.ethtool, channels="00" * 32))
    assert "channels" in bench.states.settle(bench.link, impossible, is_thorough=True).soil


def test_xdp_link_that_may_be_another_namespaces_is_left(lab: Lab, bench: Bench) -> None:
    """Both links have the same program and the same index: only the NIC is given up, nothing else is touched."""
    bench.lend()
    other = lab.make_netns("other")
    index = str(lab.links(bench.pod)["eth0"]["ifindex"])
    ip("-n", other, "link", "add", "eth0", "index", index, *veth_into(lab.vxnet))
    with left_on(lab, other, "eth0", ATTACH_XDP, is_link=True, also=bench.pod):
        bench.fetch()
        assert "XDP program" in bench.states.settle(bench.link, None).soil
        assert "xdp" in lab.links(other)["eth0"]


@pytest.mark.parametrize("kind", UPPERS)
def test_link_above_a_nic_is_deleted_before_the_move(lab: Lab, bench: Bench, kind: str) -> None:
    ip("-n", bench.park, "link", "add", "link", "eth0", "name", "above", "type", *kind.split())
    ip("-n", bench.park, "link", "add", "other", "type", "veth", "peer", "name", "other1")
    strip(bench.netlink, bench.link, "nic")
    assert set(lab.links(bench.park)) == {"eth0", "other", "other1"}


@pytest.mark.parametrize("kind", UPPERS)
def test_link_above_a_nic_in_another_namespace_is_found_and_deleted(lab: Lab, bench: Bench, kind: str) -> None:
    bench.lend()
    ip("-n", bench.pod, "link", "add", "link", "eth0", "name", "above", "type", *kind.split())
    bench.fetch()
    assert is_occupied(bench.netlink, bench.link)
    with within(lab, bench.pod, Netlink) as inside:
        delete_from_afar(inside, bench.namespace, [bench.link.ifindex])
    assert not lab.links(bench.pod)
    assert not is_occupied(bench.netlink, bench.link)
    assert set(lab.links(bench.park)) == {"eth0"}


def test_links_of_others_are_not_deleted_from_afar(lab: Lab, bench: Bench) -> None:
    """A macvlan on a link of a third namespace, and a veth whose peer has the NIC's index."""
    bench.lend()
    bench.fetch()
    third, index = lab.make_netns("third"), str(bench.link.ifindex)
    ip("-n", third, "link", "add", "lower", "index", index, *veth_into(bench.pod))
    ip("-n", third, "link", "add", "link", "lower", "name", "above", "netns", bench.pod, "type", "macvlan")
    before = lab.links(bench.pod)
    with within(lab, bench.pod, Netlink) as inside:
        delete_from_afar(inside, bench.namespace, [bench.link.ifindex])
    assert lab.links(bench.pod) == before
    assert set(before) == {"above", "peer"}


@pytest.mark.parametrize("what", ["bpf", "sysfs"])
def test_missing_ability_is_named_and_the_rest_is_restored(
    lab: Lab, bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The service's system call filter lacks bpf, or the kernel fsopen."""
    if what == "bpf":
        monkeypatch.setattr(bpf, "NUMBER", None)
    else:
        monkeypatch.setattr(sysfs, "FSOPEN", 100_000)
    states = LinkStates(bench.netlink, lambda: bench.switcher.inside(bench.namespace))
    with states:
        assert [lack.partition(":")[0].removesuffix("(2)") for lack in states.lacks] == [what]
        plugged = states.arrive(bench.link, "").described
        with SOILS["NOARP"](lab, bench.park), SOILS["tcx ingress"](lab, bench.park):
            assert states.settle(bench.link, plugged, is_thorough=True).soil == ""


def test_every_attribute_of_a_link_is_looked_after(lab: Lab, bench: Bench) -> None:
    """Each is restored, reset or listed with a reason. A kernel with a new one fails here."""
    ip("-n", bench.park, "link", "property", "add", "dev", "eth0", "altname", "another-name")
    ip("-n", bench.park, "link", "set", "eth0", "alias", "x")
    with left_on(lab, bench.park, "eth0", ATTACH_XDP, is_link=False):
        whole = nl.Request(nl.RTM_GETLINK, nl.get_link(name="eth0").body)
        found = {n for n, _ in nl.unpack_attributes(bench.netlink.do(whole, "read")[0].body, 16)}
    tables = [set(RESTORED), set(RESET), set(LISTED)]
    assert found <= set().union(*tables)
    assert sum(map(len, tables)) == len(set().union(*tables))
    with Netlink() as netlink:  # this machine's hardware shows more
        for link in netlink.links():
            assert set(link.attributes) <= set().union(*tables), link.name
