"""No link that a hostile container makes is taken for a NIC: it has NET_ADMIN in its own namespaces."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from machines.nics import Lab, ip, ip_json, kernel, lab, until, within
from qingcloud_cni.core.errors import LinkNotFound
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import NicRecord
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.links.recognition import HAS_PARENTS, Recognition
from qingcloud_cni.kernel.namespaces.namespaces import Namespace
from qingcloud_cni.kernel.netlink.messages import LinkChange, LinkInfo, Request, pack_attribute, set_link
from qingcloud_cni.kernel.netlink.socket import Netlink

__all__ = ["kernel", "lab"]  # fixtures

IFLA_NEW_IFINDEX = 49


@dataclass(frozen=True)
class Attacked:
    """A victim's NIC in its container, and a hostile container that has a NIC as well, and nested namespaces."""

    lab: Lab
    nic: NicRecord
    netns: Netns
    ifindex: int  # of the victim's NIC, in *victim*
    port: int  # index of its peer in the router's namespace
    victim: str
    hostile: str
    inner: str
    own: NicRecord  # of the hostile container

    def hostile_links(self) -> list[Any]:
        seen = ("ifindex", "address", "ifalias", "mtu")  # carrier and state take their time
        places = [self.lab.links(netns) for netns in (self.hostile, self.inner)]
        return [{name: [link.get(key) for key in seen] for name, link in place.items()} for place in places]

    def end_victim(self) -> None:
        ip("netns", "del", self.victim)
        until(lambda: "p1" not in self.lab.links(self.lab.vxnet))


@pytest.fixture
async def attacked(lab: Lab, kernel: HostKernel) -> Attacked:
    names = [lab.make_netns(role) for role in ("victim", "hostile", "inner")]
    mac, own = lab.plug(1), lab.plug(2)
    netns, theirs = [await kernel.identify(lab.path(name)) for name in names[:2]]
    placed = await kernel.attach(lab.order(mac, netns))
    assert placed.arrival.fingerprint == lab.record(mac).fingerprint
    order = lab.order(own, theirs)
    await kernel.attach(replace(order, nic=replace(order.nic, alias="mynet/hostile/eth0"), address="172.16.3.8/24"))
    port = int(lab.record(mac).fingerprint.rpartition("/")[2])
    victim, hostile, inner = names
    return Attacked(lab, lab.record(mac), netns, placed.ifindex, port, victim, hostile, inner, lab.record(own))


def fake(a: Attacked, words: str = "", *, netns: str = "", peer: str = "") -> None:
    """A veth in the hostile container, or in *netns*; its peer is in *peer*."""
    ip("-n", netns or a.hostile, *f"link add fake {words} type veth peer name peer netns {peer or a.inner}".split())


def with_its_mac(a: Attacked) -> None:
    fake(a, f"address {a.nic.mac}")


def with_its_alias(a: Attacked) -> None:
    fake(a)
    ip("-n", a.hostile, "link", "set", "fake", "alias", a.nic.alias)


def with_its_index(a: Attacked) -> None:
    fake(a, f"index {a.ifindex}")


def with_its_name_and_all(a: Attacked) -> None:
    ip("-n", a.hostile, "link", "set", "eth0", "down")
    ip("-n", a.hostile, "link", "set", "eth0", "name", "own")
    fake(a, f"index {a.ifindex} address {a.nic.mac}")
    for change in ("alias " + a.nic.alias, "name eth0", "mtu 1400", "up"):
        name = "eth0" if change in ("mtu 1400", "up") else "fake"
        ip("-n", a.hostile, *f"link set {name} {change}".split())


def with_its_peers_index(a: Attacked) -> None:
    """A veth in another namespace may have the index of the NIC's port; the namespace may have any free number."""
    with_numbers(a)
    peer = f"link add peer index {a.port} type veth peer name fake address {a.nic.mac} netns {a.hostile}"
    ip("-n", a.inner, *peer.split())


def with_numbers(a: Attacked) -> None:
    """Namespaces get numbers: the router has 0 in some namespace, so here the inner one has."""
    taken = {int(link.get("link_netnsid", -1)) for link in ip_json("-n", a.hostile, "link")}
    number = next(n for n in range(4) if n not in taken)
    ip("-n", a.hostile, "netns", "set", a.inner, str(number))


def with_the_mac_on_its_own_nic(a: Attacked) -> None:
    for change in ("down", f"address {a.nic.mac}", f"alias {a.nic.alias}", "up"):
        ip("-n", a.hostile, "link", "set", "eth0", *change.split())


def with_other_kinds(a: Attacked) -> None:
    for kind in ("bridge", "macvlan", "macvtap", "dummy"):
        lower = ("link", "eth0") if kind.startswith("mac") else ()
        try:
            ip("-n", a.hostile, "link", "add", *lower, "name", f"{kind}0", "address", a.nic.mac, "type", kind)
        except AssertionError as err:
            if "Unknown device type" not in str(err) and "not supported" not in str(err):
                raise


ATTACKS: tuple[Callable[[Attacked], None], ...] = (
    with_its_mac,
    with_its_alias,
    with_its_index,
    with_its_name_and_all,
    with_its_peers_index,
    with_the_mac_on_its_own_nic,
    with_other_kinds,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("is_recorded", [True, False])
async def test_a_del_right_after_the_end_of_a_namespace_takes_no_other_link(
    attacked: Attacked, kernel: HostKernel, attack: Callable[[Attacked], None], *, is_recorded: bool
) -> None:
    """The NIC is on its way back; the agent waits for it. Without a record the NIC must not be another's either."""
    attack(attacked)
    if attack is with_the_mac_on_its_own_nic and not is_recorded:
        pytest.skip("without a record a NIC of the simulator is what it says, if no other says so")
    before = attacked.hostile_links()
    attacked.end_victim()
    record = attacked.nic if is_recorded else replace(attacked.nic, fingerprint="")
    detached = await kernel.detach(record, attacked.netns, attacked.ifindex)
    assert not detached.is_parked
    assert attacked.hostile_links() == before
    assert attacked.lab.links(attacked.lab.parking) == {}
    assert await kernel.search([record]) == {}
    assert await kernel.is_gone(record, attacked.netns)
    if is_recorded and attack not in (with_its_index, with_other_kinds):
        assert any(f"in {attacked.lab.path(attacked.hostile)}" in spoof for spoof in detached.spoofs)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_the_nic_of_a_living_container_comes_back_whatever_looks_like_it(
    attacked: Attacked, kernel: HostKernel, attack: Callable[[Attacked], None]
) -> None:
    attack(attacked)
    before = attacked.hostile_links()
    assert (await kernel.detach(attacked.nic, attacked.netns, attacked.ifindex)).is_parked
    assert attacked.lab.is_parked(attacked.nic.mac)
    assert attacked.hostile_links() == before
    assert (await kernel.detach(attacked.own, attacked.netns, 0)).is_parked  # it is known by its record as well
    assert attacked.lab.is_parked(attacked.own.mac)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_a_del_parks_the_link_that_has_returned_with_a_new_fingerprint(
    attacked: Attacked, kernel: HostKernel, attack: Callable[[Attacked], None]
) -> None:
    """The simulator plugs in a new veth. On the host no container can write, so the link is what it says."""
    attack(attacked)
    before = attacked.hostile_links()
    attacked.end_victim()
    attacked.lab.plug(1)
    detached = await kernel.detach(attacked.nic, attacked.netns, attacked.ifindex)
    assert detached.arrival is not None
    assert (
        detached.arrival.fingerprint == attacked.lab.record(attacked.nic.mac).fingerprint != attacked.nic.fingerprint
    )
    assert detached.spoofs == ()
    assert attacked.lab.is_parked(attacked.nic.mac)
    assert attacked.hostile_links() == before


async def test_a_copy_at_the_place_of_a_nic_that_moved_is_named_and_the_nic_is_found(
    attacked: Attacked, kernel: HostKernel
) -> None:
    """`ip link set netns`, `ip link add index N`: its namespace and index are right, its MAC and alias as well."""
    a = attacked
    ip("-n", a.victim, "link", "set", "eth0", "netns", a.inner)
    fake(a, f"index {a.ifindex} address {a.nic.mac}", netns=a.victim)
    ip("-n", a.victim, "link", "set", "fake", "alias", a.nic.alias)
    detached = await kernel.detach(a.nic, a.netns, a.ifindex)
    assert detached.is_parked
    assert detached.spoofs[0] == f"fake (MAC {a.nic.mac}, index {a.ifindex}) in {a.netns.path}"
    assert "fake" in a.lab.links(a.victim)
    assert a.lab.is_parked(a.nic.mac)


async def test_without_a_record_a_nic_that_two_links_claim_to_be_is_left_where_it_is(
    attacked: Attacked, kernel: HostKernel
) -> None:
    a, record = attacked, replace(attacked.nic, fingerprint="")
    with_the_mac_on_its_own_nic(a)
    assert not (await kernel.detach(record, a.netns, a.ifindex)).is_parked
    assert await kernel.search([record]) == {}
    ip("-n", a.hostile, "link", "set", "eth0", "address", a.own.mac)
    assert (await kernel.detach(record, a.netns, a.ifindex)).arrival is not None
    assert a.lab.is_parked(a.nic.mac)


@pytest.mark.parametrize("swapped_in", ["a veth", "its own NIC"])
async def test_a_link_that_is_swapped_in_while_the_nic_is_moved_home_is_thrown_out(
    attacked: Attacked, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch, swapped_in: str
) -> None:
    """The index is looked at first and used then; the container is faster."""
    a, find = attacked, Recognition.find
    before = a.lab.links(a.lab.parking)

    def slow_find(nics: Recognition, netlink: Netlink, nic: NicRecord, ifindex: int = 0) -> LinkInfo | None:
        found = find(nics, netlink, nic, ifindex)
        if found is not None and ifindex:
            monkeypatch.setattr(Recognition, "find", find)
            ip("-n", a.victim, "link", "set", "eth0", "netns", a.inner)
            if swapped_in == "a veth":
                fake(a, f"index {ifindex} address {a.nic.mac}", netns=a.victim)
            else:
                with_the_mac_on_its_own_nic(a)
                within(a.lab, a.hostile, lambda: move_to_index("eth0", a.netns.path, ifindex))
        return found

    monkeypatch.setattr(Recognition, "find", slow_find)
    detached = await kernel.detach(a.nic, a.netns, a.ifindex)
    assert detached.is_parked  # the search goes on where it is now
    assert a.lab.is_parked(a.nic.mac)
    assert a.lab.links(a.lab.parking).keys() - before.keys() == {"q" + a.nic.mac.replace(":", "")}
    assert "fake" not in a.lab.links(a.victim)


def move_to_index(name: str, path: str, ifindex: int) -> None:
    """`ip link set netns` with the index there, which iproute2 cannot choose."""
    with Netlink() as netlink, Namespace.open(path) as target:
        link = netlink.link(name=name)
        assert link is not None
        move = set_link(link.ifindex, LinkChange(netns_fd=target.fd))
        index = pack_attribute(IFLA_NEW_IFINDEX, struct.pack("=i", ifindex))
        netlink.do(Request(move.kind, move.body + index), "move")


async def test_on_a_real_host_no_veth_is_a_nic(lab: Lab) -> None:
    mac = lab.plug()
    for routers in ([], [lab.path(lab.make_netns("other"))]):
        opened = await lab.open_kernel(f"{lab.instance_id}{len(routers)}", routers=routers)
        try:
            assert [link.fingerprint for link in (await opened.survey()).host] == [""]
            with pytest.raises(LinkNotFound):
                await opened.park(NicRecord(mac))
        finally:
            await opened.remove()


def test_hardware_is_recognised_by_parent_and_burnt_in_mac() -> None:
    """Of this machine, which is only read."""
    with Netlink() as netlink:
        hardware = [link for link in netlink.links() if not link.kind and link.permanent_mac]
        if not hardware or not HAS_PARENTS:
            pytest.skip("this machine has no network hardware")
        for link, shown in zip(hardware, (Recognition([]).link(netlink, link) for link in hardware), strict=True):
            device = Path("/sys/class/net", link.name, "device").resolve()
            bus = Path(device, "subsystem").resolve().name
            assert shown.fingerprint == f"{bus}/{device.name} {link.permanent_mac}"
            assert shown.claimed_id == netlink.permanent_mac(link.name) == link.permanent_mac
        assert netlink.permanent_mac("lo") == netlink.permanent_mac("no-such-link") == ""


async def test_nics_of_several_routers_are_told_apart(lab: Lab) -> None:
    """Ports in two routers may have the same index."""
    second = lab.make_netns("router2")
    first_mac = lab.plug()
    port = lab.links(lab.vxnet)["p1"]["ifindex"]
    peer = f"link add p9 index {port} type veth peer name eth9 netns {lab.host}"
    ip("-n", second, *peer.split())
    other_mac = lab.links(lab.host)["eth9"]["address"]
    opened = await lab.open_kernel(routers=[lab.path(lab.vxnet), lab.path(second)])
    try:
        prints = {link.mac: link.fingerprint for link in (await opened.survey()).host}
        assert prints == {
            mac: f"veth {Path(lab.path(router)).stat().st_ino}/{port}"
            for mac, router in ((first_mac, lab.vxnet), (other_mac, second))
        }
        for mac, fingerprint in prints.items():
            assert (await opened.park(NicRecord(mac))).fingerprint == fingerprint
            assert lab.is_parked(mac)
    finally:
        await opened.close()
