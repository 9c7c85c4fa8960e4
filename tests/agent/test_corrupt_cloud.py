"""A whole agent whose cloud answers with any JSON in any field: it lives, its invariants hold, and it recovers."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inprocess import virtual_time
from inprocess.agent import SimulatedHost, key_of, simulated
from inprocess.corruption import GARBAGE, corrupt
from qingcloud_cni.agent.api.views import status_view
from qingcloud_cni.core.errors import AgentError
from qingcloud_cni.core.nics.rows import violations
from qingcloud_cni.sim.memory.machine import HOST_PATH

RATES = (0.1, 0.5, 1.0)  # of replies that are corrupted
CHANGES = 4  # at most, in one reply
STEPS = 12
RECOVERY = 6 * 3600.0  # seconds: repairs and backoffs have to pass, and calls are scarce


class Corruptor:
    """Corrupts replies; values come from a list that includes MACs of the host and of NICs that serve."""

    def __init__(self, host: SimulatedHost, rng: random.Random, rate: float) -> None:
        self._host = host
        self._rng = rng
        self._rate = rate

    def __call__(self, body: bytes) -> bytes:
        if self._rng.random() >= self._rate:
            return body
        return corrupt(body, self._rng, self._value, changes=self._rng.randint(1, CHANGES))

    def _value(self) -> Any:
        macs = [link.mac for link in self._host.kernel.links_in(HOST_PATH)]
        attached = [a.nic_id for a in self._host.table.attachments.values()] if self._host.is_running else []
        return self._rng.choice((*GARBAGE, *macs, *attached, self._host.instance_id))


async def serve(host: SimulatedHost, rng: random.Random) -> None:
    """Requests of a runtime; each succeeds or fails with an error of ours."""
    for step in range(STEPS):
        container = f"c{rng.randrange(4)}"
        try:
            match rng.randrange(4):
                case 0 | 1:
                    await host.add(container, seconds=30.0)
                case 2:
                    await host.delete(container)
                case _:
                    await host.agent.reconciler.ask(60.0)
        except (AgentError, TimeoutError):
            pass
        await host.clock.sleep(rng.choice((1.0, 60.0, 600.0)))
        await check(host, f"step {step}")


async def check(host: SimulatedHost, where: str) -> None:
    await host.check_alive()
    table = host.table
    assert not violations(table.nics.values(), table.attachments.values()), where
    assert len(table.nics) + table.creating <= host.settings.max_nics, where
    assert primary(host) in {link.mac for link in host.kernel.links_in(HOST_PATH)}, where
    assert primary(host) not in table.nics, where
    for nic in table.nics.values():
        assert nic.name.isprintable(), where
    for text in status_view(host.agent, "0", 1).set_aside:
        assert text.isprintable(), where


def primary(host: SimulatedHost) -> str:
    (found,) = (n.nic_id for n in host.model.state.nics.values() if n.role and n.instance_id == host.instance_id)
    return found


async def live(directory: Path, seed: int, rate: float) -> None:
    rng = random.Random(seed)
    async with simulated(directory, seed=seed, api_budget=100_000, cooldown=5) as host:
        host.cable.tamper = Corruptor(host, rng, rate)
        await serve(host, rng)
        await host.kill()
        await host.start()
        await serve(host, rng)
        host.cable.tamper = lambda body: body
        for n in range(4):
            await host.delete(f"c{n}")
        await host.until(lambda: recovered(host), "recovered", RECOVERY)
        await host.add("c9")
        assert key_of("c9") in host.table.attachments
        host.check_invariants()


def recovered(host: SimulatedHost) -> bool:
    is_known = not host.table.intents and set(host.ours_in_cloud()) == set(host.nics)
    return is_known and host.states().count("idle") >= 3


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_an_agent_outlives_a_corrupt_cloud(tmp_path_factory: pytest.TempPathFactory, rate: float, seed: int) -> None:
    virtual_time.run(live(tmp_path_factory.mktemp("life"), seed, rate))
