"""Announcements after an ADD: the switch may drop the kernel's own, which it sends as the link comes up."""

import asyncio
from contextlib import suppress

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.seams.kernel import LinkOrder

# Seconds until the next. A switch forwards a port's frames only once it has seen it come up, which a bridge of Linux
# does within 25 ms on an idle host, and later on a busy one; and any frame may be lost.
PAUSES = (0.2, 0.6)


class Announcements:
    """Repeats the announcement of a container's address to its neighbours, in tasks of its own."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stops: dict[str, asyncio.Event] = {}  # by NIC id
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, order: LinkOrder, ifindex: int) -> None:
        stop = self._stops[order.mac] = asyncio.Event()
        repeating = self._repeat(order, ifindex, stop)
        self._tasks[order.mac] = self._context.tasks.spawn(f"announce {order.mac}", repeating)

    def stop(self, nic_id: str) -> None:
        """End the announcements of this NIC; `ended` waits until they have."""
        if nic_id in self._stops:
            self._stops[nic_id].set()

    async def ended(self, nic_id: str) -> None:
        """Wait until no announcement holds the container's namespace open."""
        if task := self._tasks.get(nic_id):
            await asyncio.wait({task})

    async def _repeat(self, order: LinkOrder, ifindex: int, stop: asyncio.Event) -> None:
        try:
            for seconds in PAUSES:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await stop.wait()
                if stop.is_set():
                    return
                with suppress(KernelRefused):  # the kernel's own has been made
                    await self._context.kernel.announce(order, ifindex)
        finally:
            if self._stops.get(order.mac) is stop:
                del self._stops[order.mac], self._tasks[order.mac]
