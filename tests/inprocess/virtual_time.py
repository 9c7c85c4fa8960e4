"""A loop in which waiting moves the clock: simulated days in seconds, the same on every run.

It suits code without threads or sockets, since nothing outside the loop can wake it.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_700_000_000.0  # time of VirtualClock at the start of a run, in seconds since the epoch


class Stuck(RuntimeError):
    """Every task waits for another: the code under test has a deadlock, or waits for a thread or a socket."""


class _JumpSelector(selectors.DefaultSelector):
    """Moves the clock instead of waiting; a wait without end is a deadlock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0  # seconds since the run began

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            if ready := super().select(0):  # a signal, or a call from another thread
                return ready
            raise Stuck(f"after {self.now:.3f} s no task can ever run again")
        self.now += max(timeout, 0.0)
        return super().select(0)


class _JumpLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumps = _JumpSelector()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now


class VirtualClock:
    """`core.seams.HostClock` of the loop it is used in."""

    boot = "boot-1"
    booted = 0.0  # the loop's time of that boot, in seconds
    ahead = 0.0  # seconds by which it was set while no agent ran
    wall_ahead = 0.0  # seconds by which it was set while an agent runs

    def now(self) -> float:
        return EPOCH + self.ahead + asyncio.get_running_loop().time()

    def wall(self) -> float:
        return self.now() + self.wall_ahead

    def uptime(self) -> float:
        return asyncio.get_running_loop().time() - self.booted

    def reboot(self) -> None:
        self.boot += "+"
        self.booted = asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in a loop of its own; fail if it leaves tasks that are not cancelled."""
    with asyncio.Runner(loop_factory=_JumpLoop) as runner:
        return runner.run(_alone(main))


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function, to be run as `run` does."""

    @functools.wraps(test)
    def run_test(**arguments: Any) -> None:
        run(test(**arguments))

    return run_test


async def _alone(main: Coroutine[Any, Any, T]) -> T:
    result = await main
    left = [t for t in asyncio.all_tasks() - {asyncio.current_task()} if not t.cancelling()]
    assert not left, f"left running: {left}"
    return result
