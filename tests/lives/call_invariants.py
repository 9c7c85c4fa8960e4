"""What must hold of the calls that an agent makes in a simulated life, whatever its budget: see decision 0016."""

import asyncio
from collections import deque
from collections.abc import Callable

from qingcloud_cni.cloud import CallOutcome, CallSeen

HOUR = 3600.0
LEAST_DEBT = 0.5  # of a call: what has to come in after a refusal for the quota, by the smallest jitter
MOST_REGAINED = 1.5 / 20  # of the budget: what one call that works wins back, by the largest jitter
ROUNDED = 0.1  # of a turn: sums of fractions
HELD = 8  # turns that operations may hold which have not sent their calls yet: a comparison holds two
COMPARISONS = {"DescribeNics", "DescribeVxnets", "DescribeInstances"}


def most_in_an_hour(per_hour: int) -> float:
    """What was saved up, and what an hour brings."""
    return burst(per_hour) + per_hour


def burst(per_hour: int) -> float:
    """Two buckets that are full, each of at least one call."""
    return max(per_hour * 0.9, 1.0) + max(per_hour * 0.1, 1.0)


def most_comparisons(per_hour: int) -> float:
    """Calls in an hour in which nothing happens.

    A comparison takes two lists, and comes every quarter of an hour, or a fifth sooner; what is looked at every hour
    takes three calls, and the latter kind each time falls in it once more. Both more seldom below 120 calls an hour.
    """
    stretch = max(1.0, 120.0 / per_hour)
    return 2 * (HOUR / (720.0 * stretch) + 1) + 4 * (1.0 / stretch + 1)


class Calls:
    """Sees the calls of one agent after the other."""

    def __init__(self, per_hour: int, breaks: Callable[[str], None]) -> None:
        self._per_hour = per_hour
        self._breaks = breaks
        self.begins()

    def begins(self) -> None:
        """Another agent, with full buckets."""
        self.made: list[tuple[float, str]] = []  # with their times
        self._hour: deque[float] = deque()
        self._lock = 0  # that the budget has given
        self._left = burst(self._per_hour)  # turns at most, as far as can be known from outside …
        self._left_at = asyncio.get_running_loop().time()  # … then
        self._sent = 0
        self._voided_at = -1e9
        self._is_quiet = False  # no turn yet since a quota was used up
        self._regained = 0  # calls that have worked since then

    def turn(self, turns: int) -> None:
        """A call may go, or one that might have gone has not."""
        self._lock += turns
        now = asyncio.get_running_loop().time()
        self._earn(now)
        self._left -= turns
        if turns < 0:
            return
        if self._left < -ROUNDED:
            self._breaks(f"{-self._left:.1f} turns more than a budget of {self._per_hour} has")
        rate = min(self._per_hour * (0.5 + MOST_REGAINED * self._regained), self._per_hour)
        pause = LEAST_DEBT * HOUR / (0.9 * rate)
        if self._is_quiet and now - self._voided_at < pause - 0.1:
            self._breaks(f"a call went {now - self._voided_at:.1f} s after the quota was used up, not {pause:.1f}")
        self._is_quiet = False

    def sent(self, action: str) -> None:
        """The cloud is asked."""
        now = asyncio.get_running_loop().time()
        self.made.append((now, action))
        self._sent += 1
        if self._sent > self._lock:
            self._breaks(f"{action} without a turn: {self._sent} calls, {self._lock} turns")
        self._hour.append(now)
        while self._hour[0] <= now - HOUR:
            self._hour.popleft()
        if len(self._hour) > most_in_an_hour(self._per_hour) + HELD:
            self._breaks(f"{len(self._hour)} calls within an hour, with a budget of {self._per_hour}")

    def seen(self, call: CallSeen) -> None:
        """The agent has its answer, or has given up."""
        now = asyncio.get_running_loop().time()
        if call.outcome is CallOutcome.OK:
            self._regained += 1
        is_used_up = call.outcome is CallOutcome.QUOTA and call.action != "CreateNics"
        if is_used_up and now - call.seconds >= self._voided_at:  # else it was under way with one that counts
            self._voided_at, self._is_quiet, self._regained = now, True, 0

    def _earn(self, now: float) -> None:
        gained = (now - self._left_at) * self._per_hour / HOUR
        self._left, self._left_at = min(self._left + gained, burst(self._per_hour)), now

    def lately(self, seconds: float) -> list[str]:
        """The actions of those calls."""
        now = asyncio.get_running_loop().time()
        return [action for time, action in self.made if time > now - seconds]
