"""Limiters and clients for tests; the budget is so large by default that no call waits."""

import random
from collections.abc import Callable, Sequence

from qingcloud_cni.cloud import Client, Limiter
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import CloudCalls

PLENTY = 1_000_000  # calls an hour


class ObservedBudget(Budget):
    """Reports each permit that it gives, as 1, and each that is returned, as -1."""

    def __init__(self, per_hour: int, now: float, on_permit: Callable[[int], None]) -> None:
        super().__init__(per_hour, now)
        self._on_permit = on_permit

    def acquire(self, waiting: Sequence[Urgency], now: float) -> int | None:
        if (index := super().acquire(waiting, now)) is not None:
            self._on_permit(1)
        return index

    def return_permit(self, urgency: Urgency) -> None:
        super().return_permit(urgency)
        self._on_permit(-1)


def make_limiter(clock: Clock, per_hour: int = PLENTY, on_permit: Callable[[int], None] = lambda _: None) -> Limiter:
    rng = random.Random(per_hour)
    return Limiter(ObservedBudget(per_hour, clock.now(), on_permit), clock=clock, rng=rng, on_rate=lambda _rate: None)


def waiting() -> Urgency:
    return Urgency.WAITING


def calls_of(client: Client) -> CloudCalls:
    """Return calls that do not wait."""
    calls = client.permit_now(waiting)
    assert calls is not None
    return calls
