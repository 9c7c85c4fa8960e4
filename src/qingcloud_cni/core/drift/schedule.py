"""When table, kernel and cloud are compared next. Pure."""

from dataclasses import dataclass, field
from math import inf

SETTLE = 5.0  # seconds from a doubt to the comparison: what follows from the same trouble is there by then
DOUBT_PAUSE = 60.0  # seconds between two comparisons for doubts' sake …
CONFIRM_PAUSE = (
    30.0  # … and until something grave is looked at for the second time; both grow as comparisons get many
)
GROWTH = 2.0
MEMORY = 3600.0  # seconds for which a comparison counts
FITTING = 120.0  # calls an hour that a host needs to make for its periods not to be stretched


def stretched(period: float, rate: float) -> float:
    """*period* where *rate* calls an hour may be made: longer by as much as those are too few."""
    return period * max(1.0, FITTING / rate)


@dataclass(slots=True)
class Schedule:
    """Comparisons cost calls: what does not come to rest gets them ever more seldom.

    Times are in seconds since the epoch.
    """

    period: float  # seconds between comparisons that nothing calls for
    _ends: list[float] = field(default_factory=list)  # of those within the last `MEMORY`, the latest at the end
    _regular: float = -inf
    _confirm: float = inf
    _retry: float = inf
    _doubted: float = inf  # since when there is a doubt that no comparison has followed

    def doubt(self, now: float) -> None:
        self._doubted = min(self._doubted, now)

    def due_at(self, wanted_at: float = inf) -> float:
        """*wanted_at*: when something that was put off is due."""
        if self._retry < inf:
            return self._retry
        doubted = max(self._doubted + SETTLE, *(end + self._grown(DOUBT_PAUSE) for end in self._ends[-1:]), -inf)
        return min(self._regular, self._confirm, doubted, wanted_at)

    def put_off(self, until: float) -> None:
        """None has been made; nothing calls for one before *until*."""
        self._regular = until

    def failed(self, retry_at: float) -> None:
        """The comparison came to nothing: again then, whatever called for it."""
        self._retry = retry_at

    def done(self, now: float, *, is_pending: bool, spread: float) -> None:
        """*is_pending*: a second look would let something be cured. *spread*, around 1, keeps hosts out of step."""
        self._ends = [*(end for end in self._ends if 0.0 <= now - end < MEMORY), now]
        self._regular = now + self.period * spread
        self._confirm = now + self._grown(CONFIRM_PAUSE) if is_pending else inf
        self._doubted = self._retry = inf

    def _grown(self, pause: float) -> float:
        """The first two are as near as they can be, and those that nothing called for do not count."""
        many = max(len(self._ends) - MEMORY / self.period - 1, 0)
        return float(min(pause * GROWTH**many, self.period))
