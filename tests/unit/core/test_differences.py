"""Remedies that cannot be undone need two comparisons; a difference is new once; comparisons are few."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.drift import schedule
from qingcloud_cni.core.drift.cloud_drift import Forget
from qingcloud_cni.core.drift.differences import CONFIRM_SECONDS, Difference, DifferenceKind, Known, track
from qingcloud_cni.core.drift.schedule import CONFIRM_PAUSE, DOUBT_PAUSE, SETTLE, Schedule
from qingcloud_cni.core.nics.model import Nic, NicState

NOW = 1_700_000_000.0
CURE = Forget("a", "gone")
GRAVE = Difference(DifferenceKind.VANISHED, "a", "gone", remedy=CURE)
REPORTED = Difference(DifferenceKind.MOVED, "b", "moved", "net/pod/eth0")
HARMLESS = Difference(DifferenceKind.UNKNOWN, "c", "ours", remedy=CURE, is_harmless=True)
SERVING = Difference(DifferenceKind.READDRESSED, "d", "new", "net/pod/eth0", remedy=CURE, is_harmless=True)


def compared(*found: tuple[float, tuple[Difference, ...]]) -> list[tuple[int, int, int]]:
    """Count remedies due, differences new and over, in comparisons at these seconds."""
    known: Known = {}
    counts = []
    for at, differences in found:
        verdict = track(known, differences, NOW + at)
        known = verdict.known
        counts.append((len(verdict.remedies), len(verdict.new), len(verdict.over)))
    return counts


def test_something_grave_is_cured_when_a_later_look_shows_it_too() -> None:
    assert compared((0, (GRAVE,)), (CONFIRM_SECONDS, (GRAVE,))) == [(0, 1, 0), (1, 0, 0)]


def test_two_looks_at_once_are_one() -> None:
    assert compared((0, (GRAVE,)), (1, (GRAVE,)), (CONFIRM_SECONDS - 1, (GRAVE,)), (CONFIRM_SECONDS, (GRAVE,))) == [
        (0, 1, 0), (0, 0, 0), (0, 0, 0), (1, 0, 0),
    ]  # fmt: skip


def test_a_look_that_does_not_show_it_begins_anew() -> None:
    assert compared((0, (GRAVE,)), (30, ()), (60, (GRAVE,)), (90, (GRAVE,))) == [
        (0, 1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0),
    ]  # fmt: skip


def test_a_cure_that_did_not_help_is_repeated_while_it_goes_on() -> None:
    assert compared((0, (GRAVE,)), (30, (GRAVE,)), (60, (GRAVE,)))[1:] == [(1, 0, 0), (1, 0, 0)]


def test_what_has_no_cure_is_told_once_and_when_it_is_over() -> None:
    assert compared((0, (REPORTED,)), (900, (REPORTED,)), (1800, ())) == [(0, 1, 0), (0, 0, 0), (0, 0, 1)]


def test_what_takes_nothing_away_is_cured_at_once_and_open_only_while_it_stays() -> None:
    assert compared((0, (HARMLESS,)), (900, ())) == [(1, 1, 0), (0, 0, 0)]
    assert compared((0, (SERVING,)), (900, (SERVING,)), (1800, ())) == [(1, 1, 0), (1, 0, 0), (0, 0, 1)]


def test_a_clock_that_is_set_back_confirms_nothing_twice_but_does_not_stop_it() -> None:
    assert compared((1000, (GRAVE,)), (0, (GRAVE,)))[1] == (1, 0, 0)


def test_a_verdict_says_whether_another_look_would_help() -> None:
    def is_pending(*differences: Difference) -> bool:
        return any(seen.is_pending for seen in track({}, differences, NOW).known.values())

    assert is_pending(GRAVE)
    assert not is_pending(REPORTED, HARMLESS, SERVING)


differences = st.lists(st.sampled_from((GRAVE, REPORTED, HARMLESS, SERVING)), unique=True, max_size=4).map(tuple)


@given(st.lists(st.tuples(st.floats(0.0, 100.0), differences), min_size=1, max_size=8))
def test_no_grave_cure_comes_without_two_looks_in_turn_far_enough_apart(
    steps: list[tuple[float, tuple[Difference, ...]]],
) -> None:
    known: Known = {}
    at, since = NOW, inf
    for pause, found in steps:
        at += pause
        since = min(since, at) if GRAVE in found else inf
        verdict = track(known, found, at)
        known = verdict.known
        expected = GRAVE in found and at - since >= CONFIRM_SECONDS
        assert (verdict.remedies.count(CURE) - (HARMLESS in found) - (SERVING in found) == 1) <= expected


# --- when to compare -----------------------------------------------------------------------------------------

PERIOD = 900.0


def made_schedule(*ends: float, is_pending: bool = False) -> Schedule:
    made = Schedule(PERIOD)
    for end in ends:
        made.done(NOW + end, period=PERIOD, is_pending=is_pending, spread=1.0)
    return made


def test_a_comparison_comes_in_any_case() -> None:
    assert made_schedule().due_at() == -inf
    assert made_schedule(0.0).due_at() == NOW + PERIOD
    made = Schedule(PERIOD)
    made.done(NOW, period=PERIOD, is_pending=False, spread=1.2)
    assert made.due_at() == NOW + 1.2 * PERIOD


def test_a_first_comparison_that_was_put_off_comes_then_or_sooner_if_something_calls_for_it() -> None:
    made = Schedule(PERIOD)
    made.postpone(NOW + 2000.0)
    assert made.due_at() == NOW + 2000.0
    assert made.due_at(-inf) == -inf
    made.doubt(NOW)
    assert made.due_at() == NOW + SETTLE


def test_a_doubt_is_followed_soon_but_not_at_once() -> None:
    made = made_schedule(0.0)
    made.doubt(NOW + 300.0)
    made.doubt(NOW + 301.0)
    assert made.due_at() == NOW + 300.0 + SETTLE
    made.done(NOW + 306.0, period=PERIOD, is_pending=False, spread=1.0)
    made.doubt(NOW + 307.0)
    assert made.due_at() == NOW + 306.0 + DOUBT_PAUSE


def test_a_second_look_comes_soon() -> None:
    assert made_schedule(0.0, is_pending=True).due_at() == NOW + CONFIRM_PAUSE


def test_what_was_put_off_is_due_when_it_is() -> None:
    assert made_schedule(0.0).due_at(NOW + 100.0) == NOW + 100.0
    assert made_schedule(0.0).due_at(inf) == NOW + PERIOD


def test_after_a_failure_only_its_pause_counts() -> None:
    made = made_schedule(0.0, is_pending=True)
    made.doubt(NOW)
    made.failed(NOW + 60.0)
    assert made.due_at(NOW) == NOW + 60.0
    made.done(NOW + 70.0, period=PERIOD, is_pending=False, spread=1.0)
    assert made.due_at() == NOW + 70.0 + PERIOD


@pytest.mark.parametrize("is_pending", [False, True])
def test_what_does_not_come_to_rest_is_compared_ever_more_seldom(*, is_pending: bool) -> None:
    made, at, ends = made_schedule(), NOW, []
    while at < NOW + 4 * 3600.0:
        made.done(at, period=PERIOD, is_pending=is_pending, spread=1.0)
        ends.append(at)
        made.doubt(at)
        at = made.due_at()
    assert len(ends) <= 4 * 10
    assert ends[2] - ends[0] <= 3 * DOUBT_PAUSE


# --- how often to repair -------------------------------------------------------------------------------------


def nic(repairs: int, ago: float) -> Nic:
    return make_nic(1, NicState.MISSING, NOW, repairs=repairs, repaired=NOW - ago)


@pytest.mark.parametrize(
    ("repairs", "ago", "due"),
    [
        (0, NOW, -inf),
        (1, 10.0, schedule.REPAIR_PAUSES[1] - 10.0),
        (2, 10.0, schedule.REPAIR_PAUSES[2] - 10.0),
        (2, 5000.0, schedule.REPAIR_PAUSES[2] - 5000.0),
        (schedule.REPAIRS_PER_NIC, 10.0, schedule.REPAIR_MEMORY - 10.0),
        (schedule.REPAIRS_PER_NIC, schedule.REPAIR_MEMORY, -inf),
        (2, -100.0, -inf),  # the clock was set back
    ],
)
def test_a_nic_is_attached_again_ever_more_seldom_and_given_up_for_a_while(
    repairs: int, ago: float, due: float
) -> None:
    assert schedule.repair_due_at(nic(repairs, ago), (), NOW) == (due if due == -inf else NOW + due)
    assert schedule.is_given_up(nic(repairs, ago), NOW) == (due > 1000.0 and repairs == schedule.REPAIRS_PER_NIC)


def test_a_host_repairs_only_so_often_within_an_hour() -> None:
    times = [NOW - 60.0 * n for n in range(schedule.REPAIRS_PER_HOUR)]
    assert schedule.repair_due_at(nic(0, NOW), times[1:], NOW) == -inf
    assert schedule.repair_due_at(nic(0, NOW), times, NOW) == times[-1] + schedule.HOUR
    assert schedule.repair_due_at(nic(0, NOW), [NOW - 2 * schedule.HOUR] * 9, NOW) == -inf
    assert len(schedule.REPAIR_PAUSES) == schedule.REPAIRS_PER_NIC
