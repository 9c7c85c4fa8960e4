"""Time as the agent sees it."""

from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch, by a clock that never jumps: for all that is decided and recorded."""

    def wall(self) -> float:
        """Seconds since the epoch, as the host's clock shows now: for the cloud, which compares it with its own."""

    async def sleep(self, seconds: float) -> None: ...


class HostClock(Clock, Protocol):
    """What tells in which order things happened in several processes, too."""

    boot: str  # the kernel's id of this boot

    def uptime(self) -> float:
        """Seconds since the host booted: nobody can set them."""
