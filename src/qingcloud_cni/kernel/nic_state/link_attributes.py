"""The attributes of GETLINK that a container can change: which are restored, which are reset, which do not matter.

A test compares the three tables with what the kernel returns, so that a new attribute is noticed. Numbers: if_link.h.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from qingcloud_cni.kernel.netlink import messages as nl

# A container sets these; a move between namespaces keeps them. A plugged NIC has MULTICAST alone.
FLAGS: Final = MappingProxyType(
    {
        "DEBUG": 0x4, "NOTRAILERS": 0x20, "NOARP": nl.IFF_NOARP, "PROMISC": nl.IFF_PROMISC,
        "ALLMULTI": nl.IFF_ALLMULTI, "MULTICAST": 0x1000, "PORTSEL": 0x2000, "AUTOMEDIA": 0x4000, "DYNAMIC": 0x8000,
    }
)  # fmt: skip
FLAG_MASK: Final = sum(FLAGS.values())
PLUGGED_FLAGS: Final = FLAGS["MULTICAST"]

# Compared with the values at arrival, and set back by SETLINK.
RESTORED: Final[Mapping[int, str]] = MappingProxyType(
    {
        nl.IFLA_MTU: "mtu",
        13: "txqlen",
        14: "map",
        17: "linkmode",
        2: "broadcast",
        27: "group",
        39: "proto_down",
        40: "gso_max_segs",
        41: "gso_max_size",
        58: "gro_max_size",
        63: "gso_ipv4_max_size",
        64: "gro_ipv4_max_size",
    }
)
SIZES: Final = frozenset({40, 41, 58, 63, 64})  # the kernel derives some from others, so they are set together

# Set to what a parked NIC has, whatever it was.
RESET: Final[Mapping[int, str]] = MappingProxyType(
    {
        nl.IFLA_ADDRESS: "the NIC's id",
        nl.IFLA_IFNAME: "the parking name",
        nl.IFLA_IFALIAS: "none",
        nl.IFLA_PROP_LIST: "no altname",
        nl.IFLA_XDP: "no program",
        55: "the reason of proto_down goes with it",
    }
)

_DRIVER: Final = "the driver's or the cloud's, and nothing sets it from a container"
_MOVED: Final = "a move between namespaces ends it"
_COUNTED: Final = "it counts or reports, and is not a setting"
LISTED: Final[Mapping[int, str]] = MappingProxyType(
    {
        5: _DRIVER,  # IFLA_LINK: a veth's peer
        6: _MOVED,  # IFLA_QDISC
        7: _COUNTED,  # IFLA_STATS
        10: _MOVED,  # IFLA_MASTER
        16: _COUNTED,  # IFLA_OPERSTATE
        18: _DRIVER,  # IFLA_LINKINFO: kind
        21: _DRIVER,  # IFLA_NUM_VF
        23: _COUNTED,  # IFLA_STATS64
        26: _MOVED,  # IFLA_AF_SPEC: settings of IPv4 and IPv6
        30: "a packet socket's share clears at the next up; the flag is reset",  # IFLA_PROMISCUITY
        31: _DRIVER,  # IFLA_NUM_TX_QUEUES
        32: _DRIVER,  # IFLA_NUM_RX_QUEUES
        33: _COUNTED,  # IFLA_CARRIER
        35: _COUNTED,  # IFLA_CARRIER_CHANGES
        36: _DRIVER,  # IFLA_PHYS_SWITCH_ID
        34: _DRIVER,  # IFLA_PHYS_PORT_ID
        37: _DRIVER,  # IFLA_LINK_NETNSID: of a veth's peer
        38: _DRIVER,  # IFLA_PHYS_PORT_NAME
        44: _COUNTED,  # IFLA_EVENT
        45: _COUNTED,  # IFLA_NEW_NETNSID
        47: _COUNTED,  # IFLA_CARRIER_UP_COUNT
        48: _COUNTED,  # IFLA_CARRIER_DOWN_COUNT
        49: _COUNTED,  # IFLA_NEW_IFINDEX
        nl.IFLA_MIN_MTU: _DRIVER,
        nl.IFLA_MAX_MTU: _DRIVER,
        nl.IFLA_PERM_ADDRESS: _DRIVER,
        56: _DRIVER,  # IFLA_PARENT_DEV_NAME
        57: _DRIVER,  # IFLA_PARENT_DEV_BUS_NAME
        59: _DRIVER,  # IFLA_TSO_MAX_SIZE
        60: _DRIVER,  # IFLA_TSO_MAX_SEGS
        61: "a socket's share ends with its namespace; the flag is reset",  # IFLA_ALLMULTI
        62: _DRIVER,  # IFLA_DEVLINK_PORT
        65: _DRIVER,  # IFLA_DPLL_PIN
        66: _DRIVER,  # IFLA_MAX_PACING_OFFLOAD_HORIZON
        67: _DRIVER,  # IFLA_NETNS_IMMUTABLE
        68: "of links above it, which are deleted",  # IFLA_HEADROOM
        69: "of links above it, which are deleted",  # IFLA_TAILROOM
    }
)


def show(number: int, value: bytes) -> str:
    """An attribute's value for people."""
    if number == 2:
        return value.hex(":")
    return str(int.from_bytes(value, "little")) if len(value) in (1, 4) else value.hex()


def show_flags(flags: int) -> str:
    return ", ".join(name for name, bit in FLAGS.items() if flags & bit) or "none"
