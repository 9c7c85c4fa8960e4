"""The agent without its interfaces: the parts wired together, and the order in which they begin."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from qingcloud_cni.agent.attachments.attachments import Attachments
from qingcloud_cni.agent.attachments.spool import Spool
from qingcloud_cni.agent.attachments.spool_files import SpoolFiles
from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.journal import Journal, Listener
from qingcloud_cni.agent.base.tasks import TaskRecord, Tasks, repeat
from qingcloud_cni.agent.base.urgency import CallUrgency
from qingcloud_cni.agent.cloudops.jobs import Jobs
from qingcloud_cni.agent.cloudops.operations import Operations
from qingcloud_cni.agent.cloudops.vxnet_cache import VxnetCache
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool.duplicates import Duplicates
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.agent.reconcile.links import Links
from qingcloud_cni.agent.reconcile.preflight import Preflight
from qingcloud_cni.agent.reconcile.reconcile import LOOK_PERIOD, Reconciler
from qingcloud_cni.agent.reconcile.remedies import Remedies
from qingcloud_cni.agent.reconcile.startup_comparison import StartupComparison
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.core.drift.schedule import stretched
from qingcloud_cni.core.errors import NotInitialised, Unavailable
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.pool.vxnets import VxnetChooser, VxnetPolicy
from qingcloud_cni.core.seams.clock import HostClock
from qingcloud_cni.core.seams.cloud import Cloud
from qingcloud_cni.core.seams.kernel import Kernel
from qingcloud_cni.core.seams.store import Store

HOUR = 3600.0  # seconds between looks at what hardly changes


@dataclass(frozen=True, slots=True)
class World:
    """What an agent is given."""

    cloud: Cloud
    kernel: Kernel
    store: Store
    clock: HostClock
    rng: random.Random
    boot_id: str  # of the host
    listeners: tuple[Listener, ...] = ()
    set_forward: float = 0.0  # seconds by which times on disk are behind the clock: it was set meanwhile


class Agent:
    """The table of NICs and everything that keeps it true."""

    def __init__(self, settings: Settings, context: Context) -> None:
        chooser = VxnetChooser(VxnetPolicy(settings.policy), settings.vxnet, context.rng)
        vxnets = VxnetCache(context.cloud, lambda vxnet_id, left: chooser.has_room(vxnet_id, left, context.now()))
        self.context = context
        self.jobs = Jobs(context)
        self.operations = Operations(context, self.jobs, chooser, vxnets)
        duplicates = Duplicates(context, is_on=settings.duplicate_probe)
        self.pool = Pool(context, self.operations, chooser, duplicates, settings.instance_nic_limit)
        self.gateways = Gateways(context, self.pool, self.operations, vxnets)
        self.links = Links(context, self.pool, self.gateways)
        files = SpoolFiles(settings.spool, context.instance_id, settings.socket, settings.bindaddr)
        self.attachments = Attachments(context, self.pool, self.gateways, files)
        self.spool = Spool(context, self.attachments, files)
        remedies = Remedies(
            context, pool=self.pool, operations=self.operations, links=self.links, attachments=self.attachments,
            vxnets=vxnets,
        )  # fmt: skip
        self.reconciler = Reconciler(
            context, pool=self.pool, links=self.links, gateways=self.gateways, vxnets=vxnets, remedies=remedies,
            iface=settings.iface,
        )  # fmt: skip
        self._preflight = Preflight(context, vxnets, self.operations.instance_status, settings.vxnet)
        self._serves_from_disk = bool(context.table.nics)
        self._startup = StartupComparison(
            context, self._preflight, self.reconciler, settings.qyaccessfilepath,
            serves_from_disk=self._serves_from_disk,
        )  # fmt: skip
        context.urgency.is_serving = lambda: self.is_initialised
        self._left_over = tuple(context.table.intents.values())
        self._is_kernel_compared = False
        self.is_cloud_compared = False
        self.orphans = TaskRecord("orphan containers", LOOK_PERIOD)
        self.vxnets = TaskRecord("vxnets", HOUR)
        self.upkeep = TaskRecord("store upkeep", HOUR)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, instance_id: str, world: World) -> AsyncIterator["Agent"]:
        """An agent whose table is loaded; nothing is compared or begun yet.

        On exit its tasks are cancelled, and then what they changed is written.
        """
        snapshot = await world.store.load()
        table = Table(snapshot)
        table.reset_clock(world.set_forward, world.clock.now())
        async with asyncio.TaskGroup() as writers:
            journal = Journal(table, world.store, world.clock, world.rng, world.listeners)
            writers.create_task(journal.run(), name="store")
            async with asyncio.TaskGroup() as group:
                context = Context(
                    instance_id=instance_id, nic_name_prefix=settings.nic_name_prefix,
                    gateway_prefix=settings.gatewayns, policy=settings.pool, table=table, journal=journal,
                    cloud=world.cloud, kernel=world.kernel, clock=world.clock, rng=world.rng, tasks=Tasks(group),
                    urgency=CallUrgency(world.cloud.reconsider),
                )  # fmt: skip
                table.note_boot(world.boot_id, context.now())
                journal.when_recovered = context.look_again
                if snapshot.set_aside:
                    context.note("store.set-aside", detail=snapshot.set_aside)
                yield cls(settings, context)
                context.tasks.cancel()
            journal.end()

    @property
    def records(self) -> tuple[TaskRecord, ...]:
        """Of all periodic tasks, in the order in which people are told of them."""
        return (
            self.pool.record,
            self.links.record,
            self.orphans,
            self.spool.record,
            self.jobs.record,
            self.reconciler.record,
            self.vxnets,
            self.pool.cooldown,
            self.pool.flows.record,
            self.pool.duplicates.record,
            self.gateways.record,
            self.upkeep,
        )

    @property
    def last_cloud_error(self) -> str:
        """Why the latest comparison came to nothing; "" if it did not."""
        return self._startup.error or self.reconciler.last_error

    @property
    def is_initialised(self) -> bool:
        """Kernel compared with the table, and the cloud compared once or the table not empty."""
        return self._is_kernel_compared and (self.is_cloud_compared or self._serves_from_disk)

    @property
    def obstacle(self) -> str:
        """Why no ADD is served at the moment; "" where they are."""
        if not self.is_initialised:
            return self.last_cloud_error or "the comparison at start is under way"
        trouble = self.context.journal.trouble
        return f"{trouble} (ADD is refused; DEL, CHECK and GC are served)" if trouble else ""

    def check_initialised(self) -> None:
        if not self.is_initialised:
            cause = self.last_cloud_error or "the comparison with the cloud is under way"
            raise NotInitialised(f"the agent is not ready yet: {cause}")

    def check_kernel_compared(self) -> None:
        if not self._is_kernel_compared:
            raise NotInitialised("the agent is not ready yet: it compares its table with the kernel")

    async def compare_kernel(self) -> None:
        """Table against kernel: before this nothing is served."""
        await self.attachments.settle_unfinished()
        await self.reconciler.look_around()
        with suppress(Unavailable):  # the task looks again, and records what is wrong
            await self.spool.look()
        self._is_kernel_compared = True

    def begin(self) -> None:
        """Start all tasks; `compare_kernel` comes first."""
        spawn = self.context.tasks.spawn
        spawn(self.pool.record.name, self.pool.run())
        spawn(self.links.record.name, self.links.run())
        spawn(self.jobs.record.name, self.jobs.run())
        spawn(self.gateways.record.name, self.gateways.run())
        spawn(self.spool.record.name, self.spool.run())
        spawn(self.reconciler.record.name, self._reconcile())
        self._repeat(self.orphans, self._look_around)
        self._repeat(self.vxnets, self._look_at_vxnets)
        self._repeat(self.upkeep, self.context.journal.upkeep)

    def _repeat(self, record: TaskRecord, step: Callable[[], Awaitable[None]]) -> None:
        context = self.context
        self.context.tasks.spawn(
            record.name, repeat(step, record, backoff=lambda n: delay_after(n, context.rng), clock=context.clock)
        )

    async def _look_around(self) -> None:
        await self.reconciler.look_around()

    async def _look_at_vxnets(self) -> None:
        self.vxnets.period = stretched(HOUR, self.context.cloud.spending().rate)
        await self._preflight.look_again()

    async def _reconcile(self) -> None:
        """Compare with the cloud until it has answered once, then begin what may change it, and go on comparing."""
        await self._startup.run()
        self.is_cloud_compared = True
        for intent in self._left_over:
            self.context.tasks.spawn(f"resume {intent.kind} {intent.op_id}", self.operations.resume(intent))
        self.pool.is_open = True
        self.context.note("agent.ready")
        self.context.journal.push()
        self.context.look_again()
        await self.reconciler.run()

    def is_drained(self) -> bool:
        """Nothing but NICs that serve containers, their gateways' included, is left or under way.

        Not before the comparison with the cloud, which may find more.
        """
        table = self.context.table
        nics = tuple(table.nics.values())
        spare = unused(nics, tuple(table.attachments.values()))
        serving = {NicState.ASSIGNED, NicState.GATEWAY}
        is_free = all(n.state in serving and n.nic_id not in spare for n in nics)
        return self.is_cloud_compared and not self.reconciler.expects_more and is_free and not table.intents

    def stop(self) -> None:
        """Accept no ADD any more; those that wait are told so. NICs stay where they are."""
        self.pool.stop()
