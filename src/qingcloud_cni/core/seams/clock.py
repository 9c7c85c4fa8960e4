"""Time as the agent sees it."""

from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Return seconds since the epoch by a clock that never jumps: for all decisions and records."""

    def wall(self) -> float:
        """Return seconds since the epoch by the host's clock: for the cloud, which compares it with its own."""

    async def sleep(self, seconds: float) -> None: ...


class HostClock(Clock, Protocol):
    """Also orders events of several processes."""

    boot: str  # the kernel's boot id

    def uptime(self) -> float:
        """Return seconds since the host booted; nobody can set them."""
