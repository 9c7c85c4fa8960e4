"""Invariants of the calls that an agent makes in a simulated life, for every budget: see decision 0016."""

import asyncio
from collections import deque
from collections.abc import Callable

from qingcloud_cni.cloud import CallOutcome, CallSeen

HOUR = 3600.0
LEAST_DEBT = 0.5  # calls that the budget must earn after a quota refusal, by the smallest jitter
MOST_REGAINED = 1.5 / 20  # part of the budget that a successful call regains, by the largest jitter
ROUNDED = 0.1  # permits: sums of fractions
HELD = 8  # permits of operations that have not sent their calls yet: a comparison holds two
COMPARISONS = {"DescribeNics", "DescribeVxnets", "DescribeInstances"}


def most_in_an_hour(per_hour: int) -> float:
    """Return a full burst and what an hour earns."""
    return burst(per_hour) + per_hour


def burst(per_hour: int) -> float:
    """Return the content of two full buckets, each of at least one call."""
    return max(per_hour * 0.9, 1.0) + max(per_hour * 0.1, 1.0)


def most_comparisons(per_hour: int) -> float:
    """Return the calls of comparisons in an hour in which nothing happens.

    A comparison takes two calls every 15 minutes, or a fifth sooner; the hourly checks take three. Each kind can fall
    into the hour once more. Both are rarer below 120 calls an hour.
    """
    stretch = max(1.0, 120.0 / per_hour)
    return 2 * (HOUR / (720.0 * stretch) + 1) + 4 * (1.0 / stretch + 1)


class Calls:
    """Checks the calls of one agent after another."""

    def __init__(self, per_hour: int, breaks: Callable[[str], None]) -> None:
        self._per_hour = per_hour
        self._breaks = breaks
        self.begins()

    def begins(self) -> None:
        """Reset for another agent, with full buckets."""
        self.made: list[tuple[float, str]] = []  # with their times
        self._hour: deque[float] = deque()
        self._permits = 0  # given by the budget
        self._left = burst(self._per_hour)  # permits at most that the budget can still have …
        self._left_at = asyncio.get_running_loop().time()  # … at this time
        self._sent = 0
        self._voided_at = -1e9
        self._is_quiet = False  # no permit yet since a quota was used up
        self._regained = 0  # successful calls since then

    def permit(self, count: int) -> None:
        """Count a permit that is given, 1, or returned, -1."""
        self._permits += count
        now = asyncio.get_running_loop().time()
        self._earn(now)
        self._left -= count
        if count < 0:
            return
        if self._left < -ROUNDED:
            self._breaks(f"{-self._left:.1f} permits more than a budget of {self._per_hour} has")
        rate = min(self._per_hour * (0.5 + MOST_REGAINED * self._regained), self._per_hour)
        pause = LEAST_DEBT * HOUR / (0.9 * rate)
        if self._is_quiet and now - self._voided_at < pause - 0.1:
            self._breaks(f"a call was sent {now - self._voided_at:.1f} s after a quota refusal, not {pause:.1f}")
        self._is_quiet = False

    def sent(self, action: str) -> None:
        """Count a call that is sent."""
        now = asyncio.get_running_loop().time()
        self.made.append((now, action))
        self._sent += 1
        if self._sent > self._permits:
            self._breaks(f"{action} without a permit: {self._sent} calls, {self._permits} permits")
        self._hour.append(now)
        while self._hour[0] <= now - HOUR:
            self._hour.popleft()
        if len(self._hour) > most_in_an_hour(self._per_hour) + HELD:
            self._breaks(f"{len(self._hour)} calls within an hour, with a budget of {self._per_hour}")

    def seen(self, call: CallSeen) -> None:
        """Count the outcome of a call."""
        now = asyncio.get_running_loop().time()
        if call.outcome is CallOutcome.OK:
            self._regained += 1
        is_used_up = call.outcome is CallOutcome.QUOTA and call.action != "CreateNics"
        if is_used_up and now - call.seconds >= self._voided_at:  # else it was under way with a refused one
            self._voided_at, self._is_quiet, self._regained = now, True, 0

    def _earn(self, now: float) -> None:
        gained = (now - self._left_at) * self._per_hour / HOUR
        self._left, self._left_at = min(self._left + gained, burst(self._per_hour)), now

    def lately(self, seconds: float) -> list[str]:
        """Return the actions of the calls of the last *seconds*."""
        now = asyncio.get_running_loop().time()
        return [action for time, action in self.made if time > now - seconds]
