"""The queue of calls that wait for a permit; core.budget decides which one goes."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from qingcloud_cni.core.budget import Budget, Spending, Urgency
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import HowUrgent

SHORTEST_WAIT = 0.01  # seconds; less may be below a clock's resolution
LONGEST_WAIT = 3600.0  # seconds between checks of a waiting call: a clock may be set


@dataclass(slots=True, eq=False)
class _Entry:
    urgency: HowUrgent
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    has_permit: bool = False


class Limiter:
    """Grants permits one by one: the most urgent call first, then first come, first served."""

    def __init__(self, budget: Budget, *, clock: Clock, rng: random.Random, on_rate: Callable[[float], None]) -> None:
        """Each lowered rate, in calls an hour, is passed to *on_rate*."""
        self.budget = budget
        self._clock = clock
        self._rng = rng
        self._on_rate = on_rate
        self._queue: list[_Entry] = []

    async def acquire(self, urgency: HowUrgent) -> None:
        """Wait for a permit, which is used up on return. *urgency* is evaluated again whenever one may be free."""
        if self.try_acquire(urgency):
            return
        entry = _Entry(urgency)
        self._queue.append(entry)
        try:
            while not entry.has_permit:
                await self._wait(entry)
                self._serve()
        except asyncio.CancelledError:
            if entry.has_permit:
                self.budget.return_permit(urgency())
            else:
                self._queue.remove(entry)
            self.reconsider()
            raise

    def try_acquire(self, urgency: HowUrgent) -> bool:
        """Acquire a permit if one is free now and no other call is due it."""
        self._serve()
        return self.budget.acquire((urgency(),), self._clock.now()) is not None

    def reconsider(self) -> None:
        """Evaluate urgencies again."""
        self._serve()
        for entry in self._queue:
            entry.woken.set()

    def spending(self) -> Spending:
        return self.budget.spending(self._urgencies(), self._clock.now())

    # --- outcomes ------------------------------------------------------------------------------------

    def succeeded(self) -> None:
        if self.budget.rate < self.budget.per_hour:
            self.budget.succeeded(self._jitter(), self._clock.now())
            self.reconsider()

    def throttled(self, sent_at: float, *, is_used_up: bool) -> None:
        """The cloud refused a call sent at *sent_at* as one too many; see `Budget.throttled`."""
        before = self.budget.rate
        self.budget.throttled(sent_at, self._clock.now(), self._jitter(), is_used_up=is_used_up)
        if self.budget.rate < before:
            self._on_rate(self.budget.rate)

    def return_permit(self, urgency: Urgency) -> None:
        """A call with a permit was certainly not sent."""
        self.budget.return_permit(urgency)
        self.reconsider()

    # -------------------------------------------------------------------------------------------------

    def _urgencies(self) -> list[Urgency]:
        return [entry.urgency() for entry in self._queue]

    def _serve(self) -> None:
        """Grant permits while there are any."""
        while self._queue:
            index = self.budget.acquire(self._urgencies(), self._clock.now())
            if index is None:
                return
            entry = self._queue.pop(index)
            entry.has_permit = True
            entry.woken.set()

    async def _wait(self, entry: _Entry) -> None:
        """Wait until a permit may be free, or urgencies have changed."""
        now = self._clock.now()
        pause = self.budget.next_at(self._urgencies(), now) - now
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(pause, SHORTEST_WAIT), LONGEST_WAIT)):
                await entry.woken.wait()
        entry.woken.clear()

    def _jitter(self) -> float:
        return self._rng.uniform(0.5, 1.5)
