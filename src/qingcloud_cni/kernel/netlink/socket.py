"""A netlink socket: each request returns its answer, or raises with the kernel's own message."""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, Self

from qingcloud_cni.core.errors import AbilityMissing, KernelRefused
from qingcloud_cni.kernel.namespaces.namespaces import ClosesOnExit, Namespace, NetnsSwitcher
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink import routing
from qingcloud_cni.kernel.netlink.messages import LinkInfo, Message, Request, parse_link

SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10  # Linux 4.3: an error quotes only the header of its request
NETLINK_EXT_ACK: Final = 11  # Linux 4.12: an error has a message
ANSWER_SECONDS: Final = 5.0  # the kernel answers within the call that sends; this limits a bug
DUMP_TRIES: Final = 20  # of a dump that changes interrupt
BUFFER_BYTES: Final = 1 << 20  # containers can make a link's lists long: each attribute has up to 64 KiB

SIOCETHTOOL: Final = 0x8946
ETHTOOL_GPERMADDR: Final = 0x20
_IFREQ: Final = struct.Struct("16sP16x")  # ifreq: name, pointer
_PERMANENT: Final = struct.Struct("=II")  # ethtool_perm_addr: command, length; the address follows

MessageFilter = Callable[[Message], bool]


class _Buffer(threading.local):
    """Receives a thread's answers; the pages that none has reached use no memory."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER_BYTES))


_BUFFER: Final = _Buffer()


class NetlinkRefused(KernelRefused):
    """The kernel answered a request with an error; *errno* is its number."""

    def __init__(self, action: str, code: int, message: str = "") -> None:
        super().__init__(f"{action} failed: {message or os.strerror(code)} ({errno.errorcode.get(code, code)})")
        self.errno = code


class _DumpInterrupted(Exception):
    """The listed objects changed during the dump."""


class Netlink(ClosesOnExit):
    """A socket to the opening thread's network namespace, which it keeps alive; for one thread at a time."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._seq = 0
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        except OSError as err:
            raise NetlinkRefused("open a netlink socket", err.errno or errno.EIO) from err
        try:
            self._socket.settimeout(ANSWER_SECONDS)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        except OSError as err:
            self._socket.close()
            raise AbilityMissing(
                "netlink: extended errors failed: the kernel lacks them; Linux 4.12 is needed"
            ) from err

    @classmethod
    def inside(cls, switcher: NetnsSwitcher, namespace: Namespace) -> Self:
        """Open a socket to *namespace*."""
        with switcher.inside(namespace):
            return cls()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def do(self, request: Request, action: str) -> list[Message]:
        """Carry out *request* and return its answer; *action* begins the message of an error."""
        return self._exchange(request, nl.NLM_F_ACK, action)

    def link(self, *, ifindex: int = 0, name: str = "") -> LinkInfo | None:
        """The link of this index, or of this name or altname; None if it does not exist."""
        try:
            answer = self.do(nl.get_link(ifindex=ifindex, name=name), f"find link {name or ifindex}")
        except NetlinkRefused as err:
            if err.errno == errno.ENODEV:
                return None
            raise
        return parse_link(answer[0].body)

    def links(self) -> tuple[LinkInfo, ...]:
        """All links of the namespace at one moment."""
        return tuple(parse_link(message.body) for message in self.dump(nl.get_link(), "list links"))

    def nsid_of(self, netns_fd: int) -> int:
        """The number that an open namespace has in this one; NO_NSID if it has none."""
        return nl.parse_nsid(self.do(nl.get_nsid(netns_fd), "find the number of a namespace")[0].body)

    def permanent_mac(self, name: str) -> str:
        """A link's burnt-in MAC, by ethtool: before Linux 5.6 netlink does not have it. "" if the link has none."""
        answer = ctypes.create_string_buffer(_PERMANENT.pack(ETHTOOL_GPERMADDR, 6), _PERMANENT.size + 6)
        request = _IFREQ.pack(os.fsencode(name), ctypes.addressof(answer))
        try:
            fcntl.ioctl(self._socket, SIOCETHTOOL, request)
        except OSError:  # renamed, or gone
            return ""
        mac = answer.raw[_PERMANENT.size :]
        return mac.hex(":") if any(mac) else ""

    def addresses(self) -> list[routing.Address]:
        messages = self.dump(routing.get_addresses(), "list addresses")
        return [routing.parse_address(message.body) for message in messages]

    def routes(self) -> list[routing.TableRoute]:
        """The routes of all tables, of every kind."""
        messages = self.dump(routing.get_routes(), "list routes")
        return [route for message in messages if (route := routing.parse_route(message.body))]

    def destinations(self) -> set[tuple[int, str]]:
        """Table and network of each route, of whatever kind, metric and protocol."""
        messages = self.dump(routing.get_routes(), "list routes")
        return {found for message in messages if (found := routing.parse_destination(message.body))}

    def dump(self, request: Request, action: str, *, accept: MessageFilter | None = None) -> list[Message]:
        """All objects of a kind at one moment; only accepted ones use memory."""
        for _ in range(DUMP_TRIES):
            try:
                return self._exchange(request, nl.NLM_F_DUMP, action, accept)
            except _DumpInterrupted:
                continue
        raise NetlinkRefused(action, errno.EINTR, f"changes interrupted each of {DUMP_TRIES} dumps")

    def _exchange(
        self, request: Request, flags: int, action: str, accept: MessageFilter | None = None
    ) -> list[Message]:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        try:
            self._socket.send(nl.pack(request, nl.NLM_F_REQUEST | flags, self._seq))
            return self._answer(action, accept)
        except TimeoutError as err:
            raise NetlinkRefused(action, errno.ETIMEDOUT, f"no answer in {ANSWER_SECONDS:g} s") from err
        except OSError as err:
            raise NetlinkRefused(action, err.errno or errno.EIO) from err

    def _answer(self, action: str, accept: MessageFilter | None) -> list[Message]:
        """Collect the answer to the latest request, up to its acknowledgement or the end of its dump."""
        answer: list[Message] = []
        is_interrupted = False
        while True:
            for message in nl.unpack(self._receive(action)):
                if message.seq != self._seq:
                    continue  # of an earlier request that timed out
                is_interrupted |= bool(message.flags & nl.NLM_F_DUMP_INTR and message.kind != nl.NLMSG_ERROR)
                if message.kind == nl.NLMSG_ERROR:
                    code, text = nl.parse_error(message)
                elif message.kind == nl.NLMSG_DONE:
                    code, text = nl.parse_done(message), ""
                elif message.kind == nl.NLMSG_OVERRUN:
                    code, text = errno.ENOBUFS, ""
                else:
                    if accept is None or accept(message):
                        answer.append(message)
                    continue
                if is_interrupted:
                    raise _DumpInterrupted
                if code:
                    raise NetlinkRefused(action, code, text)
                return answer

    def _receive(self, action: str) -> bytes:
        while True:
            buffer = _BUFFER.view
            size, _, flags, (port, _groups) = self._socket.recvmsg_into((buffer,))
            if flags & socket.MSG_TRUNC:
                raise NetlinkRefused(action, errno.EMSGSIZE, f"the answer is longer than {len(buffer)} bytes")
            if port == 0:  # from the kernel, not from another process
                return bytes(buffer[:size])
