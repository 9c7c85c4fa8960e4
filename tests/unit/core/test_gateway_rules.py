"""What a gateway NIC is made of, without a kernel: messages, the table as text, and the kernel in memory."""

import asyncio
import random
import struct
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.core.gateway import LAST_INDEX, index_of, link_name, service_path
from qingcloud_cni.core.nics.model import NO_GATEWAY, Attachment, AttachmentKey, Netns, Nic, NicState
from qingcloud_cni.core.seams.kernel import Gateway, NicRecord, ServicePath
from qingcloud_cni.kernel.links.firewall import MARK_MASK, mark_of, ruleset
from qingcloud_cni.kernel.links.gateway import GATEWAYS, PREFERENCES, TABLES
from qingcloud_cni.kernel.netlink import routing
from qingcloud_cni.kernel.netlink.messages import Malformed
from qingcloud_cni.kernel.netlink.routing import Address, Rule, TableRoute
from qingcloud_cni.sim.memory.kernel import FakeKernel
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import PlugNic

FIRST, SECOND, STRANGER = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:03"
FOREIGN_MARKS = {"kube-proxy": 0xC000, "Cilium": 0x0F00, "Calico": 0xFFFF0000, "AWS": 0x80, "TPROXY": 0x1}

addresses = st.integers(0, 2**32 - 1).map(lambda n: str(IPv4Network(n).network_address))
prefixes = st.integers(1, 32)
tables = st.integers(1, 2**31)


def gateway(index: int = 0, mac: str = FIRST) -> Gateway:
    return Gateway(mac, f"hostnic{index or ''}", f"10.0.{index}.9/24", f"10.0.{index}.1", index)


# --- messages ----------------------------------------------------------------------------------------


@given(addresses, prefixes, st.integers(1, 2**31 - 1))
def test_an_address_comes_back_as_it_went(address: str, prefix: int, ifindex: int) -> None:
    wanted = Address(ifindex, f"{address}/{prefix}", is_bare=True)
    body = routing.add_address(ifindex, wanted.address, is_bare=True).body
    permanent = struct.pack("=I", routing.IFA_F_NOPREFIXROUTE | routing.IFA_F_PERMANENT)
    assert routing.parse_address(body[:-4] + permanent) == wanted
    assert not routing.parse_address(body).is_bare, "an address that expires is another one"


@given(
    st.builds(
        TableRoute,
        table=tables,
        ifindex=st.integers(1, 2**31 - 1),
        dst=st.builds("{}/{}".format, addresses, prefixes) | st.just("0.0.0.0/0"),
        gateway=addresses | st.just(""),
        source=addresses | st.just(""),
        scope=st.sampled_from([routing.RT_SCOPE_LINK, routing.RT_SCOPE_UNIVERSE]),
    )
)
def test_a_route_comes_back_as_it_went(route: TableRoute) -> None:
    assert routing.parse_route(routing.add_route(route).body) == route


@given(
    st.builds(
        Rule,
        preference=st.integers(1, 2**32 - 1),
        table=tables,
        source=st.builds("{}/{}".format, addresses, prefixes) | st.just(""),
        iif=st.text("abc0-.", max_size=15),
        mark=st.integers(1, 2**32 - 1),
        mask=st.integers(1, 2**32 - 1),
    )
)
def test_a_rule_comes_back_as_it_went(rule: Rule) -> None:
    assert routing.parse_rule(routing.add_rule(rule).body) == rule


@pytest.mark.parametrize("parse", [routing.parse_address, routing.parse_route, routing.parse_rule])
@given(head=st.binary(max_size=12), tail=st.binary(max_size=80))
def test_any_bytes_are_parsed_or_called_malformed(parse: Callable[[bytes], object], head: bytes, tail: bytes) -> None:
    attribute = struct.pack("=HH", len(tail) + 4, 2) + tail + bytes(-len(tail) % 4)
    for body in (head + tail, bytes(8) + attribute, bytes(7) + b"\1" + bytes(4) + attribute):
        try:
            assert repr(parse(body))
        except Malformed:
            continue


# --- numbers and rules -------------------------------------------------------------------------------


def test_marks_are_distinct_and_take_no_others_bits() -> None:
    marks = [mark_of(gateway(index)) for index in range(GATEWAYS)]
    assert len(set(marks)) == len(marks)
    assert 0 not in marks
    assert all(mark & ~MARK_MASK == 0 for mark in marks)
    assert not {whose for whose, mask in FOREIGN_MARKS.items() if mask & MARK_MASK}


def test_tables_and_preferences_have_room_for_every_gateway() -> None:
    assert len(TABLES) == GATEWAYS
    assert min(TABLES) > 255, "the kernel's own tables"
    assert min(PREFERENCES) > 0
    assert max(PREFERENCES) < 32766, "the main table's rule"


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,14}", fullmatch=True))
@example("hostnic-of-pod1")
@example("hostnic-node-12")
@example("hostnic-node-1")
def test_gateways_have_distinct_link_names_of_15_bytes_at_most(prefix: str) -> None:
    names = [link_name(prefix, index) for index in range(LAST_INDEX + 1)]
    assert names[0] == prefix
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 15
    assert [index_of(prefix, name) for name in names] == [*range(LAST_INDEX + 1)]
    assert index_of(prefix, f"{prefix[:12]}?") == NO_GATEWAY
    if len(prefix) <= 13:
        assert names[1:] == [f"{prefix}{index}" for index in range(1, LAST_INDEX + 1)]


def test_no_table_where_nothing_is_served() -> None:
    assert ruleset(ServicePath()) == ""
    as_is = Gateway(FIRST, "", "10.0.0.9/24", "10.0.0.1", 63)
    assert ruleset(ServicePath((as_is,))) == "", "it goes by the host's own routes, and nothing is masqueraded"


def test_what_is_masqueraded() -> None:
    text = ruleset(ServicePath((gateway(),), ("10.1.0.0/16", "10.1.2.0/24", "10.9.9.9/32")))
    assert "elements = { 10.1.0.0/16, 10.9.9.9 }" in text
    assert text.count("ct status dnat masquerade") == 2, "toward pods, and from them"
    assert "services" not in text
    text = ruleset(ServicePath((gateway(),), ("10.1.0.0/16",), ("10.96.0.0/12",)))
    assert text.count("ct original ip daddr @services masquerade") == 2
    assert "masquerade" not in ruleset(ServicePath((gateway(),), (), ("10.96.0.0/12",)))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=12))
def test_vxnets_of_containers_with_ip_masq_are_masqueraded_with_services_or_without(
    containers: list[tuple[int, bool, bool]],
) -> None:
    nics, attachments = [], []
    for n, (vxnet, is_asking, has_services) in enumerate(containers):
        nic_id = f"52:54:00:00:01:{n:02x}"
        nics.append(Nic(nic_id, "", f"vxnet-{vxnet}", f"10.0.{vxnet}.{n + 2}/24", "", NicState.ASSIGNED, 0.0))
        services = (f"10.{96 + vxnet}.0.0/16",) if has_services else ()
        key, netns = AttachmentKey("net", f"c{n}", "eth0"), Netns("", 0, n)
        attachments.append(Attachment(key, nic_id, netns, 0.0, services=services, ip_masq=is_asking))
    path = service_path(nics, attachments, (), "hostnic")
    asking = [(vxnet, has_services) for vxnet, is_asking, has_services in containers if is_asking]
    assert path.masquerade == tuple(sorted({f"10.0.{vxnet}.0/24" for vxnet, _ in asking}))
    assert path.services == tuple(sorted({f"10.{96 + vxnet}.0.0/16" for vxnet, has in asking if has}))
    assert path.forwards == bool(asking)


# --- the kernel in memory ----------------------------------------------------------------------------


def make_kernel(*nics: str) -> FakeKernel:
    kernel = FakeKernel("i-1", rng=random.Random(1), sleep=asyncio.sleep)
    kernel.apply(*(PlugNic(nic, "i-1", "vxnet-p", "10.0.0.9", enable_aspoof=False) for nic in nics))
    return kernel


async def test_the_kernel_in_memory_serves_and_undoes() -> None:
    kernel = make_kernel(FIRST, SECOND)
    await kernel.park(NicRecord(SECOND))
    before = dict(kernel.settings)
    path = ServicePath((gateway(), gateway(1, SECOND)))
    changed = (await kernel.serve(path)).settings
    assert kernel.path == path
    assert {link.name for link in kernel.links_in(HOST_PATH)} == {"hostnic", "hostnic1"}
    assert await kernel.host_addresses() == {FIRST: ("10.0.0.9/24",), SECOND: ("10.0.1.9/24",)}
    assert (await kernel.serve(path)).settings == {}
    await kernel.serve(ServicePath((gateway(1, SECOND),)))
    assert await kernel.host_addresses() == {SECOND: ("10.0.1.9/24",)}
    await kernel.serve(ServicePath())
    assert await kernel.host_addresses() == {}
    assert len(kernel.links_in(HOST_PATH)) == 2
    await kernel.restore({**changed, "net/ipv4/conf/gone0/send_redirects": "1"})
    assert kernel.settings == before


async def test_the_kernel_in_memory_refuses_as_the_real_one() -> None:
    kernel = make_kernel(FIRST, STRANGER)
    with pytest.raises(LinkNotFound, match=SECOND):
        await kernel.serve(ServicePath((gateway(1, SECOND),)))
    (stranger,) = (link.name for link in kernel.links_in(HOST_PATH) if link.mac == STRANGER)
    with pytest.raises(KernelRefused, match=f"name {stranger}: taken"):
        await kernel.serve(ServicePath((Gateway(FIRST, stranger, "10.0.0.9/24", "10.0.0.1", 0),)))
    as_is = Gateway(STRANGER, "", "10.0.0.4/24", "10.0.0.1", 63)
    with pytest.raises(LinkNotFound, match=r"10\.0\.0\.4/24"):
        await kernel.serve(ServicePath((as_is,)))
    kernel.set_address(STRANGER, "10.0.0.4/24")
    await kernel.serve(ServicePath((as_is,)))
