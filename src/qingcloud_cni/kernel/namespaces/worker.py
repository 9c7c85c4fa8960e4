"""A thread of its own for one object whose calls block: what is asked of it is done in turn."""

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
    """Holds the object; it was made in the thread, and is closed there."""

    def __init__(self, executor: ThreadPoolExecutor, held: W) -> None:
        self._executor = executor
        self._held = held
        self._closing: Future[None] | None = None

    @classmethod
    async def start(cls, name: str, make: Callable[[], W]) -> Self:
        """Begin the thread called *name* with what *make* gives; where that fails there is none."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        try:
            return cls(executor, await kept(executor.submit(make), lambda held: held.close()))
        except BaseException:
            executor.shutdown()
            raise

    def submit(self, verb: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have it done whether or not anybody waits for it."""
        return self._executor.submit(verb, self._held, *args, **kwargs)

    async def do(self, verb: Callable[Concatenate[W, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What *verb* of the object gives.

        One that has begun runs to its end even if the task that awaits it is cancelled; one still waiting for its
        turn is dropped.
        """
        return await asyncio.wrap_future(self.submit(verb, *args, **kwargs))

    async def close(self) -> None:
        """Let what is under way end, then close the object and end the thread. Safe to repeat."""
        if self._closing is None:
            self._closing = self._executor.submit(self._held.close)
        await asyncio.shield(asyncio.wrap_future(self._closing))
        self._executor.shutdown()


async def kept(working: "Future[T]", let_go: Callable[[T], object]) -> T:
    """What comes of *working*; `let_go` of it where nobody waits for it any more."""
    try:
        return await asyncio.shield(asyncio.wrap_future(working))
    except asyncio.CancelledError:
        working.add_done_callback(lambda done: done.exception() or let_go(done.result()))
        raise
