"""Many whole agents on one virtual clock, sharing one simulated cloud and one key's quota of calls."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from inprocess.agent import CONFIG, key_of, netns_of, settings_of
from inprocess.budgets import PLENTY, make_limiter
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.agent.agent import Agent, World
from qingcloud_cni.agent.base import attachment_lock
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cloud import Access, Caller, CallOutcome, CallSeen, Client, Limiter
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.memory.kernel import FakeKernel
from qingcloud_cni.sim.memory.local import LocalTransport, run_jobs
from qingcloud_cni.sim.topology import (
    Effect,
    HostSpec,
    Latencies,
    Limits,
    PlugNic,
    RouterSpec,
    Topology,
    UnplugNic,
    VxnetSpec,
)

HOSTS_PER_VXNET = 10  # 252 addresses of a vxnet are enough for 20 pods and a pool on each
LATENCIES = Latencies(attach=(2.0, 4.0), detach=(2.0, 4.0), call=(0.05, 0.3))
DEADLINE = 108.0  # seconds the agent has for an ADD: the plugin's 110 less 2
RETRY = (10.0, 20.0)  # seconds after which the kubelet retries to set a pod up
UNHURRIED = 60.0  # seconds between checks of the spool, which is not used here, and of callers, who never leave


@dataclass(frozen=True)
class SeenCall:
    at: float
    urgency: Urgency
    outcome: CallOutcome


class ForgetfulStore:
    """A store for agents that are never killed."""

    async def load(self) -> Snapshot:
        return Snapshot()

    async def save(self, changes: Sequence[Change]) -> None:
        """Save nothing."""

    async def replace_file(self, changes: Sequence[Change]) -> str:
        return ""

    async def check_files(self) -> str | None:
        return None

    async def tidy(self) -> None:
        """Do nothing."""

    async def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        return ()

    async def close(self) -> None:
        """Do nothing: it holds nothing open."""


@dataclass(eq=False)
class FleetHost:
    spec: HostSpec
    kernel: FakeKernel
    agent: Agent | None = None  # once it is started
    pods: set[str] = field(default_factory=set)


class Fleet:
    """Hosts with agents, their pods, and the calls and waits of both."""

    def __init__(
        self, directory: Path, hosts: int, pool: Mapping[str, int], *, api_budget: int, calls_per_hour: int, seed: int
    ) -> None:
        """*pool*: settings of every host's pool."""
        self.clock = VirtualClock()
        self.rng = random.Random(seed)
        self.calls: list[SeenCall] = []
        self.waits: list[float] = []  # seconds from a pod's first ADD until it has its NIC
        self.topology = make_topology(hosts, calls_per_hour)
        self.api_budget = api_budget
        self._pool = pool
        self.model = Model(self.topology, rng=self.rng, now=self.clock.now)
        self._api = Api(self.model, now=self.clock.now, sleep=self.clock.sleep, rng=self.rng)
        self._directory = directory
        self.hosts = [
            FleetHost(spec, FakeKernel(spec.instance_id, rng=self.rng, sleep=self.clock.sleep, latencies=LATENCIES))
            for spec in self.topology.hosts
        ]
        self._kernels = {host.spec.instance_id: host.kernel for host in self.hosts}
        self._plugged: dict[str, FakeKernel] = {}  # by NIC
        self.carry_out(*self.model.plugged())
        self._lives: list[asyncio.Task[None]] = []  # of agents
        self._limiters: list[Limiter] = []
        self._pods = 0

    def carry_out(self, *effects: Effect) -> None:
        """Apply each effect to the kernel of its host."""
        for effect in effects:
            if isinstance(effect, PlugNic):
                self._plugged[effect.nic_id] = self._kernels[effect.instance_id]
            self._plugged[effect.nic_id].apply(effect)
            if isinstance(effect, UnplugNic):
                del self._plugged[effect.nic_id]

    # --- agents --------------------------------------------------------------------------------------

    async def start(self, host: FleetHost, group: asyncio.TaskGroup) -> None:
        """Start the agent of a host; it runs in *group* until `end`."""
        begun: asyncio.Future[Agent] = asyncio.get_running_loop().create_future()
        self._lives.append(group.create_task(self._live(host, begun)))
        host.agent = await begun

    async def _live(self, host: FleetHost, begun: "asyncio.Future[Agent]") -> None:
        access = Access(self.topology.access_key_id, self.topology.secret_access_key, zone=self.topology.zone)
        limiter = make_limiter(self.clock, self.api_budget)
        self._limiters.append(limiter)
        client = Client(Caller(access, LocalTransport(self._api), limiter, self.clock, self.rng, self._see))
        world = World(client, host.kernel, ForgetfulStore(), self.clock, self.rng, boot_id="boot-1")
        async with Agent.opened(self._settings(host), host.spec.instance_id, world) as agent:
            agent.spool.record.period = UNHURRIED
            await agent.compare_kernel()
            agent.begin()
            begun.set_result(agent)
            await asyncio.Future()

    def end(self) -> None:
        for life in self._lives:
            life.cancel()

    def _settings(self, host: FleetHost) -> Settings:
        number = self.hosts.index(host) // HOSTS_PER_VXNET
        directory = self._directory / host.spec.name
        vxnets = [f"vxnet-p{number}"]
        return settings_of(directory, self.topology, vxnet=vxnets, api_budget=self.api_budget, **self._pool)

    def _see(self, call: CallSeen) -> None:
        self.calls.append(SeenCall(self.clock.now(), call.urgency, call.outcome))

    async def settle(self, seconds: float = 3600.0) -> None:
        """Wait until the pools have reached their marks."""
        end = self.clock.now() + seconds
        while not all(self._is_calm(host) for host in self.hosts):
            assert self.clock.now() < end, "the pools are not calm"
            await self.clock.sleep(5.0)

    def _is_calm(self, host: FleetHost) -> bool:
        assert host.agent is not None
        return host.agent.is_cloud_compared and not host.agent.pool.plan() and not host.agent.context.table.intents

    def begin_counting(self, calls_per_hour: int, api_budget: int) -> None:
        """Clear all counts; from now on these quotas hold, unused."""
        self.model.topology = replace(self.topology, limits=Limits(calls_per_hour=calls_per_hour))
        for limiter in self._limiters:
            limiter.budget = Budget(api_budget, self.clock.now())
        self.calls.clear()
        self.waits.clear()

    # --- pods ----------------------------------------------------------------------------------------

    async def add(self, host: FleetHost) -> str:
        """Set a pod up as the kubelet does, each retry in a new sandbox; return the name of the last."""
        begun = self.clock.now()
        while True:
            self._pods += 1
            name = f"c{self._pods}"
            host.kernel.make_netns(netns_of(name))
            try:
                assert host.agent is not None
                host.agent.check_initialised()
                call = attachment_lock.CniCall(Verb.ADD, DEADLINE)
                await host.agent.attachments.add(key_of(name), netns_of(name), CONFIG, call)
            except AgentError:
                host.kernel.kill_netns(netns_of(name))
                await self.clock.sleep(self.rng.uniform(*RETRY))
            else:
                self.waits.append(self.clock.now() - begun)
                host.pods.add(name)
                return name

    async def delete(self, host: FleetHost, name: str) -> None:
        assert host.agent is not None
        host.pods.discard(name)
        await host.agent.attachments.delete(key_of(name), attachment_lock.CniCall(Verb.DEL))
        host.kernel.kill_netns(netns_of(name))


def make_topology(hosts: int, calls_per_hour: int) -> Topology:
    """Return one VPC, with vxnets for the hosts' primary NICs and one for the pods of every HOSTS_PER_VXNET hosts."""
    router = RouterSpec("rtr-1", "10.0.0.0/8")
    primaries = [VxnetSpec(f"vxnet-h{n}", "", f"10.1.{n}.0/24", "rtr-1") for n in range(-(-hosts // 200))]
    pods = [VxnetSpec(f"vxnet-p{n}", "", f"10.2.{n}.0/24", "rtr-1") for n in range(-(-hosts // HOSTS_PER_VXNET))]
    return Topology(
        routers=(router,),
        vxnets=(*primaries, *pods),
        hosts=tuple(HostSpec(f"host{n}", f"vxnet-h{n // 200}", f"i-host{n}") for n in range(hosts)),
        limits=Limits(calls_per_hour=calls_per_hour),
        latencies=LATENCIES,
    )


@asynccontextmanager
async def fleet_of(
    directory: Path,
    hosts: int,
    *,
    pool: Mapping[str, int],
    api_budget: int = PLENTY,
    calls_per_hour: int = 0,
    seed: int = 1,
) -> AsyncIterator[tuple[Fleet, asyncio.TaskGroup]]:
    """Yield a cloud with hosts whose agents are not started, and the group to start them in."""
    fleet = Fleet(directory, hosts, pool, api_budget=api_budget, calls_per_hour=calls_per_hour, seed=seed)
    usual, attachment_lock.CHECK_PERIOD = attachment_lock.CHECK_PERIOD, UNHURRIED
    try:
        async with asyncio.TaskGroup() as group:
            pump = group.create_task(run_jobs(fleet.model, fleet.carry_out, fleet.clock.sleep, fleet.clock.now))
            yield fleet, group
            pump.cancel()
            fleet.end()
    finally:
        attachment_lock.CHECK_PERIOD = usual
