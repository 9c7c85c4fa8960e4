"""ARP frames: the content of probes and announcements, and the frames that claim an address."""

import struct
from socket import inet_aton

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.kernel.neighbours.arp import announcement_frame, claimant, probe_frame

MAC, OTHER = "52:54:00:aa:bb:01", "02:00:00:00:00:99"
ADDRESS, NEIGHBOUR, NONE = "172.16.3.7", "172.16.3.8", "0.0.0.0"


def frame(sender_mac: str, sender: str, target: str, *, operation: int = 1, kind: bytes = b"\0\1\x08\0\6\4") -> bytes:
    """Packed independently of the code under test."""
    own = bytes.fromhex(sender_mac.replace(":", ""))
    head = b"\xff" * 6 + own + b"\x08\x06" + kind + struct.pack("!H", operation)
    return head + own + inet_aton(sender) + bytes(6) + inet_aton(target)


def test_a_probe_is_a_request_in_the_name_of_nobody() -> None:
    assert probe_frame(MAC, ADDRESS) == frame(MAC, NONE, ADDRESS)


def test_an_announcement_is_a_request_for_the_senders_own_address() -> None:
    assert announcement_frame(MAC, ADDRESS) == frame(MAC, ADDRESS, ADDRESS)


@pytest.mark.parametrize(
    ("heard", "who"),
    [
        pytest.param(frame(OTHER, ADDRESS, NONE, operation=2), OTHER, id="an answer"),
        pytest.param(frame(OTHER, ADDRESS, NEIGHBOUR), OTHER, id="a question under this address"),
        pytest.param(frame(OTHER, ADDRESS, ADDRESS), OTHER, id="an announcement"),
        pytest.param(frame(OTHER, NONE, ADDRESS), OTHER, id="a probe for the same address"),
        pytest.param(frame(OTHER, ADDRESS, NONE) + bytes(18), OTHER, id="padded, as short frames are"),
        pytest.param(frame(OTHER, NEIGHBOUR, ADDRESS), "", id="somebody who wants to reach it"),
        pytest.param(frame(OTHER, NONE, NEIGHBOUR), "", id="a probe for another address"),
        pytest.param(frame(OTHER, NEIGHBOUR, NEIGHBOUR), "", id="an announcement of another address"),
        pytest.param(frame(MAC, ADDRESS, ADDRESS), "", id="the NIC itself"),
        pytest.param(probe_frame(MAC, ADDRESS), "", id="our own probe, sent back"),
        pytest.param(frame(OTHER, ADDRESS, NONE, kind=b"\0\6\x08\0\6\4"), "", id="no Ethernet"),
        pytest.param(frame(OTHER, ADDRESS, NONE)[:41], "", id="cut off"),
        pytest.param(b"", "", id="nothing"),
    ],
)
def test_who_claims_an_address(heard: bytes, who: str) -> None:
    assert claimant(heard, MAC, ADDRESS) == who


@given(st.binary(max_size=80))
def test_any_bytes_are_a_claim_or_none(data: bytes) -> None:
    assert claimant(data, MAC, ADDRESS) in ("", data[22:28].hex(":"))
