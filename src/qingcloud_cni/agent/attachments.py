"""ADD and DEL: a container's way to a NIC, and the NIC's way back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from qingcloud_cni.agent.context import Context
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.phases import Phase, Phases
from qingcloud_cni.agent.pool import Pool
from qingcloud_cni.core.cni import NetworkConfig, routes_for
from qingcloud_cni.core.errors import InvalidConfig, InvalidNetns, KernelRefused, LinkNotFound, Unavailable
from qingcloud_cni.core.model import Attachment, AttachmentKey, Netns, Nic, Route
from qingcloud_cni.core.names import link_alias
from qingcloud_cni.core.seams import LinkOrder, PlacedLink

TRIES = 3  # NICs tried where the link of the one chosen turns out to be missing
_GONE = "the caller of its ADD has gone"


class Attachments:
    """Serves ADD and DEL; requests for the same attachment wait for each other."""

    def __init__(self, context: Context, pool: Pool, gateways: Gateways) -> None:
        self._context = context
        self._pool = pool
        self._gateways = gateways
        self._locks: dict[AttachmentKey, _Lock] = {}

    async def add(
        self,
        key: AttachmentKey,
        netns_path: str,
        config: NetworkConfig,
        seconds: float,
        phases: Phases,
        *,
        is_awaited: Callable[[], bool] = lambda: True,
    ) -> tuple[Attachment, Nic]:
        """Give the container a NIC; *seconds* bounds the wait for one. A repeated ADD gets the first answer.

        Where nobody awaits the answer any more nothing is done, or it is undone: the DEL that follows a failed ADD
        may have been served already.
        Raises InvalidNetns, InvalidConfig, PoolEmpty, Draining, Unavailable, KernelRefused; then nothing is left
        behind.
        """
        with phases.waiting(Phase.KERNEL):
            netns = await self._context.kernel.identify(netns_path)
        end = self._context.now() + seconds
        async with self._alone(key):
            if not is_awaited():
                raise Unavailable(_GONE)
            known = self._context.table.attachments.get(key)
            if known is not None and known.is_ready and _is_same(known.netns, netns):
                return known, self._context.table.nics[known.nic_id]
            if known is not None:  # cut off and not undone, or the same container id in a namespace of its own
                await self._release(known, "ADD anew", phases)
            attachment, nic = await self._try_attach(key, netns, config, end, phases)
            if not is_awaited():
                await self._release(attachment, _GONE, phases)
                raise Unavailable(_GONE)
            return attachment, nic

    async def delete(self, key: AttachmentKey, phases: Phases) -> None:
        """Take the container's NIC back; success where there is none."""
        async with self._alone(key):
            attachment = self._context.table.attachments.get(key)
            if attachment is not None:
                await self._release(attachment, "DEL", phases)

    async def undo_unfinished(self) -> None:
        """After a restart: attachments whose ADD was never answered are taken back.

        Where the kernel refuses, the next ADD or DEL of the container tries again.
        """
        for attachment in tuple(self._context.table.attachments.values()):
            if attachment.is_ready:
                continue
            try:
                await self._release(attachment, "its ADD was cut off", Phases())
            except KernelRefused as err:
                self._context.note("attachment.not-undone", attachment.nic_id, str(attachment.key), str(err))

    async def _try_attach(
        self, key: AttachmentKey, netns: Netns, config: NetworkConfig, end: float, phases: Phases
    ) -> tuple[Attachment, Nic]:
        for _ in range(TRIES - 1):
            try:
                return await self._attach(key, netns, config, end, phases)
            except LinkNotFound:
                continue
        return await self._attach(key, netns, config, end, phases)

    async def _attach(
        self, key: AttachmentKey, netns: Netns, config: NetworkConfig, end: float, phases: Phases
    ) -> tuple[Attachment, Nic]:
        context, table = self._context, self._context.table
        wanted = Attachment(
            key, "", netns, context.now(), dns=config.dns, services=config.services, ip_masq=config.ip_masq
        )
        with phases.waiting(Phase.QUEUE):
            nic = await self._pool.take(wanted, max(end - context.now(), 0.0))  # marks it as moving
        attachment = table.attachments[key]
        try:
            gateway = ""
            if config.services:
                with phases.waiting(Phase.CLOUD):
                    gateway = await self._gateways.address_for(nic, config, max(end - context.now(), 0.0))
            routes = routes_for(nic, config, gateway)
            attachment = replace(attachment, routes=routes)
            table.routed(attachment)
            if config.services:
                with phases.waiting(Phase.KERNEL):
                    await self._gateways.prepare()
            with phases.waiting(Phase.STORE):
                await context.journal.save()
            with phases.waiting(Phase.KERNEL):
                placed = await self._place(attachment, nic, routes)
            attachment = replace(attachment, routes=placed.routes, ifindex=placed.ifindex, mtu=placed.mtu)
            table.configured(attachment, context.now())
        except (InvalidConfig, InvalidNetns, Unavailable) as err:  # nothing was sent under its address
            table.returned_unused(key, context.now(), str(err))
            raise
        except LinkNotFound as err:
            table.released(key, context.now(), is_parked=False, cause=str(err))
            raise
        except KernelRefused as err:
            table.released(key, context.now(), is_parked=True, cause=str(err))
            raise
        finally:
            context.moving.discard(nic.nic_id)
            with phases.waiting(Phase.STORE):
                await context.journal.save()
            context.plan_due.notify()
        return table.attachments[key], nic

    async def _place(self, attachment: Attachment, nic: Nic, routes: tuple[Route, ...]) -> PlacedLink:
        alias = link_alias(self._context.instance_id, nic.nic_id)
        order = LinkOrder(nic.nic_id, attachment.netns, attachment.key.ifname, nic.address, routes, alias)
        return await self._context.kernel.attach(order)

    async def _release(self, attachment: Attachment, cause: str, phases: Phases) -> None:
        """Bring the link home and give the NIC its rest; a link that is nowhere yet is awaited on the host."""
        context = self._context
        alias = link_alias(context.instance_id, attachment.nic_id)
        context.moving.add(attachment.nic_id)
        try:
            with phases.waiting(Phase.KERNEL):
                is_parked = await context.kernel.detach(
                    attachment.nic_id, attachment.netns, attachment.ifindex, alias
                )
            context.table.released(attachment.key, context.now(), is_parked=is_parked, cause=cause)
        finally:
            context.moving.discard(attachment.nic_id)
        with phases.waiting(Phase.STORE):
            await context.journal.save()
        context.plan_due.notify()
        if attachment.services:
            context.path_due.notify()

    @asynccontextmanager
    async def _alone(self, key: AttachmentKey) -> AsyncIterator[None]:
        """One request at a time for *key*; the lock goes when nobody holds or awaits it."""
        lock = self._locks.setdefault(key, _Lock())
        lock.users += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[key]


def _is_same(one: Netns, other: Netns) -> bool:
    """Whether both are one namespace, by whichever paths."""
    return (one.dev, one.inode) == (other.dev, other.inode)


class _Lock:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
