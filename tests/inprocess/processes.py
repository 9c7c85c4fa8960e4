"""A process that can die between any two of its steps, in a loop that goes on, as a killed process does.

The world completes what the process has asked for, and ignores what its tasks ask for while they are ended.
"""

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, cast

T = TypeVar("T")

_CURRENT: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class Steps:
    """Counts the steps of all processes of a host; a step leads from one `await` that lets others run to the next."""

    def __init__(self) -> None:
        self.taken = 0
        self.last = 0  # the process dies instead of taking the step after this one; 0: never

    def die_after(self, steps: int) -> None:
        self.last = self.taken + steps

    def count(self) -> bool:
        """Count a step; False: the process must die instead."""
        if self.last and self.taken >= self.last:
            self.last = 0
            return False
        self.taken += 1
        return True


class Process:
    """Tasks that die together. Tasks that they start belong to the process as well."""

    def __init__(self, steps: Steps) -> None:
        self.is_dead = False
        self._steps = steps
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._left: set[asyncio.Task[Any]] = set()  # what the world still does for it
        self._outside = contextvars.copy_context()
        asyncio.get_running_loop().set_task_factory(_task_in_its_process)

    def start(self, work: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
        context = contextvars.copy_context()
        context.run(_CURRENT.set, self)
        return asyncio.get_running_loop().create_task(work, name=name, context=context)

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        if self.is_dead:
            task.cancel()

    def die(self) -> None:
        self.is_dead = True
        for task in tuple(self._tasks):
            task.cancel()

    async def over(self) -> None:
        """Wait until a dead process has no task left."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def ask(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Let the world do *work*, which the death of the process does not stop."""
        if self.is_dead:
            raise asyncio.CancelledError
        task = asyncio.get_running_loop().create_task(work(), context=self._outside.copy())
        self._left.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not self.is_dead:  # the process lives and gives it up
                task.cancel()
                await asyncio.wait({task})
            raise

    async def forget(self) -> None:
        """Cancel what the world still does for it."""
        for task in self._left:
            task.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # the caller has it, or is dead

    def step(self) -> bool:
        """Take a step, or die; return whether it lives."""
        if not self.is_dead and not self._steps.count():
            self.die()
        return not self.is_dead


class Asked:
    """An object outside of a process: the world runs its coroutine methods."""

    def __init__(self, process: Process, target: object) -> None:
        self._process = process
        self._target = target

    def __str__(self) -> str:
        return str(self._target)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def asked(*args: Any, **more: Any) -> Any:
            return await self._process.ask(lambda: found(*args, **more))

        return asked


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine of a process, which ends with the process."""

    def __init__(self, work: Coroutine[Any, Any, Any], process: Process) -> None:
        self._work = work
        self._process = process
        self.__name__ = self.__qualname__ = getattr(work, "__qualname__", "?")

    def send(self, value: Any) -> Any:
        return self._work.send(value) if self._process.step() else self._work.throw(asyncio.CancelledError())

    def throw(self, *error: Any) -> Any:
        self._process.step()
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("a task's own")


def _task_in_its_process(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> "asyncio.Task[Any]":
    context = more.get("context")
    process = context.get(_CURRENT) if context is not None else _CURRENT.get()
    if process is None:
        return asyncio.Task(work, loop=loop, **more)
    task = asyncio.Task(_Stepped(cast("Coroutine[Any, Any, Any]", work), process), loop=loop, **more)
    process.adopt(task)
    return task
