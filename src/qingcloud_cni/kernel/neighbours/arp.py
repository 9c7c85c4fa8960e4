"""ARP packets on Ethernet, between bytes and plain data: probe and announcement of RFC 5227."""

import struct
from socket import inet_aton
from typing import Final

ETH_P_ARP: Final = 0x0806

_BROADCAST: Final = b"\xff" * 6
_ZERO_MAC: Final = bytes(6)
_ZERO_ADDRESS: Final = bytes(4)
_ARPHRD_ETHER: Final = 1
_ETH_P_IP: Final = 0x0800
_REQUEST: Final = 1
_HEAD: Final = struct.Struct("!6s6sH")  # Ethernet: to, from, type
_KIND: Final = struct.Struct("!HHBBH")  # hardware, protocol, lengths of their addresses, operation
_ENDS: Final = struct.Struct("!6s4s6s4s")  # sender's and target's MAC and address
_ENDS_OFFSET: Final = _HEAD.size + _KIND.size
_KIND_OF_OURS: Final = _KIND.pack(_ARPHRD_ETHER, _ETH_P_IP, 6, 4, 0)[:6]  # without the operation


def probe_frame(mac: str, address: str) -> bytes:
    """Ask who has *address*, with a zero sender address: no neighbour changes its table."""
    return _request(mac, _ZERO_ADDRESS, inet_aton(address))


def announcement_frame(mac: str, address: str) -> bytes:
    """Announce *address* at *mac*; neighbours with another MAC for it update their tables."""
    return _request(mac, inet_aton(address), inet_aton(address))


def claimant(frame: bytes, mac: str, address: str) -> str:
    """The MAC, other than *mac*, that has or probes for *address* by this frame; "" if none does."""
    kind = frame[_HEAD.size : _HEAD.size + len(_KIND_OF_OURS)]
    if len(frame) < _ENDS_OFFSET + _ENDS.size or kind != _KIND_OF_OURS:
        return ""
    sender_mac, sender, _, target = _ENDS.unpack_from(frame, _ENDS_OFFSET)
    wanted = inet_aton(address)
    if sender != wanted and not (sender == _ZERO_ADDRESS and target == wanted):
        return ""
    other = str(sender_mac.hex(":"))
    return other if other != mac else ""


def _request(mac: str, sender: bytes, target: bytes) -> bytes:
    own = bytes.fromhex(mac.replace(":", ""))
    return (
        _HEAD.pack(_BROADCAST, own, ETH_P_ARP)
        + _KIND.pack(_ARPHRD_ETHER, _ETH_P_IP, 6, 4, _REQUEST)
        + _ENDS.pack(own, sender, _ZERO_MAC, target)
    )
