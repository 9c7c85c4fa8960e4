"""A netlink socket: every request is answered, by what was asked for or by the kernel's own words of refusal."""

import errno
import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from qingcloud_cni.core.errors import AbilityMissing, KernelRefused
from qingcloud_cni.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_OVERRUN,
    LinkInfo,
    Message,
    Request,
    get_link,
    get_links,
    pack,
    parse_done,
    parse_error,
    parse_link,
    unpack,
)

SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10  # an error quotes the header of the refused request only, Linux 4.3
NETLINK_EXT_ACK: Final = 11  # an error says in words what was wrong, Linux 4.12
ANSWER_SECONDS: Final = 5.0  # the kernel answers within the call that sends; this only keeps a bug from blocking
DUMP_TRIES: Final = 20  # a dump that links changed under is asked again
BUFFER_BYTES: Final = 1 << 16  # dumps come in pieces of at most 32 KiB


Keep = Callable[[Message], bool]


class NetlinkRefused(KernelRefused):
    """The kernel answered a request with an error; *errno* is its number."""

    def __init__(self, wish: str, code: int, words: str = "") -> None:
        super().__init__(f"{wish}: {words or os.strerror(code)} ({errno.errorcode.get(code, code)})")
        self.errno = code


class _Interrupted(Exception):
    """What was being listed changed meanwhile."""


class Netlink:
    """A socket to the network namespace the opening thread is in; usable from any thread, one at a time.

    While it is open it keeps that namespace alive.
    """

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
            raise AbilityMissing("netlink: this kernel does not explain its errors; Linux 4.12 is needed") from err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def do(self, request: Request, wish: str) -> None:
        """Have *request* carried out; *wish* says what for, in the words of an error message."""
        self._converse(request, NLM_F_ACK, wish)

    def ask(self, request: Request, wish: str) -> list[Message]:
        """What answers *request*, a question about one thing."""
        return self._converse(request, NLM_F_ACK, wish)

    def link(self, *, ifindex: int = 0, name: str = "") -> LinkInfo | None:
        """The link of this index, or of this name or altname; None if there is none."""
        try:
            answer = self.ask(get_link(ifindex=ifindex, name=name), f"find link {name or ifindex}")
        except NetlinkRefused as err:
            if err.errno == errno.ENODEV:
                return None
            raise
        return parse_link(answer[0].body)

    def links(self) -> tuple[LinkInfo, ...]:
        """All links of the namespace at one moment."""
        return tuple(parse_link(message.body) for message in self.dump(get_links(), "list links"))

    def dump(self, request: Request, wish: str, *, keep: Keep | None = None) -> list[Message]:
        """All things of a kind at one moment; of many only those to *keep* take room."""
        for _ in range(DUMP_TRIES):
            try:
                return self._converse(request, NLM_F_DUMP, wish, keep)
            except _Interrupted:
                continue
        raise NetlinkRefused(wish, errno.EINTR, f"they changed under each of {DUMP_TRIES} listings")

    def _converse(self, request: Request, flags: int, wish: str, keep: Keep | None = None) -> list[Message]:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        try:
            self._socket.send(pack(request, NLM_F_REQUEST | flags, self._seq))
            return self._answer(wish, keep)
        except TimeoutError as err:
            raise NetlinkRefused(wish, errno.ETIMEDOUT, f"no answer in {ANSWER_SECONDS:g} s") from err
        except OSError as err:
            raise NetlinkRefused(wish, err.errno or errno.EIO) from err

    def _answer(self, wish: str, keep: Keep | None) -> list[Message]:
        """Collect what answers the latest request, up to its acknowledgement or the end of its dump."""
        answer: list[Message] = []
        is_interrupted = False
        while True:
            for message in unpack(self._receive(wish)):
                if message.seq != self._seq:
                    continue  # belongs to a request whose wait had run out
                is_interrupted |= bool(message.flags & NLM_F_DUMP_INTR and message.kind != NLMSG_ERROR)
                if message.kind == NLMSG_ERROR:
                    code, words = parse_error(message)
                elif message.kind == NLMSG_DONE:
                    code, words = parse_done(message), ""
                elif message.kind == NLMSG_OVERRUN:
                    code, words = errno.ENOBUFS, ""
                else:
                    if keep is None or keep(message):
                        answer.append(message)
                    continue
                if is_interrupted:
                    raise _Interrupted
                if code:
                    raise NetlinkRefused(wish, code, words)
                return answer

    def _receive(self, wish: str) -> bytes:
        while True:
            datagram, _, flags, (port, _groups) = self._socket.recvmsg(BUFFER_BYTES)
            if flags & socket.MSG_TRUNC:
                raise NetlinkRefused(wish, errno.EMSGSIZE, f"the answer is longer than {BUFFER_BYTES} bytes")
            if port == 0:  # from the kernel, not from another process
                return datagram
