"""A thread of its own for one object with blocking methods, which run one after another, urgent ones first."""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from queue import PriorityQueue
from typing import Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from qingcloud_cni.core.errors import KernelExhausted, shortage_as


class Priority(IntEnum):
    """Lower values run first; equal ones in order."""

    REQUEST = 0  # a CNI request may wait for it
    POOL = 1


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
        self._queue: PriorityQueue[tuple[Priority, int, Callable[[], None]]] = PriorityQueue()
        self._numbers = itertools.count()

    @classmethod
    async def start(cls, name: str, make: Callable[[], W]) -> Self:
        """Start the thread called *name* with the object of *make*; without one if *make* fails."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        try:
            made = executor.submit(_translated, name, make)
            return cls(executor, await result_or_dispose(made, lambda held: held.close()))
        except BaseException:
            executor.shutdown()
            raise

    def submit(self, method: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run *method* whether or not a caller awaits its result, before methods of lower priority.

        KernelExhausted if it meets a shortage.
        """
        return self._submit(Priority.REQUEST, lambda: method(self._held, *args, **kwargs))

    async def do(self, method: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *method* and return its result.

        If the awaiting task is cancelled, a method that has begun runs to its end; one still queued is dropped.
        """
        return await asyncio.wrap_future(self.submit(method, *args, **kwargs))

    async def do_later(self, method: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `do`, once no method waits that a request may wait for."""
        return await asyncio.wrap_future(self._submit(Priority.POOL, lambda: method(self._held, *args, **kwargs)))

    def _submit(self, priority: Priority, work: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(_translated("kernel work", work))
                except BaseException as err:  # noqa: BLE001 - for the caller, as ThreadPoolExecutor has it
                    future.set_exception(err)

        self._queue.put((priority, next(self._numbers), run))
        self._executor.submit(self._run_next)
        return future

    def _run_next(self) -> None:
        self._queue.get_nowait()[2]()

    async def close(self) -> None:
        """Finish all methods submitted, close the object and end the thread. Safe to repeat."""
        if self._closing is None:
            self._closing = self._executor.submit(self._held.close)
        await asyncio.shield(asyncio.wrap_future(self._closing))
        self._executor.shutdown()


def _translated(thing: str, work: Callable[[], T]) -> T:
    with shortage_as(KernelExhausted, thing):
        return work()


async def result_or_dispose(working: "Future[T]", dispose: Callable[[T], object]) -> T:
    """The result of *working*; *dispose* of it if the awaiting task is cancelled."""
    try:
        return await asyncio.shield(asyncio.wrap_future(working))
    except asyncio.CancelledError:
        working.add_done_callback(lambda done: done.exception() or dispose(done.result()))
        raise
