"""Probes of a vxnet for addresses in use, for many parked NICs at once over one packet socket."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.kernel.neighbours.arp import ETH_P_ARP, claimant, probe_frame
from qingcloud_cni.kernel.neighbours.background import LINK_GONE

# As in RFC 5227, but within two seconds or so: a vxnet answers in milliseconds, and a probe may be lost.
FIRST_DELAY: Final = 0.1  # seconds after the link is up: a switch port may not forward at once
PROBES: Final = 3
INTERVAL: Final = 0.5  # seconds between probes
LAST_WAIT: Final = 1.0  # seconds after the last probe
QUEUE_FULL: Final = frozenset({errno.ENOBUFS, errno.EAGAIN})  # counts as a lost frame
FRAME_BYTES: Final = 128
FRAMES_PER_READ: Final = 64  # then other tasks get the loop


@dataclass(slots=True, eq=False)
class _Probe:
    link_name: str
    mac: str
    address: str
    answer: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Probes:
    """Belongs to the running loop. The socket is open only during probes."""

    def __init__(
        self, open_arp_socket: Callable[[], Awaitable[socket.socket]], close: Callable[[socket.socket], None]
    ) -> None:
        """*close* must not block the loop: closing a packet socket may take some milliseconds."""
        self._open_arp_socket = open_arp_socket
        self._close = close
        self._pending: set[_Probe] = set()
        self._socket: socket.socket | None = None
        self._open_lock = asyncio.Lock()

    async def probe(self, link_name: str, mac: str, address: str) -> str:
        """The MAC that uses or probes for *address*; "" if none answers in time.

        LinkNotFound if the link vanishes or is set down meanwhile.
        """
        pending = _Probe(link_name, mac, address)
        self._pending.add(pending)
        try:
            arp_socket = await self._open()
            await asyncio.sleep(FIRST_DELAY)
            for _ in range(PROBES - 1):
                self._send(arp_socket, pending)
                if await _is_done(pending, INTERVAL):
                    return pending.answer.result()
            self._send(arp_socket, pending)
            return pending.answer.result() if await _is_done(pending, LAST_WAIT) else ""
        finally:
            self._pending.discard(pending)
            self._close_unless_needed()

    async def _open(self) -> socket.socket:
        async with self._open_lock:
            if self._socket is None:
                self._socket = await self._open_arp_socket()
                asyncio.get_running_loop().add_reader(self._socket, self._receive, self._socket)
            return self._socket

    def _close_unless_needed(self) -> None:
        if self._socket is not None and not self._pending:
            asyncio.get_running_loop().remove_reader(self._socket)
            arp_socket, self._socket = self._socket, None
            self._close(arp_socket)

    def _send(self, arp_socket: socket.socket, pending: _Probe) -> None:
        try:
            arp_socket.sendto(probe_frame(pending.mac, pending.address), (pending.link_name, ETH_P_ARP))
        except OSError as err:
            if err.errno in QUEUE_FULL:
                return
            message = f"nic {pending.mac}: probe for {pending.address} failed: {err.strerror}"
            raise (LinkNotFound(message) if err.errno in LINK_GONE else KernelRefused(message)) from err

    def _receive(self, arp_socket: socket.socket) -> None:
        with suppress(BlockingIOError):
            for _ in range(FRAMES_PER_READ):
                frame, (link_name, *_others) = arp_socket.recvfrom(FRAME_BYTES)
                for pending in self._pending:
                    is_open = pending.link_name == link_name and not pending.answer.done()
                    if is_open and (other := claimant(frame, pending.mac, pending.address)):
                        pending.answer.set_result(other)


async def _is_done(pending: _Probe, seconds: float) -> bool:
    await asyncio.wait({pending.answer}, timeout=seconds)
    return pending.answer.done()
