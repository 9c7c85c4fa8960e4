"""The state of a NIC without a kernel: hardware and upper links by the replies of GETLINK, descriptions as text."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.messages import NO_NSID, LinkChange, LinkInfo
from qingcloud_cni.kernel.nic_state.description import (
    Description,
    attributes_of,
    link_differences,
    restoring_change,
)
from qingcloud_cni.kernel.nic_state.link_attributes import FLAG_MASK, LISTED, PLUGGED_FLAGS, RESET, RESTORED
from qingcloud_cni.kernel.nic_state.uppers import is_above, is_above_from_afar

VIRTIO = bytes.fromhex(  # RTM_NEWLINK of a virtio-net device, Linux 6.18
    "0000010004000000431001000000000009000300657468300000000008000d00e8030000050010000600000005001100000000000500"
    "4300000000000800040078050000080032004400000008003300ffff000008001b000000000008001e000000000008003d0000000000"
    "08001f000100000008002800ffff0000080029000000010008003a000000010008003f0000000100080040000000010008003b000000"
    "010008003c00ffff0000080042000000000008002000010000000500210001000000080023000200000008002f000100000008003000"
    "01000000060044000c000000060045000000000005002700000000000a00010002fc0000000100000a000200ffffffffffff0000cc00"
    "17007796000000000000e54c00000000000068ae2659000000002fa92700000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000006400070077960000e54c000068ae"
    "26592fa92700000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000000000000000000c002b0005000200000000000a00360002fc00000001"
    "00000f000600706669666f5f666173740000c0011a008c00020088000100000000000000000000000000010000000100000001000000"
    "010000000000000001000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000010270000e80300000000000000000000000000000000000001000000"
    "30010a00080001000000008014000500ffff000016000000bca60000e8030000f4000200000000004000000078050000000000000100"
    "00000100000001000000ffffffffa00f0000e803000000000000803a0900805101000300000058020000100000000000000001000000"
    "010000000100000060ea000000000000000000000000000000000000000000000000000001000000000000000000000010270000e803"
    "0000010000000000000000000000010000000000000000000000010000000000000000000000000000000000000080ee360000000000"
    "000000000100000000000000000000000000000000000000000000000004000000000000ffff0000ffffffff01000000000000000000"
    "0000000000001400070000000000000000000000000000000000050008000000000024000e0000000000000000000000000000000000"
    "000000000000000000000000000000000c00380076697274696f32000b00390076697274696f000004003e8004004180"
)
NIC = nl.parse_link(VIRTIO)
PLUGGED = Description(attributes_of(NIC))


def test_every_attribute_of_hardware_is_looked_after() -> None:
    assert set(NIC.attributes) <= RESTORED.keys() | RESET.keys() | LISTED.keys()
    assert {"mtu", "txqlen", "linkmode", "group", "gso_max_size"} <= {RESTORED[n] for n in attributes_of(NIC)}


def test_hardware_as_plugged_has_no_difference_and_needs_no_change() -> None:
    assert list(link_differences(NIC, PLUGGED)) == []
    assert not restoring_change(NIC, PLUGGED)


def changed(number: int, value: bytes) -> LinkInfo:
    return replace(NIC, attributes=dict(NIC.attributes) | {number: value})


@pytest.mark.parametrize("number", RESTORED)
def test_each_restored_attribute_of_hardware_is_seen_and_set_back(number: int) -> None:
    before = NIC.attributes[number]
    found = changed(number, bytes([before[0] ^ 1]) + before[1:])
    (difference,) = link_differences(found, PLUGGED)
    assert difference.startswith(RESTORED[number])
    if number != nl.IFLA_MTU:  # its caller sets the MTU, and without a description too
        assert (number, before) in restoring_change(found, PLUGGED).attributes


def test_sizes_that_the_kernel_derives_from_each_other_are_set_together() -> None:
    found = changed(41, struct.pack("=I", 2000))
    assert {number for number, _ in restoring_change(found, PLUGGED).attributes} == {40, 41, 58, 63, 64}


@given(st.integers(0, 2**32 - 1))
def test_flags_come_back_whatever_they_are(flags: int) -> None:
    found = replace(NIC, flags=flags)
    change = restoring_change(found, None)
    assert (flags & ~change.flag_mask | change.flags) & FLAG_MASK == PLUGGED_FLAGS
    assert bool(change) == bool(list(link_differences(found, None)))
    assert change.flag_mask in (0, FLAG_MASK)


def test_nothing_else_is_restored_without_a_description() -> None:
    assert restoring_change(changed(13, struct.pack("=I", 7)), None) == LinkChange()


# --- links above it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["macvlan", "macvtap", "ipvlan", "ipvtap", "vlan", "macsec"])
def test_links_above_a_nic_are_known_by_kind_and_index(kind: str) -> None:
    upper = LinkInfo(9, "above", kind=kind, peer=NIC.ifindex)
    assert is_above(upper, NIC.ifindex)
    assert not is_above(replace(upper, peer=8), NIC.ifindex)
    assert not is_above(replace(upper, peer_nsid=0), NIC.ifindex)  # above a link of another namespace
    assert is_above_from_afar(replace(upper, peer_nsid=3), {NIC.ifindex}, 3)
    assert not is_above_from_afar(replace(upper, peer_nsid=3), {NIC.ifindex}, 4)
    assert not is_above_from_afar(upper, {NIC.ifindex}, NO_NSID)


@pytest.mark.parametrize("kind", ["veth", "", "bridge", "vxlan", "netkit"])
def test_links_that_only_show_the_index_of_a_peer_are_not_above_it(kind: str) -> None:
    other = LinkInfo(9, "eth0", kind=kind, peer=NIC.ifindex)
    assert not is_above(other, NIC.ifindex)
    assert not is_above_from_afar(replace(other, peer_nsid=3), {NIC.ifindex}, 3)


# --- descriptions on disk ------------------------------------------------------------------------------

MTU = struct.pack("=I", 1500)
words = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4)
descriptions = st.builds(
    Description,
    st.dictionaries(st.sampled_from([*RESTORED]), st.binary(min_size=1, max_size=8)).map(lambda of: {4: MTU} | of),
    st.text("0123456789abcdef", max_size=16),
    words,
    words,
)


@given(descriptions)
def test_a_description_comes_back_from_its_text(description: Description) -> None:
    assert Description.parse(str(description)) == description
    assert list(description.differences(description)) == []


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(str)))
def test_text_that_is_no_description_is_none(text: str) -> None:
    assert Description.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", '{"link":{"13":"00"},"features":"","ethtool":{},"sysfs":{}}',
        "[]", "null", '{"link":{}}', '{"link":{"4":"zz"},"features":"","ethtool":{},"sysfs":{}}',
        '{"link":[],"features":"","ethtool":{},"sysfs":{}}', '{"link":{},"features":"","ethtool":7,"sysfs":{}}',
    ],
)  # fmt: skip
def test_text_of_another_version_is_none(text: str) -> None:
    assert Description.parse(text) is None
