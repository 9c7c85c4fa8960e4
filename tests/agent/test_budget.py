"""A whole agent and its call budget: what it spends, what waits for it, and the errors of ADDs."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from inprocess.agent import SimulatedHost, on_host, served, set_faults, simulated
from inprocess.budgets import waiting
from inprocess.network import RandomFaults
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.api.plan_view import plan_view
from qingcloud_cni.agent.api.views import status_view
from qingcloud_cni.agent.process.cleanup import _progress
from qingcloud_cni.agent.process.main import OpenAgent
from qingcloud_cni.core.errors import CloudError, PoolEmpty
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.sim.topology import FaultSpec, Latencies, Limits, default_topology

HOUR = 3600.0


def spend(host: SimulatedHost) -> None:
    """Use up what an hour has brought."""
    while host.cloud.permit_now(waiting) is not None:
        pass


@on_host(min_idle=0, max_idle=0, api_budget=20, is_warm=False)
async def test_an_add_that_waits_for_the_budget_says_so_and_so_does_the_status(host: SimulatedHost) -> None:
    await host.until(lambda: host.agent.is_cloud_compared, "compared")
    spend(host)
    with pytest.raises(PoolEmpty, match=r"the call budget is used up: the next call may go in \d+ s"):
        await host.add("c0", seconds=5.0)
    waits = asyncio.create_task(host.add("c1", seconds=1000.0))
    await host.clock.sleep(2.0)
    calls = status_view(host.agent, "0", 1).calls
    assert calls.waiting == {"waiting": 1}
    assert "(api-budget 20 an hour)" in calls.obstacle
    assert (calls.per_hour, calls.rate) == (20, 20.0)
    assert any("the call budget is used up" in hold.what for hold in plan_view(host.agent).holds)
    await waits
    await host.until(lambda: not status_view(host.agent, "0", 1).calls.obstacle, "nothing waits")


@on_host(min_idle=0, max_idle=0, api_budget=20, is_warm=False)
async def test_adds_that_come_while_a_create_waits_share_it(host: SimulatedHost) -> None:
    await host.until(lambda: host.agent.is_cloud_compared, "compared")
    spend(host)
    before = host.model.calls["CreateNics"]
    adds = []
    for n in range(10):
        adds.append(asyncio.create_task(host.add(f"c{n}", seconds=2 * HOUR)))
        await host.clock.sleep(15.0)
    await asyncio.gather(*adds)
    assert host.model.calls["CreateNics"] == before + 1


@on_host(max_idle=3, cooldown=0, idle_ttl=5, api_budget=40)
async def test_surplus_nics_serve_as_long_as_their_release_waits(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(6)))
    cloud, urgency = host.cloud, host.urgency
    while cloud.permit_now(urgency.release):
        pass
    for n in range(6):
        await host.delete(f"c{n}")
    await host.clock.sleep(120.0)
    assert host.states().count("detaching") == 0
    assert host.states().count("idle") > 3
    before = host.calls
    await asyncio.gather(*(host.add(f"d{n}") for n in range(6)))
    assert host.calls == before
    for n in range(6):
        await host.delete(f"d{n}")
    await host.until(lambda: host.states() == ["idle"] * 3, "released in the end", 10 * HOUR)


@on_host(api_budget=40)
async def test_a_drain_does_not_wait_for_the_background_share(host: SimulatedHost) -> None:
    cloud, urgency = host.cloud, host.urgency
    while cloud.permit_now(urgency.release):
        pass
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "drained", 60.0)


@pytest.mark.parametrize("effect", ["reset", "silence", "refuse", "call-quota"])
@on_host(min_idle=5, cooldown=130)
async def test_the_pool_serves_for_hours_without_the_cloud_and_is_refilled_after_it(
    host: SimulatedHost, effect: str
) -> None:
    set_faults(host, FaultSpec("*", effect, lasts=6 * HOUR))
    calls = host.calls
    await host.add("stays")
    for n in range(100):
        await host.add(f"c{n}", seconds=1.0)
        await host.clock.sleep(200.0)
        await host.delete(f"c{n}")
    assert host.calls - calls <= 120 + 6 * 120
    await host.clock.sleep(HOUR)
    await host.until(lambda: host.states().count("idle") >= 5, "refilled", HOUR)
    assert set(host.ours_in_cloud()) == set(host.nics)


@pytest.mark.parametrize("seed", range(6))
@in_virtual_time
async def test_no_hour_has_more_calls_than_the_budget_and_a_burst(tmp_path: Path, seed: int) -> None:
    budget = random.Random(seed).choice((12, 40, 120))
    async with simulated(tmp_path, seed=seed, api_budget=budget, max_idle=4, idle_ttl=30, cooldown=30) as host:
        effects = ("refuse", "lose-reply", "fail-job", "reset", "call-quota")
        host.model.use(RandomFaults(random.Random(seed), 0.3, effects))
        sent: list[float] = []
        host.cable.on_send = lambda _target: sent.append(host.clock.now())
        for n in range(60):
            names = [f"c{n}-{m}" for m in range(host.rng.randrange(8))]
            adds = [asyncio.create_task(host.add(name, seconds=100.0)) for name in names]
            await host.clock.sleep(host.rng.expovariate(1 / 200))
            await asyncio.gather(*adds, return_exceptions=True)
            for name in names:
                await host.delete(name)
            await host.check_alive()
        for end in sent:
            assert sum(end - HOUR < at <= end for at in sent) <= 2 * budget + 2


@on_host(
    topology=replace(default_topology("sim", 1), limits=Limits(calls_per_hour=10)), min_idle=1, max_idle=8, cooldown=0
)
async def test_the_keys_quota_makes_the_agent_wait_and_try_again_until_the_hour_is_over(host: SimulatedHost) -> None:
    begun = host.clock.now()
    for n in range(12):
        await host.add(f"c{n}", seconds=3 * HOUR)
        await host.clock.sleep(30.0)
    took = host.clock.now() - begun
    assert HOUR / 2 < took < 2.5 * HOUR
    assert host.cloud.spending().rate < 120
    assert host.calls <= 100  # few are made in vain
    assert "the cloud refuses calls" in await refused(host)


async def refused(host: SimulatedHost) -> str:
    """The error of an ADD while the key's calls are used up."""
    for n in range(100):
        try:
            await host.add(f"more{n}", seconds=30.0)
        except PoolEmpty as err:
            return str(err)
    return ""


# --- a new host while calls are scarce -----------------------------------------------------------------


@on_host(api_budget=4, is_warm=False)
async def test_a_new_host_with_few_calls_gets_its_first_nics_for_four(host: SimulatedHost) -> None:
    await host.until(lambda: host.states().count("creating") + host.states().count("attaching") > 0, "asked")
    adds = [asyncio.create_task(host.add(f"c{n}", seconds=30.0)) for n in range(5)]
    await asyncio.gather(*adds)
    assert dict(host.model.calls) == {
        "DescribeInstances": 1, "DescribeVxnets": 1, "CreateNics": 1, "AttachNics": 1,
    }  # fmt: skip
    assert len(host.nics) == host.settings.max_idle  # few or many, it takes two calls


def left_behind(host: SimulatedHost) -> str:
    """A free NIC of this host's from an earlier life."""
    name = f"qingcni_{host.instance_id}_0123456789abcdef"
    made = host.console("CreateNics", vxnet="vxnet-pods001", nic_name=name)
    return str(made["nics"][0]["nic_id"])


@on_host(
    topology=replace(default_topology("sim", 1), latencies=Latencies(call=(1.0, 1.0))), api_budget=9, is_warm=False
)
async def test_free_nics_of_an_earlier_life_are_found_later_where_calls_are_scarce(host: SimulatedHost) -> None:
    nic_id = left_behind(host)
    await host.until(lambda: host.states().count("idle") >= 3, "warm")
    assert nic_id not in host.nics
    await host.clock.sleep(12 * HOUR)
    assert set(host.ours_in_cloud()) == set(host.nics)
    host.check_invariants()


@pytest.mark.parametrize("min_idle", [0, 3])
@in_virtual_time
async def test_a_drain_finds_them_at_once(tmp_path: Path, min_idle: int) -> None:
    """And is not over before, though it may have nothing else to do."""
    host = SimulatedHost(tmp_path, api_budget=9, min_idle=min_idle, max_idle=min_idle)
    left_behind(host)
    await host.clock.sleep(400.0)  # it is not young
    async with served(host, is_warm=False):
        await host.until(lambda: host.agent.is_cloud_compared, "begun")
        await host.until(lambda: host.states().count("idle") >= min_idle, "warm")
        assert host.agent.reconciler.is_postponed
        host.agent.pool.drain()
        assert not host.agent.is_drained()
        asked = host.model.calls["DescribeNics"]
        await host.until(lambda: host.model.calls["DescribeNics"] > asked + 1, "looked for", 600.0)
        await host.until(host.agent.is_drained, "drained", 4 * HOUR)
        assert not host.ours_in_cloud()


@on_host(api_budget=9, min_idle=0, max_idle=0, is_warm=False)
async def test_one_of_which_it_cannot_tell_yet_whose_it_is_keeps_a_drain_going(host: SimulatedHost) -> None:
    left_behind(host)
    await host.until(lambda: host.agent.is_cloud_compared, "begun")
    host.agent.pool.drain()
    await host.until(lambda: not host.agent.reconciler.is_postponed, "looked for", 600.0)
    assert not host.agent.is_drained()
    assert "earlier runs" in _progress(cast("OpenAgent", SimpleNamespace(agent=host.agent)))
    await host.until(host.agent.is_drained, "drained", 4 * HOUR)
    assert not host.ours_in_cloud()


@on_host(api_budget=9, is_warm=False)
async def test_a_host_before_its_first_comparison_creates_gateways(host: SimulatedHost) -> None:
    await host.until(lambda: host.agent.is_cloud_compared, "begun")
    routes = {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}
    await host.ask("ADD", "c0", ipam=routes, timeout=110.0)
    assert host.agent.reconciler.is_postponed
    assert host.states().count("gateway") == 1


@on_host(api_budget=9, is_started=False)
async def test_a_host_whose_instance_has_nics_is_compared_at_once(host: SimulatedHost) -> None:
    """They may be ours, of an earlier life."""
    host.console("AttachNics", left_behind(host), instance=host.instance_id)
    await host.clock.sleep(20.0)
    await host.start()
    await host.until(lambda: host.agent.is_cloud_compared, "compared", 12 * HOUR)
    assert not host.agent.reconciler.is_postponed


@pytest.mark.parametrize("faults", [("refuse", 3), ("lose-reply", 2)])
@in_virtual_time
async def test_a_postponed_comparison_is_retried_until_it_succeeds(tmp_path: Path, faults: tuple[str, int]) -> None:
    effect, times = faults
    async with simulated(tmp_path, api_budget=9, is_warm=False) as host:
        await host.until(lambda: host.states().count("idle") >= 3, "warm")
        before = set(host.nics)
        set_faults(host, FaultSpec("DescribeNics", effect, times=times))
        await host.until(lambda: host.model.calls["DescribeNics"] >= times + 2, "answered", 96 * HOUR)
        await host.clock.sleep(60.0)
        assert set(host.nics) == before


@on_host(api_budget=9, is_warm=False)
async def test_a_host_with_nics_or_containers_is_compared_whole_at_once(host: SimulatedHost) -> None:
    await host.until(lambda: host.states().count("idle") >= 3, "warm")
    await host.add("c0")
    before = host.model.calls["DescribeNics"]
    await host.kill()
    await host.start()
    await host.until(lambda: host.agent.is_cloud_compared, "compared", 12 * HOUR)
    assert host.model.calls["DescribeNics"] == before + 2


@on_host(api_budget=9, is_warm=False)
async def test_a_host_with_unattached_nics_is_not_a_new_one(host: SimulatedHost) -> None:
    """Nothing of them can be seen on the host, nor on its instance."""
    set_faults(host, FaultSpec("AttachNics", "refuse", times=1000, code=1400, message="NotNow"))
    await host.until(lambda: host.agent.provisioner.backoff.failures > 0, "refused")
    await host.kill()
    await host.start()
    await host.until(lambda: host.agent.is_cloud_compared, "compared", 12 * HOUR)
    assert not host.agent.reconciler.is_postponed
    assert host.model.calls["DescribeNics"] >= 2


@on_host()
async def test_a_failed_comparison_returns_its_unused_permit(host: SimulatedHost) -> None:
    cloud, reconciler = host.cloud, host.agent.reconciler
    permits = await reconciler.permits(waiting)
    before = cloud.spending().tokens
    set_faults(host, FaultSpec("DescribeNics", "refuse", code=1400, message="NotNow"))
    with pytest.raises(CloudError):
        await reconciler.compare(permits, waiting)
    assert cloud.spending().tokens >= before + 1.0


@on_host(topology=replace(default_topology("sim", 1), latencies=Latencies(detach=(HOUR, HOUR))), api_budget=60)
async def test_a_repair_that_waits_for_its_call_is_not_made_once_the_instance_goes_away(host: SimulatedHost) -> None:
    cloud, urgency = host.cloud, host.urgency
    nic_id = next(iter(host.nics))
    host.kernel.unplug(nic_id)
    await host.until(lambda: host.nics[nic_id].state is NicState.MISSING, "missed")
    await host.until(lambda: cloud.permit_now(urgency.release) is None, "no background call is left")
    remedies = host.agent.reconciler._remedies  # noqa: SLF001  # else a comparison decides when it begins
    repair = asyncio.create_task(remedies._repair([nic_id]))  # noqa: SLF001
    await host.clock.sleep(1.0)
    host.console("StopInstances", **{"instances.1": host.instance_id})
    await host.agent.instance_status.ask(waiting)
    assert not repair.done()
    await repair
    assert host.model.calls["DetachNics"] == 0


# --- jobs ----------------------------------------------------------------------------------------------


@on_host(
    topology=replace(
        replace(default_topology("sim", 1), latencies=Latencies(attach=(14.0, 14.0), detach=(2.0, 2.0))),
        faults=(FaultSpec("AttachNics", "early-link", by=(500.0, 500.0)),),
    )
)
async def test_a_job_is_not_asked_about_any_more_once_its_links_are_there(host: SimulatedHost) -> None:
    asked = host.model.calls["DescribeJobs"]
    assert asked <= 3  # after 10 s, when the links were not there yet
    await host.clock.sleep(1000.0)
    assert host.model.calls["DescribeJobs"] == asked


@on_host(max_idle=3, cooldown=0, idle_ttl=0)
async def test_a_release_asks_about_its_job_once(host: SimulatedHost) -> None:
    await asyncio.gather(*(host.add(f"c{n}") for n in range(6)))
    await host.until_calm()
    before = host.model.calls.copy()
    await asyncio.gather(*(host.delete(f"c{n}") for n in range(6)))
    await host.until(lambda: host.states() == ["idle"] * 3, "shrunk")
    await host.clock.sleep(60.0)
    assert dict(host.model.calls - before) == {"DetachNics": 1, "DescribeJobs": 1, "DeleteNics": 1}
