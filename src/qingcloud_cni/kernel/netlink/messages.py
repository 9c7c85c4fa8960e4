"""The rtnetlink messages of this program, between bytes and plain data.

Layouts: linux/netlink.h, rtnetlink.h, if_link.h and if_addr.h. Integers have the host's byte order.
An attribute's length counts its header but not the padding to 4 bytes that follows it.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, AF_UNSPEC, inet_pton
from typing import Final

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLMSG_OVERRUN: Final = 4
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_GETNSID: Final = 90
RTM_DELLINKPROP: Final = 109

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_CAPPED: Final = 0x100  # on NLMSG_ERROR: it quotes only the header of the rejected request
NLM_F_ACK_TLVS: Final = 0x200  # on NLMSG_ERROR: attributes follow the quotation
NLM_F_DUMP: Final = 0x300
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

NLMSGERR_ATTR_MSG: Final = 1
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_MACVLAN_MODE: Final = 1
MACVLAN_MODE_PASSTHRU: Final = 8
IFLA_IFALIAS: Final = 20
IFLA_GROUP: Final = 27
IFLA_NET_NS_FD: Final = 28
IFLA_EXT_MASK: Final = 29
IFLA_LINK_NETNSID: Final = 37
IFLA_XDP: Final = 43
IFLA_MIN_MTU: Final = 50
IFLA_MAX_MTU: Final = 51
IFLA_PROP_LIST: Final = 52
IFLA_ALT_IFNAME: Final = 53
IFLA_PERM_ADDRESS: Final = 54
IFLA_XDP_FD: Final = 1
IFLA_XDP_ATTACHED: Final = 2
IFLA_XDP_FLAGS: Final = 3
XDP_MODES: Final = {5: 1 << 2, 6: 1 << 1, 7: 1 << 3}  # by IFLA_XDP_*_PROG_ID: driver, generic, hardware
IFLA_PARENT_DEV_NAME: Final = 56
IFLA_PARENT_DEV_BUS_NAME: Final = 57
RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
NETNSA_NSID: Final = 1
NETNSA_FD: Final = 3
NO_NSID: Final = -1

ARPHRD_ETHER: Final = 1
IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_NOARP: Final = 0x80
IFF_PROMISC: Final = 0x100
IFF_ALLMULTI: Final = 0x200

NETLINK_NETFILTER: Final = 12  # the protocol of a socket to nftables and ctnetlink
NFGENMSG: Final = struct.Struct("=BBH")  # family, version, resource id: begins the body of each of their messages

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # nlattr: length, type
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, hardware type, index, flags, change mask
_INT: Final = struct.Struct("=i")
_PARENT: Final = (IFLA_PARENT_DEV_BUS_NAME, IFLA_PARENT_DEV_NAME)
U32: Final = struct.Struct("=I")


class Malformed(ValueError):
    """Bytes that are not a netlink message: the kernel never sends them."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a datagram; *body* is what follows its header."""

    kind: int
    flags: int
    seq: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """A message to send; the socket adds NLM_F_REQUEST, NLM_F_ACK or NLM_F_DUMP, and the sequence number."""

    kind: int
    body: bytes
    flags: int = 0


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """A program on the XDP hook of a link."""

    program: int  # its id
    mode: int  # an XDP_FLAGS_*_MODE


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A link as RTM_NEWLINK describes it. MACs are lower case; "" for an address of another length."""

    ifindex: int
    name: str
    hardware: int = ARPHRD_ETHER
    flags: int = 0
    mac: str = ""
    permanent_mac: str = ""  # burnt in; a veth has none
    mtu: int = 0
    mtu_range: tuple[int, int] = (0, 0)  # the device's; 0 as the upper bound: no limit
    alias: str = ""
    kind: str = ""  # "veth", "bridge"...; "" for hardware
    altnames: tuple[str, ...] = ()
    peer: int = 0  # the index of a veth's other end, or of the link below it, in its own namespace
    peer_nsid: int = NO_NSID  # that namespace's number in the link's; NO_NSID: it is the link's own, or has none
    attributes: Mapping[int, bytes] = field(default_factory=dict, compare=False, repr=False)  # all, as received
    parent: str = ""  # bus and name of the device: "virtio/virtio2"; Linux 5.14

    @property
    def is_up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def master(self) -> int:
        """The index of the bridge or bond that it is a port of, or 0."""
        return parse_u32(self.attributes.get(IFLA_MASTER, bytes(4)))

    @property
    def lower(self) -> int:
        """The index of the link that it is on in the same namespace, as a vlan is, or 0."""
        return self.peer if self.kind != "veth" and self.peer_nsid == NO_NSID else 0

    @property
    def xdp(self) -> tuple[XdpProgram, ...]:
        """The XDP programs, of which a link has one for each mode."""
        fields = dict(unpack_attributes(self.attributes.get(IFLA_XDP, b"")))
        if not any(fields.get(IFLA_XDP_ATTACHED, b"")):
            return ()
        return tuple(XdpProgram(parse_u32(fields[n]), mode) for n, mode in XDP_MODES.items() if n in fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChange:
    """The changes of one RTM_SETLINK; None changes nothing.

    The kernel applies them in an order of its own until it rejects one, and keeps the earlier ones: the move, MAC,
    MTU, name, alias, flags, most other attributes. A move into another namespace sets the link down.
    """

    netns_fd: int | None = None
    mac: str | None = None
    mtu: int | None = None
    name: str | None = None
    alias: str | None = None
    is_up: bool | None = None
    flags: int = 0  # those of *flag_mask*
    flag_mask: int = 0
    attributes: tuple[tuple[int, bytes], ...] = ()

    def __bool__(self) -> bool:
        return self != LinkChange()


# --- messages and attributes -------------------------------------------------------------------------


def pack(request: Request, flags: int, seq: int) -> bytes:
    length = _HEADER.size + len(request.body)
    return _HEADER.pack(length, request.kind, request.flags | flags, seq, 0) + request.body


def unpack(datagram: bytes) -> Iterator[Message]:
    """Split a datagram into its messages; Malformed if a length field is wrong."""
    offset = 0
    while offset < len(datagram):
        if len(datagram) - offset < _HEADER.size:
            raise Malformed(f"{len(datagram) - offset} bytes left, too few for a message")
        length, kind, flags, seq, _ = _HEADER.unpack_from(datagram, offset)
        if not _HEADER.size <= length <= len(datagram) - offset:
            raise Malformed(f"a message of {length} bytes in {len(datagram) - offset}")
        yield Message(kind, flags, seq, datagram[offset + _HEADER.size : offset + length])
        offset += _padded(length)


def pack_attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def unpack_attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type without flag bits and value of each attribute in *data*; Malformed if a length field is wrong."""
    end = len(data)
    while offset < end:
        if end - offset < _ATTRIBUTE.size:
            raise Malformed(f"{end - offset} bytes left, too few for an attribute")
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= end - offset:
            raise Malformed(f"an attribute of {length} bytes in {end - offset}")
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


def parse_error(message: Message) -> tuple[int, str]:
    """The errno of an NLMSG_ERROR (0: acknowledged) and the kernel's own message, "" if it sent none."""
    code = parse_done(message)
    if not message.flags & NLM_F_ACK_TLVS:
        return code, ""
    offset = _INT.size + _HEADER.size
    if not message.flags & NLM_F_CAPPED:
        if len(message.body) < offset:
            raise Malformed(f"an error of {len(message.body)} bytes")
        offset = _INT.size + _padded(_HEADER.unpack_from(message.body, _INT.size)[0])
    words = dict(unpack_attributes(message.body, offset)).get(NLMSGERR_ATTR_MSG, b"")
    return code, parse_text(words)


def parse_done(message: Message) -> int:
    """The errno at the end of a dump, 0 for success."""
    if len(message.body) < _INT.size:
        raise Malformed(f"a verdict of {len(message.body)} bytes")
    return -int(_INT.unpack_from(message.body)[0])


def get_link(*, ifindex: int = 0, name: str = "") -> Request:
    """Get one link by its index, or by its name or one of its altnames; without either, all links."""
    body = _LINK.pack(AF_UNSPEC, 0, ifindex, 0, 0) + pack_attribute(IFLA_EXT_MASK, U32.pack(RTEXT_FILTER_SKIP_STATS))
    return Request(RTM_GETLINK, body + pack_text(IFLA_IFNAME, name) if name else body)


def parse_link(body: bytes) -> LinkInfo:
    if len(body) < _LINK.size:
        raise Malformed(f"a link of {len(body)} bytes")
    _, hardware, ifindex, flags, _ = _LINK.unpack_from(body)
    fields = dict(unpack_attributes(body, _LINK.size))
    info = dict(unpack_attributes(fields.get(IFLA_LINKINFO, b"")))
    properties = unpack_attributes(fields.get(IFLA_PROP_LIST, b""))
    return LinkInfo(
        ifindex=ifindex,
        name=parse_text(fields.get(IFLA_IFNAME, b"")),
        hardware=hardware,
        flags=flags,
        mac=_mac(fields.get(IFLA_ADDRESS, b"")),
        permanent_mac=_mac(fields.get(IFLA_PERM_ADDRESS, b"")),
        mtu=parse_u32(fields.get(IFLA_MTU, bytes(4))),
        mtu_range=(parse_u32(fields.get(IFLA_MIN_MTU, bytes(4))), parse_u32(fields.get(IFLA_MAX_MTU, bytes(4)))),
        alias=parse_text(fields.get(IFLA_IFALIAS, b"")),
        kind=parse_text(info.get(IFLA_INFO_KIND, b"")),
        altnames=tuple(parse_text(value) for kind, value in properties if kind == IFLA_ALT_IFNAME),
        peer=parse_u32(fields.get(IFLA_LINK, bytes(4))),
        peer_nsid=_parse_int(fields[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in fields else NO_NSID,
        attributes=fields,
        parent="/".join(parse_text(fields[kind]) for kind in _PARENT if kind in fields),
    )


def set_link(ifindex: int, change: LinkChange) -> Request:
    mask = (IFF_UP if change.is_up is not None else 0) | change.flag_mask
    flags = (IFF_UP if change.is_up else 0) | change.flags
    parts = [_LINK.pack(AF_UNSPEC, 0, ifindex, flags, mask)]
    if change.netns_fd is not None:
        parts.append(pack_attribute(IFLA_NET_NS_FD, U32.pack(change.netns_fd)))
    if change.mac is not None:
        parts.append(pack_attribute(IFLA_ADDRESS, bytes.fromhex(change.mac.replace(":", ""))))
    if change.mtu is not None:
        parts.append(pack_attribute(IFLA_MTU, U32.pack(change.mtu)))
    if change.name is not None:
        parts.append(pack_text(IFLA_IFNAME, change.name))
    if change.alias is not None:
        parts.append(pack_text(IFLA_IFALIAS, change.alias))
    parts += [pack_attribute(number, value) for number, value in change.attributes]
    return Request(RTM_SETLINK, b"".join(parts))


def remove_xdp(ifindex: int, mode: int) -> Request:
    """Remove the program of a mode, unless a bpf_link holds it (EBUSY)."""
    fields = pack_attribute(IFLA_XDP_FD, _INT.pack(-1)) + pack_attribute(IFLA_XDP_FLAGS, U32.pack(mode))
    head = _LINK.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    return Request(RTM_SETLINK, head + pack_attribute(IFLA_XDP | NLA_F_NESTED, fields))


def add_passthru(name: str, lower: int) -> Request:
    """Add a macvlan in passthru mode on the link of index *lower*."""
    data = pack_attribute(IFLA_MACVLAN_MODE, U32.pack(MACVLAN_MODE_PASSTHRU))
    info = pack_text(IFLA_INFO_KIND, "macvlan") + pack_attribute(IFLA_INFO_DATA | NLA_F_NESTED, data)
    parts = (pack_text(IFLA_IFNAME, name), pack_attribute(IFLA_LINK, U32.pack(lower)))
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + b"".join(parts) + pack_attribute(IFLA_LINKINFO | NLA_F_NESTED, info)
    return Request(RTM_NEWLINK, body, NLM_F_CREATE | NLM_F_EXCL)


def get_nsid(netns_fd: int) -> Request:
    """Get the number that an open namespace has in the socket's namespace."""
    return Request(RTM_GETNSID, bytes(4) + pack_attribute(NETNSA_FD, U32.pack(netns_fd)))


def parse_nsid(body: bytes) -> int:
    """The number; NO_NSID if it has none."""
    return _parse_int(dict(unpack_attributes(body, 4)).get(NETNSA_NSID, b""))


def delete_link(ifindex: int) -> Request:
    return Request(RTM_DELLINK, _LINK.pack(AF_UNSPEC, 0, ifindex, 0, 0))


def delete_group(group: bytes) -> Request:
    """Delete all links of a link group at once."""
    return Request(RTM_DELLINK, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + pack_attribute(IFLA_GROUP, group))


def delete_altnames(ifindex: int, altnames: tuple[str, ...]) -> Request:
    names = b"".join(pack_text(IFLA_ALT_IFNAME, name) for name in altnames)
    head = _LINK.pack(AF_UNSPEC, 0, ifindex, 0, 0)
    return Request(RTM_DELLINKPROP, head + pack_attribute(IFLA_PROP_LIST | NLA_F_NESTED, names))


def parse_prefix(text: str) -> tuple[int, bytes, int]:
    """Family, bytes and prefix length of "172.16.3.7/24" (`ipaddress` takes ten times as long)."""
    address, _, prefix = text.partition("/")
    family = AF_INET6 if ":" in address else AF_INET
    return family, inet_pton(family, address), int(prefix)


def _padded(length: int) -> int:
    return (length + 3) & ~3


def pack_text(kind: int, text: str) -> bytes:
    return pack_attribute(kind, text.encode("utf-8", "surrogateescape") + b"\0")


def parse_text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _mac(value: bytes) -> str:
    return value.hex(":") if len(value) == 6 else ""


def _parse_int(value: bytes) -> int:
    if len(value) != _INT.size:
        raise Malformed(f"a number of {len(value)} bytes")
    return int(_INT.unpack(value)[0])


def parse_u32(value: bytes) -> int:
    if len(value) != U32.size:
        raise Malformed(f"a number of {len(value)} bytes")
    return int(U32.unpack(value)[0])
