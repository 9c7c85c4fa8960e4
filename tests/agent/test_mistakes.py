"""Simulated lives find mistakes: an agent with one built in breaks a law in one of the first lives."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from lives import scenario
from lives.life import live
from qingcloud_cni.agent.attachments.attachments import Attachments
from qingcloud_cni.agent.base.context import Identity
from qingcloud_cni.agent.base.journal import Journal
from qingcloud_cni.agent.base.urgency import CallUrgency
from qingcloud_cni.agent.cloudops.cloud_writes import CloudWrites
from qingcloud_cni.agent.cloudops.lookups import Lookups
from qingcloud_cni.agent.cloudops.provisioning import Provisioner
from qingcloud_cni.agent.cloudops.release import Releaser
from qingcloud_cni.agent.pool import pool
from qingcloud_cni.agent.pool.flows import Flows
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.agent.reconcile import reconcile
from qingcloud_cni.agent.reconcile.links import Links
from qingcloud_cni.cloud import Limiter
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.drift import cloud_drift, differences
from qingcloud_cni.core.drift.cloud_drift import Forget
from qingcloud_cni.core.drift.differences import Difference, DifferenceKind
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool import plan
from qingcloud_cni.core.seams.kernel import Arrival, Detached
from qingcloud_cni.sim.memory.kernel import FakeKernel
from qingcloud_cni.sim.memory.machine import FakeLink

SEEDS = 300
Patch = Callable[[object, str, Any], None]


def answered_before_it_is_on_disk(patch: Patch) -> None:
    async def record(self: Journal) -> None:
        self.push()

    patch(Journal, "record", record)


def asked_before_it_is_announced(patch: Patch) -> None:
    async def announced(self: CloudWrites, intent: Any) -> Any:
        self._context.journal.push()
        return intent

    patch(CloudWrites, "_persisted", announced)


def addresses_get_no_rest(patch: Patch) -> None:
    for module in (plan, pool):
        patch(module, "due_at", lambda _nic, _policy, _is_awaited: 0.0)


def handed_out_twice(patch: Patch) -> None:
    ready = Pool._ready

    def all_of_them(self: Pool) -> Iterable[Any]:
        return (*ready(self), *self._context.table.in_state(NicState.ASSIGNED))

    patch(Pool, "_ready", all_of_them)


def left_in_its_container(patch: Patch) -> None:
    async def detach(*_: object) -> Detached:
        return Detached(Arrival())

    patch(FakeKernel, "detach", detach)


def one_look_is_enough(patch: Patch) -> None:
    def track(known: Any, found: Iterable[Difference], now: float) -> Any:
        return differences.track(known, [replace(d, is_harmless=True) for d in found], now)

    patch(reconcile, "track", track)


def lists_are_believed(patch: Patch) -> None:
    patch(reconcile, "unlisted", lambda _nics, _cloud: ())

    def vanished(nic: Nic, _seen: object, *, is_whole: bool) -> Difference:  # noqa: ARG001
        remedy = Forget(nic.nic_id, "not listed")
        return Difference(DifferenceKind.VANISHED, nic.nic_id, "not listed", remedy=remedy, is_harmless=True)

    patch(cloud_drift, "_vanished", vanished)


def operations_are_forgotten_at_a_crash(patch: Patch) -> None:
    async def resume(self: CloudWrites, intent: Any) -> None:
        self._table.finish(intent.op_id, f"{intent.kind}.finished", self._context.now())

    patch(Provisioner, "resume", resume)
    patch(Releaser, "resume", resume)


def a_lost_reply_is_a_refusal(patch: Patch) -> None:
    async def nothing(*_: object) -> tuple[()]:
        return ()

    patch(Lookups, "created", nothing)


def kept_dels_are_thrown_away(patch: Patch) -> None:
    async def finish(self: Attachments, file: Any) -> bool:
        self._spool.remove(file)
        return True

    patch(Attachments, "finish", finish)


def what_is_being_created_does_not_count(patch: Patch) -> None:
    state = Pool.state
    patch(Pool, "state", lambda self: replace(state(self), creating=0))


def every_nic_is_ours(patch: Patch) -> None:
    patch(Identity, "is_ours", lambda _self, _name: True)


def flows_of_former_owners_stay(patch: Patch) -> None:
    patch(Flows, "are_forgotten", lambda _self, _nic, _since: True)


def a_repeated_add_begins_anew(patch: Patch) -> None:
    async def nothing(*_: object) -> None:
        pass

    patch(Attachments, "_known", nothing)


def the_dead_keep_their_nics(patch: Patch) -> None:
    async def nothing(*_: object) -> None:
        pass

    patch(Attachments, "release_left", nothing)
    patch(Links, "_release", lambda *_, **__: None)


def one_more_than_the_limit(patch: Patch) -> None:
    room = plan.room
    patch(plan, "room", lambda state, policy: room(state, policy) + 1)


def calls_are_not_counted(patch: Patch) -> None:
    patch(Budget, "_spend", lambda *_: True)


def calls_go_without_a_turn(patch: Patch) -> None:
    async def nothing(*_: object) -> None:
        pass

    patch(Limiter, "acquire", nothing)


def refusals_do_not_count(patch: Patch) -> None:
    patch(Limiter, "throttled", lambda *_, **__: None)


def what_was_saved_up_stays_when_a_quota_is_used_up(patch: Patch) -> None:
    throttled = Limiter.throttled
    patch(Limiter, "throttled", lambda self, sent_at, **_: throttled(self, sent_at, is_used_up=False))


def comparisons_take_what_pods_need(patch: Patch) -> None:
    patch(CallUrgency, "comparison", lambda _self: Urgency.REFILL)
    patch(reconcile, "stretched", lambda _period, _rate: 100.0)


def what_a_container_left_stays(patch: Patch) -> None:
    patch(FakeLink, "restore", lambda _self: "")


MISTAKES = (
    answered_before_it_is_on_disk,
    asked_before_it_is_announced,
    addresses_get_no_rest,
    handed_out_twice,
    left_in_its_container,
    one_look_is_enough,
    lists_are_believed,
    operations_are_forgotten_at_a_crash,
    a_lost_reply_is_a_refusal,
    kept_dels_are_thrown_away,
    what_is_being_created_does_not_count,
    every_nic_is_ours,
    flows_of_former_owners_stay,
    a_repeated_add_begins_anew,
    the_dead_keep_their_nics,
    one_more_than_the_limit,
    calls_are_not_counted,
    calls_go_without_a_turn,
    refusals_do_not_count,
    what_was_saved_up_stays_when_a_quota_is_used_up,
    comparisons_take_what_pods_need,
    what_a_container_left_stays,
)


@pytest.mark.timeout(600)  # some show only in the hundredth life, and the machine may be busy
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found(mistake: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch.setattr)
    failure = next(filter(None, (live(scenario.plan(seed)).failure for seed in range(SEEDS))), "")
    assert failure, f"{SEEDS} lives did not find it"
    assert not failure.startswith(("AttributeError", "NameError", "TypeError")), f"the mistake is outdated: {failure}"
