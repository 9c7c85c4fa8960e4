"""Gateway NICs: found or made once per vxnet, configured, checked again and again; the kernel is told the whole."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from qingcloud_cni.agent.base.clock import Backoff
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import Signal, TaskRecord
from qingcloud_cni.agent.base.urgency import Permits, explain_budget
from qingcloud_cni.agent.cloudops.operations import Operations
from qingcloud_cni.agent.cloudops.vxnet_cache import VxnetCache
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.core.cni.network_config import NetworkConfig
from qingcloud_cni.core.errors import CloudError, InvalidConfig, KernelRefused, ResourceNotFound, Unavailable
from qingcloud_cni.core.gateway import HostNic, address_of, host_nics, service_path, unused
from qingcloud_cni.core.nics.model import Intent, Nic, NicState, OpKind
from qingcloud_cni.core.pool.explain import explain_wait
from qingcloud_cni.core.pool.plan import room
from qingcloud_cni.core.pool.pool_state import Mode
from qingcloud_cni.core.seams.cloud import CloudNic
from qingcloud_cni.core.seams.kernel import ServicePath

CHECK_PERIOD = 30.0  # seconds between checks that the host still is as it should be (design section 7)
SEARCH = 10.0  # seconds within which a lost link has been looked for everywhere
LOOK_AGAIN = 30.0  # seconds between looks whether somebody turned off the anti-spoofing of the host's own NIC
_ON_ITS_WAY = (NicState.ATTACHING, NicState.ARRIVING, NicState.GATEWAY)  # one that serves is not asked about
_UNKNOWN = "the cloud has not told since the agent started which NICs this host has"


class Gateways:
    """Tells ADD the address that replaces 0.0.0.0, and keeps the host's Service path as the containers need it."""

    def __init__(self, context: Context, pool: Pool, operations: Operations, vxnets: VxnetCache) -> None:
        self.record = TaskRecord(CHECK_PERIOD)
        self._context = context
        self._pool = pool
        self._provisioner, self._releaser = operations.provisioner, operations.releaser
        self._vxnets = vxnets
        self._to_grow = context.urgency.provisioning
        permits = partial(Permits, due=context.path_due, cloud=context.cloud, tasks=context.tasks)
        self._provisioning_permits = permits("gateways", context.urgency.provisioning)
        self._release_permits = permits("release of gateways", context.urgency.release)
        self._ready = Signal()  # a gateway serves, or the host's own NICs are known
        self._wanted: dict[str, int] = {}  # ADDs that wait for a gateway, by vxnet
        self._backoff = Backoff(context.rng)
        self._others: tuple[CloudNic, ...] | None = None  # NICs of the instance that are not ours
        self._looked = 0.0  # when the cloud was last asked about one of them
        self._opened: set[str] = set()  # NICs whose anti-spoofing this process has turned off
        self._attaching: set[str] = set()  # NICs about to be attached once more
        self._served: ServicePath | None = None
        self._checked = float("-inf")  # when the kernel was last compared with what was served
        self._one_at_a_time = asyncio.Lock()

    def learn(self, others: tuple[CloudNic, ...]) -> None:
        """NICs of the instance that are not ours, as the comparison with the cloud found them."""
        self._others, self._looked = others, self._context.now()
        self._ready.notify()
        self._context.path_due.notify()

    # --- for ADD -------------------------------------------------------------------------------------

    async def address_for(self, nic: Nic, config: NetworkConfig, seconds: float) -> str:
        """The host's address in the NIC's vxnet; a gateway NIC is made if there is none.

        InvalidConfig where there is none and `isGateway` forbids one, or where the host's own NIC cannot serve;
        Unavailable with the cause where none is ready within *seconds*.
        """
        end = self._context.now() + seconds
        while self._others is None and self._serving(nic.vxnet_id) is None:
            await self._wait(nic.vxnet_id, end, seconds)
        if (gateway := self._serving(nic.vxnet_id)) is not None:
            return address_of(gateway)
        with self._context.urgency.waits():
            host_nics_now = await self._host_nics()
        own = next((h for h in host_nics_now if h.vxnet_id == nic.vxnet_id), None)
        if own is not None:
            return await self._usable(own)
        if not config.is_gateway:
            raise InvalidConfig(
                f"ipam.routes asks for gateway 0.0.0.0, the host has no NIC in vxnet {nic.vxnet_id}, and isGateway is"
                " false; set it to true or leave it out, or give the address of a gateway"
            )
        self._wanted[nic.vxnet_id] = self._wanted.get(nic.vxnet_id, 0) + 1
        try:
            self._context.path_due.notify()
            while (gateway := self._serving(nic.vxnet_id)) is None:
                await self._wait(nic.vxnet_id, end, seconds)
        finally:
            self._wanted[nic.vxnet_id] -= 1
        return address_of(gateway)

    async def _wait(self, vxnet_id: str, end: float, seconds: float) -> None:
        left = end - self._context.now()
        with self._context.urgency.waits():
            is_ready = left > 0 and await self._ready.wait(left)
        if not is_ready:
            raise Unavailable(f"no gateway NIC in vxnet {vxnet_id} within {seconds:.0f} s: {self._cause()}")

    async def _usable(self, own: HostNic) -> str:
        """A NIC that was there already is used as it is; its anti-spoofing is not ours to change."""
        if own.enable_aspoof and self._context.now() - self._looked >= LOOK_AGAIN:
            own = await self._seen_again(own)
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

    async def _seen_again(self, own: HostNic) -> HostNic:
        """The NIC as the cloud has it now, for somebody may have done as we said; as known where it is silent."""
        self._looked = self._context.now()
        try:
            with self._context.urgency.waits():
                calls = await self._context.cloud.permit(self._to_grow)
            found = await calls.nics(nic_ids=[own.nic_id])
        except CloudError:
            return own
        now = {n.nic_id: n for n in found}
        self._others = tuple(now.get(n.nic_id, n) for n in self._others or ())
        return replace(own, enable_aspoof=now[own.nic_id].enable_aspoof) if own.nic_id in now else own

    async def _host_nics(self) -> tuple[HostNic, ...]:
        """Unavailable where the cloud does not tell; to go on without would take their way from containers."""
        if self._others is None:
            raise Unavailable(_UNKNOWN)
        routers: dict[str, str] = {}
        for vxnet_id in sorted({n.vxnet_id for n in self._others}):
            try:
                vxnet = await self._vxnets.get(vxnet_id, self._to_grow)
            except CloudError as err:
                raise Unavailable(str(err)) from err
            if vxnet is not None:
                routers[vxnet_id] = vxnet.gateway
        return host_nics(self._others, dict(await self._context.kernel.host_addresses()), routers)

    def _serving(self, vxnet_id: str) -> Nic | None:
        served = {g.mac for g in self._served.gateways} if self._served is not None else set()
        nics = self._context.table.in_state(NicState.GATEWAY)
        return next((n for n in nics if n.vxnet_id == vxnet_id and n.nic_id in served), None)

    def _cause(self) -> str:
        if self._others is None:
            return _UNKNOWN
        if self._context.leaving:
            return self._context.leaving
        budget = explain_budget(self._context.cloud, self._context.clock)
        cause = self._backoff.cause or self._provisioner.backoff.cause
        return "; ".join(filter(None, (cause, budget))) or "the cloud has not attached it yet"

    # --- making and keeping --------------------------------------------------------------------------

    async def run(self) -> None:
        """Make what ADDs wait for, and bring the kernel to what is needed: on every change, and every 30 s."""
        context = self._context
        while True:
            try:
                with self.record.run(context.clock):
                    await self._keep()
            except KernelRefused as err:
                self._backoff.failed(context.now(), str(err))
                context.note("gateway.refused", detail=str(err))
            except Unavailable as err:
                context.note("gateway.unknown", detail=str(err))
            context.journal.push()
            await self.record.pause(self._pause(), context.path_due, context.clock)

    async def _keep(self) -> None:
        """Raises KernelRefused; Unavailable as `refresh`."""
        if (mode := self._pool.mode) in {Mode.SERVING, Mode.LEAVING}:
            wanted = {n.vxnet_id for n in self._unattached() if n.nic_id not in self._unused()}
            if mode is Mode.SERVING:
                wanted |= {v for v, count in self._wanted.items() if count and self._serving(v) is None}
                for vxnet_id in sorted(wanted):
                    self._make(vxnet_id)
            self._give_back(wanted, may_detach=mode is Mode.SERVING)
        for nic in self._context.table.in_state(NicState.ARRIVING):
            if nic.is_gateway and nic.nic_id not in self._context.moving:
                self.receive(nic.nic_id)
        is_check = self._context.now() - self._checked >= CHECK_PERIOD
        if self._others is not None or self._context.table.nics:  # else gateways may serve that are unknown
            await self.refresh(is_check=is_check)
        if is_check:
            self._checked = self._context.now()

    def _pause(self) -> float:
        """Seconds until something may be tried again, at most until the next check."""
        now = self._context.now()
        times = (self._backoff.until, self._provisioner.backoff.until, self._releaser.backoff.until)
        return min([CHECK_PERIOD, *(t - now for t in times if t > now)]) + 0.001

    def _make(self, vxnet_id: str) -> None:
        """Begin what is missing for a gateway in this vxnet, unless it is under way or backs off."""
        table, now = self._context.table, self._context.now()
        here = [n for n in table.nics.values() if n.is_gateway and n.vxnet_id == vxnet_id]
        asked = any(
            i.kind is OpKind.CREATE and i.vxnet_id == vxnet_id and self._context.names_gateway(i.name)
            for i in table.intents.values()
        )
        is_coming = any(n.state in _ON_ITS_WAY or self._is_busy(n) or self._is_lost(n) for n in here)
        if asked or is_coming or self._backoff.until > now:
            return
        if self._provisioner.backoff.until > now:
            self._backoff.failed(now, self._provisioner.backoff.cause)
            return
        spawn = self._context.tasks.spawn
        spare = sorted((n.nic_id in self._unused(), n.nic_id) for n in self._unattached() if n.vxnet_id == vxnet_id)
        if spare:
            nic_id = spare[0][1]
            self._attaching.add(nic_id)
            spawn(f"attach gateway {nic_id}", self._attach(nic_id))
        elif room(self._pool.state(), self._context.policy) < 1:
            wait = explain_wait(self._pool.state(), self._context.policy, now)
            self._backoff.failed(now, f"there is no room for one: {wait or 'max-nics is reached'}")
        elif calls := self._provisioning_permits.take():
            intents = self._provisioner.begin_create([vxnet_id], is_gateway=True)
            spawn(f"create {intents[0].op_id}", self._provisioner.grow(intents, calls, self._open))

    def _unattached(self) -> list[Nic]:
        """Gateway NICs that are attached nowhere, and that no operation speaks of."""
        nics = self._context.table.in_state(NicState.CREATING)
        return [n for n in nics if n.is_gateway and not self._is_busy(n)]

    def _is_busy(self, nic: Nic) -> bool:
        return nic.nic_id in self._context.table.busy or nic.nic_id in self._attaching

    def _is_lost(self, nic: Nic) -> bool:
        """Its link is gone, and `_give_back` brings it back; one that some container has is not waited for."""
        is_new = self._context.now() - nic.since < SEARCH
        return nic.state is NicState.MISSING and (is_new or nic.nic_id in self._pool.nowhere)

    def _unused(self) -> frozenset[str]:
        return unused(self._context.table.nics.values(), tuple(self._context.table.attachments.values()))

    async def _attach(self, nic_id: str) -> None:
        """Attach a NIC that is there already: containers have its address as their gateway, or an ADD waits."""
        attach: Intent | None = None
        try:
            is_open = await self._open([nic_id])
            calls = await self._context.cloud.permit(self._to_grow)
            nic = self._context.table.nics.get(nic_id)
            is_free = nic is not None and nic.state is NicState.CREATING and nic_id not in self._context.table.busy
            if is_open and is_free and self._pool.mode is Mode.SERVING:
                attach = self._provisioner.begin_attach([nic_id])
        finally:
            self._attaching.discard(nic_id)
        if attach is not None:
            await self._provisioner.attach(attach, calls)
        else:
            calls.return_permit()
        self._context.path_due.notify()

    def _give_back(self, wanted: set[str], *, may_detach: bool) -> None:
        """Gateway NICs that serve nothing: made for an ADD that gave up, or attached while their link is nowhere.

        What containers use is not deleted once it is detached, but attached again.
        """
        table, spawn = self._context.table, self._context.tasks.spawn
        spare = [n.nic_id for n in self._unattached() if n.vxnet_id not in wanted]
        missing = [n for n in table.in_state(NicState.MISSING) if n.is_gateway and not self._is_busy(n)]
        lost = [n.nic_id for n in missing if n.nic_id in self._pool.nowhere]
        if spare and (calls := self._release_permits.take()):
            delete = self._releaser.begin_delete(spare)
            spawn(f"delete {delete.op_id}", self._releaser.delete(delete, calls))
        is_due = may_detach and self._releaser.backoff.until <= self._context.now()
        if (
            lost and is_due and (calls := self._provisioning_permits.take())
        ):  # containers have lost their way to Services
            detach = self._releaser.begin_detach(lost, "its link is gone")
            spawn(f"detach {detach.op_id}", self._releaser.detach(detach, calls))

    async def _open(self, nic_ids: Sequence[str]) -> bool:
        """Turn anti-spoofing off on these NICs and no others: they answer in the name of Services.

        Best before they are attached: the cloud refuses to change one that it is still attaching. One that it does
        not know any more is left for the attach to find out.
        """
        for nic_id in nic_ids:
            if nic_id in self._opened:
                continue
            calls = await self._context.cloud.permit(self._to_grow)
            try:
                await calls.set_antispoof(nic_id, is_on=False)
            except ResourceNotFound:
                continue
            except CloudError as err:
                self._backoff.failed(self._context.now(), str(err))
                self._context.note("gateway.refused", nic_id, detail=str(err))
                return False
            self._opened.add(nic_id)
        return True

    def receive(self, nic_id: str) -> None:
        """The link of a gateway NIC is on the host: configure it in a task of its own; `run` does so if not now."""
        if self._pool.may_begin and self._backoff.until <= self._context.now():
            self._context.moving.add(nic_id)
            self._context.tasks.spawn(f"gateway {nic_id}", self._settle(nic_id))

    async def _settle(self, nic_id: str) -> None:
        context = self._context
        try:
            is_open = await self._open([nic_id])
            if is_open and nic_id in context.table.nics and context.table.nics[nic_id].state is NicState.ARRIVING:
                context.table.pinned(nic_id, context.now())
                await self.refresh()
                self._backoff.worked()
        except (Unavailable, KernelRefused) as err:
            self._backoff.failed(context.now(), str(err))
            context.note("gateway.refused", nic_id, detail=str(err))
        finally:
            context.moving.discard(nic_id)
        context.journal.push()
        context.path_due.notify()
        self._ready.notify()

    async def prepare(self) -> None:
        """As `refresh`, before a container depends on it; Unavailable where the kernel refuses."""
        try:
            await self.refresh()
        except KernelRefused as err:
            raise Unavailable(f"the host's way to Services: {err}") from err

    async def refresh(self, *, is_check: bool = False) -> None:
        """Tell the kernel what the host has to be; nothing is done where that is so already, unless *is_check*.

        Unavailable, and nothing is done, where containers need one of the host's own NICs that are not known yet, or
        where the disk does not take what settings of the kernel were.
        """
        async with self._one_at_a_time:
            table = self._context.table
            nics, attachments = tuple(table.nics.values()), tuple(table.attachments.values())
            own = {address_of(n) for n in nics if n.is_gateway}
            needs_others = any(a.services and a.routes and not own & {r.gw for r in a.routes} for a in attachments)
            others = await self._host_nics() if needs_others else ()
            path = service_path(nics, attachments, others, self._context.gateway_prefix)
            if path != self._served or is_check:
                if before := await self._context.kernel.settings_before(path):
                    table.remember(before)
                    await self._context.journal.record()  # after a crash they would be taken for the host's own
                await self._context.kernel.serve(path)
            if path != self._served:
                self._served = path
                self._ready.notify()
