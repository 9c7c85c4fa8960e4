"""Samples, their statistics, and the figures the program must reach. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MS = 1000.0  # milliseconds in a second


@dataclass(frozen=True, slots=True)
class Sample:
    """Durations of one thing, in seconds."""

    name: str
    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        return percentile(self.seconds, 0.5)

    @property
    def p99(self) -> float:
        return percentile(self.seconds, 0.99)

    @property
    def least(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True, slots=True)
class Figure:
    """One target of docs/performance.md: *measured* must not be above *limit*."""

    name: str
    target: str  # the promise, in words
    measured: float
    limit: float
    unit: str

    @property
    def is_met(self) -> bool:
        return self.measured <= self.limit


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which *share* of *values* lie, between two of them in proportion."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    part = place - low
    return ordered[low] if part == 0 else ordered[low] * (1 - part) + ordered[low + 1] * part


def parallel_bound(moves: float, start: float) -> float:
    """Seconds for ADDs at once on a warm pool: the kernel makes all *moves* in turn, and one plugin has to start."""
    return 1.2 * (moves + start)


def burst_bound(pods: int, move: float, create_and_attach: float) -> float:
    """Seconds for a cold burst: one create, one attach, every link moved, and a second in which it is gathered."""
    return create_and_attach + pods * move * 1.3 + 1.0
