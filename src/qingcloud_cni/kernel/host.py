"""The `Kernel` of core.seams on a real host: its verbs in one thread, its changes on the loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from socket import socket
from typing import Final, ParamSpec, Self, TypeVar

from qingcloud_cni.core.model import Netns
from qingcloud_cni.core.seams import Inspection, LinkOrder, PlacedLink, ServicePath, Survey
from qingcloud_cni.kernel.verbs import Verbs
from qingcloud_cni.kernel.watch import Watch

NETNS_DIR: Final = Path("/run/netns")

P = ParamSpec("P")
T = TypeVar("T")


class HostKernel:
    """Links of this host and its parking namespace.

    The kernel moves one link at a time, so one thread carries out all verbs in the order they were asked for. A verb
    that has begun runs to its end, done or undone, even if the task that awaits it is cancelled; one still waiting
    for its turn is dropped.
    """

    def __init__(self, executor: ThreadPoolExecutor, verbs: Verbs, watch: Watch) -> None:
        self._executor = executor
        self._verbs = verbs
        self._watch = watch
        self._closing: Future[None] | None = None

    @classmethod
    async def open(cls, instance_id: str, *, netns_dir: Path = NETNS_DIR, host_netns: str | None = None) -> Self:
        """Open the host's namespace and the parking namespace ``<netns_dir>/qingcni-<instance_id>``, made if needed.

        The host's namespace is the calling thread's, or the one at *host_netns*. AbilityMissing without root or
        where the kernel lacks a feature.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        making = executor.submit(_begin, instance_id, netns_dir, host_netns)
        try:
            verbs, monitors = await asyncio.shield(asyncio.wrap_future(making))
        except BaseException:
            making.add_done_callback(_discard)
            executor.shutdown()
            raise
        return cls(executor, verbs, Watch(monitors))

    async def identify(self, path: str) -> Netns:
        return await self._in_thread(self._verbs.identify, path)

    async def inspect(self, path: str, ifname: str) -> Inspection:
        return await self._in_thread(self._verbs.inspect, path, ifname)

    async def survey(self) -> Survey:
        return await self._in_thread(self._verbs.survey)

    async def park(self, mac: str) -> None:
        await self._in_thread(self._verbs.park, mac)

    async def attach(self, order: LinkOrder) -> PlacedLink:
        return await self._in_thread(self._verbs.attach, order)

    async def detach(self, mac: str, netns: Netns, ifindex: int, alias: str) -> bool:
        return await self._in_thread(self._verbs.detach, mac, netns, ifindex, alias)

    async def search(self, sought: Mapping[str, str]) -> Mapping[str, Inspection]:
        return await self._in_thread(self._verbs.search, sought)

    async def is_gone(self, mac: str, netns: Netns, alias: str) -> bool:
        return await self._in_thread(self._verbs.is_gone, mac, netns, alias)

    async def host_addresses(self) -> Mapping[str, tuple[str, ...]]:
        return await self._in_thread(self._verbs.gateways.addresses)

    async def serve(self, path: ServicePath) -> Mapping[str, str]:
        return await self._in_thread(self._verbs.gateways.serve, path)

    async def restore(self, settings: Mapping[str, str]) -> None:
        await self._in_thread(self._verbs.gateways.restore, settings)

    def changes(self) -> AsyncIterator[None]:
        return self._watch.changes()

    async def remove(self) -> None:
        """Remove the parking namespace and close; hardware left in it returns to the host, down."""
        self._watch.close()
        await self._in_thread(self._verbs.remove)
        await self.close()

    async def close(self) -> None:
        """Let verbs under way end, then close everything; the parking namespace stays. Safe to repeat."""
        self._watch.close()
        if self._closing is None:
            self._closing = self._executor.submit(self._verbs.close)
        await asyncio.shield(asyncio.wrap_future(self._closing))
        self._executor.shutdown()

    async def _in_thread(self, verb: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._executor.submit(verb, *args, **kwargs))


def _begin(instance_id: str, netns_dir: Path, host_netns: str | None) -> tuple[Verbs, tuple[socket, socket]]:
    verbs = Verbs(instance_id, netns_dir, host_netns)
    try:
        return verbs, verbs.monitors()
    except BaseException:
        verbs.close()
        raise


def _discard(making: Future[tuple[Verbs, tuple[socket, socket]]]) -> None:
    """Close what was made for nobody."""
    if not making.exception():
        verbs, monitors = making.result()
        verbs.close()
        for monitor in monitors:
            monitor.close()
