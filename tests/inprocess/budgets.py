"""Clients for tests that are not about the call budget: it is so large that nothing waits."""

import random
from collections.abc import Callable, Sequence

from qingcloud_cni.cloud import Client, Limiter
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import CloudCalls

PLENTY = 1_000_000  # calls an hour


class SeenBudget(Budget):
    """Tells of each turn that it gives, and of those that come back: 1 and -1."""

    def __init__(self, per_hour: int, now: float, on_turn: Callable[[int], None]) -> None:
        super().__init__(per_hour, now)
        self._on_turn = on_turn

    def acquire(self, waiting: Sequence[Urgency], now: float) -> int | None:
        if (index := super().acquire(waiting, now)) is not None:
            self._on_turn(1)
        return index

    def return_permit(self, urgency: Urgency) -> None:
        super().return_permit(urgency)
        self._on_turn(-1)


def make_gate(clock: Clock, per_hour: int = PLENTY, on_turn: Callable[[int], None] = lambda _lock: None) -> Limiter:
    rng = random.Random(per_hour)
    return Limiter(SeenBudget(per_hour, clock.now(), on_turn), clock=clock, rng=rng, on_rate=lambda _rate: None)


def waiting() -> Urgency:
    return Urgency.WAITING


def calls_of(client: Client) -> CloudCalls:
    """Calls that go at once."""
    calls = client.permit_now(waiting)
    assert calls is not None
    return calls
