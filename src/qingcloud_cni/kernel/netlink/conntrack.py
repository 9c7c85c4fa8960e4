"""Tracked flows: list and delete those of an address by messages of ctnetlink.

Layouts: linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from socket import AF_INET, inet_aton
from typing import Final

from qingcloud_cni.kernel.namespaces import sysctl
from qingcloud_cni.kernel.netlink.messages import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NLA_F_NESTED,
    U32,
    Message,
    Request,
    pack_attribute,
    unpack_attributes,
)
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused

TRACKED: Final = "net/netfilter/nf_conntrack_count"  # absent until the kernel tracks flows
# Flows per address from which on the kernel shall pick. It goes through its whole hash for each request, four of
# them per address and 10 ms each where that is large; for a list of everything it takes 4 us per flow besides.
FILTER_THRESHOLD: Final = 5_000

NFNL_SUBSYS_CTNETLINK: Final = 1
IPCTNL_MSG_CT_GET: Final = 1
IPCTNL_MSG_CT_DELETE: Final = 2
CTA_TUPLE_ORIG: Final = 1
CTA_TUPLE_REPLY: Final = 2
CTA_ID: Final = 12
CTA_ZONE: Final = 18
CTA_FILTER: Final = 25  # Linux 5.8: the parts of the tuples that must match
CTA_TUPLE_IP: Final = 1
CTA_IP_V4_SRC: Final = 1
CTA_IP_V4_DST: Final = 2
CTA_FILTER_ORIG_FLAGS: Final = 1
CTA_FILTER_REPLY_FLAGS: Final = 2

_HEAD: Final = NFGENMSG.pack(AF_INET, 0, 0)
_HANDLE: Final = (CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID)  # identifies one flow, and no later one


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked flow: its addresses of both directions and ends, and the attributes that identify it."""

    addresses: frozenset[bytes]
    handle: tuple[tuple[int, bytes], ...]


def delete_flows(addresses: Collection[str]) -> int:
    """Delete the flows in the calling thread's namespace from or to any of *addresses*; returns their number."""
    wanted = frozenset(map(inet_aton, addresses))
    tracked = int(sysctl.read(TRACKED) or 0)
    if not (wanted and tracked):  # a request would make the kernel load its module
        return 0
    with Netlink(NETLINK_NETFILTER) as netfilter:
        return sum(_is_deleted(netfilter, flow) for flow in _find(netfilter, wanted, tracked))


def _find(netfilter: Netlink, wanted: frozenset[bytes], tracked: int) -> set[Flow]:
    found: set[Flow] = set()
    for request in _list_requests(wanted, tracked):
        is_whole = False  # an older kernel ignores the filter and lists everything at once

        def is_wanted(message: Message) -> bool:
            nonlocal is_whole
            is_hit = any(address in message.body for address in wanted)
            is_whole |= not is_hit
            return is_hit

        messages = netfilter.dump(request, "list tracked flows", accept=is_wanted)
        flows = [parse_flow(message.body) for message in messages]
        found |= {flow for flow in flows if flow.addresses & wanted}
        if is_whole:
            break
    return found


def _is_deleted(netfilter: Netlink, flow: Flow) -> bool:
    try:
        netfilter.do(delete_flow(flow), "delete a tracked flow")
    except NetlinkRefused as err:
        if err.errno == errno.ENOENT:  # ended by itself
            return False
        raise
    return True


def _list_requests(wanted: Iterable[bytes], tracked: int) -> Iterator[Request]:
    """List everything, or among many flows those with a wanted address in one of the four fields."""
    wanted = tuple(wanted)
    if tracked <= FILTER_THRESHOLD * len(wanted):
        yield list_flows()
        return
    for address in wanted:
        for tuple_kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            for end in (CTA_IP_V4_SRC, CTA_IP_V4_DST):
                yield list_flows(tuple_kind, end, address)


def list_flows(tuple_kind: int = 0, end: int = 0, address: bytes = b"") -> Request:
    """List all IPv4 flows, or those with *address* at this end of this tuple."""
    body = _HEAD
    if address:
        flags_of = CTA_FILTER_ORIG_FLAGS if tuple_kind == CTA_TUPLE_ORIG else CTA_FILTER_REPLY_FLAGS
        flag = 1 << (end - CTA_IP_V4_SRC)
        body += _nested(tuple_kind, _nested(CTA_TUPLE_IP, pack_attribute(end, address)))
        body += _nested(CTA_FILTER, pack_attribute(flags_of, U32.pack(flag)))
    return Request(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET, body)


def delete_flow(flow: Flow) -> Request:
    body = _HEAD + b"".join(pack_attribute(kind, value) for kind, value in flow.handle)
    return Request(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE, body)


def parse_flow(body: bytes) -> Flow:
    fields = dict(unpack_attributes(body, NFGENMSG.size))
    addresses = [a for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY) for a in _addresses(fields.get(kind, b""))]
    handle = tuple(
        (kind | NLA_F_NESTED if kind == CTA_TUPLE_ORIG else kind, fields[kind]) for kind in _HANDLE if kind in fields
    )
    return Flow(frozenset(addresses), handle)


def _addresses(data: bytes) -> Iterator[bytes]:
    ip = dict(unpack_attributes(data)).get(CTA_TUPLE_IP, b"")
    return (value for kind, value in unpack_attributes(ip) if kind in (CTA_IP_V4_SRC, CTA_IP_V4_DST))


def _nested(kind: int, value: bytes) -> bytes:
    return pack_attribute(kind | NLA_F_NESTED, value)
