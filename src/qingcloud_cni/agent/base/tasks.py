"""Named tasks in one group: a bug in any of them ends the agent, and the supervisor restarts it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from qingcloud_cni.agent.base.signals import Signal
from qingcloud_cni.core.errors import AgentError, shortage_as
from qingcloud_cni.core.seams.clock import Clock


class Tasks:
    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: dict[asyncio.Task[None], None] = {}

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(coroutine, name=name)
        self._running[task] = None
        task.add_done_callback(self._running.pop)
        return task

    def cancel(self) -> None:
        for task in tuple(self._running):
            task.cancel()


@dataclass(slots=True)
class TaskRecord:
    """What a periodic task did last, for `qingagent tasks` and the metrics. Times in seconds since the epoch."""

    period: float = 0.0  # maximum seconds between runs; 0: on change only
    last_success: float = 0.0
    duration: float = 0.0  # of the last run, in seconds
    failures: int = 0  # consecutive
    all_failures: int = 0  # since the start
    last_error: str = ""
    next_run: float = 0.0  # 0 if unknown

    @contextmanager
    def run(self, clock: Clock) -> Iterator[None]:
        """Record how the block ends, and reraise its error; a shortage is an expected one."""
        begun = clock.now()
        try:
            with shortage_as(AgentError, "task"):
                yield
        except AgentError as err:
            self.failures += 1
            self.all_failures += 1
            self.last_error = str(err)
            raise
        else:
            self.failures, self.last_error, self.last_success = 0, "", clock.now()
        finally:
            self.duration = max(clock.now() - begun, 0.0)

    async def pause(self, seconds: float, signal: Signal, clock: Clock) -> bool:
        """Wait for the next run; True if *signal* came earlier."""
        self.next_run = clock.now() + seconds
        return await signal.wait(seconds)


async def repeat(
    step: Callable[[], Awaitable[object]], record: TaskRecord, *, backoff: Callable[[int], float], clock: Clock
) -> None:
    """Run *step* every `record.period` seconds until cancelled; expected errors back off, any bug ends the agent."""
    while True:
        with suppress(AgentError), record.run(clock):
            await step()
        pause = backoff(record.failures) if record.failures else record.period
        record.next_run = clock.now() + pause
        await clock.sleep(pause)
