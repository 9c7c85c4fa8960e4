"""The `Kernel` of core.seams on a real host: its verbs in one thread, its changes on the loop."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket
from typing import Final, Self

from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import Inspection, LinkOrder, PlacedLink, ServicePath, Survey
from qingcloud_cni.kernel.links.link_operations import LinkOperations
from qingcloud_cni.kernel.namespaces.parking import parking_path
from qingcloud_cni.kernel.namespaces.worker import Worker, kept
from qingcloud_cni.kernel.neighbours.background import Background
from qingcloud_cni.kernel.neighbours.probes import Probes
from qingcloud_cni.kernel.netlink.watch import Watch

NETNS_DIR: Final = Path("/run/netns")


class HostKernel:
    """Links of this host and its parking namespace.

    The kernel moves one link at a time, so one thread carries out all verbs in the order they were asked for. A verb
    that has begun runs to its end, done or undone, even if the task that awaits it is cancelled; one still waiting
    for its turn is dropped. Background, which no move shall wait for, have a thread of their own.
    """

    def __init__(self, verbs: Worker[LinkOperations], background: Worker[Background], watch: Watch) -> None:
        self._verbs = verbs
        self._background = background
        self._watch = watch
        self._probes = Probes(self._open_ear, self._close_ear)

    @classmethod
    async def open(cls, instance_id: str, *, netns_dir: Path = NETNS_DIR, host_netns: str | None = None) -> Self:
        """Open the host's namespace and the parking namespace ``<netns_dir>/qingcni-<instance_id>``, made if needed.

        The host's namespace is the calling thread's, or the one at *host_netns*. AbilityMissing without root or
        where the kernel lacks a feature.
        """
        parking = str(parking_path(instance_id, netns_dir))
        async with AsyncExitStack() as undo:
            verbs = await Worker.start("kernel", lambda: LinkOperations(instance_id, netns_dir, host_netns))
            undo.push_async_callback(verbs.close)
            background = await Worker.start("background", lambda: Background(parking, host_netns))
            undo.push_async_callback(background.close)
            watch = Watch(await kept(verbs.submit(LinkOperations.monitors), _close_all))
            undo.pop_all()
        return cls(verbs, background, watch)

    async def identify(self, path: str) -> Netns:
        return await self._verbs.do(LinkOperations.identify, path)

    async def inspect(self, path: str, ifname: str) -> Inspection:
        return await self._verbs.do(LinkOperations.inspect, path, ifname)

    async def survey(self) -> Survey:
        return await self._verbs.do(LinkOperations.survey)

    async def survey_all(self, paths: Sequence[str]) -> Survey:
        return await self._verbs.do(LinkOperations.survey_all, paths)

    async def park(self, mac: str, alias: str = "") -> None:
        await self._verbs.do(LinkOperations.park, mac, alias)

    async def attach(self, order: LinkOrder) -> PlacedLink:
        return await self._verbs.do(LinkOperations.attach, order)

    async def detach(self, mac: str, netns: Netns, ifindex: int, alias: str) -> bool:
        return await self._verbs.do(LinkOperations.detach, mac, netns, ifindex, alias)

    async def search(self, sought: Mapping[str, str]) -> Mapping[str, Inspection]:
        return await self._verbs.do(LinkOperations.search, sought)

    async def is_gone(self, mac: str, netns: Netns, alias: str) -> bool:
        return await self._verbs.do(LinkOperations.is_gone, mac, netns, alias)

    async def announce(self, order: LinkOrder, ifindex: int) -> bool:
        return await self._background.do(Background.announce, order, ifindex)

    async def probe(self, mac: str, address: str) -> str:
        try:
            link_name = await self._verbs.do(LinkOperations.light, mac)
            answer = await self._probes.ask(link_name, mac, address)
        finally:
            darkening = self._verbs.submit(LinkOperations.darken, mac)  # before any verb that is asked for later
        await asyncio.wrap_future(darkening)
        return answer

    async def flush(self, addresses: Collection[str]) -> int:
        return await self._background.do(Background.flush, addresses)

    async def host_addresses(self) -> Mapping[str, tuple[str, ...]]:
        return await self._verbs.do(lambda verbs: verbs.gateways.addresses())

    async def serve(self, path: ServicePath) -> Mapping[str, str]:
        return await self._verbs.do(lambda verbs: verbs.gateways.serve(path))

    async def settings_before(self, path: ServicePath) -> Mapping[str, str]:
        return await self._verbs.do(lambda verbs: verbs.gateways.settings_before(path))

    async def restore(self, settings: Mapping[str, str]) -> None:
        await self._verbs.do(lambda verbs: verbs.gateways.restore(settings))

    def changes(self) -> AsyncIterator[bool]:
        return self._watch.changes()

    async def remove(self) -> None:
        """Remove the parking namespace and close; hardware left in it returns to the host, down."""
        self._watch.close()
        await self._background.close()
        await self._verbs.do(LinkOperations.remove)
        await self.close()

    async def close(self) -> None:
        """Let verbs under way end, then close everything; the parking namespace stays. Safe to repeat."""
        self._watch.close()
        await self._background.close()
        await self._verbs.close()

    async def _open_ear(self) -> socket:
        return await kept(self._background.submit(Background.open_ear), socket.close)

    def _close_ear(self, ear: socket) -> None:
        self._background.submit(lambda _background: ear.close())


def _close_all(monitors: tuple[socket, ...]) -> None:
    for monitor in monitors:
        monitor.close()
