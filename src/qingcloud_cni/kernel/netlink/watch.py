"""Watching links: netlink's multicast of one or more namespaces, turned into "something may have changed"."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

RTMGRP_LINK: Final = 1
SETTLE_SECONDS: Final = 0.005  # one change is several messages, and NICs arrive in bursts
BUFFER_BYTES: Final = 1 << 20
DATAGRAM_BYTES: Final = 1 << 16


def open_monitor() -> socket.socket:
    """A socket that hears of every link change in the calling thread's namespace from now on."""
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        monitor.bind((0, RTMGRP_LINK))
    except BaseException:
        monitor.close()
        raise
    return monitor


class Watch:
    """Counts bursts of link changes, from the moment its sockets were opened; belongs to the running loop."""

    def __init__(self, monitors: tuple[socket.socket, ...]) -> None:
        self.bursts = 0
        self.losses = 0  # of messages
        self.is_closed = False
        self.turn = asyncio.Event()  # set when `bursts` has grown, then replaced
        self._loop = asyncio.get_running_loop()
        self._monitors = monitors
        self._settling: asyncio.TimerHandle | None = None
        for monitor in monitors:
            self._loop.add_reader(monitor, self._hear, monitor)

    def changes(self) -> AsyncIterator[bool]:
        """One item per burst, True if messages were lost; the first at once if anything has changed already."""
        return _Changes(self)

    def close(self) -> None:
        """End every iteration."""
        if self.is_closed:
            return
        self.is_closed = True
        for monitor in self._monitors:
            self._loop.remove_reader(monitor)
            monitor.close()
        if self._settling:
            self._settling.cancel()
        self.turn.set()

    def _hear(self, monitor: socket.socket) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    monitor.recv(DATAGRAM_BYTES)
                except OSError as err:
                    if err.errno != errno.ENOBUFS:
                        raise
                    self.losses += 1  # the socket goes on, and so do we
        if self._settling is None:
            self._settling = self._loop.call_later(SETTLE_SECONDS, self._announce)

    def _announce(self) -> None:
        self._settling = None
        self.bursts += 1
        turn, self.turn = self.turn, asyncio.Event()
        turn.set()


class _Changes(AsyncIterator[bool]):
    """One reader of a Watch; bursts it was too slow for come as one."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._seen = 0
        self._lost = 0

    async def __anext__(self) -> bool:
        while self._watch.bursts == self._seen:
            if self._watch.is_closed:
                raise StopAsyncIteration
            await self._watch.turn.wait()
        is_complete = self._lost == self._watch.losses
        self._seen, self._lost = self._watch.bursts, self._watch.losses
        return not is_complete
