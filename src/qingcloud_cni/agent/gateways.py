"""Gateway NICs: one per vxnet, found or created, configured and checked; and the kernel's path to Services."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from qingcloud_cni.agent.base.clock import Backoff
from qingcloud_cni.agent.base.context import Context, Move
from qingcloud_cni.agent.base.signals import Signal
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.agent.base.urgency import Permits, explain_budget
from qingcloud_cni.agent.cloudops.lookups import VxnetCache
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.core.cni.network_config import NetworkConfig
from qingcloud_cni.core.errors import CloudError, InvalidConfig, KernelRefused, ResourceNotFound, Unavailable
from qingcloud_cni.core.gateway import HostNic, host_nics, service_path, unused
from qingcloud_cni.core.nics.model import Nic, NicState, OpKind
from qingcloud_cni.core.pool.pool_state import Mode
from qingcloud_cni.core.seams.cloud import CloudNic
from qingcloud_cni.core.seams.kernel import Served, ServicePath

CHECK_PERIOD = 30.0  # seconds between checks of the kernel's path to Services
SEARCH = 10.0  # seconds after which a lost link has been searched for in every namespace
RECHECK = 30.0  # seconds between reads of whether anti-spoofing of the host's own NIC was turned off
_ON_ITS_WAY = (NicState.ATTACHING, NicState.ARRIVING, NicState.GATEWAY)
_UNKNOWN = "the cloud has not listed the NICs of this host since the agent started"


class Gateways:
    """Finds the address that replaces 0.0.0.0 in an ADD's routes, and keeps the host's path to Services."""

    def __init__(self, context: Context, pool: Pool, vxnets: VxnetCache) -> None:
        self.record = TaskRecord(CHECK_PERIOD)
        self._context = context
        self._pool = pool
        self._provisioner = pool.provisioner
        self._releaser = pool.releaser
        self._vxnets = vxnets
        self._urgency = context.urgency.provisioning
        permits = partial(Permits, due=context.signals.path_due, cloud=context.cloud, tasks=context.tasks)
        self._provisioning_permits = permits("gateways", context.urgency.provisioning)
        self._release_permits = permits("release of gateways", context.urgency.release)
        self._ready = Signal()  # a gateway serves, or the host's own NICs are known
        self._wanted: dict[str, int] = {}  # ADDs that wait for a gateway, by vxnet
        self._backoff = Backoff(context.rng)  # of what the cloud has to do for a new gateway
        self._kernel_backoff = Backoff(context.rng)
        self._no_room = ""  # why a new gateway does not fit; "" once one is on its way
        self._others: tuple[CloudNic, ...] | None = None  # NICs of the instance that are not ours
        self._others_read = 0.0  # when one of them was read last
        self._opened: set[str] = set()  # NICs whose anti-spoofing this process has turned off
        self._attaching: set[str] = set()  # gateway NICs that are about to be attached again
        self._served: ServicePath | None = None
        self._faults: tuple[str, ...] = ()  # of the host's path to Services, for an operator to remove
        self._checked = float("-inf")  # when the kernel was last compared with what was served
        self._one_at_a_time = asyncio.Lock()

    @property
    def fault(self) -> str:
        """Why the host's path to Services is not as it should be; "" if it is."""
        return self._kernel_backoff.cause or "; ".join(self._faults)

    def learn(self, others: tuple[CloudNic, ...]) -> None:
        """NICs of the instance that are not ours, as the comparison with the cloud found them."""
        self._others, self._others_read = others, self._context.now()
        self._ready.notify()
        self._context.signals.path_due.notify()

    # --- for ADD -------------------------------------------------------------------------------------

    async def address_for(self, nic: Nic, config: NetworkConfig, seconds: float) -> str:
        """The host's address in the NIC's vxnet; a gateway NIC is created if the host has none there.

        InvalidConfig if the host has none and `isGateway` forbids to create one, or if the host's own NIC cannot
        serve; Unavailable with the cause if none is ready within *seconds*.
        """
        end = self._context.now() + seconds
        while self._others is None and self._serving(nic.vxnet_id) is None:
            await self._wait(nic.vxnet_id, end, seconds)
        if (gateway := self._serving(nic.vxnet_id)) is not None:
            return gateway.host_address
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
            self._context.signals.path_due.notify()
            while (gateway := self._serving(nic.vxnet_id)) is None:
                await self._wait(nic.vxnet_id, end, seconds)
        finally:
            self._wanted[nic.vxnet_id] -= 1
        return gateway.host_address

    async def _wait(self, vxnet_id: str, end: float, seconds: float) -> None:
        left = end - self._context.now()
        with self._context.urgency.waits():
            is_ready = left > 0 and await self._ready.wait(left)
        if not is_ready:
            raise Unavailable(f"no gateway NIC in vxnet {vxnet_id} within {seconds:.0f} s: {self._cause()}")

    async def _usable(self, own: HostNic) -> str:
        """The address of a NIC that the agent did not create; it never changes the NIC's anti-spoofing."""
        if own.enable_aspoof and self._context.now() - self._others_read >= RECHECK:
            own = await self._read_again(own)
        if own.enable_aspoof:
            raise InvalidConfig(
                f"the host's NIC {own.nic_id} in vxnet {own.vxnet_id} cannot be the gateway: its anti-spoofing"
                " (enable_aspoof) drops answers that come from Service addresses; turn it off on that NIC, or use"
                " another vxnet for containers"
            )
        if own.enable_aspoof is None:
            detail = "the cloud does not report whether its anti-spoofing is off"
            self._context.note("gateway.unsure", own.nic_id, detail=detail)
        return own.address.partition("/")[0]

    async def _read_again(self, own: HostNic) -> HostNic:
        """The NIC as the cloud has it now, for its anti-spoofing may be off; *own* if the cloud does not answer."""
        self._others_read = self._context.now()
        try:
            with self._context.urgency.waits():
                calls = await self._context.cloud.permit(self._urgency)
            found = await calls.nics(nic_ids=[own.nic_id])
        except CloudError:
            return own
        now = {n.nic_id: n for n in found}
        self._others = tuple(now.get(n.nic_id, n) for n in self._others or ())
        return replace(own, enable_aspoof=now[own.nic_id].enable_aspoof) if own.nic_id in now else own

    async def _host_nics(self) -> tuple[HostNic, ...]:
        """Unavailable if the cloud does not answer; going on without it would cut containers off from Services."""
        if self._others is None:
            raise Unavailable(_UNKNOWN)
        routers: dict[str, str] = {}
        for vxnet_id in sorted({n.vxnet_id for n in self._others}):
            try:
                vxnet = await self._vxnets.get(vxnet_id, self._urgency)
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
        if self._provisioner.leaving:
            return self._provisioner.leaving
        budget = explain_budget(self._context.cloud, self._context.clock)
        cause = self._kernel_backoff.cause or self._no_room or self._backoff.cause or self._provisioner.cause
        return "; ".join(filter(None, (cause, budget))) or "the cloud has not attached it yet"

    # --- creating and checking -----------------------------------------------------------------------

    async def run(self) -> None:
        """Create what ADDs wait for, and bring the kernel to what is needed: on every change, and every 30 s."""
        context = self._context
        while True:
            try:
                with self.record.run(context.clock):
                    await self._adjust()
            except KernelRefused as err:
                self._kernel_backoff.failed(context.now(), str(err))
                context.note("gateway.refused", detail=str(err))
            except Unavailable as err:
                context.note("gateway.unknown", detail=str(err))
            context.journal.push()
            await self.record.pause(self._pause(), self._context.signals.path_due, context.clock)

    async def _adjust(self) -> None:
        """Raises KernelRefused; Unavailable as `refresh`."""
        if (mode := self._pool.mode) in {Mode.SERVING, Mode.LEAVING}:
            wanted = {n.vxnet_id for n in self._unattached() if n.nic_id not in self._unused()}
            if mode is Mode.SERVING:
                wanted |= {v for v, count in self._wanted.items() if count and self._serving(v) is None}
                for vxnet_id in sorted(wanted):
                    self._create(vxnet_id)
            self._release(wanted, may_detach=mode is Mode.SERVING)
        for nic in self._context.table.in_state(NicState.ARRIVING):
            if nic.is_gateway and nic.nic_id not in self._context.moves:
                self.receive(nic.nic_id)
        is_check = self._context.now() - self._checked >= CHECK_PERIOD
        if self._others is not None or self._context.table.nics:  # else gateways may serve that are unknown
            await self.refresh(is_check=is_check)
            self._kernel_backoff.worked()
        if is_check:
            self._checked = self._context.now()

    @property
    def _retry_at(self) -> float:
        return max(self._backoff.until, self._kernel_backoff.until)

    def _pause(self) -> float:
        """Seconds until something may be retried, at most until the next check."""
        now = self._context.now()
        times = (self._retry_at, self._provisioner.backoff.until, self._releaser.backoff.until)
        return min([CHECK_PERIOD, *(t - now for t in times if t > now)]) + 0.001

    def _create(self, vxnet_id: str) -> None:
        """Begin what is missing for a gateway in this vxnet, unless it is under way or backs off."""
        table, now = self._context.table, self._context.now()
        here = [n for n in table.nics.values() if n.is_gateway and n.vxnet_id == vxnet_id]
        is_asked = any(
            i.kind is OpKind.CREATE and i.vxnet_id == vxnet_id and self._context.identity.names_gateway(i.name)
            for i in table.intents.values()
        )
        is_coming = any(n.state in _ON_ITS_WAY or self._is_busy(n) or self._is_lost(n) for n in here)
        if is_asked or is_coming:
            self._no_room = ""
            return
        if max(self._retry_at, self._provisioner.backoff.until) > now:
            return
        self._no_room = ""
        spare = sorted((n.nic_id in self._unused(), n.nic_id) for n in self._unattached() if n.vxnet_id == vxnet_id)
        if spare:
            nic_id = spare[0][1]
            self._attaching.add(nic_id)
            self._context.tasks.spawn(f"attach gateway {nic_id}", self._attach(nic_id))
        elif full := self._pool.explain_full():
            self._no_room = f"the host has no room for one: {full}"
            self._backoff.failed(now, "")
        elif calls := self._provisioning_permits.take():
            self._provisioner.start_create([vxnet_id], calls, is_gateway=True, prepare=self._open)

    def _unattached(self) -> list[Nic]:
        """Gateway NICs that are attached nowhere and belong to no operation."""
        nics = self._context.table.in_state(NicState.CREATING)
        return [n for n in nics if n.is_gateway and not self._is_busy(n)]

    def _is_busy(self, nic: Nic) -> bool:
        return nic.nic_id in self._context.table.busy or nic.nic_id in self._attaching

    def _is_lost(self, nic: Nic) -> bool:
        """Whether `_release` repairs it, now or once every namespace was searched."""
        is_new = self._context.now() - nic.since < SEARCH
        return nic.state is NicState.MISSING and (is_new or nic.nic_id in self._pool.nowhere)

    def _unused(self) -> frozenset[str]:
        return unused(self._context.table.nics.values(), tuple(self._context.table.attachments.values()))

    async def _attach(self, nic_id: str) -> None:
        """Attach a NIC that exists already: containers use its address as their gateway, or an ADD waits for one."""
        is_due = False
        try:
            is_open = await self._open([nic_id])
            calls = await self._context.cloud.permit(self._urgency)
            nic = self._context.table.nics.get(nic_id)
            is_free = nic is not None and nic.state is NicState.CREATING and nic_id not in self._context.table.busy
            is_due = is_open and is_free and self._pool.mode is Mode.SERVING
        finally:
            self._attaching.discard(nic_id)
        if is_due:
            await self._provisioner.attach([nic_id], calls)
        else:
            calls.return_permit()
        self._context.signals.path_due.notify()

    def _release(self, wanted: set[str], *, may_detach: bool) -> None:
        """Release gateway NICs whose ADD has given up, and detach those whose link is nowhere.

        A detached one that containers use is not deleted, but attached again.
        """
        table = self._context.table
        spare = [n.nic_id for n in self._unattached() if n.vxnet_id not in wanted]
        missing = [n for n in table.in_state(NicState.MISSING) if n.is_gateway and not self._is_busy(n)]
        lost = [n.nic_id for n in missing if n.nic_id in self._pool.nowhere]
        if spare and (calls := self._release_permits.take()):
            self._releaser.start_delete(spare, calls)
        is_due = may_detach and self._releaser.backoff.until <= self._context.now()
        if lost and is_due and (calls := self._provisioning_permits.take()):  # containers cannot reach Services
            self._releaser.start_detach(lost, "its link is gone", calls)

    async def _open(self, nic_ids: Sequence[str]) -> bool:
        """Turn anti-spoofing off on these NICs, for their replies carry Service addresses; False if that failed.

        Before they are attached, for the cloud refuses to change a NIC that it is attaching. If it does not know a
        NIC any more, the attach finds out.
        """
        for nic_id in nic_ids:
            if nic_id in self._opened:
                continue
            calls = await self._context.cloud.permit(self._urgency)
            try:
                await calls.set_antispoof(nic_id, is_on=False)
            except ResourceNotFound:
                continue
            except CloudError as err:
                self._backoff.failed(self._context.now(), str(err))
                self._context.note("gateway.refused", nic_id, detail=str(err))
                return False
            self._opened.add(nic_id)
            self._backoff.worked()
        return True

    def receive(self, nic_id: str) -> None:
        """The link of a gateway NIC is on the host: configure it in a task of its own; `run` does so if not now."""
        if self._pool.may_begin and self._retry_at <= self._context.now():
            move = self._context.moves.of(nic_id)
            self._context.tasks.spawn(f"gateway {nic_id}", self._configure(move))

    async def _configure(self, move: Move) -> None:
        context = self._context
        with move as nic_id:
            try:
                is_open = await self._open([nic_id])
                if is_open and nic_id in context.table.nics and context.table.nics[nic_id].state is NicState.ARRIVING:
                    context.table.pinned(nic_id, context.now())
                    await self.refresh()
                    self._backoff.worked()
            except (Unavailable, KernelRefused) as err:
                backoff = self._kernel_backoff if isinstance(err, KernelRefused) else self._backoff
                backoff.failed(context.now(), str(err))
                context.note("gateway.refused", nic_id, detail=str(err))
        context.journal.push()
        self._context.signals.path_due.notify()
        self._ready.notify()

    def _judge(self, served: Served, *, is_new: bool) -> None:
        """Record what somebody has changed on the path to Services, and what of it is left to an operator."""
        if served.changes and not is_new:
            self._context.note("gateway.restored", detail="; ".join(served.changes))
        former, self._faults = self._faults, served.faults
        if served.faults and served.faults != former:
            self._context.note("gateway.impaired", detail="; ".join(served.faults))
        elif former and not served.faults:
            self._context.note("gateway.sound")

    async def prepare(self) -> None:
        """As `refresh`, before a container depends on it; Unavailable if the kernel refuses."""
        try:
            await self.refresh()
        except KernelRefused as err:
            raise Unavailable(f"the host's path to Services: {err}") from err

    async def refresh(self, *, is_check: bool = False) -> None:
        """Bring the kernel to the path that containers need, if it has changed, or if *is_check*.

        Unavailable, and nothing is done, if containers need one of the host's own NICs and these are not known yet,
        or if the disk does not take the former values of the kernel's settings.
        """
        async with self._one_at_a_time:
            table = self._context.table
            nics, attachments = tuple(table.nics.values()), tuple(table.attachments.values())
            own = {n.host_address for n in nics if n.is_gateway}
            needs_others = any(a.services and a.routes and not own & {r.gw for r in a.routes} for a in attachments)
            others = await self._host_nics() if needs_others else ()
            path = service_path(nics, attachments, others, self._context.identity.gateway_prefix)
            if path != self._served or is_check:
                if before := await self._context.kernel.settings_before(path):
                    table.record_settings(before)
                    await self._context.journal.record()  # else a crash would leave ours as the host's own
                self._judge(await self._context.kernel.serve(path), is_new=path != self._served)
            if path != self._served:
                self._served = path
                self._ready.notify()
