"""Clients for tests that are not about the call budget: it is so large that nothing waits."""

import random

from qingcloud_cni.cloud import Client, Gate
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.seams import Clock, CloudCalls

PLENTY = 1_000_000  # calls an hour


def make_gate(clock: Clock, per_hour: int = PLENTY) -> Gate:
    rng = random.Random(per_hour)
    return Gate(Budget(per_hour, clock.now()), clock=clock, rng=rng, on_rate=lambda _rate: None)


def waiting() -> Urgency:
    return Urgency.WAITING


def calls_of(client: Client) -> CloudCalls:
    """Calls that go at once."""
    calls = client.permit_now(waiting)
    assert calls is not None
    return calls
