"""Laws of the call budget: how many calls go, which of them, and how the rate follows what the cloud says."""

import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qingcloud_cni.core.budget import HOUR, LOWEST_CALLS, PATIENCE, Budget, Spending, Urgency, explain

W, F, C, R = Urgency.WAITING, Urgency.REFILL, Urgency.RECONCILE, Urgency.RELEASE
PER_HOUR = st.sampled_from((1, 2, 4, 10, 20, 120, 2000))
NOW = 1_700_000_000.0


def burst(per_hour: int) -> float:
    """What may go at once after a quiet hour: an hour's worth, and in each of the two buckets at least one call."""
    return max(per_hour * 0.9, 1.0) + max(per_hour * 0.1, 1.0)


def spend_all(budget: Budget, urgency: Urgency, now: float) -> int:
    count = 0
    while budget.acquire([urgency], now) is not None:
        count += 1
    return count


# --- tables --------------------------------------------------------------------------------------------


def test_a_full_bucket_is_an_hours_worth_of_which_a_tenth_is_for_background_calls() -> None:
    assert spend_all(Budget(120, NOW), W, NOW) == 120
    assert spend_all(Budget(120, NOW), F, NOW) == 108
    assert spend_all(Budget(120, NOW), C, NOW) == 12
    assert spend_all(Budget(120, NOW), R, NOW) == 12


def test_the_bucket_never_holds_more() -> None:
    budget = Budget(120, NOW)
    assert spend_all(budget, W, NOW + 100 * HOUR) == 120


def test_an_empty_bucket_is_filled_evenly_and_tells_when() -> None:
    budget = Budget(120, NOW)
    spend_all(budget, W, NOW)
    assert budget.next_at([F], NOW) == pytest.approx(NOW + HOUR / 108, abs=1e-3)
    assert budget.acquire([F], NOW + HOUR / 108 - 0.01) is None
    assert budget.acquire([F], NOW + HOUR / 108) == 0
    assert budget.next_at([], NOW) == math.inf


def test_the_most_urgent_goes_first_and_of_those_the_first_come() -> None:
    budget = Budget(120, NOW)
    waiting = [R, F, C, W, F, W]
    went = []
    while waiting:
        index = budget.acquire(waiting, NOW)
        assert index is not None
        went.append((index, waiting.pop(index)))
    assert [urgency for _, urgency in went] == [W, W, F, F, C, R]
    assert went[0][0] == 3


def test_a_background_call_does_not_wait_for_the_pool_nor_the_pool_for_it() -> None:
    budget = Budget(120, NOW)
    spend_all(budget, F, NOW)
    assert budget.acquire([F, R], NOW) == 1
    budget = Budget(120, NOW)
    spend_all(budget, R, NOW)
    assert budget.acquire([R, F], NOW) == 1


def test_a_waiting_container_takes_what_is_kept_for_background_calls_unless_they_were_refused_for_long() -> None:
    budget = Budget(20, NOW)
    spend_all(budget, W, NOW)
    assert budget.acquire([R], NOW) is None
    now, went = NOW, []
    while now < NOW + PATIENCE + 2 * HOUR:
        now += 60.0
        index = budget.acquire([W, R], now)
        if index is not None:
            went.append((now - NOW, (W, R)[index]))
    early = [urgency for at, urgency in went if at < PATIENCE]
    assert set(early) == {W}
    late = [urgency for at, urgency in went if at >= PATIENCE]
    assert late.count(R) >= 1
    assert late.count(W) >= 30


def test_release_comes_to_its_turn_though_reconciliation_always_wants_one() -> None:
    budget = Budget(4, NOW)
    spend_all(budget, W, NOW)
    now, went = NOW, []
    while now < NOW + 30 * HOUR:
        now += 300.0
        index = budget.acquire([C, R], now)
        if index is not None:
            went.append((C, R)[index])
    assert {went.count(C), went.count(R)} <= set(range(4, 9))


def test_a_clock_set_back_neither_gives_nor_takes() -> None:
    budget = Budget(120, NOW)
    spend_all(budget, W, NOW)
    assert budget.acquire([W], NOW - 5000.0) is None
    assert budget.acquire([W], NOW - 5000.0 + HOUR / 108) == 0
    budget.throttled(NOW, NOW, 1.0, is_used_up=True)
    budget.acquire([W], NOW - 9000.0)
    budget.throttled(NOW - 9000.0, NOW - 9000.0, 1.0, is_used_up=True)
    assert budget.rate == 30.0


def test_a_call_that_was_not_sent_is_given_back() -> None:
    budget = Budget(120, NOW)
    spend_all(budget, W, NOW)
    budget.return_permit(W)
    assert spend_all(budget, F, NOW) == 1


@pytest.mark.parametrize(("is_used_up", "rates"), [(True, [60, 30, 15, 7.5, 3.75, 3.75]), (False, [60, 30, 30, 30])])
def test_refusals_halve_the_rate_to_a_bound(is_used_up: bool, rates: list[float]) -> None:
    budget = Budget(120, NOW)
    seen = []
    for n in range(len(rates)):
        budget.throttled(NOW + n, NOW + n + 0.5, 1.0, is_used_up=is_used_up)
        seen.append(budget.rate)
    assert seen == rates


def test_calls_that_were_under_way_together_count_as_one_refusal() -> None:
    budget = Budget(120, NOW)
    for _ in range(5):
        budget.throttled(NOW, NOW + 1.0, 1.0, is_used_up=True)
    assert budget.rate == 60.0


def test_what_was_saved_up_is_void_once_a_quota_is_used_up_and_not_where_the_cloud_is_busy() -> None:
    budget = Budget(120, NOW)
    budget.throttled(NOW, NOW, 0.5, is_used_up=True)
    assert spend_all(budget, W, NOW) == 0
    busy = Budget(120, NOW)
    busy.throttled(NOW, NOW, 0.5, is_used_up=False)
    assert spend_all(busy, W, NOW) == 60


def test_a_quota_that_is_used_up_voids_savings_though_another_call_was_refused_for_being_too_much() -> None:
    budget = Budget(120, NOW)
    budget.throttled(NOW, NOW + 1.0, 1.0, is_used_up=False)
    budget.throttled(NOW, NOW + 2.0, 1.0, is_used_up=True)
    assert budget.rate == 60.0
    assert spend_all(budget, W, NOW + 2.0) == 0


def test_refusals_of_calls_that_were_under_way_together_make_the_next_wait_once() -> None:
    budget = Budget(120, NOW)
    budget.throttled(NOW, NOW + 1.0, 0.5, is_used_up=True)
    before = budget.next_at([W], NOW + 1.0)
    budget.throttled(NOW, NOW + 1.0, 1.5, is_used_up=True)
    assert budget.next_at([W], NOW + 1.0) == before


def test_what_a_call_had_cost_that_was_not_sent_is_void_once_a_quota_is_used_up() -> None:
    budget = Budget(120, NOW)
    assert spend_all(budget, W, NOW) == 120
    budget.throttled(NOW, NOW + 1.0, 1.0, is_used_up=True)
    budget.return_permit(W)
    assert spend_all(budget, W, NOW + 1.0) == 0
    assert budget.acquire([W], NOW + 200.0) == 0
    budget.return_permit(W)  # of an hour that counts again
    assert budget.acquire([W], NOW + 200.0) == 0


def test_calls_that_work_win_the_rate_back() -> None:
    budget = Budget(120, NOW)
    for n in range(6):
        budget.throttled(NOW + n, NOW + n + 0.5, 1.0, is_used_up=True)
    for n in range(30):
        budget.succeeded(1.0, NOW + 10.0 + n)
    assert budget.rate == 120.0


def test_the_jitter_spreads_hosts() -> None:
    rates, times = set(), set()
    for jitter in (0.5, 0.8, 1.1, 1.4):
        budget = Budget(120, NOW)
        budget.throttled(NOW, NOW, jitter, is_used_up=True)
        times.add(round(budget.next_at([W], NOW), 1))
        budget.succeeded(jitter, NOW)
        rates.add(budget.rate)
    assert len(rates) == len(times) == 4


@pytest.mark.parametrize(
    ("spending", "says"),
    [
        (Spending(120, 120.0, 0.2, NOW + 24.4), ("the next call may go in 24 s", "api-budget 120 an hour")),
        (Spending(120, 7.5, 0.0, NOW + 400.0), ("in 400 s", "the cloud refuses calls", "8 of 120 an hour")),
        (Spending(120, 120.0, 3.0, NOW - 5.0), ("in 0 s",)),
    ],
)
def test_why_a_call_waits(spending: Spending, says: tuple[str, ...]) -> None:
    assert all(words in explain(spending, NOW) for words in says)


@pytest.mark.parametrize(
    ("spending", "is_scarce"),
    [
        (Spending(120, 120.0, 30.0, NOW), False),
        (Spending(120, 120.0, 29.0, NOW), True),
        (Spending(120, 60.0, 60.0, NOW), False),
        (Spending(120, 59.0, 59.0, NOW), True),
        (Spending(12, 12.0, 10.0, NOW), False),
        (Spending(12, 12.0, 9.0, NOW), True),
        (Spending(4, 4.0, 4.6, NOW), True),
    ],
)
def test_calls_are_scarce_when_most_are_spent_or_few_are_left_or_the_cloud_refuses_again_and_again(
    spending: Spending, is_scarce: bool
) -> None:
    assert spending.is_scarce == is_scarce


# --- laws ----------------------------------------------------------------------------------------------


@dataclass
class Queued:
    urgency: Urgency
    since: float
    number: int


@dataclass
class Gone:
    at: float
    urgency: Urgency
    waited: float
    behind: tuple[Urgency, ...] = field(default=())  # those that still wait


class Laws(RuleBasedStateMachine):
    """Calls come and go, time passes, the cloud refuses and relents."""

    @initialize(per_hour=PER_HOUR)
    def begin(self, per_hour: int) -> None:
        self.per_hour = per_hour
        self.now = NOW
        self.budget = Budget(per_hour, NOW)
        self.queue: list[Queued] = []
        self.gone: deque[Gone] = deque()
        self.count = 0

    def serve(self) -> None:
        while (index := self.budget.acquire([q.urgency for q in self.queue], self.now)) is not None:
            queued = self.queue.pop(index)
            earlier = [q for q in self.queue if q.urgency == queued.urgency and q.number < queued.number]
            assert not earlier, "first come, first served among equals"
            left = tuple(q.urgency for q in self.queue)
            self.gone.append(Gone(self.now, queued.urgency, self.now - queued.since, left))

    @rule(urgencies=st.lists(st.sampled_from(Urgency), min_size=1, max_size=30))
    def ask(self, urgencies: list[Urgency]) -> None:
        for urgency in urgencies:
            self.queue.append(Queued(urgency, self.now, self.count))
            self.count += 1
        self.serve()

    @rule(seconds=st.floats(0.0, 3 * HOUR))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.serve()

    @rule()
    @precondition(lambda self: self.queue)
    def wait_as_told(self) -> None:
        """`next_at` is not too early, except for rounding."""
        when = self.budget.next_at([q.urgency for q in self.queue], self.now)
        before = len(self.queue)
        self.now = max(when + 0.001, self.now)
        self.serve()
        assert len(self.queue) < before

    @rule(is_used_up=st.booleans(), jitter=st.floats(0.5, 1.5), ago=st.floats(0.0, 20.0))
    def refuse(self, is_used_up: bool, jitter: float, ago: float) -> None:
        before = self.budget.rate
        self.budget.throttled(self.now - ago, self.now, jitter, is_used_up=is_used_up)
        assert before / 2 <= self.budget.rate <= before
        self.serve()

    @rule(jitter=st.floats(0.5, 1.5))
    def work(self, jitter: float) -> None:
        before = self.budget.rate
        self.budget.succeeded(jitter, self.now)
        assert before <= self.budget.rate
        self.serve()

    @invariant()
    def the_rate_is_never_above_the_budget_nor_next_to_nothing(self) -> None:
        assert min(self.per_hour, LOWEST_CALLS) <= self.budget.rate <= self.per_hour

    @invariant()
    def no_hour_sees_more_than_the_budget_and_the_burst(self) -> None:
        latest = [g for g in self.gone if g.at > self.now - HOUR]
        assert len(latest) <= self.per_hour + burst(self.per_hour) + 1e-6
        background = [g for g in latest if g.urgency.is_background]
        assert len(background) <= self.per_hour * 0.1 + max(self.per_hour * 0.1, 1.0) + 1e-6

    @invariant()
    def a_waiting_containers_call_is_never_behind_a_background_call_that_has_not_been_refused_for_long(self) -> None:
        for gone in self.gone:
            if gone.urgency.is_background and W in gone.behind:
                assert gone.waited >= PATIENCE

    @invariant()
    def the_pool_is_never_before_a_waiting_container(self) -> None:
        assert not [g for g in self.gone if g.urgency is F and W in g.behind]


TestLaws = Laws.TestCase
TestLaws.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    per_hour=PER_HOUR,
    steps=st.lists(st.tuples(st.floats(0.0, 600.0), st.integers(0, 5)), min_size=1, max_size=40),
    refusals=st.sets(st.integers(0, 39), max_size=10),
)
def test_no_call_starves_whatever_presses(per_hour: int, steps: list[tuple[float, int]], refusals: set[int]) -> None:
    """A background call goes within a bounded time, although containers wait all along."""
    budget, now = Budget(per_hour, NOW), NOW
    for number, (seconds, presses) in enumerate(steps):
        now += seconds
        for _ in range(presses):
            budget.acquire([W], now)
        if number in refusals:
            budget.throttled(now, now, 1.0, is_used_up=True)
    asked = now
    longest = PATIENCE + 10 * HOUR / budget.rate + HOUR
    while (went := budget.acquire([W, R], now)) != 1:
        now += 0.0 if went == 0 else longest / 1000
        assert now - asked <= longest
