"""A link's settings behind the ethtool ioctl: wanted offloads, and what the driver lets root set.

Layouts: linux/ethtool.h. A netlink socket takes the ioctl too, in the namespace in which it was opened.
"""

import ctypes
import errno
import fcntl
import struct
from dataclasses import dataclass
from typing import Final

from qingcloud_cni.kernel.netlink.socket import Netlink

SIOCETHTOOL: Final = 0x8946
GET_FEATURES: Final = 0x3A
SET_FEATURES: Final = 0x3B
SET_GRO: Final = 0x2C
WORDS: Final = 8  # of 32 features each; the kernel fills those that it has
UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL})

_REQUEST: Final = struct.Struct("=16sQ")  # ifreq: name, address of the command; a union pads it to 40 bytes
_REQUEST_BYTES: Final = 40
_FEATURE: Final = struct.Struct("=IIII")  # available, wanted, active, never changed


@dataclass(frozen=True, slots=True)
class Setting:
    """A struct of the driver that one command reads and another writes; the command stands in its first word."""

    read: int
    write: int
    words: int  # 32 bits each


SETTINGS: Final = {
    "channels": Setting(0x3C, 0x3D, 9),
    "rings": Setting(0x10, 0x11, 9),
    "coalesce": Setting(0x0E, 0x0F, 23),
    "pause": Setting(0x12, 0x13, 4),
    "private flags": Setting(0x27, 0x28, 2),
}


def wanted_features(netlink: Netlink, name: str) -> str:
    """The offloads that are wanted of a link, as hexadecimal words; "" if the kernel has no such list."""
    try:
        blocks = _feature_blocks(netlink, name)
    except OSError as err:
        if err.errno in UNSUPPORTED:
            return ""
        raise
    return "".join(f"{wanted & available:08x}" for available, wanted, _, _ in blocks)


def restore_features(netlink: Netlink, name: str, wanted: str) -> None:
    """Want just *wanted* of the features that can be changed; OSError as the driver refuses."""
    masks = bytes.fromhex(wanted)
    blocks = _feature_blocks(netlink, name)
    request = bytearray(struct.pack("=II", SET_FEATURES, len(blocks)))
    for (available, *_), (mask,) in zip(blocks, struct.iter_unpack(">I", masks), strict=True):
        request += struct.pack("=II", available, mask & available)
    _ioctl(netlink, name, request)


def switch_gro_on(netlink: Netlink, name: str) -> None:
    _ioctl(netlink, name, bytearray(struct.pack("=II", SET_GRO, 1)))


def settings(netlink: Netlink, name: str) -> dict[str, str]:
    """The driver's settings as hexadecimal words, by name; without those that it does not have."""
    found = {}
    for key, setting in SETTINGS.items():
        request = bytearray(struct.pack("=I", setting.read) + bytes(4 * (setting.words - 1)))
        try:
            _ioctl(netlink, name, request)
        except OSError as err:
            if err.errno in UNSUPPORTED:
                continue
            raise
        found[key] = request[4:].hex()
    return found


def restore_setting(netlink: Netlink, name: str, key: str, value: str) -> None:
    """Write a setting of `settings` back; OSError as the driver refuses."""
    _ioctl(netlink, name, bytearray(struct.pack("=I", SETTINGS[key].write) + bytes.fromhex(value)))


def _feature_blocks(netlink: Netlink, name: str) -> list[tuple[int, int, int, int]]:
    request = bytearray(struct.pack("=II", GET_FEATURES, WORDS) + bytes(WORDS * _FEATURE.size))
    _ioctl(netlink, name, request)
    count = min(struct.unpack_from("=I", request, 4)[0], WORDS)
    return [_FEATURE.unpack_from(request, 8 + n * _FEATURE.size) for n in range(count)]


def _ioctl(netlink: Netlink, name: str, request: bytearray) -> None:
    """Send one command; *request* has the answer afterwards."""
    buffer = (ctypes.c_char * len(request)).from_buffer(request)
    head = _REQUEST.pack(name.encode("utf-8", "surrogateescape"), ctypes.addressof(buffer))
    fcntl.ioctl(netlink.fileno(), SIOCETHTOOL, head.ljust(_REQUEST_BYTES, b"\0"))
