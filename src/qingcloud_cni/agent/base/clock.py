"""Time as the agent sees it, and how long to wait after failures."""

import asyncio
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SLACK = 1.0  # seconds by which a clock may differ without having been set


class SystemClock:
    """`core.seams.HostClock` of the real world.

    `now` is the host's clock as it was when this was made, and what has passed since: setting the host's clock cuts
    no rest short and draws no wait out.
    """

    def __init__(self) -> None:
        self.boot = BOOT_ID.read_text().strip()
        self.base = time.time() - self.uptime()  # when the host booted, by the clock of that moment

    def now(self) -> float:
        return self.base + self.uptime()

    def wall(self) -> float:
        return time.time()

    def uptime(self) -> float:
        """Seconds, those in which the host was suspended included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


MOST_DOUBLINGS = 30  # further ones change nothing, and after a thousand a float does not hold the number


def delay_after(failures: int, rng: random.Random, *, first: float = 1.0, longest: float = 60.0) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, and spread so that hosts do not march."""
    doubled = min(failures - 1, MOST_DOUBLINGS)
    return float(min(first * 2.0**doubled, longest) * rng.uniform(0.75, 1.25))


class BootTime:
    """When the host booted, by the clock of an agent: kept in a file, so that the next one sees that it was set.

    If it was set forward between two agents of one boot, times on disk seem longer ago than they are. If it was set
    back they lie ahead, which shows without this.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def set_forward(self, clock: SystemClock) -> float:
        """Seconds by which the clock is further on than an earlier agent of this boot had it; else 0."""
        with suppress(OSError, ValueError):
            boot, base = self._path.read_text().split()
            forward = clock.base - float(base)
            return forward if boot == clock.boot and forward > SLACK else 0.0
        return 0.0

    def keep(self, clock: SystemClock) -> None:
        """To be called when times on disk are by *clock*: a crash in between lets addresses rest once more.

        A disk that is full is no reason not to start.
        """
        draft = self._path.with_name(f"{self._path.name}.new")
        with suppress(OSError):
            draft.write_text(f"{clock.boot} {clock.base!r}\n")
            draft.replace(self._path)


@dataclass(slots=True)
class Backoff:
    """When to retry, and why the latest try failed."""

    rng: random.Random
    failures: int = 0
    until: float = 0.0  # seconds since the epoch
    cause: str = ""

    def failed(self, now: float, cause: str) -> None:
        self.failures += 1
        self.until = now + delay_after(self.failures, self.rng)
        self.cause = cause

    def blocked(self, cause: str) -> None:
        """As `failed`, where another try may succeed at once."""
        self.cause = cause

    def worked(self) -> None:
        self.failures, self.until, self.cause = 0, 0.0, ""


@dataclass(slots=True)
class RecentMedian:
    """The median of recent durations, so that one that hung does not count."""

    first: float  # seconds, until one was measured
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=9))

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)

    @property
    def seconds(self) -> float:
        return sorted(self._recent)[len(self._recent) // 2] if self._recent else self.first
