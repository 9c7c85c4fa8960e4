"""The `Kernel` of core.seams on a real host: link operations in one thread, link changes on the loop."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from socket import socket
from typing import Final, Self

from qingcloud_cni.core.errors import KernelExhausted, shortage_as
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import (
    Arrival,
    Detached,
    HostMacs,
    Inspection,
    LinkOrder,
    NicRecord,
    PlacedLink,
    Served,
    ServicePath,
    Survey,
)
from qingcloud_cni.kernel.links.link_operations import LinkOperations
from qingcloud_cni.kernel.links.namespace_handles import NamespaceHandles
from qingcloud_cni.kernel.namespaces.parking import parking_path
from qingcloud_cni.kernel.namespaces.worker import Worker, result_or_dispose
from qingcloud_cni.kernel.neighbours.background import Background
from qingcloud_cni.kernel.neighbours.probes import Probes
from qingcloud_cni.kernel.netlink.watch import Watch

NETNS_DIR: Final = Path("/run/netns")


class HostKernel:
    """Links of this host and its parking namespace.

    The kernel moves one link at a time, so one thread carries out all operations: those of requests in order, and
    those of the pool when no request waits. If the awaiting task is cancelled, an operation that has begun runs to
    its end or undoes itself; one still queued is dropped. Work that no move must wait for has a background thread.
    """

    def __init__(
        self,
        operations: Worker[LinkOperations],
        background: Worker[Background],
        watch: Watch,
        lacks: tuple[str, ...] = (),
    ) -> None:
        self._operations = operations
        self._background = background
        self._lacks = lacks
        self._watch = watch
        self._probes = Probes(self._open_arp_socket, self._close_arp_socket)

    @classmethod
    async def open(
        cls,
        instance_id: str,
        *,
        iface: str = "",
        netns_dir: Path = NETNS_DIR,
        host_netns: str | None = None,
        routers: Sequence[str] = (),
    ) -> Self:
        """Open the host's namespace and the parking namespace ``<netns_dir>/qingcni-<instance_id>``, made if needed.

        *iface* is the host's own link. The host's namespace is the calling thread's, or the one at *host_netns*.
        *routers* are the namespaces of the simulator's routers. AbilityMissing without root or a feature of the
        kernel.
        """
        parking = str(parking_path(instance_id, netns_dir))
        async with AsyncExitStack() as undo:
            operations = await Worker.start(
                "kernel", lambda: LinkOperations(NamespaceHandles(instance_id, netns_dir, host_netns, iface, routers))
            )
            undo.push_async_callback(operations.close)
            background = await Worker.start("background", lambda: Background(parking, netns_dir, host_netns))
            undo.push_async_callback(background.close)
            watch = Watch(await result_or_dispose(operations.submit(LinkOperations.monitors), _close_all))
            lacks = await background.do(lambda work: work.lacks)
            undo.pop_all()
        return cls(operations, background, watch, lacks)

    async def host_macs(self) -> HostMacs:
        return await self._operations.do(LinkOperations.host_macs)

    async def reserve(self, macs: Collection[str]) -> None:
        await self._operations.do(LinkOperations.reserve, macs)

    async def identify(self, path: str) -> Netns:
        return await self._operations.do(LinkOperations.identify, path)

    @property
    def lacks(self) -> tuple[str, ...]:
        return self._lacks

    async def inspect(self, path: str, ifname: str, nic: NicRecord | None = None) -> Inspection:
        return await self._operations.do(LinkOperations.inspect, path, ifname, nic)

    async def compare(self, nics: Collection[NicRecord]) -> Mapping[str, Arrival]:
        parked = await self._operations.do_later(LinkOperations.parked, nics)
        settled = await self._background.do(Background.settle, parked)
        return {mac: Arrival(plugged=str(found.described or ""), soil=found.soil) for mac, found in settled.items()}

    async def survey(self) -> Survey:
        return await self._operations.do(LinkOperations.survey)

    async def survey_all(self, paths: Sequence[str]) -> Survey:
        return await self._operations.do_later(LinkOperations.survey_all, paths)

    async def park(self, nic: NicRecord) -> Arrival:
        return await self._operations.do_later(LinkOperations.park, nic)

    async def attach(self, order: LinkOrder) -> PlacedLink:
        return await self._operations.do(LinkOperations.attach, order)

    async def detach(self, nic: NicRecord, netns: Netns, ifindex: int) -> Detached:
        return await self._operations.do(LinkOperations.detach, nic, netns, ifindex)

    async def search(self, sought: Collection[NicRecord]) -> Mapping[str, Inspection]:
        return await self._operations.do(LinkOperations.search, sought)

    async def is_gone(self, nic: NicRecord, netns: Netns) -> bool:
        return await self._operations.do(LinkOperations.is_gone, nic, netns)

    async def announce(self, order: LinkOrder, ifindex: int) -> bool:
        return await self._background.do(Background.announce, order, ifindex)

    async def probe(self, mac: str, address: str) -> str:
        try:
            link_name = await self._operations.do_later(LinkOperations.set_up, mac)
            with shortage_as(KernelExhausted, f"nic {mac}: probe"):
                answer = await self._probes.probe(link_name, mac, address)
        finally:
            setting_down = self._operations.submit(LinkOperations.set_down, mac)  # before any later operation
        await asyncio.wrap_future(setting_down)
        return answer

    async def flush(self, addresses: Collection[str]) -> int:
        return await self._background.do(Background.flush, addresses)

    async def host_addresses(self) -> Mapping[str, tuple[str, ...]]:
        return await self._operations.do(lambda operations: operations.gateways.addresses())

    async def serve(self, path: ServicePath) -> Served:
        return await self._operations.do(lambda operations: operations.gateways.serve(path))

    async def settings_before(self, path: ServicePath) -> Mapping[str, str]:
        return await self._operations.do(lambda operations: operations.gateways.settings_before(path))

    async def restore(self, settings: Mapping[str, str]) -> None:
        await self._operations.do(lambda operations: operations.gateways.restore(settings))

    async def restore_parking(self) -> str | None:
        return await self._operations.do(LinkOperations.restore_parking)

    def changes(self) -> AsyncIterator[bool]:
        return self._watch.changes()

    async def remove(self) -> None:
        """Remove the parking namespace and close; hardware in it returns to the host, down."""
        self._watch.close()
        await self._background.close()
        await self._operations.do(LinkOperations.remove)
        await self.close()

    async def close(self) -> None:
        """Finish all operations, then close everything but the parking namespace. Safe to repeat."""
        self._watch.close()
        await self._background.close()
        await self._operations.close()

    async def _open_arp_socket(self) -> socket:
        return await result_or_dispose(self._background.submit(Background.open_arp_socket), socket.close)

    def _close_arp_socket(self, arp_socket: socket) -> None:
        self._background.submit(lambda _background: arp_socket.close())


def _close_all(monitors: tuple[socket, ...]) -> None:
    for monitor in monitors:
        monitor.close()
