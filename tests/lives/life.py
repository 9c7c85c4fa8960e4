"""One simulated life of a host and its agent, from a plan."""

import asyncio
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from inprocess import virtual_time
from inprocess.agent import SimulatedHost, simulated
from lives.call_invariants import COMPARISONS, HOUR, most_comparisons
from lives.invariants import InvariantBroken, Witness
from lives.runtime import Disconnected
from lives.scenario import Plan
from lives.steps import Steps
from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.core.drift.schedule import FITTING
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.pool.plan import balance

PATIENCE = 3 * 3600.0  # seconds for the agent to repair all after the last fault; see `patience`


@dataclass
class Life:
    """The result of a life. Each line of *story* begins with its time."""

    story: list[str] = field(default_factory=list)
    steps: int = 0  # of the agent's processes
    error: BaseException | None = None  # a broken invariant or a bug

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.story).encode()).hexdigest()

    @property
    def failure(self) -> str:
        """The error in one line; "": none."""
        err = self.error
        while isinstance(err, BaseExceptionGroup):
            err = err.exceptions[0]
        return "" if err is None else f"{type(err).__name__}: {err}".replace("\n", " ")


def live(plan: Plan, *, crash_after: int = 0) -> Life:
    """Play *plan*. The agent's process dies after *crash_after* steps; 0: it does not."""
    life = Life()

    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            host_of = simulated(
                Path(directory),
                plan.topology(),
                seed=plan.seed,
                is_warm=False,
                is_started=False,
                is_hardware=plan.is_hardware,
                **plan.settings(),
            )
            async with host_of as host:
                witness = Witness(host)
                life.story = witness.story
                if crash_after:
                    host.steps.die_after(crash_after)
                try:
                    await _run(Steps(host, witness, plan))
                finally:
                    life.steps = host.steps.taken

    try:
        virtual_time.run(main())
    except (Exception, asyncio.CancelledError) as err:  # noqa: BLE001  # reported with the story
        life.error = err
    return life


async def _run(steps: Steps) -> None:
    await steps.recover()
    for step in steps.plan.steps:
        steps.witness.note("---", step.number, step.kind)
        await steps.do(step)
        await steps.recover()
        steps.witness.check()
    await end(steps)


async def end(steps: Steps) -> None:
    """End all faults but deaths of the agent: all must agree again, and nothing remains after the last DEL."""
    host, witness = steps.host, steps.witness
    await steps.calm()
    await steps.answers(300.0)
    await _until(steps, lambda: [] if host.agent.is_cloud_compared else ["it is not"], "compared with the cloud")
    await _asked(steps)
    await _until(steps, witness.differences, "in agreement")
    if steps.plan.has_rest:
        await _rest(steps)
    for name in steps.containers():
        steps.begin(steps.delete(name))
    await steps.answers(300.0)
    await _until(steps, witness.remains, "gone", meanwhile=lambda: drain(host))


def patience(plan: Plan) -> float:
    """A small budget of calls slows everything down."""
    return PATIENCE * max(1.0, FITTING / plan.budget)


async def _rest(steps: Steps) -> None:
    """An hour in which nothing happens must take only the calls of comparisons."""
    host, witness = steps.host, steps.witness
    await host.clock.sleep(patience(steps.plan) / 3)  # for what was postponed
    agent = host.agent if host.is_running and _is_content(host.agent) else None
    await host.clock.sleep(HOUR)
    if agent is None or not host.is_running or host.agent is not agent or witness.differences():
        return  # something happened
    if not _is_content(agent):
        return
    calls = Counter(witness.calls.lately(HOUR))
    most = most_comparisons(steps.plan.budget)
    if calls.total() > most or calls.keys() - COMPARISONS:
        raise InvariantBroken(f"in a quiet hour there were {dict(calls)}; at most {most:.1f} are due")


def _is_content(agent: Agent) -> bool:
    """Whether nothing is under way, and the pool lacks nothing, as it does where all vxnets are full."""
    pool, context = agent.pool, agent.context
    short = balance(pool.state(), agent.pool.policy, context.now()).short
    return not (short or pool.plan() or context.table.intents)


def drain(host: SimulatedHost) -> None:
    host.agent.pool.drain()  # of the agent that runs now


async def _asked(steps: Steps) -> None:
    """Ask for a comparison until one succeeds; the calls of an hour may be used up."""
    end = steps.host.clock.now() + patience(steps.plan)
    while True:
        await steps.recover()
        try:
            await steps.asked(steps.host.agent.reconciler.ask(1800.0))
        except (AgentError, TimeoutError, Disconnected) as err:
            if steps.host.clock.now() > end:
                raise InvariantBroken(f"no comparison, though there is no trouble: {err!r}") from err
        else:
            return
        await steps.host.clock.sleep(60.0)


async def _until(
    steps: Steps, told: Callable[[], list[str]], wish: str, *, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Wait until nothing is *told* any more."""
    most = patience(steps.plan)
    end = steps.host.clock.now() + most
    pause = 1.0
    while True:
        await steps.recover()
        steps.witness.check()
        meanwhile()
        if not (left := told()):
            return
        if steps.host.clock.now() > end:
            raise InvariantBroken(f"after {most:.0f} s without trouble still not {wish}: {'; '.join(left)}")
        await steps.host.clock.sleep(pause)
        pause = min(pause * 1.2, 60.0)
