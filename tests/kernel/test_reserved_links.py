"""No verb changes a link of the host's own: that of --iface, that of the default route, a primary NIC's."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from machines.nics import Lab, ip, ip_json, lab, within
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import (
    ContainerLinks,
    Gateway,
    HostLinks,
    Neighbours,
    NicRecord,
    ServicePath,
    ServiceRouting,
)
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.links.reserved import HostNetlink, host_macs
from qingcloud_cni.kernel.netlink.messages import (
    IFLA_MASTER,
    LinkChange,
    LinkInfo,
    delete_altnames,
    delete_link,
    set_link,
)
from qingcloud_cni.kernel.netlink.routing import Address, TableRoute, add_address, delete_address

__all__ = ["lab"]  # a fixture

ROLES = {"--iface": 0, "default route": 1, "primary": 2}


@dataclass(frozen=True)
class Guarded:
    """A host with --iface eth1, a default route over eth2, a primary NIC eth3 and a NIC of the pool, eth4."""

    kernel: HostKernel
    lab: Lab
    macs: tuple[str, ...]

    def state(self) -> Any:
        host, fields = self.lab.host, ("ifindex", "address", "mtu", "ifalias", "altnames")
        links = {n: ("UP" in v["flags"], *map(v.get, fields)) for n, v in self.lab.links(host).items()}
        return (
            links,
            [a["addr_info"] for a in ip_json("-n", host, "-4", "addr")],
            ip_json("-n", host, "-4", "route", "show"),
        )


@pytest.fixture
async def host(lab: Lab) -> AsyncIterator[Guarded]:
    macs = tuple(lab.plug(number) for number in range(1, 5))
    ip("-n", lab.host, "addr", "add", "192.168.9.2/24", "dev", "eth2")
    ip("-n", lab.host, "route", "add", "default", "via", "192.168.9.1", "dev", "eth2", "metric", "50")
    kernel = await lab.open_kernel(iface="eth1")
    try:
        await kernel.reserve({*(await kernel.host_macs()).default_route, macs[2]})
        yield Guarded(kernel, lab, macs)
    finally:
        await kernel.close()


def container(lab: Lab) -> Netns:
    path = Path(lab.path(lab.make_netns("c1")))
    return Netns(str(path), path.stat().st_dev, path.stat().st_ino)


Verb = Callable[[HostKernel, Lab, str], Awaitable[Any]]
CHANGING: dict[str, Verb] = {
    "park": lambda kernel, lab, mac: kernel.park(lab.record(mac)),
    "attach": lambda kernel, lab, mac: kernel.attach(lab.order(mac, container(lab))),
    "detach": lambda kernel, lab, mac: kernel.detach(lab.record(mac), container(lab), 0),
    "probe": lambda kernel, _lab, mac: kernel.probe(mac, "172.16.3.7"),
    "serve": lambda kernel, _lab, mac: kernel.serve(
        ServicePath((Gateway(mac, "hostnic", "172.16.1.9/24", "172.16.1.1", 0),))
    ),
}
OTHERS = {  # they read, send, change parked links only, or have nothing to do with a NIC's link
    "identify", "inspect", "is_gone", "survey", "survey_all", "search", "changes", "host_macs", "reserve", "announce",
    "flush", "host_addresses", "settings_before", "restore", "compare", "restore_parking",
}  # fmt: skip


def test_every_method_of_the_kernel_is_tried() -> None:
    protocols = (ContainerLinks, HostLinks, Neighbours, ServiceRouting)
    methods = {name for protocol in protocols for name in vars(protocol) if not name.startswith("_")}
    assert methods == CHANGING.keys() | OTHERS


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("verb", CHANGING)
async def test_no_verb_changes_a_reserved_link(host: Guarded, verb: str, role: str) -> None:
    before = host.state()
    with pytest.raises(KernelRefused, match="reserved, as it is the host's own NIC"):
        await CHANGING[verb](host.kernel, host.lab, host.macs[ROLES[role]])
    assert host.state() == before


@pytest.mark.parametrize("role", ROLES)
async def test_a_reserved_link_that_claims_to_be_another_nic_is_not_changed(host: Guarded, role: str) -> None:
    """By the fingerprint that a record has, and by the alias."""
    name = f"eth{ROLES[role] + 1}"
    ip("-n", host.lab.host, "link", "set", name, "alias", host.lab.alias)
    before = host.state()
    (fingerprint,) = (link.fingerprint for link in (await host.kernel.survey()).host if link.name == name)
    with pytest.raises(KernelRefused, match=f"{name} is reserved, as it is the host's own link"):
        await host.kernel.park(NicRecord("52:54:99:99:99:99", host.lab.alias, fingerprint))
    assert host.state() == before


async def test_a_nic_of_the_pool_is_moved_as_before(host: Guarded) -> None:
    pool = host.macs[3]
    await host.kernel.park(host.lab.record(pool))
    assert host.lab.is_parked(pool)
    netns = container(host.lab)
    await host.kernel.attach(host.lab.order(pool, netns))
    ip("-n", netns.path.rpartition("/")[2], "link", "set", "eth0", "down")
    ip("-n", netns.path.rpartition("/")[2], "link", "set", "eth0", "address", host.macs[0])  # as a container may
    assert (await host.kernel.detach(host.lab.record(pool), netns, 0)).is_parked
    assert host.lab.is_parked(pool)


async def test_the_link_of_the_default_route_is_free_once_others_are_reserved(host: Guarded) -> None:
    await host.kernel.reserve(())
    await host.kernel.park(host.lab.record(host.macs[1]))
    assert host.lab.is_parked(host.macs[1])
    with pytest.raises(KernelRefused):
        await host.kernel.park(host.lab.record(host.macs[0]))


async def test_a_reserved_nic_that_comes_back_under_another_index_is_reserved(host: Guarded) -> None:
    ip("-n", host.lab.host, "link", "del", "eth3")
    assert host.lab.plug(3, name="ens9") == host.macs[2]
    with pytest.raises(KernelRefused, match="reserved"):
        await host.kernel.park(host.lab.record(host.macs[2]))
    assert "ens9" in host.lab.links(host.lab.host)


def test_the_socket_to_the_host_sends_no_message_that_changes_a_reserved_link(lab: Lab) -> None:
    lab.plug(1)
    before = ip_json("-n", lab.host, "addr")

    def try_all() -> list[str]:
        with HostNetlink("eth1") as netlink:
            (index,) = (link.ifindex for link in netlink.links() if link.name == "eth1")
            address = Address(index, "192.0.2.7/24", False, body=struct.pack("=BBBBi", 2, 24, 0, 0, index))
            refused = []
            for request in (
                set_link(index, LinkChange(is_up=False)),
                set_link(index, LinkChange(name="other", alias="x", mtu=1400)),
                delete_link(index),
                delete_altnames(index, ("a",)),
                add_address(index, "192.0.2.7/24"),
                delete_address(address),
            ):
                with pytest.raises(KernelRefused, match="change failed: eth1 is reserved") as refusal:
                    netlink.do(request, "change")
                refused.append(str(refusal.value))
            return refused

    assert len(within(lab, lab.host, try_all)) == 6
    assert ip_json("-n", lab.host, "addr") == before


# --- which links are the host's own ----------------------------------------------------------------------


def mac(number: int) -> str:
    return f"52:54:00:00:00:{number:02x}"


def link(index: int, name: str, *, permanent: int = 0, master: int = 0, **fields: Any) -> LinkInfo:
    attributes = {IFLA_MASTER: struct.pack("=I", master)} if master else {}
    return LinkInfo(
        index,
        name,
        mac=mac(index),
        permanent_mac=mac(permanent) if permanent else "",
        attributes=attributes,
        **fields,
    )


def default(index: int, metric: int, table: int = 254) -> TableRoute:
    return TableRoute(table, index, "0.0.0.0/0", "10.0.0.1", priority=metric)


def test_ports_of_a_bond_and_the_link_of_a_vlan_are_reserved_with_it() -> None:
    links = (
        link(1, "bond0", kind="bond"),
        link(2, "eth0", permanent=12, master=1),
        link(3, "eth1", permanent=13, master=1),
        link(4, "bond0.7", kind="vlan", peer=1),
        link(5, "eth2"),
        link(6, "veth0", kind="veth", peer=5),
    )
    assert host_macs(links, (), "bond0.7").iface == {mac(n) for n in (4, 1, 2, 12, 3, 13)}
    assert host_macs(links, (), "veth0").iface == {mac(6)}
    assert not host_macs(links, (), "eth9").iface


@pytest.mark.parametrize(
    ("routes", "reserved", "is_iface_default"),
    [
        ((), set(), False),
        ((default(1, 100),), {1}, True),
        ((default(2, 100),), {2}, False),
        ((default(1, 100), default(2, 50)), {2}, True),
        ((default(1, 50), default(2, 100)), {1}, True),
        ((default(1, 50), default(2, 50)), {1, 2}, True),
        ((default(2, 50, table=31080),), set(), False),
    ],
)
def test_the_best_default_route_of_the_main_table_counts(
    routes: tuple[TableRoute, ...], reserved: set[int], is_iface_default: bool
) -> None:
    found = host_macs((link(1, "eth0"), link(2, "eth1")), routes, "eth0")
    assert found.default_route == {mac(n) for n in reserved}
    assert found.is_iface_default is is_iface_default
