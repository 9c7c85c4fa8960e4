"""The call budget: which cloud call may go now, and how many in an hour.

All hosts of a cluster share one key's quota without talking to each other. Each keeps to a budget of its own, and to
less while the cloud refuses calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Annotated

from qingcloud_cni.core.metrics import gauge

HOUR = 3600.0
BACKGROUND = 0.1  # share of the budget that background calls have for themselves, and are limited to
PATIENCE = HOUR  # seconds after which a waiting background call may no longer lose its token to an ADD
LOWEST = {True: 1 / 32, False: 1 / 4}  # share of the budget below which no refusal lowers the rate, by is_used_up …
LOWEST_CALLS = 2.0  # … and calls an hour
SCARCE = 10  # tokens below which calls are scarce
STEP = 1 / 20  # share of the budget that each successful call adds to a lowered rate
WHOLE = 1.0 - 1e-6  # of a token: tokens are sums of fractions, and a clock has a resolution


class Urgency(IntEnum):
    """What a call is for; the lower, the sooner it goes."""

    WAITING = 0  # an ADD waits for its outcome
    REFILL = 1
    RECONCILE = 2
    RELEASE = 3

    @property
    def word(self) -> str:
        """The name in metrics and logs."""
        return self.name.lower()

    @property
    def is_background(self) -> bool:
        return self >= Urgency.RECONCILE


@dataclass(frozen=True, slots=True)
class Spending:
    """The state of the budget."""

    per_hour: int
    rate: Annotated[float, gauge("qingagent_cloud_call_rate", "Calls per hour that may go: `api-budget` or less.")]
    tokens: Annotated[float, gauge("qingagent_cloud_call_tokens", "Calls that may go at once.")]
    next_at: float  # when the next call for a waiting ADD may go, in seconds since the epoch; past: now
    queued: tuple[Urgency, ...] = ()  # calls that wait for a permit

    @property
    def is_scarce(self) -> bool:
        """Whether optional calls should be skipped."""
        return self.rate < self.per_hour / 2 or self.tokens < max(self.per_hour / 4, SCARCE)


class Budget:
    """Two token buckets with a capacity of one hour: nine tenths of the budget, and one tenth.

    Calls for waiting ADDs and for the pool use the first, background calls the second. A waiting ADD may use the
    second as well, unless a background call has waited too long. The rate halves when the cloud refuses and grows
    step by step as calls succeed (AIMD); *jitter*, around 1, keeps hosts out of step.
    """

    def __init__(self, per_hour: int, now: float) -> None:
        self.per_hour = per_hour
        self.rate = float(per_hour)
        self._at = now  # the time up to which the buckets are filled
        self._tokens = {False: self._capacity(False), True: self._capacity(True)}  # by "is background"
        self._lowered_at = self._voided_at = -inf
        self._is_void = False  # no call has gone since
        self._waiting_since: dict[Urgency, float] = {}  # since when background calls found no token

    def __repr__(self) -> str:
        fore, back = self._tokens[False], self._tokens[True]
        return f"Budget({self.rate:.1f} of {self.per_hour} an hour, {fore:.2f} + {back:.2f} left)"

    # --- which call goes -----------------------------------------------------------------------------

    def acquire(self, waiting: Sequence[Urgency], now: float) -> int | None:
        """Take a token for one of *waiting*, in order of arrival; return its index, None if no call may go now."""
        self._fill(now)
        for index in sorted(range(len(waiting)), key=lambda i: (self._rank(waiting[i], now), i)):
            if self._spend(waiting[index], now):
                return index
        return None

    def next_at(self, waiting: Sequence[Urgency], now: float) -> float:
        """Return when `acquire` may let one of them go, if nothing else happens; infinity where none waits."""
        return min((self._whole_at(urgency, now) for urgency in waiting), default=inf)

    def spending(self, queued: Sequence[Urgency], now: float) -> Spending:
        tokens = sum(max(self._at_time(b, now), 0.0) for b in (False, True))
        return Spending(self.per_hour, self.rate, tokens, self._whole_at(Urgency.WAITING, now), tuple(queued))

    def return_permit(self, urgency: Urgency) -> None:
        """A call with a token was never sent. Its token is void if a quota was used up meanwhile."""
        if not self._is_void:
            self._tokens[urgency.is_background] += 1.0

    # --- how many go ---------------------------------------------------------------------------------

    def throttled(self, sent_at: float, now: float, jitter: float, *, is_used_up: bool) -> None:
        """The cloud refused a call as one too many.

        Refusals of calls that were under way together count once. *is_used_up*: a quota is used up, so saved tokens
        are void. Otherwise the cloud is busy, which may be over soon.
        """
        self._fill(now)
        if is_used_up and sent_at >= self._voided_at:  # even just after a busy answer
            self._voided_at, self._is_void = now, True
            self._tokens = {b: min(tokens, 1.0 - jitter) for b, tokens in self._tokens.items()}
        if sent_at < self._lowered_at:
            return
        self._lowered_at = now
        lowest = min(self.rate, self.per_hour, max(self.per_hour * LOWEST[is_used_up], LOWEST_CALLS))
        self.rate = max(self.rate / 2, lowest)

    def succeeded(self, jitter: float, now: float) -> None:
        """The cloud answered a call."""
        self._fill(now)
        self.rate = min(self.rate + self.per_hour * STEP * jitter, float(self.per_hour))

    # -------------------------------------------------------------------------------------------------

    def _rank(self, urgency: Urgency, now: float) -> tuple[float, float]:
        """Overdue background calls go before other background calls, the longest waiting first."""
        if self._is_overdue(urgency, now):
            return Urgency.RECONCILE - 0.5, self._waiting_since[urgency]
        return urgency, 0.0

    def _is_overdue(self, urgency: Urgency, now: float) -> bool:
        return now - self._waiting_since.get(urgency, inf) >= PATIENCE

    def _may_borrow(self, urgency: Urgency, now: float) -> bool:
        return urgency is Urgency.WAITING and not any(self._is_overdue(o, now) for o in tuple(self._waiting_since))

    def _spend(self, urgency: Urgency, now: float) -> bool:
        buckets = [urgency.is_background, *([True] if self._may_borrow(urgency, now) else [])]
        for is_background in buckets:
            if self._tokens[is_background] >= WHOLE:
                self._tokens[is_background] -= 1.0
                self._waiting_since.pop(urgency, None)
                self._is_void = False
                return True
        if urgency.is_background:
            self._waiting_since.setdefault(urgency, now)
        return False

    def _whole_at(self, urgency: Urgency, now: float) -> float:
        buckets = {urgency.is_background} | ({True} if self._may_borrow(urgency, now) else set())
        return min(now + max(WHOLE - self._at_time(b, now), 0.0) / self._inflow(b) for b in buckets)

    def _fill(self, now: float) -> None:
        self._tokens = {b: self._at_time(b, now) for b in self._tokens}
        self._at = now  # even if the clock was set back
        self._lowered_at, self._voided_at = min(self._lowered_at, now), min(self._voided_at, now)

    def _at_time(self, is_background: bool, now: float) -> float:
        gained = max(now - self._at, 0.0) * self._inflow(is_background)
        return min(self._tokens[is_background] + gained, max(self._capacity(is_background), WHOLE))

    def _inflow(self, is_background: bool) -> float:
        """Tokens a second."""
        return self.rate * (BACKGROUND if is_background else 1.0 - BACKGROUND) / HOUR

    def _capacity(self, is_background: bool) -> float:
        return max(self._inflow(is_background) * HOUR, 1.0)


def explain(spending: Spending, now: float) -> str:
    """Return why a call has to wait, for errors and for `qingagent status`."""
    text = f"the call budget is used up: the next call may go in {max(spending.next_at - now, 0.0):.0f} s"
    if spending.rate < spending.per_hour:
        return (
            f"{text}; the cloud refuses calls, so the agent makes {spending.rate:.0f} of {spending.per_hour} an hour"
        )
    return f"{text} (api-budget {spending.per_hour} an hour)"
