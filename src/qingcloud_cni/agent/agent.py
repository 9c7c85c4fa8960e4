"""The agent without its interfaces: wires its parts together and starts them in order."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

from qingcloud_cni.agent.attachments.attachments import Attachments
from qingcloud_cni.agent.attachments.spool import Spool
from qingcloud_cni.agent.attachments.spool_files import SpoolFiles
from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context, Identity, Moves
from qingcloud_cni.agent.base.files_watch import OwnFiles
from qingcloud_cni.agent.base.journal import Journal, Listener
from qingcloud_cni.agent.base.reserved import Reserved
from qingcloud_cni.agent.base.signals import Signals
from qingcloud_cni.agent.base.tasks import TaskRecord, Tasks, repeat
from qingcloud_cni.agent.base.urgency import CallUrgency
from qingcloud_cni.agent.cloudops.instance_status import InstanceStatus
from qingcloud_cni.agent.cloudops.jobs import Jobs
from qingcloud_cni.agent.cloudops.lookups import VxnetCache
from qingcloud_cni.agent.cloudops.provisioning import Provisioner
from qingcloud_cni.agent.cloudops.release import Releaser
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.agent.reconcile.links import Links
from qingcloud_cni.agent.reconcile.preflight import Preflight
from qingcloud_cni.agent.reconcile.reconcile import SURVEY_PERIOD, Reconciler
from qingcloud_cni.agent.reconcile.remedies import Remedies
from qingcloud_cni.agent.reconcile.startup_comparison import StartupComparison
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.core.budget import Spending, Urgency
from qingcloud_cni.core.drift.differences import DifferenceKind
from qingcloud_cni.core.drift.schedule import stretched
from qingcloud_cni.core.errors import NotInitialised, Unavailable
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.metrics import counter, gauge
from qingcloud_cni.core.nics.model import NicState, OpKind
from qingcloud_cni.core.nics.rows import TableStatistics
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.pool.vxnets import VxnetChooser, VxnetPolicy
from qingcloud_cni.core.seams.clock import HostClock
from qingcloud_cni.core.seams.cloud import Cloud
from qingcloud_cni.core.seams.kernel import Kernel
from qingcloud_cni.core.seams.store import Store

HOUR = 3600.0  # seconds between checks of what rarely changes


@dataclass(frozen=True, slots=True)
class World:
    """The seams of one agent, and what it has to know of its host."""

    cloud: Cloud
    kernel: Kernel
    store: Store
    clock: HostClock
    rng: random.Random
    boot_id: str  # of the host
    listeners: tuple[Listener, ...] = ()
    set_forward: float = 0.0  # offset to add to persisted times after a clock step, in seconds


Numbers = Mapping[str, float]  # by the value of the metric's label


@dataclass(frozen=True, slots=True)
class AgentStatistics:
    """Everything that the metrics show but what is counted as it happens."""

    table: TableStatistics
    refusals: Annotated[int, counter("qingagent_store_refusals_total", "Writes of the state file that failed.")]
    unsaved: Annotated[int, gauge("qingagent_store_unsaved_changes", "Changes that are not on disk.")]
    behind: Annotated[float, gauge("qingagent_store_behind_seconds", "How long the disk rejects writes; else 0.")]
    last_success: Annotated[
        Numbers,
        gauge(
            "qingagent_task_last_success_seconds",
            "Last success of a task, in seconds since the epoch; 0: never.",
            "task",
        ),
    ]
    duration: Annotated[Numbers, gauge("qingagent_task_duration_seconds", "Duration of a task's last run.", "task")]
    failures: Annotated[Numbers, counter("qingagent_task_failures_total", "Failed runs of a periodic task.", "task")]
    drift: Annotated[Numbers, gauge("qingagent_drift", "Differences between table, kernel and cloud.", "kind")]
    spooled: Annotated[int, gauge("qingagent_spooled", "Spooled DELs that the agent could not carry out yet.")]
    waiting: Annotated[int, gauge("qingagent_adds_waiting", "ADDs that wait for a NIC.")]
    ready: Annotated[bool, gauge("qingagent_ready", "1 while ADDs are served.")]
    calls_waiting: Annotated[
        Numbers, gauge("qingagent_cloud_calls_waiting", "Calls that wait for the call budget.", "urgency")
    ]
    spending: Spending


class Agent:
    def __init__(self, settings: Settings, context: Context) -> None:
        chooser = VxnetChooser(VxnetPolicy(settings.policy), settings.vxnet, context.rng)
        vxnets = VxnetCache(context.cloud, lambda vxnet_id, left: chooser.set_room(vxnet_id, left, context.now()))
        self.context = context
        self.jobs = Jobs(context)
        self.instance_status = InstanceStatus(context)
        self.provisioner = Provisioner(context, self.jobs, chooser, vxnets, self.instance_status)
        self.releaser = Releaser(context, self.jobs)
        self.pool = Pool(context, settings, self.provisioner, self.releaser)
        self.gateways = Gateways(context, self.pool, vxnets)
        self.links = Links(context, self.pool, self.gateways)
        files = SpoolFiles(settings.spool, context.identity.instance_id, settings.socket, settings.bindaddr)
        self.attachments = Attachments(context, self.pool, self.gateways, files)
        self.spool = Spool(context, self.attachments, files)
        remedies = Remedies(context, self.pool, self.links, self.attachments, vxnets)
        self.reconciler = Reconciler(
            context, pool=self.pool, links=self.links, gateways=self.gateways, vxnets=vxnets, remedies=remedies,
        )  # fmt: skip
        self.own_files = OwnFiles(context)
        self.own_files.watch(context.journal.check_files, context.kernel.restore_parking, self.spool.remove_drafts)
        self._preflight = Preflight(context, vxnets, self.instance_status, settings.vxnet)
        self._startup = StartupComparison(context, self._preflight, self.reconciler, settings.qyaccessfilepath)
        self._left_over = tuple(context.table.intents.values())
        self._is_kernel_compared = False
        self.is_cloud_compared = False
        self.orphans = TaskRecord(SURVEY_PERIOD)
        self.vxnets = TaskRecord(HOUR)
        self.upkeep = TaskRecord(HOUR)

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, instance_id: str, world: World) -> AsyncIterator["Agent"]:
        """An agent whose table is loaded; nothing is compared or started yet.

        On exit its tasks are cancelled, and their changes are written.
        """
        snapshot = await world.store.load()
        table = Table(snapshot)
        table.reset_clock(world.set_forward, world.clock.now())
        signals = Signals()
        moves = Moves(signals.links_due)
        reserved = await Reserved.begin(table, world.kernel, world.clock, moves)
        async with asyncio.TaskGroup() as writers:
            journal = Journal(
                table, world.store, world.clock, world.rng, world.listeners,
                on_recovered=signals.obstacle_gone, on_released=signals.released,
            )  # fmt: skip
            writers.create_task(journal.run(), name="store")
            async with asyncio.TaskGroup() as group:
                identity = Identity(instance_id, settings.nic_name_prefix, settings.gatewayns)
                context = Context(
                    identity, signals, table, journal, world.cloud, CallUrgency(world.cloud.reconsider),
                    world.kernel, world.clock, world.rng, Tasks(group), reserved, moves,
                )  # fmt: skip
                table.note_boot(world.boot_id, context.now())
                if snapshot.set_aside:
                    context.note("store.set-aside", detail=snapshot.set_aside)
                yield cls(settings, context)
                context.tasks.cancel()
            journal.end()

    def statistics(self) -> AgentStatistics:
        context, journal = self.context, self.context.journal
        records = {task.name: task.record(self) for task in TASKS}
        kinds = [seen.difference.kind for seen in self.reconciler.open]
        spending = context.cloud.spending()
        return AgentStatistics(
            table=context.table.statistics(),
            refusals=journal.refusals,
            unsaved=journal.unsaved,
            behind=journal.behind,
            last_success={name: record.last_success for name, record in records.items()},
            duration={name: record.duration for name, record in records.items()},
            failures={name: record.all_failures for name, record in records.items()},
            drift={kind.value: kinds.count(kind) for kind in DifferenceKind},
            spooled=self.spool.waiting,
            waiting=self.pool.waiting,
            ready=not self.obstacle,
            calls_waiting={urgency.word: spending.queued.count(urgency) for urgency in Urgency},
            spending=spending,
        )

    @property
    def last_cloud_error(self) -> str:
        """Why the latest comparison failed; "" if it did not."""
        return self._startup.error or self.reconciler.last_error

    @property
    def is_initialised(self) -> bool:
        """Kernel compared with the table, and the cloud compared once or the table not empty."""
        return self._is_kernel_compared and (self.is_cloud_compared or self._startup.serves_from_disk)

    @property
    def obstacle(self) -> str:
        """Why no ADD is served at the moment; "" if ADDs are served."""
        if not self.is_initialised:
            return self.last_cloud_error or "the comparison at start is under way"
        error = self.context.journal.error
        return f"{error} (ADD is rejected; DEL, CHECK and GC are served)" if error else ""

    def check_initialised(self) -> None:
        if not self.is_initialised:
            cause = self.last_cloud_error or "the comparison with the cloud is under way"
            raise NotInitialised(f"the agent is not ready yet: {cause}")

    def check_kernel_compared(self) -> None:
        if not self._is_kernel_compared:
            raise NotInitialised("the agent is not ready yet: it compares its table with the kernel")

    async def compare_kernel(self) -> None:
        """Compare the table with the kernel; nothing is served before."""
        await self.attachments.settle_unfinished()
        await self.reconciler.compare_links()
        with suppress(Unavailable):  # the periodic task tries again, and records the error
            await self.spool.scan()
        self._is_kernel_compared = True
        if self.is_initialised:
            self.context.urgency.serve()

    def begin(self) -> None:
        """Start all tasks; `compare_kernel` comes first."""
        for task in TASKS:
            if task.run is not None:
                self.context.tasks.spawn(task.name, task.run(self))
        self.context.tasks.spawn("unusable replies", self._note_set_aside())

    def repeat(self, record: TaskRecord, step: Callable[[], Awaitable[object]]) -> Coroutine[Any, Any, None]:
        context = self.context
        return repeat(step, record, backoff=lambda n: delay_after(n, context.rng), clock=context.clock)

    async def check_vxnets(self) -> None:
        self.vxnets.period = stretched(HOUR, self.context.cloud.spending().rate)
        await self._preflight.check_again()

    async def reconcile(self) -> None:
        """Compare with the cloud until it has answered once; only then begin cloud writes, and go on comparing."""
        await self._startup.run()
        self.is_cloud_compared = True
        self.context.urgency.serve()
        for intent in self._left_over:
            writes = self.provisioner if intent.kind in {OpKind.CREATE, OpKind.ATTACH} else self.releaser
            self.context.tasks.spawn(f"resume {intent.kind} {intent.op_id}", writes.resume(intent))
        self.pool.open()
        self.context.note("agent.ready")
        self.context.journal.push()
        self.context.signals.obstacle_gone()
        await self.reconciler.run()

    async def _note_set_aside(self) -> None:
        async for text in self.context.cloud.newly_set_aside():
            self.context.note_and_push("cloud.set-aside", detail=text)

    def is_drained(self) -> bool:
        """Whether only NICs that serve containers, and their gateways, are left, and no operation is under way.

        False before the comparison with the cloud, which may find more NICs.
        """
        table = self.context.table
        nics = tuple(table.nics.values())
        spare = unused(nics, tuple(table.attachments.values()))
        serving = {NicState.ASSIGNED, NicState.GATEWAY}
        is_free = all(n.state in serving and n.nic_id not in spare for n in nics)
        return self.is_cloud_compared and not self.reconciler.expects_more and is_free and not table.intents

    def stop(self) -> None:
        """Fail waiting and new ADDs, and begin nothing more. NICs stay where they are."""
        self.pool.stop()


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A row of TASKS: *when* and *does* are for the documentation."""

    name: str
    when: str
    does: str
    record: Callable[[Agent], TaskRecord]
    run: Callable[[Agent], Coroutine[Any, Any, None]] | None = None  # None: another task does it


TASKS: Sequence[PeriodicTask] = (
    PeriodicTask("pool", "on change, at least every 30 s", "assigns NICs, carries out the plan",
                 lambda agent: agent.pool.record, lambda agent: agent.pool.run()),
    PeriodicTask("links",
                 "netlink events, and when skipped NICs are at rest; at most ten times a second while no ADD waits"
                 " for a link",
                 "compares table and kernel, receives links",
                 lambda agent: agent.links.record, lambda agent: agent.links.run()),
    PeriodicTask("orphan containers", "every 30 s",
                 "lists every namespace: finds containers that ended without DEL, and links in wrong namespaces",
                 lambda agent: agent.orphans,
                 lambda agent: agent.repeat(agent.orphans, agent.reconciler.compare_links)),
    PeriodicTask("spool", "checks the directory every second, works on change", "carries out spooled DELs",
                 lambda agent: agent.spool.record, lambda agent: agent.spool.run()),
    PeriodicTask("own files", "every 2 s", "puts back what others removed: the agent's files, directories and mount",
                 lambda agent: agent.own_files.record, lambda agent: agent.own_files.run()),
    PeriodicTask("jobs", "while a job is pending", "asks the cloud for the jobs' status",
                 lambda agent: agent.jobs.record, lambda agent: agent.jobs.run()),
    PeriodicTask("cloud reconcile", "at start, after a doubt, on request, every 15 minutes",
                 "compares table, kernel and cloud", lambda agent: agent.reconciler.record, Agent.reconcile),
    PeriodicTask("vxnets", "every hour", "checks the vxnets again",
                 lambda agent: agent.vxnets, lambda agent: agent.repeat(agent.vxnets, agent.check_vxnets)),
    PeriodicTask("cooldown", "when an address has cooled down", "makes its NIC idle",
                 lambda agent: agent.pool.cooldown),
    PeriodicTask("flows", "when addresses were released, or have cooled down",
                 "deletes the host's tracked flows of them", lambda agent: agent.pool.flows.record),
    PeriodicTask("comparisons", "when NICs have left containers, ten seconds of releases at once",
                 "restores their state as the cloud plugged them in", lambda agent: agent.pool.comparisons.record),
    PeriodicTask("duplicate probes", "when NICs become idle; quarantined ones after growing pauses",
                 "asks who uses their addresses, one task for each NIC",
                 lambda agent: agent.pool.duplicates.record),
    PeriodicTask("gateway check", "on change, every 30 s",
                 "creates gateway NICs that ADDs wait for, attaches those that containers miss, configures the host",
                 lambda agent: agent.gateways.record, lambda agent: agent.gateways.run()),
    PeriodicTask("store upkeep", "every hour", "checkpoints the database and checks it for damage",
                 lambda agent: agent.upkeep, lambda agent: agent.repeat(agent.upkeep, agent.context.journal.upkeep)),
)  # fmt: skip
