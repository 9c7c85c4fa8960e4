"""The netlink codec and the rules about links, without a kernel."""

import struct
from dataclasses import replace
from ipaddress import IPv4Interface
from socket import inet_aton

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.nics.model import Route
from qingcloud_cni.kernel.links.nic import (
    ALIAS_BYTES,
    USUAL_MTU,
    make_alias,
    parked_name,
    parse_alias,
    reset_change,
)
from qingcloud_cni.kernel.netlink import conntrack, routing
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.messages import LinkChange, LinkInfo, Malformed, Message, Request
from qingcloud_cni.kernel.nic_state.description import Description
from qingcloud_cni.kernel.nic_state.link_attributes import FLAG_MASK, PLUGGED_FLAGS

MAC = "52:54:00:aa:bb:01"
NIC = LinkInfo(7, "eth0", flags=nl.IFF_UP, mac=MAC, mtu=1500)
PARKED = LinkInfo(7, parked_name(MAC), flags=PLUGGED_FLAGS, mac=MAC, mtu=1500)
CALM = LinkChange(flags=PLUGGED_FLAGS, flag_mask=FLAG_MASK)

kinds = st.integers(0, nl.NLA_TYPE_MASK)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=15)


def link_body(link: LinkInfo) -> bytes:
    """What the kernel would say of *link*, packed independently of the code under test."""

    def attribute(kind: int, value: bytes) -> bytes:
        return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)

    head = struct.pack("=BBHiII", 0, 0, link.hardware, link.ifindex, link.flags, 0)
    names = b"".join(attribute(53, name.encode() + b"\0") for name in link.altnames)
    parts = [attribute(3, link.name.encode() + b"\0"), attribute(4, struct.pack("=I", link.mtu))]
    parts += [attribute(kind, struct.pack("=I", limit)) for kind, limit in zip((50, 51), link.mtu_range, strict=True)]
    parts += [attribute(1, bytes.fromhex(link.mac.replace(":", "")))] if link.mac else []
    parts += [attribute(54, bytes.fromhex(link.permanent_mac.replace(":", "")))] if link.permanent_mac else []
    parts += [attribute(20, link.alias.encode() + b"\0")] if link.alias else []
    parts += [attribute(18, attribute(1, link.kind.encode() + b"\0"))] if link.kind else []
    parts += [attribute(52 | 0x8000, names)] if names else []
    parts += [attribute(5, struct.pack("=I", link.peer))] if link.peer else []
    parts += [attribute(37, struct.pack("=i", link.peer_nsid))] if link.peer_nsid != nl.NO_NSID else []
    bus, _, device = link.parent.partition("/")
    parts += [attribute(56, device.encode() + b"\0"), attribute(57, bus.encode() + b"\0")] if link.parent else []
    return head + b"".join(parts)


# --- the codec ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(kinds, st.binary(max_size=50))))
def test_attributes_come_back_as_they_went(attributes: list[tuple[int, bytes]]) -> None:
    packed = b"".join(nl.pack_attribute(kind, value) for kind, value in attributes)
    assert list(nl.unpack_attributes(packed)) == attributes
    assert len(packed) % 4 == 0


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=41))))
def test_messages_come_back_as_they_went(sent: list[tuple[int, int, bytes]]) -> None:
    packed = b""
    for seq, (kind, flags, body) in enumerate(sent):
        message = nl.pack(Request(kind, body, flags & 0xFF00), flags & 0xFF, seq)
        packed += message + bytes(-len(message) % 4)
    assert list(nl.unpack(packed)) == [
        Message(kind, flags, seq, body) for seq, (kind, flags, body) in enumerate(sent)
    ]


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_called_malformed(data: bytes) -> None:
    for parse in (nl.unpack_attributes, nl.unpack):
        try:
            parts = list(parse(data))
        except Malformed:
            continue
        assert len(parts) <= len(data) / 4


@given(st.binary(max_size=120))
def test_any_link_is_parsed_or_called_malformed(tail: bytes) -> None:
    try:
        link = nl.parse_link(link_body(NIC) + tail)
    except Malformed:
        return
    assert link.ifindex == NIC.ifindex


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(15),
        link_body(NIC)[:-3],
        link_body(NIC) + struct.pack("=HH", 3, nl.IFLA_MTU),  # shorter than its own header
        link_body(NIC) + struct.pack("=HHH", 6, nl.IFLA_MTU, 1500),  # a number of two bytes
        link_body(NIC) + struct.pack("=HHI", 400, nl.IFLA_MTU, 1500),  # longer than the message
        link_body(NIC) + struct.pack("=HHI", 8, nl.IFLA_LINKINFO, 0xFFFFFFFF),  # nonsense nested inside
    ],
)
def test_malformed_link_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        nl.parse_link(body)


@given(
    st.builds(
        LinkInfo,
        ifindex=st.integers(1, 2**31 - 1),
        name=names,
        hardware=st.integers(0, 0xFFFF),
        flags=st.integers(0, 2**32 - 1),
        mac=st.sampled_from(["", MAC]),
        permanent_mac=st.sampled_from(["", MAC]),
        mtu=st.integers(0, 2**32 - 1),
        mtu_range=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
        alias=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
        kind=st.sampled_from(["", "veth", "bridge"]),
        altnames=st.lists(names, max_size=3).map(tuple),
        peer=st.integers(0, 2**32 - 1),
        peer_nsid=st.integers(-1, 2**31 - 1),
        parent=st.sampled_from(["", "virtio/virtio2", "pci/0000:00:05.0"]),
    )
)
def test_link_is_read_as_the_kernel_describes_it(link: LinkInfo) -> None:
    assert nl.parse_link(link_body(link)) == link


def test_the_number_of_a_namespace_is_asked_by_its_descriptor() -> None:
    assert nl.get_nsid(9) == Request(90, bytes(4) + nl.pack_attribute(3, struct.pack("=I", 9)))
    for number in (0, 7, nl.NO_NSID):
        assert nl.parse_nsid(bytes(4) + nl.pack_attribute(1, struct.pack("=i", number))) == number
    with pytest.raises(Malformed):
        nl.parse_nsid(bytes(4))


def test_alias_that_is_no_text_survives() -> None:
    raw = b"caf\xe9"
    body = link_body(NIC) + nl.pack_attribute(nl.IFLA_IFALIAS, raw + b"\0")
    alias = nl.parse_link(body).alias
    change = nl.set_link(7, LinkChange(alias=alias))
    assert dict(nl.unpack_attributes(change.body, 16))[nl.IFLA_IFALIAS] == raw + b"\0"


def test_change_carries_just_what_changes() -> None:
    change = LinkChange(netns_fd=9, mac=MAC, mtu=9000, name="eth0", alias="a", is_up=False)
    change = replace(change, flags=nl.IFF_NOARP, flag_mask=FLAG_MASK, attributes=((13, b"1234"),))
    body = nl.set_link(7, change).body
    assert struct.unpack_from("=BxHiII", body) == (0, 0, 7, nl.IFF_NOARP, nl.IFF_UP | FLAG_MASK)
    assert list(nl.unpack_attributes(body, 16)) == [
        (nl.IFLA_NET_NS_FD, struct.pack("=I", 9)),
        (nl.IFLA_ADDRESS, bytes.fromhex("525400aabb01")),
        (nl.IFLA_MTU, struct.pack("=I", 9000)),
        (nl.IFLA_IFNAME, b"eth0\0"),
        (nl.IFLA_IFALIAS, b"a\0"),
        (13, b"1234"),
    ]
    assert nl.set_link(7, LinkChange(is_up=True)).body == struct.pack("=BxHiII", 0, 0, 7, nl.IFF_UP, nl.IFF_UP)
    assert not LinkChange()
    assert LinkChange(alias="")


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_address_is_packed_with_prefix_and_broadcast(number: int, prefix: int) -> None:
    address = IPv4Interface((number, prefix))
    request = routing.add_address(5, str(address))
    assert struct.unpack_from("=BBBBI", request.body) == (2, prefix, 0, 0, 5)
    fields = dict(nl.unpack_attributes(request.body, 8))
    assert fields[routing.IFA_LOCAL] == fields[routing.IFA_ADDRESS] == address.ip.packed
    broadcast = None if prefix > 30 else address.network.broadcast_address.packed
    assert fields.get(routing.IFA_BROADCAST) == broadcast


@pytest.mark.parametrize(
    ("dst", "length", "packed"), [("0.0.0.0/0", 0, None), ("10.96.0.0/12", 12, bytes([10, 96, 0, 0]))]
)
def test_route_is_static_and_in_the_main_table(dst: str, length: int, packed: bytes | None) -> None:
    request = routing.add_route(routing.static_route(5, Route(dst, "172.16.3.1")))
    assert struct.unpack_from("=BBBBBBBBI", request.body) == (2, length, 0, 0, 0, 4, 0, 1, 0)
    fields = dict(nl.unpack_attributes(request.body, 12))
    assert fields.get(routing.RTA_DST) == packed
    assert fields[routing.RTA_GATEWAY] == bytes([172, 16, 3, 1])
    assert fields[routing.RTA_TABLE] == struct.pack("=I", 254)
    assert fields[routing.RTA_OIF] == struct.pack("=I", 5)


@pytest.mark.parametrize("is_capped", [True, False])
def test_refusal_gives_number_and_words(is_capped: bool) -> None:
    request = nl.pack(nl.get_link(), 0, 1)
    quoted = request[:16] if is_capped else request
    words = nl.pack_attribute(nl.NLMSGERR_ATTR_MSG, b"Nexthop has invalid gateway\0")
    flags = nl.NLM_F_ACK_TLVS | (nl.NLM_F_CAPPED if is_capped else 0)
    refusal = Message(nl.NLMSG_ERROR, flags, 1, struct.pack("=i", -101) + quoted + words)
    assert nl.parse_error(refusal) == (101, "Nexthop has invalid gateway")
    assert nl.parse_error(replace(refusal, flags=0)) == (101, "")
    assert nl.parse_error(Message(nl.NLMSG_ERROR, 0, 1, struct.pack("=i", 0) + quoted)) == (0, "")


# --- what a NIC is -----------------------------------------------------------------------------------


def test_parking_name_fits_an_interface() -> None:
    assert parked_name(MAC) == "q525400aabb01"
    assert len(parked_name(MAC)) <= 15


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300), st.integers(68, 65535)
)
def test_mark_tells_the_mtu_and_fits(alias: str, mtu: int) -> None:
    text = make_alias(alias, mtu)
    assert len(text.encode()) <= ALIAS_BYTES
    if mtu != USUAL_MTU:
        kept, told = parse_alias(text)
        assert told == mtu
        assert alias.startswith(kept)


@pytest.mark.parametrize(("text", "read"), [("", ("", None)), ("net/a/eth0", ("net/a/eth0", 1500))])
def test_alias_without_a_mark_means_the_usual_mtu(text: str, read: tuple[str, int | None]) -> None:
    assert parse_alias(text) == read
    assert make_alias(text, USUAL_MTU) == text


# --- how it is parked --------------------------------------------------------------------------------


def test_parked_nic_needs_nothing() -> None:
    assert not reset_change(PARKED, MAC)


@pytest.mark.parametrize(
    ("found", "change"),
    [
        (replace(PARKED, flags=PLUGGED_FLAGS | nl.IFF_UP), LinkChange(is_up=False)),
        (replace(PARKED, flags=PLUGGED_FLAGS | nl.IFF_PROMISC), CALM),
        (replace(PARKED, flags=PLUGGED_FLAGS | nl.IFF_NOARP), CALM),
        (replace(PARKED, flags=0), CALM),
        (replace(PARKED, name="eth0"), LinkChange(name=parked_name(MAC))),
        (replace(PARKED, mac="52:54:00:00:00:99"), LinkChange(mac=MAC)),
        (replace(PARKED, mtu=9000), LinkChange()),  # it came so
        (replace(PARKED, mtu=1400, alias="x"), LinkChange(alias="", mtu=1500)),
        (replace(PARKED, mtu=1400, alias="x mtu=9000"), LinkChange(alias="", mtu=9000)),
        (replace(PARKED, alias="x mtu=9000", mtu_range=(68, 1500)), LinkChange(alias="")),  # cannot have been
        (replace(PARKED, alias="x mtu=999999999999"), LinkChange(alias="")),
    ],
)
def test_reset_undoes_what_a_container_did(found: LinkInfo, change: LinkChange) -> None:
    assert reset_change(found, MAC) == change


def test_mtu_that_is_known_outweighs_the_alias() -> None:
    plugged = Description({nl.IFLA_MTU: struct.pack("=I", 9000)})
    assert reset_change(replace(PARKED, mtu=68, alias="x mtu=68"), MAC, plugged) == LinkChange(alias="", mtu=9000)


# --- tracked flows -------------------------------------------------------------------------------------


def attribute(kind: int, *values: bytes) -> bytes:
    value = b"".join(values)
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def way(kind: int, source: str, target: str) -> bytes:
    ends = attribute(1, inet_aton(source)), attribute(2, inet_aton(target))
    return attribute(kind | 0x8000, attribute(0x8001, *ends), attribute(0x8002, attribute(1, b"\x11")))


FLOW = struct.pack("=BBH", 2, 0, 0) + way(1, "10.0.0.1", "10.0.0.2") + way(2, "10.0.0.3", "10.0.0.1")


def test_a_flow_has_the_addresses_of_both_its_ways_and_is_named_by_tuple_zone_and_id() -> None:
    flow = conntrack.parse_flow(
        FLOW + attribute(7, b"\0\0\0\5") + attribute(12, b"\1\2\3\4") + attribute(18, b"\0\7")
    )
    assert flow.addresses == {inet_aton(f"10.0.0.{n}") for n in (1, 2, 3)}
    request = conntrack.delete_flow(flow)
    assert request.kind == 0x102
    assert request.body == FLOW[:4] + way(1, "10.0.0.1", "10.0.0.2") + attribute(18, b"\0\7") + attribute(
        12, b"\1\2\3\4"
    )


@pytest.mark.parametrize(("tuple_kind", "flags_of"), [(1, 1), (2, 2)])
@pytest.mark.parametrize(("end", "flag"), [(1, 1), (2, 2)])
def test_a_question_names_one_place_of_an_address(tuple_kind: int, flags_of: int, end: int, flag: int) -> None:
    picked = attribute(tuple_kind | 0x8000, attribute(0x8001, attribute(end, inet_aton("10.0.0.1"))))
    fitting = attribute(25 | 0x8000, attribute(flags_of, struct.pack("=I", flag)))
    request = conntrack.list_flows(tuple_kind, end, inet_aton("10.0.0.1"))
    assert (request.kind, request.body) == (0x101, FLOW[:4] + picked + fitting)


@given(st.binary(max_size=120))
def test_any_flow_is_parsed_or_called_malformed(tail: bytes) -> None:
    try:
        flow = conntrack.parse_flow(FLOW + tail)
    except Malformed:
        return
    assert len(flow.handle) <= 3
