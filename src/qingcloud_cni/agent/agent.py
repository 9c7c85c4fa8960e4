"""The agent without its interfaces: the parts wired together, and the order in which they begin."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from qingcloud_cni.agent.attachments import Attachments
from qingcloud_cni.agent.clock import delay_after
from qingcloud_cni.agent.context import Context
from qingcloud_cni.agent.duplicates import Duplicates
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.jobs import Jobs
from qingcloud_cni.agent.journal import Journal, Listener
from qingcloud_cni.agent.links import Links
from qingcloud_cni.agent.operations import Operations
from qingcloud_cni.agent.pool import Pool
from qingcloud_cni.agent.settings import Settings
from qingcloud_cni.agent.spool import Spool
from qingcloud_cni.agent.spool_files import SpoolFiles
from qingcloud_cni.agent.startup import CloudComparison
from qingcloud_cni.agent.tasks import TaskRecord, Tasks, repeat
from qingcloud_cni.agent.vxnet_book import VxnetBook
from qingcloud_cni.core.errors import (
    CloudError,
    CredentialsRefused,
    KernelRefused,
    NotInitialised,
    NotListed,
    StartRefused,
    Unavailable,
)
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.model import NicState
from qingcloud_cni.core.seams import Clock, Cloud, Kernel, Store
from qingcloud_cni.core.table import Table
from qingcloud_cni.core.vxnets import VxnetChooser, VxnetPolicy

FIRST_CALL = "DescribeInstances"  # of a comparison: keys that were good for it are no wrong ones
UNLISTED = 3  # answers that do not list what must be there, until it is believed
LOOK_PERIOD = 30.0  # seconds between looks at the links, whether or not the kernel reported anything


@dataclass(frozen=True, slots=True)
class World:
    """What an agent is given."""

    cloud: Cloud
    kernel: Kernel
    store: Store
    clock: Clock
    rng: random.Random
    listeners: tuple[Listener, ...] = ()
    set_forward: float = 0.0  # seconds by which times on disk are behind the clock: it was set meanwhile


class Agent:
    """The table of NICs and everything that keeps it true."""

    def __init__(self, settings: Settings, context: Context) -> None:
        chooser = VxnetChooser(VxnetPolicy(settings.policy), settings.vxnet, context.rng)
        vxnets = VxnetBook(context.cloud)
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
        self.records: list[TaskRecord] = [self.spool.record]
        self._comparison = CloudComparison(
            context, self.pool, self.operations, self.links, self.gateways, vxnets, settings.vxnet, settings.iface
        )
        self._access_file = settings.qyaccessfilepath
        self._serves_from_disk = bool(context.table.nics)
        self._is_kernel_compared = False
        self.is_cloud_compared = False
        self.last_cloud_error = ""

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
                )  # fmt: skip
                journal.when_recovered = context.look_again
                if snapshot.set_aside:
                    context.note("store.set-aside", detail=snapshot.set_aside)
                yield cls(settings, context)
                context.tasks.cancel()
            journal.end()

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
        await self.links.look()
        await self.links.seek()
        with suppress(Unavailable):  # the task looks again, and records what is wrong
            await self.spool.look()
        self._is_kernel_compared = True

    def begin(self) -> None:
        """Start all tasks; `compare_kernel` comes first."""
        spawn = self.context.tasks.spawn
        spawn("pool", self.pool.run())
        spawn("links", self.links.run())
        spawn("jobs", self.jobs.run())
        spawn("gateway check", self.gateways.run())
        spawn(self.spool.record.name, self.spool.run())
        spawn("cloud comparison", self._compare_cloud())
        record = TaskRecord("orphan containers", LOOK_PERIOD)
        self.records.append(record)
        spawn(record.name, repeat(
            self.links.look, record, backoff=lambda n: delay_after(n, self.context.rng), clock=self.context.clock
        ))  # fmt: skip

    async def _compare_cloud(self) -> None:
        """Compare with the cloud once, however long it takes to answer; only then are cloud writes made.

        Keys that are not accepted, and ids that several answers in turn do not list, end an agent that has nothing to
        serve yet; one with NICs goes on serving them.
        """
        failures = unlisted = 0
        while True:
            try:
                await self._comparison.run()
            except (CloudError, KernelRefused) as err:
                if isinstance(err, CredentialsRefused) and err.action == FIRST_CALL and not self._serves_from_disk:
                    raise StartRefused(f"the cloud does not accept the keys in {self._access_file}: {err}") from err
                unlisted += isinstance(err, NotListed)
                if unlisted == UNLISTED and not self._serves_from_disk:
                    raise StartRefused(str(err)) from err
                failures += 1
                self.last_cloud_error = str(err)
                self.context.note("cloud.unanswered", detail=str(err))
                self.context.journal.push()
                await self.context.clock.sleep(delay_after(failures, self.context.rng))
            else:
                break
        self.is_cloud_compared = True
        self.last_cloud_error = ""
        self.pool.is_open = True
        self.context.note("agent.ready")
        self.context.journal.push()
        self.context.look_again()

    def is_drained(self) -> bool:
        """Nothing but NICs that serve containers, their gateways' included, is left or under way.

        Not before the comparison with the cloud, which may find more.
        """
        table = self.context.table
        nics = tuple(table.nics.values())
        spare = unused(nics, tuple(table.attachments.values()))
        serving = {NicState.ASSIGNED, NicState.GATEWAY}
        is_free = all(n.state in serving and n.nic_id not in spare for n in nics)
        return self.is_cloud_compared and is_free and not table.intents

    def stop(self) -> None:
        """Accept no ADD any more; those that wait are told so. NICs stay where they are."""
        self.pool.close("the agent is stopping; try again when it is back")
