"""The messages for addresses, routing tables and rules, between bytes and plain data.

Layouts: linux/if_addr.h, rtnetlink.h and fib_rules.h. A delete request sends the bytes of a dump back under another
type, as `ip … flush` does, so it cannot hit anything else.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final

from qingcloud_cni.core.nics.model import MAIN_TABLE, Route
from qingcloud_cni.kernel.netlink.messages import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    U32,
    Malformed,
    Request,
    pack_attribute,
    pack_text,
    parse_prefix,
    parse_text,
    parse_u32,
    unpack_attributes,
)

RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_BROADCAST: Final = 4
IFA_FLAGS: Final = 8
IFA_F_NODAD: Final = 0x2
IFA_F_PERMANENT: Final = 0x80  # it does not expire
IFA_F_NOPREFIXROUTE: Final = 0x200  # the address brings no connected route into the main table

RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RTA_PRIORITY: Final = 6
RTA_PREFSRC: Final = 7
RTA_METRICS: Final = 8  # nested RTAX_…
RTA_CACHEINFO: Final = 12
RTA_TABLE: Final = 15
RTAX_MTU: Final = 2
RTAX_ADVMSS: Final = 8
RTN_UNICAST: Final = 1
RT_SCOPE_UNIVERSE: Final = 0
RT_SCOPE_LINK: Final = 253
RTNH_F_ONLINK: Final = 4
RTM_F_CLONED: Final = 0x200  # a cache entry of one destination, for a path MTU for instance
# The one protocol whose foreign rules and routes systemd-networkd does not remove
# (ManageForeignRoutingPolicyRules=, ManageForeignRoutes=); Cilium uses it for the same reason.
RTPROT_KERNEL: Final = 2
RTPROT_STATIC: Final = 4

FRA_SRC: Final = 2
FRA_IIFNAME: Final = 3
FRA_PRIORITY: Final = 6
FRA_FWMARK: Final = 10
FRA_SUPPRESS_PREFIXLEN: Final = 14
FRA_TABLE: Final = 15
FRA_FWMASK: Final = 16
FRA_PROTOCOL: Final = 21
FR_ACT_TO_TBL: Final = 1
FIB_RULE_INVERT: Final = 2

_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
# rtmsg: family, prefix lengths of destination and source, tos, table, protocol, scope, type, flags
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
# fib_rule_hdr: family, prefix lengths of destination and source, tos, table, action, flags
_RULE: Final = struct.Struct("=BBBBBxxBI")
_NONE: Final = 0xFFFFFFFF  # FRA_SUPPRESS_PREFIXLEN of a rule that suppresses nothing


@dataclass(frozen=True, slots=True)
class Address:
    ifindex: int
    address: str  # with prefix length
    is_bare: bool  # permanent, without a connected route in the main table
    body: bytes = field(default=b"", compare=False, repr=False)  # as dumped


@dataclass(frozen=True, slots=True)
class TableRoute:
    """A route of any kind. *others* are attributes that this program never sets."""

    table: int
    ifindex: int  # 0 for a route over several links, or none
    dst: str  # CIDR
    gateway: str = ""
    source: str = ""  # the source address of the host's own packets
    priority: int = 0
    mtu: int = 0
    advmss: int = 0
    scope: int = RT_SCOPE_UNIVERSE
    protocol: int = RTPROT_KERNEL
    kind: int = RTN_UNICAST
    others: frozenset[int] = frozenset()
    body: bytes = field(default=b"", compare=False, repr=False)  # as dumped


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that leads to a table. *others* are attributes that this program never sets."""

    preference: int
    table: int
    source: str = ""  # CIDR
    iif: str = ""
    mark: int = 0
    mask: int = 0
    protocol: int = RTPROT_KERNEL
    others: frozenset[int] = frozenset()
    body: bytes = field(default=b"", compare=False, repr=False)  # as dumped


def get_addresses() -> Request:
    return Request(RTM_GETADDR, _ADDRESS.pack(AF_INET, 0, 0, 0, 0))


def parse_address(body: bytes) -> Address:
    _, prefix, flags, _, ifindex = _head(_ADDRESS, body)
    fields = dict(unpack_attributes(body, _ADDRESS.size))
    own = fields.get(IFA_LOCAL) or fields.get(IFA_ADDRESS, b"")
    flags = parse_u32(fields[IFA_FLAGS]) if IFA_FLAGS in fields else flags
    bare = IFA_F_PERMANENT | IFA_F_NOPREFIXROUTE
    return Address(ifindex, f"{_ip(own)}/{prefix}", flags & bare == bare, body)


def add_address(ifindex: int, address: str, *, is_bare: bool = False) -> Request:
    """Add *address*, written with its prefix length; an IPv4 one gets its broadcast address.

    A bare address brings no connected route along.
    """
    family, packed, prefix = parse_prefix(address)
    parts = [pack_attribute(IFA_LOCAL, packed), pack_attribute(IFA_ADDRESS, packed)]
    if family == AF_INET and prefix < 31:
        broadcast = int.from_bytes(packed) | (1 << 32 - prefix) - 1
        parts.append(pack_attribute(IFA_BROADCAST, broadcast.to_bytes(4)))
    if is_bare:
        parts.append(pack_attribute(IFA_FLAGS, U32.pack(IFA_F_NOPREFIXROUTE)))
    head = _ADDRESS.pack(family, prefix, IFA_F_NODAD if family == AF_INET6 else 0, 0, ifindex)
    return Request(RTM_NEWADDR, head + b"".join(parts), NLM_F_CREATE | NLM_F_EXCL)


def delete_address(address: Address) -> Request:
    return Request(RTM_DELADDR, address.body)


def get_routes() -> Request:
    """Get the routes of all tables."""
    return Request(RTM_GETROUTE, _ROUTE.pack(AF_INET, 0, 0, 0, 0, 0, 0, 0, 0))


def parse_route(body: bytes) -> TableRoute | None:
    """A route; None for a cache entry."""
    _, prefix, source_prefix, tos, table, protocol, scope, kind, flags = _head(_ROUTE, body)
    if flags & RTM_F_CLONED:
        return None
    fields = dict(unpack_attributes(body, _ROUTE.size))
    metrics = dict(unpack_attributes(fields.get(RTA_METRICS, b"")))
    known = {RTA_TABLE, RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_CACHEINFO}
    if metrics.keys() <= {RTAX_MTU, RTAX_ADVMSS}:
        known.add(RTA_METRICS)
    others = set(fields) - known
    if source_prefix or tos or flags & RTNH_F_ONLINK:
        others.add(0)
    return TableRoute(
        table=_table(table, fields),
        ifindex=parse_u32(fields.get(RTA_OIF, bytes(4))),
        dst=_destination(prefix, fields),
        gateway=_ip(fields[RTA_GATEWAY]) if RTA_GATEWAY in fields else "",
        source=_ip(fields[RTA_PREFSRC]) if RTA_PREFSRC in fields else "",
        priority=parse_u32(fields.get(RTA_PRIORITY, bytes(4))),
        mtu=parse_u32(metrics.get(RTAX_MTU, bytes(4))),
        advmss=parse_u32(metrics.get(RTAX_ADVMSS, bytes(4))),
        scope=scope,
        protocol=protocol,
        kind=kind,
        others=frozenset(others),
        body=body,
    )


def parse_destination(body: bytes) -> tuple[int, str] | None:
    """Table and network of a route of any kind, unreachable ones included; None if it is for some packets only."""
    _, prefix, source_prefix, tos, table, *_, flags = _head(_ROUTE, body)
    if source_prefix or tos or flags & RTM_F_CLONED:
        return None
    fields = dict(unpack_attributes(body, _ROUTE.size))
    return _table(table, fields), _destination(prefix, fields)


def _table(short: int, fields: Mapping[int, bytes]) -> int:
    return parse_u32(fields[RTA_TABLE]) if RTA_TABLE in fields else short


def _destination(prefix: int, fields: Mapping[int, bytes]) -> str:
    return f"{_ip(fields.get(RTA_DST, bytes(4)))}/{prefix}"


def static_route(ifindex: int, route: Route) -> TableRoute:
    return TableRoute(
        route.table or MAIN_TABLE, ifindex, route.dst, route.gw, priority=route.priority or 0, mtu=route.mtu or 0,
        advmss=route.advmss or 0, scope=route.scope or RT_SCOPE_UNIVERSE, protocol=RTPROT_STATIC,
    )  # fmt: skip


def seen_route(route: TableRoute) -> Route:
    """A route as the kernel has it; None for its defaults."""
    return Route(
        route.dst, route.gateway, priority=route.priority or None, mtu=route.mtu or None, advmss=route.advmss or None,
        table=None if route.table == MAIN_TABLE else route.table, scope=route.scope or None,
    )  # fmt: skip


def add_route(route: TableRoute) -> Request:
    """Add a route; EEXIST if its table has one of its priority to the same destination."""
    family, packed, prefix = parse_prefix(route.dst)
    head = _ROUTE.pack(family, prefix, 0, 0, 0, route.protocol, route.scope, RTN_UNICAST, 0)
    parts = [pack_attribute(RTA_TABLE, U32.pack(route.table)), pack_attribute(RTA_OIF, U32.pack(route.ifindex))]
    if prefix:
        parts.append(pack_attribute(RTA_DST, packed))
    for kind, address in ((RTA_GATEWAY, route.gateway), (RTA_PREFSRC, route.source)):
        if address:
            parts.append(pack_attribute(kind, inet_pton(family, address)))
    if route.priority:
        parts.append(pack_attribute(RTA_PRIORITY, U32.pack(route.priority)))
    metrics = [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)]
    if nested := b"".join(pack_attribute(kind, U32.pack(value)) for kind, value in metrics if value):
        parts.append(pack_attribute(RTA_METRICS, nested))
    return Request(RTM_NEWROUTE, head + b"".join(parts), NLM_F_CREATE | NLM_F_EXCL)


def delete_route(route: TableRoute) -> Request:
    return Request(RTM_DELROUTE, route.body)


def get_rules() -> Request:
    return Request(RTM_GETRULE, _RULE.pack(AF_INET, 0, 0, 0, 0, 0, 0))


def parse_rule(body: bytes) -> Rule:
    _, dst_prefix, src_prefix, tos, table, action, flags = _head(_RULE, body)
    fields = dict(unpack_attributes(body, _RULE.size))
    if fields.get(FRA_SUPPRESS_PREFIXLEN) == U32.pack(_NONE):
        del fields[FRA_SUPPRESS_PREFIXLEN]
    known = {FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_FWMASK, FRA_TABLE, FRA_PROTOCOL}
    others = set(fields) - known
    if dst_prefix or tos or action != FR_ACT_TO_TBL or flags & FIB_RULE_INVERT:
        others.add(0)
    return Rule(
        preference=parse_u32(fields.get(FRA_PRIORITY, bytes(4))),
        table=parse_u32(fields[FRA_TABLE]) if FRA_TABLE in fields else table,
        source=f"{_ip(fields[FRA_SRC])}/{src_prefix}" if FRA_SRC in fields else "",
        iif=parse_text(fields.get(FRA_IIFNAME, b"")),
        mark=parse_u32(fields.get(FRA_FWMARK, bytes(4))),
        mask=parse_u32(fields.get(FRA_FWMASK, bytes(4))),
        protocol=fields[FRA_PROTOCOL][0] if fields.get(FRA_PROTOCOL) else 0,
        others=frozenset(others),
        body=body,
    )


def add_rule(rule: Rule) -> Request:
    parts = [
        pack_attribute(FRA_PRIORITY, U32.pack(rule.preference)),
        pack_attribute(FRA_TABLE, U32.pack(rule.table)),
        pack_attribute(FRA_PROTOCOL, bytes((rule.protocol,))),
    ]
    prefix = 0
    if rule.source:
        _, packed, prefix = parse_prefix(rule.source)
        parts.append(pack_attribute(FRA_SRC, packed))
    if rule.iif:
        parts.append(pack_text(FRA_IIFNAME, rule.iif))
    if rule.mask:
        parts.append(pack_attribute(FRA_FWMARK, U32.pack(rule.mark)))
        parts.append(pack_attribute(FRA_FWMASK, U32.pack(rule.mask)))
    head = _RULE.pack(AF_INET, 0, prefix, 0, 0, FR_ACT_TO_TBL, 0)
    return Request(RTM_NEWRULE, head + b"".join(parts), NLM_F_CREATE | NLM_F_EXCL)


def delete_rule(rule: Rule) -> Request:
    return Request(RTM_DELRULE, rule.body)


def _head(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise Malformed(f"a message of {len(body)} bytes, shorter than its head of {layout.size}")
    return layout.unpack_from(body)


def _ip(packed: bytes) -> str:
    if len(packed) != 4:
        raise Malformed(f"an IPv4 address of {len(packed)} bytes")
    return inet_ntop(AF_INET, packed)
