"""`GET /v1/plan` of a whole agent: its next actions, their reason, and what holds others back."""

import asyncio
from dataclasses import replace

from inprocess.agent import SimulatedHost, on_host, set_faults
from qingcloud_cni.agent.api.plan_view import PlanView, plan_view
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.sim.topology import FaultSpec, Limits, default_topology

PODS = ["vxnet-pods001", "vxnet-pods002"]


def seen(host: SimulatedHost) -> PlanView:
    return plan_view(host.agent)


def words(view: PlanView) -> str:
    return " | ".join(hold.what for hold in view.holds)


def kinds(view: PlanView) -> list[tuple[str, int]]:
    return [(action.kind.value, action.count) for action in view.actions]


@on_host(vxnet=PODS)
async def test_a_pool_between_its_marks_says_that_nothing_is_needed(host: SimulatedHost) -> None:
    view = seen(host)
    assert (view.mode, view.actions, view.holds) == ("serving", [], [])
    assert view.reason == "enough NICs: 0 ADDs wait, min-idle 3; 3 idle, 0 on their way, max-idle 8"
    assert (view.idle, view.coming, view.short, view.held, view.limit) == (3, 0, 0, 3, 60)
    assert 2.0 <= view.attach_seconds <= 4.5
    assert [(v.vxnet_id, v.is_next, v.rests_until) for v in view.vxnets] == [
        (PODS[0], True, 0.0),
        (PODS[1], False, 0.0),
    ]


@on_host(
    topology=replace(default_topology("sim", 1), faults=(FaultSpec("DescribeInstances", "silence", times=99),)),
    is_warm=False,
)
async def test_before_the_comparison_nothing_is_asked_of_the_cloud(host: SimulatedHost) -> None:
    view = seen(host)
    assert (view.mode, view.actions) == ("starting", [])
    assert "not compared its table with the cloud" in view.reason


@on_host()
async def test_the_plan_shows_the_cause_of_a_refused_create_and_its_next_retry(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("CreateNics", "refuse", times=99, code=2400, message="NoMoney"))
    await host.add("c0")
    await host.clock.sleep(20)
    view = seen(host)
    assert (view.actions, view.short) == ([], 1)
    assert view.reason == "1 more wanted, but not possible yet: 0 ADDs wait, min-idle 3; 2 idle, 0 on their way"
    (hold,) = view.holds
    assert hold.what.startswith("a create or attach failed and will be retried (CreateNics ")
    assert "NoMoney" in hold.what
    assert hold.until is not None
    assert hold.until > host.clock.now()


@on_host(
    topology=replace(default_topology("sim", 1), limits=Limits(nics_per_vxnet=2)), vxnet=PODS, min_idle=2, max_idle=2
)
async def test_the_plan_shows_full_vxnets_with_their_pause(host: SimulatedHost) -> None:
    for n in range(4):
        await host.add(f"c{n}")
    waiting = asyncio.create_task(host.add("c4", seconds=60.0))
    await host.clock.sleep(10)
    view = seen(host)
    assert all(v.rests_until > host.clock.now() and v.room == 0 for v in view.vxnets)
    assert "the vxnets have no room for more than 0" in words(view)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


@on_host(max_nics=3)
async def test_the_plan_of_a_full_host_names_its_limit_and_the_next_cooled_address(host: SimulatedHost) -> None:
    for n in range(3):
        await host.add(f"c{n}")
    await host.delete("c1")
    view = seen(host)
    assert (view.held, view.limit, view.limited_by) == (3, 3, "max-nics 3")
    assert (
        words(view) == "3 NICs are held (max-nics 3): 0 more fit | 1 addresses cool down; until the next NIC is idle"
    )
    assert view.holds[1].until == host.table.in_state(NicState.COOLING)[0].released + 130


@on_host()
async def test_the_plan_of_a_drain_shows_releases_and_what_prevents_them(host: SimulatedHost) -> None:
    await host.add("c0")
    await host.until(lambda: host.states().count("idle") == 3, "refilled")
    set_faults(host, FaultSpec("DetachNics", "refuse", times=99, code=1400, message="NotNow"))
    host.agent.pool.drain()
    seen_kinds, seen_words = set(), ""
    for _ in range(200):
        view = seen(host)
        seen_kinds |= set(kinds(view))
        seen_words += words(view)
        await host.clock.sleep(0.1)
    assert view.mode == "draining"
    assert "NotNow" in seen_words
    assert seen_kinds <= {("detach", 3)}
