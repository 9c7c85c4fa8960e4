"""Many agents and one key: the short version of `make scale`, and what its tables are made of."""

from pathlib import Path

import pytest

from bench import scale
from bench.scale import HOUR, QUOTA, Case, Outcome, play
from inprocess.fleet import HOSTS_PER_VXNET, SeenCall, fleet_of, make_topology
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.cloud import CallOutcome
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.nics.rows import violations
from qingcloud_cni.sim.topology import Topology

FEW = 12  # hosts


@pytest.mark.parametrize("hosts", [1, FEW])
def test_steady_churn_costs_no_call(hosts: int) -> None:
    outcome = play("steady churn", Case(hosts, QUOTA // hosts))
    assert len(outcome.waits) > 20 * hosts
    assert not outcome.for_pods
    assert outcome.compare <= 12 * hosts  # each quarter of an hour, and each hour, whatever pods do
    assert max(outcome.waits) < 1.0


def test_a_rolling_deployment_finds_its_nics_ready() -> None:
    outcome = play("rolling deployment", Case(FEW, 20))
    assert len(outcome.waits) == 10 * FEW
    assert outcome.for_pods < 1.5 * len(outcome.waits)
    assert max(outcome.waits) < 5.0
    assert not outcome.refused


def test_hosts_that_join_with_a_small_budget_serve_most_pods_at_once() -> None:
    outcome = play("scale-out", Case(FEW, 20))
    waits = sorted(outcome.waits)
    assert waits[len(waits) // 2] < 1.0
    assert waits[-1] < 10.0
    assert not outcome.refused


def test_a_budget_of_four_calls_is_enough_for_a_pool_as_large_as_its_pods() -> None:
    outcome = play("scale-out", Case(FEW, 4, min_idle=10, max_idle=15, quota=4 * FEW))
    assert max(outcome.waits) < 10.0


@pytest.mark.defect("others-26")
def test_budgets_that_add_up_to_too_much_share_the_quota_by_refusals() -> None:
    """Every pod gets its NIC, and few calls fail."""
    outcome = play("scale-out", Case(FEW, 120, quota=4 * FEW))
    assert len(outcome.waits) == 10 * FEW
    assert 0 < outcome.refused < 60 * FEW
    assert sum(call.outcome is CallOutcome.OK for call in outcome.busiest_hour()) <= 2 * 4 * FEW


def test_the_same_seed_gives_the_same_figures() -> None:
    case = Case(3, 20)
    first, again, other = (scale.row(case, play("scale-out", case, seed)) for seed in (1, 1, 2))
    assert first == again != other


@in_virtual_time
async def test_a_fleet_is_whole_after_all_that(tmp_path: Path) -> None:
    async with fleet_of(tmp_path, FEW, pool={}) as (fleet, group):
        await scale.rolling(fleet, group, Case(FEW, 20))
        await fleet.settle(12 * HOUR)
        for host in fleet.hosts:
            assert host.agent is not None
            table = host.agent.context.table
            assert not violations(table.nics.values(), table.attachments.values())
            assert {a.key.container_id for a in table.attachments.values()} == host.pods
            here = {n.nic_id for n in fleet.model.state.nics_of(host.spec.instance_id) if n.role == 0}
            assert here == set(table.nics)


def test_each_few_hosts_have_a_vxnet_of_their_own() -> None:
    topology: Topology = make_topology(500, 0)
    names = [vxnet.vxnet_id for vxnet in topology.vxnets]
    assert len(names) == len(set(names)) == 3 + 500 // HOSTS_PER_VXNET


def test_the_busiest_hour_is_the_one_with_most_calls() -> None:
    def call(at: float) -> SeenCall:
        return SeenCall(at, Urgency.REFILL, CallOutcome.OK)

    times = [0.0, 10.0, 5000.0, 6000.0, 7000.0, 8599.0, 8600.0, 20000.0]
    outcome = Outcome(tuple(map(call, times)), (1.0,))
    assert [c.at for c in outcome.busiest_hour()] == [5000.0, 6000.0, 7000.0, 8599.0]
    assert Outcome((), (1.0,)).busiest_hour() == ()
    assert HOUR == 3600.0
