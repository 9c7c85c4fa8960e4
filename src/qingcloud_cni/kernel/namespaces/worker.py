"""A thread of its own for one object with blocking methods, which run one after another."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar


class Closable(Protocol):
    def close(self) -> None: ...


W = TypeVar("W", bound=Closable)
P = ParamSpec("P")
T = TypeVar("T")


class Worker(Generic[W]):
    """Owns an object that its thread makes and closes."""

    def __init__(self, executor: ThreadPoolExecutor, held: W) -> None:
        self._executor = executor
        self._held = held
        self._closing: Future[None] | None = None

    @classmethod
    async def start(cls, name: str, make: Callable[[], W]) -> Self:
        """Start the thread called *name* with the object of *make*; without one if *make* fails."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        try:
            return cls(executor, await result_or_dispose(executor.submit(make), lambda held: held.close()))
        except BaseException:
            executor.shutdown()
            raise

    def submit(self, method: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run *method* whether or not a caller awaits its result."""
        return self._executor.submit(method, self._held, *args, **kwargs)

    async def do(self, method: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *method* and return its result.

        If the awaiting task is cancelled, a method that has begun runs to its end; one still queued is dropped.
        """
        return await asyncio.wrap_future(self.submit(method, *args, **kwargs))

    async def close(self) -> None:
        """Finish all methods submitted, close the object and end the thread. Safe to repeat."""
        if self._closing is None:
            self._closing = self._executor.submit(self._held.close)
        await asyncio.shield(asyncio.wrap_future(self._closing))
        self._executor.shutdown()


async def result_or_dispose(working: "Future[T]", dispose: Callable[[T], object]) -> T:
    """The result of *working*; *dispose* of it if the awaiting task is cancelled."""
    try:
        return await asyncio.shield(asyncio.wrap_future(working))
    except asyncio.CancelledError:
        working.add_done_callback(lambda done: done.exception() or dispose(done.result()))
        raise
