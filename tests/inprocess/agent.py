"""A whole agent on a virtual clock: real planner, operations, store and client; simulated cloud and kernel."""

import asyncio
import functools
import inspect
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from inprocess import virtual_time
from inprocess.budgets import make_limiter
from inprocess.disk import Disk, SlowStore
from inprocess.network import Cable, ObservedModel
from inprocess.processes import Asked, Process, Steps
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.agent.agent import Agent, World
from qingcloud_cni.agent.api.cni_api import CniApi, CniRequest
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.base.context import Moves
from qingcloud_cni.agent.base.journal import Journal, Listener
from qingcloud_cni.agent.base.phases import Phases
from qingcloud_cni.agent.base.urgency import CallUrgency
from qingcloud_cni.agent.settings.resolution import resolve
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cloud import Access, Caller, CallSeen, Client
from qingcloud_cni.core.cni.network_config import NetworkConfig, read_config
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Nic
from qingcloud_cni.core.nics.names import is_ours
from qingcloud_cni.core.nics.rows import violations
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.cloud import Cloud
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.memory.kernel import FakeKernel
from qingcloud_cni.sim.memory.local import run_jobs
from qingcloud_cni.sim.topology import FaultSpec, Topology, default_topology

T = TypeVar("T")
CONFIG = read_config({"cniVersion": "0.3.1", "name": "net", "type": "qingcni"})


class SimulatedHost:
    """One host of a simulated cloud. The agent on it can be started, stopped and killed; the machine goes on."""

    def __init__(
        self,
        tmp_path: Path,
        topology: Topology | None = None,
        *,
        seed: int = 0,
        disk_seconds: float = 0.0,
        is_hardware: bool = False,
        **settings: object,
    ) -> None:
        """*is_hardware*: NICs are like those of a real host, not like the simulator's."""
        self.disk = Disk(disk_seconds)
        self.clock = VirtualClock()
        self.rng = random.Random(seed)
        self.topology = topology or default_topology("sim", hosts=1)
        self.instance_id = self.topology.hosts[0].instance_id
        self.model = ObservedModel(self.topology, rng=self.rng, now=self.clock.now)
        self.api = Api(self.model, now=self.clock.now, sleep=self.clock.sleep, rng=self.rng)
        self.kernel = FakeKernel(
            self.instance_id,
            rng=self.rng,
            sleep=self.clock.sleep,
            latencies=self.topology.latencies,
            is_hardware=is_hardware,
        )
        self.kernel.apply(*self.model.plugged())
        self.settings = settings_of(tmp_path, self.topology, **settings)
        self.steps = Steps()
        self.process: Process | None = None  # the agent's
        self._processes: list[Process] = []  # and those before it
        self.listeners: tuple[Listener, ...] = ()  # called with every event
        self.on_permit: Callable[[int], None] = lambda _count: None  # 1: a permit is given; -1: one is returned
        self.on_call: Callable[[CallSeen], None] = lambda _call: None  # called with every call that is over
        self.cable = Cable(self.api)
        self.pump: asyncio.Task[None] | None = None  # lets the cloud's jobs end
        self._running: asyncio.Task[None] | None = None
        self._agent: Agent | None = None
        self._set_forward = 0.0

    @property
    def agent(self) -> Agent:
        assert self._agent is not None, "the agent does not run"
        return self._agent

    @property
    def nics(self) -> Mapping[str, Nic]:
        return self.table.nics

    @property
    def table(self) -> Table:
        return self.agent.context.table

    @property
    def journal(self) -> Journal:
        return self.agent.context.journal

    @property
    def cloud(self) -> Cloud:
        """The cloud as the agent sees it."""
        return self.agent.context.cloud

    @property
    def urgency(self) -> CallUrgency:
        return self.agent.context.urgency

    @property
    def moves(self) -> Moves:
        """The NICs whose links are being moved."""
        return self.agent.context.moves

    @property
    def calls(self) -> int:
        return self.model.calls.total()

    def states(self) -> list[str]:
        return sorted(nic.state.value for nic in self.nics.values())

    # --- the agent's process -------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the agent and wait until its kernel comparison is done."""
        begun: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()
        self.process = Process(self.steps)
        self._processes.append(self.process)
        self._running = self.process.start(self._live(begun, self.process), "agent")
        self._running.add_done_callback(lambda _task: begun.done() or begun.cancel())
        try:
            self._agent = await begun
        except asyncio.CancelledError:
            await self._running  # shows what ended it before it began
            raise

    async def _live(self, begun: "asyncio.Future[Agent]", process: Process) -> None:
        store = self.store = SlowStore(self.settings.database, self.settings.write_counter, self.disk)
        access = Access(self.topology.access_key_id, self.topology.secret_access_key, zone=self.topology.zone)
        transport = Asked(process, self.cable)
        limiter = make_limiter(self.clock, self.settings.api_budget, self.on_permit)
        client = Client(Caller(access, transport, limiter, clock=self.clock, rng=self.rng, observe=self.on_call))
        try:
            world = World(
                client, Asked(process, self.kernel), store, self.clock, self.rng, self.clock.boot,
                listeners=self.listeners, set_forward=self._set_forward,
            )  # fmt: skip
            self._set_forward = 0.0
            async with Agent.opened(self.settings, self.instance_id, world) as agent:
                await agent.compare_kernel()
                agent.begin()
                begun.set_result(agent)
                await asyncio.Future()
        finally:
            await store.close()

    async def kill(self) -> None:
        """End the agent wherever it is. Disk, kernel and cloud retain their state."""
        assert self._running is not None
        assert self.process is not None
        self.process.die()
        with suppress(asyncio.CancelledError):
            await self._running
        await self.process.over()
        self._running, self._agent = None, None

    @property
    def is_running(self) -> bool:
        is_alive = self._running is not None and not self._running.done()
        return is_alive and self._agent is not None and self.process is not None and not self.process.is_dead

    async def bury(self) -> None:
        """Wait until nothing is left of an agent that died or did not start, and raise a bug that ended it."""
        if self._running is None:
            return
        assert self.process is not None
        if not self.process.is_dead:
            self.process.die()
        await self.process.over()
        running, self._running, self._agent = self._running, None, None
        if running.cancelled() or (err := running.exception()) is None:
            return
        rest = err.split(StartRefused)[1] if isinstance(err, BaseExceptionGroup) else err
        if rest is not None and not isinstance(rest, StartRefused):
            raise err

    async def end(self) -> None:
        """End the agent, and what the world still does for agents that were killed."""
        if self._running is not None:
            await self.kill()
        for process in self._processes:
            await process.forget()

    def set_clock(self, forward: float) -> None:
        """Set the host's clock while no agent runs; the next agent gets what it can learn of that."""
        self.clock.ahead += forward
        self._set_forward = max(forward, 0.0)

    async def check_alive(self) -> None:
        """Raise a bug that ended the agent or the cloud."""
        if self.pump is not None and self.pump.done():
            self.pump.result()
        if self._running is not None and self._running.done():
            self._running.result()

    # --- the container runtime -----------------------------------------------------------------------

    async def add(self, container: str, *, config: NetworkConfig = CONFIG, seconds: float = 100.0) -> Attachment:
        """ADD for a container, whose namespace is made unless it exists."""
        path = netns_of(container)
        if path not in self.paths():
            self.kernel.make_netns(path)
        attachment, _ = await self.agent.attachments.add(key_of(container), path, config, CniCall(Verb.ADD, seconds))
        return attachment

    async def delete(self, container: str) -> None:
        await self.agent.attachments.delete(key_of(container), CniCall(Verb.DEL), netns_of(container))

    async def ask(
        self,
        verb: str,
        container: str,
        config: Mapping[str, object] | None = None,
        *,
        netns: str | None = None,
        cni_args: str = "",
        timeout: float = 100.0,
        is_awaited: Callable[[], bool] = lambda: True,
        **more: object,
    ) -> dict[str, Any] | None:
        """Make a whole request, as the plugin does; *config* and *more* are added to the network configuration.

        ADD makes the container's namespace unless it exists or *netns* names another one.
        """
        is_of_host = verb in {Verb.GC, Verb.STATUS}
        path = netns_of(container) if netns is None else netns
        if verb == Verb.ADD and netns is None and path not in self.paths():
            self.kernel.make_netns(path)
        request = CniRequest(
            command=verb,
            container_id=container,
            ifname="" if is_of_host else "eth0",
            netns="" if is_of_host else path,
            args=cni_args,
            timeout=timeout,
            config={"cniVersion": "1.1.0", "name": "net", "type": "qingcni", **(config or {}), **more},
        )
        return await CniApi(self.agent, Metrics()).serve(request, Phases(), is_awaited)

    def paths(self) -> set[str]:
        return self.kernel.paths()

    # --- the operator at the cloud's console ---------------------------------------------------------

    def console(self, action: str, *nic_ids: str, **params: str) -> dict[str, Any]:
        """Call the cloud as an operator does; faults do not strike the call."""
        ids = {f"nics.{n}": nic_id for n, nic_id in enumerate(nic_ids, 1)}
        return self.model.call_without_faults({"action": action, "zone": self.topology.zone} | ids | params)

    # --- what must hold ------------------------------------------------------------------------------

    async def until(self, condition: Any, what: str, seconds: float = 600.0) -> None:
        """Let virtual time pass until *condition* holds."""
        end = self.clock.now() + seconds
        while not condition():
            await self.check_alive()
            assert self.clock.now() < end, f"not within {seconds} s: {what}; {self.table}"
            await self.clock.sleep(0.25)

    async def until_calm(self) -> None:
        """Let virtual time pass until no operation is under way."""
        await self.until(lambda: not self.table.intents, "no operation is under way")

    def ours_in_cloud(self) -> dict[str, str]:
        """Status by NIC id of the NICs that bear this agent's name, and are not attached elsewhere."""
        records = self.model.state.nics.values()
        prefix = self.settings.nic_name_prefix
        here = ("", self.instance_id)
        return {
            n.nic_id: n.status for n in records if is_ours(n.name, prefix, self.instance_id) and n.instance_id in here
        }

    def check_invariants(self, *, strangers: int = 0) -> None:
        """Assert the invariants of docs/architecture.md; a third party made *strangers* of its NICs."""
        table = self.table
        broken = violations(table.nics.values(), table.attachments.values())
        assert not broken, broken
        assert not self.kernel.stale, f"handed out before the host forgot the flows: {self.kernel.stale}"
        most, cloud = self.settings.max_nics + strangers, self.ours_in_cloud()
        assert len(table.nics) + table.creating <= most, table
        assert len(cloud) <= most, f"in the cloud, and not in the table: {cloud.keys() - table.nics.keys()}"
        for nic_id, intents in _operations_of(table).items():
            assert len(intents) == 1, f"{nic_id} is in several operations at once: {intents}"


def _operations_of(table: Table) -> dict[str, list[str]]:
    """Return the operations under way that name a NIC, by NIC id."""
    found: dict[str, list[str]] = {}
    for intent in table.intents.values():
        for nic_id in intent.nic_ids:
            found.setdefault(nic_id, []).append(f"{intent.kind} {intent.op_id}")
    return found


def settings_of(tmp_path: Path, topology: Topology, **settings: object) -> Settings:
    pods = [v.vxnet_id for v in topology.vxnets if v.vxnet_id != topology.hosts[0].vxnet_id]
    given: dict[str, object] = {"vxnet": pods[:1], "state-dir": str(tmp_path), "run-dir": str(tmp_path)}
    given |= {name.replace("_", "-"): value for name, value in settings.items()}
    return resolve(given, {}, {}, "").settings


def netns_of(container: str) -> str:
    return f"/run/netns/{container}"


def key_of(container: str) -> AttachmentKey:
    return AttachmentKey("net", container, "eth0")


@asynccontextmanager
async def simulated(
    tmp_path: Path,
    topology: Topology | None = None,
    *,
    seed: int = 0,
    is_warm: bool = True,
    is_started: bool = True,
    disk_seconds: float = 0.0,
    is_hardware: bool = False,
    **settings: object,
) -> AsyncIterator[SimulatedHost]:
    """A host, and a running agent if *is_started*; *is_warm* waits until the pool has its first NICs."""
    host = SimulatedHost(
        tmp_path, topology, seed=seed, disk_seconds=disk_seconds, is_hardware=is_hardware, **settings
    )
    async with served(host, is_warm=is_warm, is_started=is_started):
        yield host


@asynccontextmanager
async def served(host: SimulatedHost, *, is_warm: bool = True, is_started: bool = True) -> AsyncIterator[None]:
    """Run the cloud, and the agent if *is_started*, of a host that was prepared before."""
    pump = host.pump = asyncio.create_task(
        run_jobs(host.model, host.kernel.apply, host.clock.sleep, host.clock.now), name="cloud jobs"
    )
    try:
        if is_started:
            await host.start()
        if is_started and is_warm:
            await host.until(lambda: host.states().count("idle") >= host.settings.min_idle, "a warm pool")
        yield
        await host.check_alive()
    finally:
        await host.end()
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


def on_host(**settings: Any) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make a test of a coroutine function whose parameter *host* is a host of its own, with these *settings*."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        signature = inspect.signature(test)
        parameters = [p for name, p in signature.parameters.items() if name not in {"host", "tmp_path"}]
        path = inspect.Parameter("tmp_path", inspect.Parameter.POSITIONAL_OR_KEYWORD)

        @functools.wraps(test)
        async def on_its_host(tmp_path: Path, **arguments: Any) -> None:
            async with simulated(tmp_path, **settings) as host:
                if "tmp_path" in signature.parameters:
                    arguments["tmp_path"] = tmp_path
                await test(host=host, **arguments)
                if host.is_running:
                    host.check_invariants()

        on_its_host.__signature__ = signature.replace(parameters=[path, *parameters])  # type: ignore[attr-defined]
        return virtual_time.in_virtual_time(on_its_host)

    return decorate


def set_faults(host: SimulatedHost, *specs: FaultSpec) -> None:
    """Replace the cloud's faults; their counts of calls begin at zero."""
    host.model.set_faults(specs)
