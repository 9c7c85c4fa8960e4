"""Everything at once: containers come, go and die, calls fail, replies are lost, the agent is killed.

Nothing is lost.

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
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.model import NicState
from qingcloud_cni.sim.topology import Latencies, default_topology
from simulated import RandomFaults, SimulatedHost, netns_of, set_faults, simulated

SEEDS = int(os.environ.get("CHAOS_SEEDS", "40"))
STEPS = 120
FAULT_RATES = (0.0, 0.1, 0.3)


class Chaos:
    """One run: draws what happens next, remembers what containers were promised."""

    def __init__(self, host: SimulatedHost, rng: random.Random) -> None:
        self.host = host
        self.rng = rng
        self.made = 0
        self.alive: dict[str, str] = {}  # containers that got an address, and which NIC
        self.pending: set[asyncio.Task[None]] = set()

    async def step(self) -> None:
        match self.rng.choices(("add", "delete", "die", "wait", "kill", "long"), (30, 20, 8, 30, 3, 2))[0]:
            case "add":
                self.made += 1
                self.begin(self.add(f"c{self.made}"))
            case "delete" if self.alive:
                self.begin(self.delete(self.rng.choice(sorted(self.alive))))
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
        await self.host.start()

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
            assert seen.get(nic_id) == netns_of(name), f"{name} lost its NIC {nic_id}: it is in {seen.get(nic_id)}"


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda n: f"seed-{n}")
def test_whatever_happens_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        latencies = Latencies(attach=(0.5, 12.0), detach=(0.5, 8.0), call=(0.0, 0.4), replug=(0.1, 0.6))
        topology = replace(default_topology("sim", 1), latencies=latencies)
        pods = ["vxnet-pods001", "vxnet-pods002"]
        async with simulated(tmp_path, topology, seed=seed, vxnet=pods, policy="RoundRotate", max_nics=12,
                             cooldown=rng.choice((0, 5, 130)), idle_ttl=rng.choice((5, 600))) as host:  # fmt: skip
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
    waiting = {n.nic_id for n in host.nics.values() if n.state in {NicState.IDLE, NicState.COOLING}}
    assert parked == waiting
    assert not missing, f"attached, and their links are nowhere: {missing}"
