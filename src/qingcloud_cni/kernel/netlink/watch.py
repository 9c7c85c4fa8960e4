"""A watch on links: turns netlink's multicast of one or more namespaces into "links may have changed"."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from qingcloud_cni.core.errors import is_shortage

RTMGRP_LINK: Final = 1
SETTLE_SECONDS: Final = 0.005  # one change is several messages, and NICs arrive in bursts
BUFFER_BYTES: Final = 1 << 20
DATAGRAM_BYTES: Final = 1 << 16


def open_monitor() -> socket.socket:
    """A socket that gets every link change in the calling thread's namespace."""
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        monitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        monitor.bind((0, RTMGRP_LINK))
    except BaseException:
        monitor.close()
        raise
    return monitor


class Watch:
    """Counts bursts of link changes since its sockets were opened; belongs to the running loop."""

    def __init__(self, monitors: tuple[socket.socket, ...]) -> None:
        self.bursts = 0
        self.losses = 0  # of messages
        self.is_closed = False
        self.changed = asyncio.Event()  # set when `bursts` has grown, then replaced
        self._loop = asyncio.get_running_loop()
        self._monitors = monitors
        self._timer: asyncio.TimerHandle | None = None
        for monitor in monitors:
            self._loop.add_reader(monitor, self._receive, monitor)

    def changes(self) -> AsyncIterator[bool]:
        """One item per burst, True if messages were lost; the first one at once after an earlier burst."""
        return _Changes(self)

    def close(self) -> None:
        """End all iterations."""
        if self.is_closed:
            return
        self.is_closed = True
        for monitor in self._monitors:
            self._loop.remove_reader(monitor)
            monitor.close()
        if self._timer:
            self._timer.cancel()
        self.changed.set()

    def _receive(self, monitor: socket.socket) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    monitor.recv(DATAGRAM_BYTES)
                except OSError as err:
                    if not is_shortage(err):
                        raise
                    self.losses += 1  # the socket still works
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_SECONDS, self._end_burst)

    def _end_burst(self) -> None:
        self._timer = None
        self.bursts += 1
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class _Changes(AsyncIterator[bool]):
    """One reader of a Watch; it gets the bursts that it missed as one."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._seen = 0
        self._lost = 0

    async def __anext__(self) -> bool:
        while self._watch.bursts == self._seen:
            if self._watch.is_closed:
                raise StopAsyncIteration
            await self._watch.changed.wait()
        is_complete = self._lost == self._watch.losses
        self._seen, self._lost = self._watch.bursts, self._watch.losses
        return not is_complete
