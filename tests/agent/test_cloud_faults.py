"""A whole agent and every fault of the simulated cloud in turn: the pool comes right, and nothing is forgotten."""

from dataclasses import replace
from pathlib import Path

import pytest

from inprocess import virtual_time
from inprocess.agent import SimulatedHost, on_host, set_faults, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.pool.plan import OVERDUE
from qingcloud_cni.sim.cloud.faults import EFFECTS, EMPTY_LIST, ENDLESS_JOB, PARTIAL_LIST, WRONG_KEYS
from qingcloud_cni.sim.topology import FaultSpec, default_topology

ACTIONS = ("DescribeInstances", "DescribeVxnets", "DescribeNics", "DescribeJobs", "CreateNics", "AttachNics",
           "DetachNics", "DeleteNics")  # fmt: skip
CASES = [
    (action, effect)
    for effect, allowed in EFFECTS.items()
    for action in ACTIONS
    if effect != WRONG_KEYS and action in (allowed or ACTIONS)
]
LONG = 4 * 3600.0  # seconds; after a refusal for the call quota there is one call in minutes


async def comes_right(host: SimulatedHost) -> None:
    """Three NICs are ready, and agent, cloud and kernel hold the same."""

    def is_right() -> bool:
        return host.states().count("idle") >= 3 and not host.table.intents

    await host.until(is_right, "a warm pool, and no operation under way", LONG)
    assert set(host.ours_in_cloud()) == set(host.nics)
    host.check_invariants()


@pytest.mark.parametrize(("action", "effect"), CASES, ids=[f"{action}-{effect}" for action, effect in CASES])
@in_virtual_time
async def test_one_fault_of_any_kind_delays_the_pool_and_nothing_is_forgotten(
    tmp_path: Path, action: str, effect: str
) -> None:
    """The pool is filled, shrunk and filled again, under a fault on the first call of this action in each phase."""
    fault = FaultSpec(action, effect)
    topology = replace(default_topology("sim", 1), faults=(fault,))
    async with simulated(tmp_path, topology, is_warm=False, max_idle=3, cooldown=0, idle_ttl=5) as host:
        if effect == ENDLESS_JOB:
            await host.until(lambda: host.states().count("idle") >= 3, "others are ready", 2 * OVERDUE)
            set_faults(host)
        await comes_right(host)
        await host.add("c0")
        await host.add("c1")
        await host.until(lambda: host.states().count("idle") >= 3, "refilled", LONG)
        set_faults(host, fault)
        await host.delete("c0")
        await host.delete("c1")
        await host.clock.sleep(30.0)
        if effect == ENDLESS_JOB:
            set_faults(host)
        await comes_right(host)
        await host.until(lambda: len(host.nics) == 3 + host.states().count("missing"), "shrunk", LONG)


@pytest.mark.parametrize("effect", [EMPTY_LIST, PARTIAL_LIST])
@on_host()
async def test_an_agent_with_containers_outlives_a_cloud_that_shows_nothing(host: SimulatedHost, effect: str) -> None:
    await host.add("c0")
    await host.until(lambda: host.states() == ["assigned"] + ["idle"] * 3, "refilled")
    before = dict(host.nics)
    await host.kill()
    set_faults(host, FaultSpec("*", effect, lasts=3600.0))
    await host.start()
    await host.add("c1")
    await host.clock.sleep(1800.0)
    await host.check_alive()
    assert "unknown to the cloud" in host.agent.last_cloud_error
    assert set(host.nics) == set(before)
    await host.clock.sleep(3600.0)
    await comes_right(host)
    assert set(before) <= set(host.nics)


def test_a_first_start_fails_after_several_answers_without_its_instance(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        topology = replace(default_topology("sim", 1), faults=(FaultSpec("DescribeInstances", EMPTY_LIST, times=99),))
        async with simulated(tmp_path, topology, is_warm=False) as host:
            await host.clock.sleep(1.0)
            await host.check_alive()
            await host.clock.sleep(60.0)

    with pytest.raises(ExceptionGroup) as ended:
        virtual_time.run(main())
    refusal: BaseException = ended.value
    while isinstance(refusal, BaseExceptionGroup):  # a task group for each layer of the agent
        (refusal,) = refusal.exceptions
    assert isinstance(refusal, StartRefused)
    assert "i-simhost1 is unknown to the cloud" in str(refusal)


@on_host(
    topology=replace(
        default_topology("sim", 1),
        faults=(
            FaultSpec("DescribeInstances", EMPTY_LIST, times=4),
            FaultSpec("DescribeInstances", "refuse", nth=5, code=5100),
            FaultSpec("DescribeInstances", EMPTY_LIST, nth=6, times=2),
        ),
    ),
    is_warm=False,
)
async def test_a_first_start_forgets_an_unlisted_instance_once_the_cloud_answers_otherwise(
    host: SimulatedHost,
) -> None:
    await host.until(lambda: host.states() == ["idle"] * 3, "warm", LONG)
