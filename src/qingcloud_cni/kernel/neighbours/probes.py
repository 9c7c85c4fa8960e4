"""Asking a vxnet whether an address is in use already, for many parked NICs at once over one packet socket."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.kernel.neighbours.arp import ETH_P_ARP, claimant, probe
from qingcloud_cni.kernel.neighbours.background import OVER

# As RFC 5227 has it, but within some two seconds: a vxnet answers in milliseconds, and a probe may be lost.
FIRST: Final = 0.1  # seconds after the link is up: a port of a switch may need some to forward
PROBES: Final = 3
INTERVAL: Final = 0.5  # seconds between two
LISTENING: Final = 1.0  # seconds after the last
LOST: Final = frozenset({errno.ENOBUFS, errno.EAGAIN})  # a queue was full: as if the frame had been lost on its way
FRAME_BYTES: Final = 128
FRAMES: Final = 64  # read at a time: others want the loop as well


@dataclass(slots=True, eq=False)
class _Question:
    link_name: str
    mac: str
    address: str
    answer: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Probes:
    """Belongs to the running loop. The socket is open while anybody asks, and no longer."""

    def __init__(
        self, open_ear: Callable[[], Awaitable[socket.socket]], close: Callable[[socket.socket], None]
    ) -> None:
        """*close* must not hold the loop up: closing a packet socket may take some milliseconds."""
        self._open_ear = open_ear
        self._close = close
        self._questions: set[_Question] = set()
        self._ear: socket.socket | None = None
        self._opening = asyncio.Lock()

    async def ask(self, link_name: str, mac: str, address: str) -> str:
        """The MAC of somebody who uses *address*, or wants to; "" if nobody shows within the time there is.

        LinkNotFound if the link is taken away or set down meanwhile.
        """
        question = _Question(link_name, mac, address)
        self._questions.add(question)
        try:
            ear = await self._open()
            await asyncio.sleep(FIRST)
            for _ in range(PROBES - 1):
                self._send(ear, question)
                if await _is_done(question, INTERVAL):
                    return question.answer.result()
            self._send(ear, question)
            return question.answer.result() if await _is_done(question, LISTENING) else ""
        finally:
            self._questions.discard(question)
            self._close_unless_needed()

    async def _open(self) -> socket.socket:
        async with self._opening:
            if self._ear is None:
                self._ear = await self._open_ear()
                asyncio.get_running_loop().add_reader(self._ear, self._hear, self._ear)
            return self._ear

    def _close_unless_needed(self) -> None:
        if self._ear is not None and not self._questions:
            asyncio.get_running_loop().remove_reader(self._ear)
            ear, self._ear = self._ear, None
            self._close(ear)

    def _send(self, ear: socket.socket, question: _Question) -> None:
        try:
            ear.sendto(probe(question.mac, question.address), (question.link_name, ETH_P_ARP))
        except OSError as err:
            if err.errno in LOST:
                return
            words = f"nic {question.mac}: probe for {question.address}: {err.strerror}"
            raise (LinkNotFound(words) if err.errno in OVER else KernelRefused(words)) from err

    def _hear(self, ear: socket.socket) -> None:
        with suppress(BlockingIOError):
            for _ in range(FRAMES):
                frame, (link_name, *_others) = ear.recvfrom(FRAME_BYTES)
                for question in self._questions:
                    is_open = question.link_name == link_name and not question.answer.done()
                    if is_open and (other := claimant(frame, question.mac, question.address)):
                        question.answer.set_result(other)


async def _is_done(question: _Question, seconds: float) -> bool:
    await asyncio.wait({question.answer}, timeout=seconds)
    return question.answer.done()
