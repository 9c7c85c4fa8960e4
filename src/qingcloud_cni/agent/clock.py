"""Time as the agent sees it, and how long to wait after failures."""

import asyncio
import random
import time
from dataclasses import dataclass


class SystemClock:
    """`core.seams.Clock` of the real world."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def delay_after(failures: int, rng: random.Random, *, first: float = 1.0, longest: float = 60.0) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, and spread so that hosts do not march."""
    return float(min(first * 2.0 ** (failures - 1), longest) * rng.uniform(0.75, 1.25))


@dataclass(slots=True)
class Backoff:
    """Whether to try again yet, and what went wrong last."""

    rng: random.Random
    failures: int = 0
    until: float = 0.0  # seconds since the epoch
    cause: str = ""

    def failed(self, now: float, cause: str) -> None:
        self.failures += 1
        self.until = now + delay_after(self.failures, self.rng)
        self.cause = cause

    def worked(self) -> None:
        self.failures, self.until, self.cause = 0, 0.0, ""
