"""A whole agent on a virtual clock: real planner, operations, store and client; simulated cloud and kernel."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inprocess import virtual_time
from inprocess.budgets import make_gate
from inprocess.processes import Asked, Process, Steps
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.agent.agent import Agent, World
from qingcloud_cni.agent.api.cni_api import CniApi, CniRequest
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.base.journal import Listener
from qingcloud_cni.agent.base.phases import Phases
from qingcloud_cni.agent.reconcile.startup_comparison import FIRST_CALL
from qingcloud_cni.agent.settings.resolution import resolve
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cloud import Access, CallSeen, Client
from qingcloud_cni.core.cni.network_config import NetworkConfig, read_config
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import CloudUnreachable, StartRefused, StoreRefused
from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Nic
from qingcloud_cni.core.nics.names import is_ours
from qingcloud_cni.core.nics.rows import violations
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.cloud.faults import EFFECTS, WRONG_KEYS, Faults, Strike
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.memory.kernel import FakeKernel
from qingcloud_cni.sim.memory.local import LocalTransport, run_jobs
from qingcloud_cni.sim.topology import FaultSpec, Topology, default_topology
from qingcloud_cni.store.threaded import InlineStore

T = TypeVar("T")
CONFIG = read_config({"cniVersion": "0.3.1", "name": "net", "type": "qingcni"})


@dataclass
class Disk:
    """Of a host: it outlives the agent, and has bad times."""

    seconds: float = 0.0  # what a save takes
    obstacle: str = ""  # why it takes nothing, if it does not
    takes_what_it_refuses: bool = False  # the words of the obstacle come too late: all is written
    is_stuck: bool = False  # answers nobody
    tries: int = 0  # saves asked for


class SlowStore(InlineStore):
    """As a disk: what is saved is there after a while, in order; a kill in between loses it."""

    def __init__(self, path: Path, write_counter: Path, disk: Disk) -> None:
        super().__init__(path, write_counter)
        self._disk = disk
        self.is_dead = False  # its process has ended: what it asks for now never happens

    def on_disk(self) -> Snapshot:
        assert self._file._database is not None
        return self._file._database.load()

    async def save(self, changes: Sequence[Change]) -> None:
        await self._turn(super().save, changes, is_late=self._disk.takes_what_it_refuses)

    async def replace_file(self, changes: Sequence[Change]) -> str:
        return await self._turn(super().replace_file, changes)

    async def _turn(
        self, write: Callable[[Sequence[Change]], Awaitable[T]], changes: Sequence[Change], *, is_late: bool = False
    ) -> T:
        self._disk.tries += 1
        await asyncio.sleep(self._disk.seconds)
        while self._disk.is_stuck or self.is_dead:
            await asyncio.sleep(0.5)
        if self._disk.obstacle and not is_late:
            raise StoreRefused(f"{self} cannot be written: {self._disk.obstacle}")
        database = self._file._database
        last_seq = database._last_seq if database is not None else 0
        done = await write(changes)
        if self._disk.obstacle and database is not None:
            database._last_seq = last_seq  # as where COMMIT itself fails
            raise StoreRefused(f"{self} cannot be written: {self._disk.obstacle}")
        return done


class Cable(LocalTransport):
    """Between a host and the cloud; nothing leaves the host while *is_cut* says so."""

    def __init__(self, api: Api, is_cut: Callable[[], bool]) -> None:
        super().__init__(api)
        self._is_cut = is_cut

    async def send(
        self, method: str, target: str, body: bytes, timeout: float
    ) -> tuple[int, str, bytes]:  # as its base
        if self._is_cut():
            await asyncio.sleep(1.0)
            raise CloudUnreachable("no route to the cloud", action="")
        return await super().send(method, target, body, timeout)


class SimulatedHost:
    """One host of a simulated cloud. The agent on it can be started, stopped and killed; the machine goes on."""

    def __init__(
        self,
        tmp_path: Path,
        topology: Topology | None = None,
        *,
        seed: int = 0,
        disk_seconds: float = 0.0,
        **settings: object,
    ) -> None:
        self.disk = Disk(disk_seconds)
        self.clock = VirtualClock()
        self.rng = random.Random(seed)
        self.topology = topology or default_topology("sim", hosts=1)
        self.instance_id = self.topology.hosts[0].instance_id
        self.model = Model(self.topology, rng=self.rng, now=self.clock.now)
        self.api = Api(self.model, now=self.clock.now, sleep=self.clock.sleep, rng=self.rng)
        self.kernel = FakeKernel(
            self.instance_id, rng=self.rng, sleep=self.clock.sleep, latencies=self.topology.latencies
        )
        self.kernel.apply(*self.model.plugged())
        self.settings = settings_of(tmp_path, self.topology, **settings)
        self.steps = Steps()
        self.process: Process | None = None  # the agent's
        self._processes: list[Process] = []  # and those before it
        self.listeners: tuple[Listener, ...] = ()  # hear of every event
        self.on_turn: Callable[[int], None] = lambda _lock: None  # hears of turns that are given, or come back
        self.on_call: Callable[[CallSeen], None] = lambda _call: None  # and of every call that is over
        self.is_cut_off = False  # from the cloud
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
        return self.agent.context.table.nics

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
        transport = Asked(process, Cable(self.api, lambda: self.is_cut_off))
        limiter = make_gate(self.clock, self.settings.api_budget, self.on_turn)
        client = Client(access, transport, limiter, clock=self.clock, rng=self.rng, observe=self.on_call)
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
        """End the agent wherever it is: only the disk, the kernel and the cloud keep what they have."""
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
        """See that nothing is left of an agent that died, or never came to life; a bug that ended it shows."""
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
        """The world is over, and with it what it still did for agents that were killed."""
        if self._running is not None:
            await self.kill()
        for process in self._processes:
            await process.forget()

    def set_clock(self, forward: float) -> None:
        """Set the host's clock while no agent runs; the next one is told what it can learn of that (agent.clock)."""
        self.clock.ahead += forward
        self._set_forward = max(forward, 0.0)

    async def check_alive(self) -> None:
        """Let a bug that ended the agent, or the cloud, show."""
        if self.pump is not None and self.pump.done():
            self.pump.result()
        if self._running is not None and self._running.done():
            self._running.result()

    # --- the container runtime -----------------------------------------------------------------------

    async def add(self, container: str, *, config: NetworkConfig = CONFIG, seconds: float = 100.0) -> Attachment:
        """ADD for a container whose namespace is there, or is made now."""
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
        """A whole request, as it comes from the plugin; *config* and *more* are added to the network configuration.

        For a container the namespace is made if it is not there, unless *netns* names another one.
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
        return await CniApi(self.agent, Metrics())._serve(request, Phases(), is_awaited)

    def paths(self) -> set[str]:
        return self.kernel._paths()

    # --- the operator at the cloud's console ---------------------------------------------------------

    def console(self, action: str, *nic_ids: str, **params: str) -> dict[str, Any]:
        """A call that the agent knows nothing of; the cloud's answer, whatever it is."""
        ids = {f"nics.{n}": nic_id for n, nic_id in enumerate(nic_ids, 1)}
        faults, self.model._faults = self.model._faults, Faults((), rng=self.rng)
        try:
            return self.model.call({"action": action, "zone": self.topology.zone} | ids | params)
        finally:
            self.model._faults = faults

    # --- what must hold ------------------------------------------------------------------------------

    async def until(self, condition: Any, what: str, seconds: float = 600.0) -> None:
        """Let virtual time pass until *condition* holds."""
        end = self.clock.now() + seconds
        while not condition():
            await self.check_alive()
            assert self.clock.now() < end, f"not within {seconds} s: {what}; {self.agent.context.table}"
            await self.clock.sleep(0.25)

    def ours_in_cloud(self) -> dict[str, str]:
        """Status by NIC id of the NICs that bear this agent's name, and are not attached elsewhere."""
        records = self.model.state.nics.values()
        prefix = self.settings.nic_name_prefix
        here = ("", self.instance_id)
        return {
            n.nic_id: n.status for n in records if is_ours(n.name, prefix, self.instance_id) and n.instance_id in here
        }

    def check_invariants(self, *, strangers: int = 0) -> None:
        """What design section 3 promises at every moment; *strangers* of its NICs somebody else has made."""
        table = self.agent.context.table
        broken = violations(table.nics.values(), table.attachments.values())
        assert not broken, broken
        assert not self.kernel.stale, f"handed out before the host forgot the flows: {self.kernel.stale}"
        most, cloud = self.settings.max_nics + strangers, self.ours_in_cloud()
        assert len(table.nics) + table.creating <= most, table
        assert len(cloud) <= most, f"in the cloud, and not in the table: {cloud.keys() - table.nics.keys()}"
        for nic_id, intents in _spoken_of(table).items():
            assert len(intents) == 1, f"{nic_id} is in several operations at once: {intents}"


def _spoken_of(table: Table) -> dict[str, list[str]]:
    """By NIC id the operations under way that speak of it."""
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
    **settings: object,
) -> AsyncIterator[SimulatedHost]:
    """A host, and a running agent if *is_started*; *is_warm* waits until the pool has its first NICs."""
    host = SimulatedHost(tmp_path, topology, seed=seed, disk_seconds=disk_seconds, **settings)
    async with served(host, is_warm=is_warm, is_started=is_started):
        yield host


@asynccontextmanager
async def served(host: SimulatedHost, *, is_warm: bool = True, is_started: bool = True) -> AsyncIterator[None]:
    """The same with a host whose cloud was prepared before."""
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


def lived(test: Callable[[SimulatedHost], Awaitable[None]], tmp_path: Path, **settings: Any) -> None:
    """Run *test* on a host of its own."""

    async def main() -> None:
        async with simulated(tmp_path, **settings) as host:
            await test(host)
            host.check_invariants()

    virtual_time.run(main())


def set_faults(host: SimulatedHost, *specs: FaultSpec) -> None:
    """Replace the cloud's faults, counting calls anew; none ends them all."""
    host.model.set_faults(specs)


CODES = (5100, 5000, 2500, 1400, 5200)  # that calls are refused with


class RandomFaults(Faults):
    """Strikes any call with probability *rate*, with one of *effects*.

    Wrong keys never meet the first call of a start: that ends an agent which has nothing to serve.
    """

    def __init__(
        self, rng: random.Random, rate: float, effects: tuple[str, ...] = ("refuse", "lose-reply", "fail-job")
    ) -> None:
        super().__init__((), rng=rng)
        self.rate = rate
        self._effects = effects
        self.codes: tuple[int, ...] = CODES

    def strike(self, params: Mapping[str, str], now: float) -> tuple[Strike, ...]:
        if self._rng.random() >= self.rate:
            return ()
        action = params["action"]
        code = self._rng.choice(self.codes)
        effects = [e for e in self._effects if not EFFECTS[e] or action in EFFECTS[e]]
        if action == FIRST_CALL:
            effects = [e for e in effects if e != WRONG_KEYS]
        if not effects:
            return ()
        spec = FaultSpec(action, self._rng.choice(effects), code=code, message="InjectedFault")
        return (Strike(spec, self.draw_delay(spec)),)
