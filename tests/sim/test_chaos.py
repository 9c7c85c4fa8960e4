"""Everything at once: containers come, go and die, calls fail, replies are lost, the agent is killed.

In the second half somebody is at the console as well, and containers do what they like to their links. Nothing
is lost.

A failing seed is in the test's id; `pytest "tests/sim/test_chaos.py::...[seed-7]"` replays it exactly.
"""

import asyncio
import os
import random
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import virtual_time
from kept import keep
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.model import NicState
from qingcloud_cni.sim.faults import EFFECTS, EMPTY_LIST, NIC_GONE, PARTIAL_LIST, WRONG_KEYS
from qingcloud_cni.sim.topology import Latencies, Limits, default_topology
from simulated import RandomFaults, SimulatedHost, key_of, netns_of, set_faults, simulated

SEEDS = int(os.environ.get("CHAOS_SEEDS", "40"))
STEPS = 120
FAULT_RATES = (0.0, 0.1, 0.3)
DISK_SECONDS = (0.0, 0.004, 0.3)
PARKED = {NicState.IDLE, NicState.COOLING, NicState.QUARANTINED}
# Left out: what may end a first start, as it should; lists that lie, which two looks see through and a cloud that
# lies half the time does not care; NICs that go by themselves, for Havoc knows only of those that it takes.
EVERYTHING = tuple(e for e in EFFECTS if e not in {WRONG_KEYS, EMPTY_LIST, PARTIAL_LIST, NIC_GONE})


class Chaos:
    """One run: draws what happens next, remembers what containers were promised."""

    def __init__(self, host: SimulatedHost, rng: random.Random) -> None:
        self.host = host
        self.rng = rng
        self.made = 0
        self.alive: dict[str, str] = {}  # containers that got an address, and which NIC
        self.taken: set[str] = set()  # NICs that somebody has taken away at the console
        self.pending: set[asyncio.Task[None]] = set()

    async def step(self) -> None:
        kinds = {"add": 30, "delete": 20, "keep": 5, "die": 8, "wait": 30, "kill": 3, "long": 2}
        match self.rng.choices((*kinds,), (*kinds.values(),))[0]:
            case "add":
                self.made += 1
                self.begin(self.add(f"c{self.made}"))
            case "delete" if self.alive:
                self.begin(self.delete(self.rng.choice(sorted(self.alive))))
            case "keep" if self.alive:
                name = self.keep(self.rng.choice(sorted(self.alive)))
                if self.rng.random() < 0.5:
                    self.begin(self.add(name))  # as the same container, in the same namespace
            case "die" if self.alive:
                name = self.rng.choice(sorted(self.alive))
                del self.alive[name]
                self.host.kernel.kill_netns(netns_of(name))
            case "kill":
                await self.kill()
            case "long":
                await self.host.clock.sleep(self.rng.uniform(60, 900))
            case _:
                await self.host.clock.sleep(self.rng.expovariate(1.0))

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.pending.add(task)
        task.add_done_callback(self.pending.discard)

    async def add(self, name: str) -> None:
        try:
            attachment = await self.host.add(name, seconds=self.rng.choice((1.0, 30.0, 100.0)))
        except AgentError:
            if netns_of(name) in self.host.paths():
                self.host.kernel.kill_netns(netns_of(name))  # the runtime gives up on it, as after any failed ADD
            return
        self.alive[name] = attachment.nic_id

    async def delete(self, name: str) -> None:
        self.alive.pop(name, None)
        await self.host.delete(name)
        if netns_of(name) in self.host.paths():
            self.host.kernel.kill_netns(netns_of(name))

    def keep(self, name: str) -> str:
        """DEL while the agent could not be asked; the container's namespace lives on."""
        del self.alive[name]
        keep(self.host.settings.spool, key_of(name), self.host.clock.now())
        return name

    async def kill(self) -> None:
        """The agent dies, and with it every request that it was serving."""
        served = tuple(self.pending)
        for task in served:
            task.cancel()
        await self.host.kill()
        await asyncio.gather(*served, return_exceptions=True)
        for path in sorted(self.host.paths() - {netns_of(n) for n in self.alive}):
            if path.startswith("/run/netns/c"):
                self.host.kernel.kill_netns(path)
        await self.host.clock.sleep(self.rng.choice((0.0, 0.3, 40.0)))
        kept = {self.keep(name) for name in sorted(self.alive) if self.rng.random() < 0.2}
        await self.host.start()
        assert not kept & self.attached(), "they are released before anything is served"

    def attached(self) -> set[str]:
        return {a.key.container_id for a in self.host.agent.context.table.attachments.values()}

    async def check(self) -> None:
        await self.host.check_alive()
        self.host.check_invariants()
        seen: dict[str, str] = {}
        for path in self.host.paths():
            for link in self.host.kernel.links_in(path):
                assert link.mac not in seen, f"{link.mac} is in {seen[link.mac]} and {path}"
                seen[link.mac] = path
        for name, nic_id in self.alive.items():
            if nic_id in self.taken:
                continue
            assert seen.get(nic_id) == netns_of(name), f"{name} lost its NIC {nic_id}: it is in {seen.get(nic_id)}"


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda n: f"seed-{n}")
def test_whatever_happens_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        latencies = Latencies(attach=(0.5, 12.0), detach=(0.5, 8.0), call=(0.0, 0.4), replug=(0.1, 0.6))
        topology = replace(default_topology("sim", 1), latencies=latencies)
        pods = ["vxnet-pods001", "vxnet-pods002"]
        async with simulated(tmp_path, topology, seed=seed, vxnet=pods, policy="RoundRotate", max_nics=12,
                             disk_seconds=rng.choice(DISK_SECONDS), cooldown=rng.choice((0, 5, 130)),
                             idle_ttl=rng.choice((5, 600))) as host:  # fmt: skip
            host.model._faults = RandomFaults(rng, rng.choice(FAULT_RATES))
            chaos = Chaos(host, rng)
            for _ in range(STEPS):
                await chaos.step()
                await chaos.check()
            set_faults(host)
            if chaos.pending:
                await asyncio.wait(chaos.pending, timeout=200)
            await host.until(lambda: chaos.attached() == set(chaos.alive), "dead containers are released", 60.0)
            await converged(host)
            await chaos.check()
            assert chaos.attached() == set(chaos.alive)

    virtual_time.run(main())


async def converged(host: SimulatedHost) -> None:
    """With the faults off, table, cloud and kernel agree again."""
    agent = host.agent
    moving = {NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING, NicState.DETACHING, NicState.DELETING}

    def is_calm() -> bool:
        return not agent.context.table.intents and not any(n.state in moving for n in host.nics.values())

    await host.until(is_calm, "no operation is under way", 1800.0)
    missing = {n.nic_id for n in host.nics.values() if n.state is NicState.MISSING}
    assert set(host.ours_in_cloud()) == set(host.nics)
    parked = {link.mac for link in host.kernel.links_in(host.kernel.parking_path)}
    assert parked == {n.nic_id for n in host.nics.values() if n.state in PARKED}
    assert not missing, f"attached, and their links are nowhere: {missing}"


class Havoc(Chaos):
    """Besides: an operator at the console, others with our addresses, meddling containers, drains, long outages."""

    async def step(self) -> None:
        match self.rng.choices(
            ("as before", "detach", "delete", "elsewhere", "here", "meddle", "drain", "outage", "claim"),
            (100, 3, 2, 2, 2, 6, 1, 2, 4),
        )[0]:
            case "detach":
                self.console("DetachNics", "in-use")
            case "delete":
                self.console("DeleteNics", "available")
            case "elsewhere":
                self.console("AttachNics", "available", instance=self.host.topology.hosts[1].instance_id)
            case "here":
                self.console("AttachNics", "available", instance=self.host.instance_id)
            case "meddle" if self.alive:
                self.meddle(self.rng.choice(sorted(self.alive)))
            case "drain":
                self.host.agent.pool.drain()
                await self.host.clock.sleep(self.rng.uniform(0, 30))
                await self.kill()
            case "outage":
                await self.outage()
            case "claim" if self.host.nics:
                self.claim(self.rng.choice(sorted(nic.host_address for nic in self.host.nics.values())))
            case _:
                await super().step()

    def console(self, action: str, status: str, **params: str) -> None:
        """Somebody does that with a NIC of ours, if it can be done."""
        candidates = sorted(nic_id for nic_id, now in self.host.ours_in_cloud().items() if now == status)
        if not candidates:
            return
        nic_id = self.rng.choice(candidates)
        if self.host.console(action, nic_id, **params)["ret_code"] == 0:
            self.taken.add(nic_id)

    def claim(self, address: str) -> None:
        """Somebody in the vxnet uses the address from now on, or no more."""
        if self.host.kernel.claims.pop(address, None) is None:
            self.host.kernel.claims[address] = f"02:00:00:00:01:{self.rng.randrange(4):02x}"

    def meddle(self, name: str) -> None:
        """The container renames its link, changes its MAC, or wipes the alias off it."""
        space = self.host.kernel._at(netns_of(name))
        for link in space.links.values():
            match self.rng.choice(("name", "mac", "alias")):
                case "name":
                    link.name = f"net{self.rng.randrange(1000)}"
                case "mac":
                    link.mac = f"02:00:00:00:00:{self.rng.randrange(256):02x}"
                    self.taken.add(link.nic_id)
                case "alias":
                    link.alias = ""

    async def outage(self) -> None:
        """The cloud does not answer for minutes or hours, and life goes on."""
        faults = self.host.model._faults
        assert isinstance(faults, RandomFaults)
        before, faults.rate = faults.rate, 1.0
        end = self.host.clock.now() + self.rng.choice((60.0, 600.0, 7200.0))
        while self.host.clock.now() < end:
            await super().step()
            await self.check()
            await self.host.clock.sleep(self.rng.expovariate(1 / 60))
        faults.rate = before


@pytest.mark.parametrize("seed", range(SEEDS // 2), ids=lambda n: f"seed-{n}")
def test_whatever_anybody_does_nothing_of_ours_is_forgotten(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        calls = rng.choice(((0.0, 0.4), (0.0, 0.4), (0.0, 25.0)))  # seconds; a call is given up after 20
        limits = Limits(nics_per_instance=rng.choice((64, 8)), nics_per_vxnet=rng.choice((252, 5)))
        latencies = Latencies(attach=(0.5, 12.0), detach=(0.5, 8.0), call=calls, replug=(0.1, 0.6))
        topology = replace(default_topology("sim", 2), latencies=latencies, limits=limits)
        pods = ["vxnet-pods001", "vxnet-pods002"]
        async with simulated(tmp_path, topology, seed=seed, is_warm=False, vxnet=pods, max_nics=12,
                             policy=rng.choice(("FailRotate", "RoundRotate", "Random")),
                             disk_seconds=rng.choice(DISK_SECONDS), cooldown=rng.choice((0, 5, 130)),
                             idle_ttl=rng.choice((5, 600))) as host:  # fmt: skip
            host.model._faults = RandomFaults(rng, rng.choice(FAULT_RATES), EVERYTHING)
            havoc = Havoc(host, rng)
            for _ in range(STEPS):
                await havoc.step()
                await havoc.check()
            set_faults(host)
            if havoc.pending:
                await asyncio.wait(havoc.pending, timeout=200)
            await host.clock.sleep(60.0)
            for name in havoc.attached() - set(havoc.alive):
                attachment = host.agent.context.table.attachments[key_of(name)]
                assert attachment.nic_id in havoc.taken, f"{name} is dead and was not released"
                await host.delete(name)
            lost = set(havoc.alive) - havoc.attached()
            assert {havoc.alive[name] for name in lost} <= havoc.taken, f"attachments of {lost} are forgotten"
            await remembered(host)
            await havoc.check()

    virtual_time.run(main())


async def remembered(host: SimulatedHost) -> None:
    """With the faults off and after a restart, which compares everything, no NIC is unknown or in a wrong place."""
    table = host.agent.context.table
    await host.until(lambda: not any(i.kind != "create" for i in table.intents.values()), "operations end", 3600.0)
    await host.kill()
    await host.start()
    await host.until(lambda: host.agent.is_cloud_compared, "compared", 3600.0)
    await host.clock.sleep(600.0)
    await host.until(lambda: not host.agent.context.table.intents, "operations end", 3600.0)
    missing = {n.nic_id for n in host.nics.values() if n.state is NicState.MISSING}
    assert set(host.ours_in_cloud()) - set(host.nics) == set()
    assert set(host.nics) - set(host.ours_in_cloud()) <= missing | {
        a.nic_id for a in host.agent.context.table.attachments.values()
    }
    parked = {link.mac for link in host.kernel.links_in(host.kernel.parking_path)}
    assert parked == {n.nic_id for n in host.nics.values() if n.state in PARKED}
