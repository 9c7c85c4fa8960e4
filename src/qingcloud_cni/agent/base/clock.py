"""The agent's clock, and pauses after failures."""

import asyncio
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qingcloud_cni.posix import restore_directory

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SLACK = 1.0  # seconds by which a clock may drift without having been set


class SystemClock:
    """`core.seams.HostClock` of the host.

    `now` is the host's clock at the start plus the time since: a clock step changes no cooldown and no pause.
    """

    def __init__(self) -> None:
        self.boot = BOOT_ID.read_text().strip()
        self.base = time.time() - self.uptime()  # when the host booted, by its clock now

    def now(self) -> float:
        return self.base + self.uptime()

    def wall(self) -> float:
        return time.time()

    def uptime(self) -> float:
        """Seconds since the boot, including those in which the host was suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


MOST_DOUBLINGS = 30  # more change nothing, and a float overflows after a thousand


def delay_after(failures: int, rng: random.Random, *, first: float = 1.0, longest: float = 60.0) -> float:
    """Seconds to wait after so many failures in a row: doubled each time, with jitter to keep hosts out of step."""
    doubled = min(failures - 1, MOST_DOUBLINGS)
    return float(min(first * 2.0**doubled, longest) * rng.uniform(0.75, 1.25))


class BootTime:
    """A file with the boot time by the agent's clock, so that the next agent detects a clock step.

    After a step forward, times on disk seem older than they are. A step back shows without this file, for they lie in
    the future then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def set_forward(self, clock: SystemClock) -> float:
        """Seconds by which the clock was set forward since an earlier agent of this boot; else 0."""
        with suppress(OSError, ValueError):
            boot, base = self._path.read_text().split()
            forward = clock.base - float(base)
            return forward if boot == clock.boot and forward > SLACK else 0.0
        return 0.0

    def write(self, clock: SystemClock) -> None:
        """Call this once times on disk are by *clock*; after a crash in between, addresses only cool down again.

        A full disk does not prevent the start.
        """
        draft = self._path.with_name(f"{self._path.name}.new")
        with suppress(OSError):
            draft.write_text(f"{clock.boot} {clock.base!r}\n")
            draft.replace(self._path)

    def restore(self, clock: SystemClock) -> str | None:
        """As `OwnFiles` has it; blocks."""
        if self._path.exists():
            return None
        restore_directory(self._path.parent)
        self.write(clock)
        return f"file {self._path}" if self._path.exists() else None


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
