"""Gateway NICs: found or made once per vxnet, configured, checked again and again; the kernel is told the whole."""

import asyncio

from qingcloud_cni.agent.clock import Backoff
from qingcloud_cni.agent.context import Context
from qingcloud_cni.agent.operations import Operations
from qingcloud_cni.agent.pool import Pool
from qingcloud_cni.agent.tasks import Signal
from qingcloud_cni.agent.vxnet_book import VxnetBook
from qingcloud_cni.core.cni import NetworkConfig
from qingcloud_cni.core.errors import CloudError, InvalidConfig, KernelRefused, Unavailable
from qingcloud_cni.core.gateway import HostNic, address_of, host_nics, service_path
from qingcloud_cni.core.model import Nic, NicState, OpKind
from qingcloud_cni.core.plan import explain_wait, room
from qingcloud_cni.core.seams import CloudNic, ServicePath

CHECK_PERIOD = 30.0  # seconds between checks that the host still is as it should be (design section 7)
_ON_ITS_WAY = (NicState.ATTACHING, NicState.ARRIVING)


class Gateways:
    """Tells ADD the address that replaces 0.0.0.0, and keeps the host's Service path as the containers need it."""

    def __init__(self, context: Context, pool: Pool, operations: Operations, vxnets: VxnetBook) -> None:
        self._context = context
        self._pool = pool
        self._operations = operations
        self._vxnets = vxnets
        self._ready = Signal()  # a gateway serves
        self._wanted: dict[str, int] = {}  # ADDs that wait for a gateway, by vxnet
        self._backoff = Backoff(context.rng)
        self._others: tuple[CloudNic, ...] = ()  # NICs of the instance that are not ours
        self._served: ServicePath | None = None
        self._checked = float("-inf")  # when the kernel was last compared with what was served
        self._one_at_a_time = asyncio.Lock()

    def learn(self, others: tuple[CloudNic, ...]) -> None:
        """NICs of the instance that are not ours, as the comparison with the cloud found them."""
        self._others = others

    # --- for ADD -------------------------------------------------------------------------------------

    async def address_for(self, nic: Nic, config: NetworkConfig, seconds: float) -> str:
        """The host's address in the NIC's vxnet; a gateway NIC is made if there is none.

        InvalidConfig where there is none and `isGateway` forbids one, or where the host's own NIC cannot serve;
        Unavailable with the cause where none is ready within *seconds*.
        """
        if (gateway := self._serving(nic.vxnet_id)) is not None:
            return address_of(gateway)
        own = next((h for h in await self._host_nics() if h.vxnet_id == nic.vxnet_id), None)
        if own is not None:
            return self._usable(own)
        if not config.is_gateway:
            raise InvalidConfig(
                f"ipam.routes asks for gateway 0.0.0.0, the host has no NIC in vxnet {nic.vxnet_id}, and isGateway is"
                " false; set it to true or leave it out, or give the address of a gateway"
            )
        end = self._context.now() + seconds
        self._wanted[nic.vxnet_id] = self._wanted.get(nic.vxnet_id, 0) + 1
        try:
            self._context.path_due.notify()
            while (gateway := self._serving(nic.vxnet_id)) is None:
                left = end - self._context.now()
                if left <= 0 or not await self._ready.wait(left):
                    raise Unavailable(
                        f"no gateway NIC in vxnet {nic.vxnet_id} within {seconds:.0f} s: {self._cause()}"
                    )
        finally:
            self._wanted[nic.vxnet_id] -= 1
        return address_of(gateway)

    def _usable(self, own: HostNic) -> str:
        """A NIC that was there already is used as it is; its anti-spoofing is not ours to change."""
        if own.enable_aspoof:
            raise InvalidConfig(
                f"the host's NIC {own.nic_id} in vxnet {own.vxnet_id} cannot be the gateway: its anti-spoofing"
                " (enable_aspoof) drops answers that come from Service addresses; turn it off on that NIC, or use"
                " another vxnet for containers"
            )
        if own.enable_aspoof is None:
            detail = "the cloud does not tell whether its anti-spoofing is off"
            self._context.note("gateway.unsure", own.nic_id, detail=detail)
        return own.address.partition("/")[0]

    async def _host_nics(self) -> tuple[HostNic, ...]:
        routers: dict[str, str] = {}
        for vxnet_id in {n.vxnet_id for n in self._others}:
            try:
                vxnet = await self._vxnets.get(vxnet_id)
            except CloudError:
                continue
            if vxnet is not None:
                routers[vxnet_id] = vxnet.gateway
        return host_nics(self._others, dict(await self._context.kernel.host_addresses()), routers)

    def _serving(self, vxnet_id: str) -> Nic | None:
        served = {g.mac for g in self._served.gateways} if self._served is not None else set()
        nics = self._context.table.in_state(NicState.GATEWAY)
        return next((n for n in nics if n.vxnet_id == vxnet_id and n.nic_id in served), None)

    def _cause(self) -> str:
        return self._backoff.cause or self._operations.growth.cause or "the cloud has not attached it yet"

    # --- making and keeping --------------------------------------------------------------------------

    async def run(self) -> None:
        """Make what ADDs wait for, and bring the kernel to what is needed: on every change, and every 30 s."""
        while True:
            if self._pool.is_open and not self._pool.is_draining:
                wanted = {v for v, count in self._wanted.items() if count and self._serving(v) is None}
                for vxnet_id in wanted:
                    self._make(vxnet_id)
                self._give_back(wanted)
            is_check = self._context.now() - self._checked >= CHECK_PERIOD
            try:
                await self.refresh(is_check=is_check)
                if is_check:
                    self._checked = self._context.now()
            except KernelRefused as err:
                self._backoff.failed(self._context.now(), str(err))
                self._context.note("gateway.refused", detail=str(err))
            await self._context.journal.save()
            left = self._backoff.until - self._context.now()
            await self._context.path_due.wait(left if 0 < left < CHECK_PERIOD else CHECK_PERIOD)

    def _make(self, vxnet_id: str) -> None:
        """Begin what is missing for a gateway in this vxnet, unless it is under way or backs off."""
        table, now = self._context.table, self._context.now()
        here = [n for n in table.nics.values() if n.is_gateway and n.vxnet_id == vxnet_id]
        asked = any(
            i.kind is OpKind.CREATE and i.vxnet_id == vxnet_id and self._context.names_gateway(i.name)
            for i in table.intents.values()
        )
        if asked or any(n.state in _ON_ITS_WAY or n.nic_id in table.busy for n in here) or self._backoff.until > now:
            return
        if self._operations.growth.until > now:
            self._backoff.failed(now, self._operations.growth.cause)
            return
        spawn = self._context.tasks.spawn
        spare = [n.nic_id for n in here if n.state is NicState.CREATING]
        if spare:
            attach = self._operations.begin_attach(spare[:1])
            spawn(f"attach {attach.op_id}", self._operations.attach(attach))
        elif room(self._pool.state(), self._context.policy) < 1:
            wait = explain_wait(self._pool.state(), self._context.policy, now)
            self._backoff.failed(now, f"there is no room for one: {wait or 'max-nics is reached'}")
        else:
            intents = self._operations.begin_create([vxnet_id], is_gateway=True)
            spawn(f"create {intents[0].op_id}", self._operations.grow(intents))

    def _give_back(self, wanted: set[str]) -> None:
        """Gateway NICs that serve nothing: made for an ADD that gave up, or attached while their link is nowhere."""
        table, spawn = self._context.table, self._context.tasks.spawn
        free = [n for n in table.nics.values() if n.is_gateway and n.nic_id not in table.busy]
        spare = [n.nic_id for n in free if n.state is NicState.CREATING and n.vxnet_id not in wanted]
        lost = [n.nic_id for n in free if n.state is NicState.MISSING and n.nic_id in self._pool.nowhere]
        if spare:
            delete = self._operations.begin_delete(spare)
            spawn(f"delete {delete.op_id}", self._operations.delete(delete))
        if lost and self._operations.shrinking.until <= self._context.now():
            detach = self._operations.begin_detach(lost, "its link is gone")
            spawn(f"detach {detach.op_id}", self._operations.detach(detach))

    def receive(self, nic_id: str) -> None:
        """The link of a gateway NIC is on the host: configure it in a task; not at once after a refusal."""
        if self._backoff.until > self._context.now():
            return  # a later look finds it again
        self._context.moving.add(nic_id)
        self._context.tasks.spawn(f"gateway {nic_id}", self._settle(nic_id))

    async def _settle(self, nic_id: str) -> None:
        """Anti-spoofing off on this NIC and no other: it answers in the name of Services."""
        context = self._context
        try:
            await context.cloud.set_antispoof(nic_id, is_on=False)
            if nic_id in context.table.nics and context.table.nics[nic_id].state is NicState.ARRIVING:
                context.table.pinned(nic_id, context.now())
                await self.refresh()
                self._backoff.worked()
        except (CloudError, KernelRefused) as err:
            self._backoff.failed(context.now(), str(err))
            context.note("gateway.refused", nic_id, detail=str(err))
        finally:
            context.moving.discard(nic_id)
        await context.journal.save()
        self._context.path_due.notify()
        self._ready.notify()

    async def prepare(self) -> None:
        """As `refresh`, before a container depends on it; Unavailable where the kernel refuses."""
        try:
            await self.refresh()
        except KernelRefused as err:
            raise Unavailable(f"the host's way to Services: {err}") from err

    async def refresh(self, *, is_check: bool = False) -> None:
        """Tell the kernel what the host has to be; nothing is done where that is so already, unless *is_check*."""
        async with self._one_at_a_time:
            table = self._context.table
            nics, attachments = tuple(table.nics.values()), tuple(table.attachments.values())
            own = {address_of(n) for n in nics if n.is_gateway}
            needs_others = any(a.services and not own & {r.gw for r in a.routes} for a in attachments)
            others = await self._host_nics() if needs_others else ()
            path = service_path(nics, attachments, others, self._context.gateway_prefix)
            if path != self._served or is_check:
                table.remember(await self._context.kernel.serve(path))
            if path != self._served:
                self._served = path
                self._ready.notify()
