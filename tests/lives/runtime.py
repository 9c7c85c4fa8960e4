"""The container runtime in a simulated life, and the supervisor of the agent.

Only `answers` waits for the agent, which may die at any moment.
"""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from inprocess.agent import CONFIG, SimulatedHost, key_of, netns_of
from inprocess.spooled import keep
from lives.invariants import Witness, is_recorded
from lives.scenario import Plan
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import AgentError, CheckFailed, StartRefused
from qingcloud_cni.core.nics.model import Attachment
from qingcloud_cni.sim.memory.kernel import NOARP

SERVICES = read_config(
    {"name": "net", "ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}, "isGateway": True}
)


class Disconnected(Exception):
    """The agent died before it answered."""


class Runtime:
    """Restarts the agent, and calls it as a container runtime does."""

    def __init__(self, host: SimulatedHost, witness: Witness, plan: Plan) -> None:
        self.host = host
        self.witness = witness
        self.plan = plan
        self.pending: set[asyncio.Task[None]] = set()
        self.answers_of: dict[str, Attachment] = {}  # to the ADDs of containers that live
        self.deleted: set[str] = set()
        self.made = 0

    # --- the agent's process ---------------------------------------------------------------------------

    async def recover(self) -> None:
        """Start the agent again if it has died, as its supervisor does."""
        while not self.host.is_running:
            await self.host.bury()
            await asyncio.gather(*self.pending, return_exceptions=True)
            await self.host.clock.sleep(1.0)
            with suppress(StartRefused, Disconnected):
                await self._start()
        await self.host.check_alive()

    async def _start(self) -> None:
        try:
            self.witness.begins()
            await self.host.start()
        except asyncio.CancelledError:
            if self.host.is_running:
                raise
            raise Disconnected from None  # it died during its start

    async def kill(self) -> None:
        await self.host.bury()
        await asyncio.gather(*self.pending, return_exceptions=True)

    async def on_kill(self, rng: random.Random) -> None:
        await self.kill()
        await self.host.clock.sleep(rng.choice((0.0, 0.3, 40.0)))

    def on_crash(self, rng: random.Random) -> None:
        """Let the agent die before one of its next steps."""
        self.host.steps.die_after(int(rng.choice((3, 30, 300, 1000)) * rng.random()) + 1)

    async def on_drain(self, rng: random.Random) -> None:
        self.host.agent.pool.drain()
        await self.host.clock.sleep(rng.uniform(0, 30))
        await self.kill()

    # --- the container runtime -------------------------------------------------------------------------

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.pending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.pending.discard(task)
        if not task.cancelled() and (err := task.exception()) is not None:
            self.witness.breaks(f"{type(err).__name__}: {err}")

    async def asked(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Make a request to the agent; Disconnected if it dies or does not run."""
        process = self.host.process
        if process is None or not self.host.is_running:
            work.close()
            raise Disconnected
        task = process.start(work, "request")
        await asyncio.wait({task})
        if task.cancelled():
            raise Disconnected
        return task.result()

    def alive(self) -> list[str]:
        return sorted(self.answers_of)

    def containers(self) -> list[str]:
        """Return the containers of runtime and table."""
        paths = {p.rpartition("/")[2] for p in self.host.paths() if p.startswith("/run/netns/c")}
        return sorted(paths | {a.key.container_id for a in self.host.table.attachments.values()})

    async def add(self, name: str, rng: random.Random) -> None:
        config = SERVICES if "services" in self.plan.conditions and rng.random() < 0.3 else CONFIG
        seconds = rng.choice((1.0, 30.0, 100.0))
        try:
            answer = await self.asked(self.host.add(name, config=config, seconds=seconds))
        except (AgentError, Disconnected) as err:
            self.witness.note("failed", name, type(err).__name__)
            await self.delete(name)  # as every runtime does after a failed ADD
            return
        self.witness.note("answered", name, answer.nic_id)
        if name not in self.deleted:
            self.witness.ended.discard(name)
        if name in self.deleted or netns_of(name) not in self.host.paths():
            return  # the container has ended
        if not is_recorded(self.host, name):
            self.witness.breaks(f"ADD of {name} was answered, and is not on disk")
        self.answers_of[name] = answer
        self.witness.promised[name] = answer.nic_id

    async def delete(self, name: str) -> None:
        """Send or spool a DEL and end the namespace, in either order."""
        self.forget(name)
        self.deleted.add(name)
        self.witness.ended.add(name)
        if self.plan.rng(f"delete {name}").random() < 0.3 and netns_of(name) in self.host.paths():
            self.host.kernel.kill_netns(netns_of(name))
        try:
            await self.asked(self.host.delete(name))
        except (AgentError, Disconnected):
            self.keep_delete(name)
        if netns_of(name) in self.host.paths():
            self.host.kernel.kill_netns(netns_of(name))

    def keep_delete(self, name: str) -> None:
        """Spool the DEL, as the plugin does if the agent does not answer."""
        keep(self.host.settings.spool, key_of(name), self.host.clock.uptime(), self.host.clock.boot)

    def forget(self, name: str) -> None:
        self.answers_of.pop(name, None)
        self.witness.promised.pop(name, None)

    def on_add(self, rng: random.Random) -> None:
        self.made += 1
        name = f"c{self.made}"
        self.host.kernel.make_netns(netns_of(name))
        self.begin(self.add(name, rng))

    def on_burst(self, rng: random.Random) -> None:
        for _ in range(rng.randrange(3, 10)):
            self.on_add(random.Random(rng.random()))

    def on_delete(self, rng: random.Random) -> None:
        if self.alive():
            self.begin(self.delete(rng.choice(self.alive())))

    def on_delete_all(self, rng: random.Random) -> None:
        for name in self.alive():
            self.begin(self.delete(name))

    def on_keep(self, rng: random.Random) -> None:
        """Spool a DEL of a container that lives on, and perhaps add it again."""
        if self.witness.promised:  # not of those whose ADD is being repeated
            name = rng.choice(sorted(self.witness.promised))
            self.forget(name)
            self.witness.ended.add(name)
            self.keep_delete(name)
            if rng.random() < 0.5:
                self.begin(self.add(name, rng))

    def on_die(self, rng: random.Random) -> None:
        """End a namespace without a DEL."""
        if self.alive():
            name = rng.choice(self.alive())
            self.forget(name)
            self.host.kernel.kill_netns(netns_of(name))

    def on_give_up(self, rng: random.Random) -> None:
        """Send a DEL of a container whose ADD is under way."""
        paths = {p.rpartition("/")[2] for p in self.host.paths() if p.startswith("/run/netns/c")}
        if waiting := sorted(paths - self.answers_of.keys()):
            self.begin(self.delete(rng.choice(waiting)))

    def on_repeat(self, rng: random.Random) -> None:
        if self.witness.promised:
            name = rng.choice(sorted(self.witness.promised))
            promised = self.witness.promised.pop(name)  # a changed link is released, and the ADD done again
            self.begin(self._repeat(name, promised, self.answers_of[name]))

    async def _repeat(self, name: str, promised: str, before: Attachment) -> None:
        is_whole = self._is_as_answered(name)
        again = None
        with suppress(AgentError, Disconnected):
            again = await self.asked(self.host.add(name))
        if self.answers_of.get(name) is not before:
            return  # deleted meanwhile
        is_whole = is_whole and self._is_as_answered(name)
        if again is None and not is_whole:
            await self.delete(name)  # a failed ADD
        elif again is None:
            self.witness.promised[name] = promised
        else:
            if is_whole and again.nic_id != before.nic_id:
                self.witness.breaks(f"ADD of {name} gave {before.nic_id}, and {again.nic_id} when repeated")
            self.answers_of[name] = again
            self.witness.promised[name] = again.nic_id

    def on_check(self, rng: random.Random) -> None:
        if self.witness.promised:
            name = rng.choice(sorted(self.witness.promised))
            self.begin(self._check(name, self.answers_of[name]))

    async def _check(self, name: str, before: Attachment) -> None:
        result = {"cniVersion": "1.1.0", "interfaces": [], "ips": []}
        with suppress(AgentError, Disconnected):
            try:
                await self.asked(self.host.ask(Verb.CHECK, name, prevResult=result))
            except CheckFailed as err:
                is_same = self.answers_of.get(name) is before and name in self.witness.promised
                if is_same and self._is_as_answered(name) and "prevResult" not in str(err):
                    self.witness.note("check", str(err))

    def _is_as_answered(self, name: str) -> bool:
        """Whether the container lives and has not changed its link."""
        links = self.host.kernel.devices_in(netns_of(name)) if self._is_there(name) else ()
        return any(
            (n.name, n.mac, n.is_up) == ("eth0", self.answers_of[name].nic_id, True) and n.alias and n.soil != NOARP
            for n in links
        )

    def _is_there(self, name: str) -> bool:
        return netns_of(name) in self.host.paths() and name in self.answers_of

    def on_collect(self, rng: random.Random) -> None:
        """Send a GC with a list that may lack containers."""
        valid = [{"containerID": n, "ifname": "eth0"} for n in self.alive() if rng.random() < 0.8]
        self.begin(self._collect(valid))

    async def _collect(self, valid: list[dict[str, str]]) -> None:
        with suppress(AgentError, Disconnected):
            await self.asked(self.host.ask(Verb.GC, "", {"cni.dev/valid-attachments": valid}))

    # --- time ------------------------------------------------------------------------------------------

    async def on_wait(self, rng: random.Random) -> None:
        await self.host.clock.sleep(rng.expovariate(1.0))

    async def on_long(self, rng: random.Random) -> None:
        await self.host.clock.sleep(rng.uniform(60, 900))

    async def on_hours(self, rng: random.Random) -> None:
        await self.host.clock.sleep(rng.uniform(1, 8) * 3600)

    async def on_answers(self, rng: random.Random) -> None:
        await self.answers(200.0)

    async def answers(self, seconds: float) -> None:
        """Wait until every request is answered, or *seconds*."""
        if self.pending:
            await asyncio.wait(set(self.pending), timeout=seconds)
