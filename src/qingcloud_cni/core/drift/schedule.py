"""When to compare table, kernel and cloud next, and when to repair a NIC without a link. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from qingcloud_cni.core.nics.model import Nic

HOUR = 3600.0
SETTLE = 5.0  # seconds from a doubt to the comparison: further effects of the same cause show by then
DOUBT_PAUSE = 60.0  # seconds between two comparisons that follow doubts …
CONFIRM_PAUSE = 30.0  # … and to the second comparison of a difference; both grow as comparisons get many
GROWTH = 2.0
FITTING = 120.0  # calls an hour that periods are made for
# A repair (detach and attach) costs three calls and two jobs, which delay the attaches of waiting containers. Where
# hot-plug is broken, repairs do not help.
REPAIRS_PER_NIC = 3  # in a row
REPAIRS_PER_HOUR = 6  # of all NICs of the host
REPAIR_PAUSES = (0.0, 240.0, 960.0)  # seconds since the repair before; an attach has 30 to show its link
REPAIR_MEMORY = 6 * HOUR  # seconds after which a NIC's repairs no longer count


def stretched(period: float, rate: float) -> float:
    """Return *period*, longer in proportion where the budget's *rate* (calls an hour) is below FITTING."""
    return period * max(1.0, FITTING / rate)


@dataclass(slots=True)
class Schedule:
    """Comparisons cost calls: the more of them follow doubts, the longer the pauses. Times are since the epoch."""

    period: float  # seconds between comparisons without a doubt
    _ends: list[float] = field(default_factory=list)  # of those within the last hour, the latest at the end
    _regular: float = -inf
    _confirm: float = inf
    _retry: float = inf
    _doubted: float = inf  # since when a doubt waits

    def doubt(self, now: float) -> None:
        self._doubted = min(self._doubted, now)

    def due_at(self, wanted_at: float = inf) -> float:
        """Return when to compare; *wanted_at* is when a postponed remedy is due."""
        if self._retry < inf:
            return self._retry
        doubted = max(self._doubted + SETTLE, *(end + self._grown(DOUBT_PAUSE) for end in self._ends[-1:]), -inf)
        return min(self._regular, self._confirm, doubted, wanted_at)

    def postpone(self, until: float) -> None:
        """Nothing was compared; without a doubt nothing will be before *until*."""
        self._regular = until

    def failed(self, retry_at: float) -> None:
        """The comparison failed: retry at *retry_at*, whatever called for it."""
        self._retry = retry_at

    def done(self, now: float, *, period: float, is_pending: bool, spread: float) -> None:
        """*is_pending*: a second comparison would confirm a remedy. *spread*, around 1, keeps hosts out of step."""
        self.period = period
        self._ends = [*(end for end in self._ends if 0.0 <= now - end < HOUR), now]
        self._regular = now + self.period * spread
        self._confirm = now + self._grown(CONFIRM_PAUSE) if is_pending else inf
        self._doubted = self._retry = inf

    def _grown(self, pause: float) -> float:
        """Lengthen *pause*, except for the first two; comparisons without a doubt do not count."""
        many = max(len(self._ends) - HOUR / self.period - 1, 0)
        return float(min(pause * GROWTH**many, self.period))


# --- repairs -----------------------------------------------------------------------------------------


def recent_repairs(nic: Nic, now: float) -> int:
    """Return the repairs in a row that still count."""
    return nic.repairs if 0.0 <= now - nic.repaired < REPAIR_MEMORY else 0


def is_given_up(nic: Nic, now: float) -> bool:
    return recent_repairs(nic, now) >= REPAIRS_PER_NIC


def repair_due_at(nic: Nic, times: Sequence[float], now: float) -> float:
    """Return when *nic* may be repaired, in seconds since the epoch; not after *now*: at once.

    *times* are those of the repairs of all NICs of the host.
    """
    count = recent_repairs(nic, now)
    if count >= REPAIRS_PER_NIC:
        return nic.repaired + REPAIR_MEMORY
    latest = sorted((t for t in times if 0.0 <= now - t < HOUR), reverse=True)
    room_at = latest[REPAIRS_PER_HOUR - 1] + HOUR if len(latest) >= REPAIRS_PER_HOUR else -inf
    return max(nic.repaired + REPAIR_PAUSES[count] if count else -inf, room_at)
