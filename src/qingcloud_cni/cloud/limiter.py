"""Where calls wait until the budget lets them go; the decision is core.budget's."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from qingcloud_cni.core.budget import Budget, Spending, Urgency
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import HowUrgent

SHORTEST_WAIT = 0.01  # seconds; what is less may be lost in a clock's resolution
LONGEST_WAIT = 3600.0  # seconds after which a waiting call looks again in any case; a clock may be set


@dataclass(slots=True, eq=False)
class _Entry:
    urgency: HowUrgent
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    has_permit: bool = False


class Limiter:
    """Lets calls go one by one: the most urgent first, and of those the one that came first."""

    def __init__(self, budget: Budget, *, clock: Clock, rng: random.Random, on_rate: Callable[[float], None]) -> None:
        """*on_rate* hears of a rate that is lowered, in calls an hour."""
        self.budget = budget
        self._clock = clock
        self._rng = rng
        self._on_rate = on_rate
        self._queue: list[_Entry] = []

    async def enter(self, urgency: HowUrgent) -> None:
        """Wait for a turn; it is used up when this returns. *urgency* is asked again whenever it may count."""
        if self.try_enter(urgency):
            return
        entry = _Entry(urgency)
        self._queue.append(entry)
        try:
            while not entry.has_permit:
                await self._wait(entry)
                self._serve()
        except asyncio.CancelledError:
            if entry.has_permit:
                self.budget.give_back(urgency())
            else:
                self._queue.remove(entry)
            self.reconsider()
            raise

    def try_enter(self, urgency: HowUrgent) -> bool:
        """A turn at once, if that is nobody else's."""
        self._serve()
        return self.budget.admit((urgency(),), self._clock.now()) is not None

    def reconsider(self) -> None:
        """Look again: what is urgent may have changed."""
        self._serve()
        for entry in self._queue:
            entry.woken.set()

    def spending(self) -> Spending:
        return self.budget.spending(self._urgencies(), self._clock.now())

    # --- what the cloud says -------------------------------------------------------------------------

    def worked(self) -> None:
        if self.budget.rate < self.budget.per_hour:
            self.budget.worked(self._jitter(), self._clock.now())
            self.reconsider()

    def refused(self, sent_at: float, *, is_used_up: bool) -> None:
        """The cloud has refused a call sent at *sent_at* because there are too many."""
        before = self.budget.rate
        self.budget.refused(sent_at, self._clock.now(), self._jitter(), is_used_up=is_used_up)
        if self.budget.rate < before:
            self._on_rate(self.budget.rate)

    def give_back(self, urgency: Urgency) -> None:
        """A call that had its turn was certainly not sent."""
        self.budget.give_back(urgency)
        self.reconsider()

    # -------------------------------------------------------------------------------------------------

    def _urgencies(self) -> list[Urgency]:
        return [entry.urgency() for entry in self._queue]

    def _serve(self) -> None:
        """Give turns while there are any."""
        while self._queue:
            index = self.budget.admit(self._urgencies(), self._clock.now())
            if index is None:
                return
            entry = self._queue.pop(index)
            entry.has_permit = True
            entry.woken.set()

    async def _wait(self, entry: _Entry) -> None:
        """Until there may be a permit for somebody, or things have changed."""
        now = self._clock.now()
        pause = self.budget.next_at(self._urgencies(), now) - now
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(pause, SHORTEST_WAIT), LONGEST_WAIT)):
                await entry.woken.wait()
        entry.woken.clear()

    def _jitter(self) -> float:
        return self._rng.uniform(0.5, 1.5)
