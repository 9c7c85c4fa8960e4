"""Locks attachments for requests, and cancels requests whose answer is not wanted any more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from qingcloud_cni.agent.base.phases import Phases
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import Unavailable
from qingcloud_cni.core.nics.model import AttachmentKey

CHECK_PERIOD = 0.5  # seconds between checks whether the caller of a waiting request is still there
_CANCELLED = frozenset({Verb.ADD, Verb.DEL})  # if their caller has gone: it may have requested the opposite since


class CniCall:
    """A request being served. While it waits, for the lock, a NIC or a gateway, it may be cancelled."""

    def __init__(
        self,
        verb: Verb,
        seconds: float = float("inf"),
        *,
        phases: Phases | None = None,
        is_awaited: Callable[[], bool] = lambda: True,
    ) -> None:
        """*seconds* limits the sum of its waits; *is_awaited* returns whether the caller is still there."""
        self.verb = verb
        self.seconds = seconds
        self.phases = phases or Phases()
        self.cause = ""  # why it was cancelled; "" if it was not
        self._end = asyncio.get_running_loop().time() + seconds
        self._is_awaited = is_awaited
        self._waiting: asyncio.Task[object] | None = None  # the task to wake, while it waits
        self._check_timer: asyncio.TimerHandle | None = None

    @property
    def left(self) -> float:
        return max(self._end - asyncio.get_running_loop().time(), 0.0)

    def call_off(self, cause: str) -> None:
        """End a wait at once; work that has begun goes on to its end."""
        self.cause = self.cause or cause
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def check(self) -> None:
        """Unavailable if it was cancelled, or if its caller has gone."""
        self._check_caller()
        if self.cause:
            raise Unavailable(self.cause)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that only waits; it ends with Unavailable if the request is cancelled.

        What it waits for may come at that very moment; the caller has to release it then.
        """
        self.check()
        task = self._waiting = asyncio.current_task()
        assert task is not None
        self._check_timer = asyncio.get_running_loop().call_later(CHECK_PERIOD, self._check_again)
        try:
            yield
        except asyncio.CancelledError:
            if self._waiting is None and not task.uncancel():  # by `call_off`, and by nothing else
                raise Unavailable(self.cause) from None
            raise
        finally:
            self._check_timer.cancel()
            self._waiting = None

    def _check_again(self) -> None:
        self._check_timer = asyncio.get_running_loop().call_later(CHECK_PERIOD, self._check_again)
        self._check_caller()

    def _check_caller(self) -> None:
        if self.verb in _CANCELLED and not self._is_awaited():
            self.call_off(f"the caller of its {self.verb} has gone")


class AttachmentLock:
    def __init__(self) -> None:
        self._queues: dict[AttachmentKey, _Queue] = {}

    def __contains__(self, key: AttachmentKey) -> bool:
        return key in self._queues

    def call_off_adds(self, key: AttachmentKey, cause: str) -> None:
        """Cancel the attachment's ADDs; those that do not wait are undone at their end."""
        for call in tuple(self._queues[key].calls) if key in self._queues else ():
            if call.verb is Verb.ADD:
                call.call_off(cause)

    @asynccontextmanager
    async def hold(self, key: AttachmentKey, call: CniCall) -> AsyncIterator[None]:
        """Lock *key*; Unavailable if that takes too long, or if the request is cancelled."""
        queue = self._queues.setdefault(key, _Queue())
        queue.calls.append(call)
        try:
            await self._acquire(queue, key, call)
            try:
                yield
            finally:
                queue.lock.release()
        finally:
            queue.calls.remove(call)
            if not queue.calls:
                del self._queues[key]

    async def _acquire(self, queue: "_Queue", key: AttachmentKey, call: CniCall) -> None:
        if len(queue.calls) == 1:
            await queue.lock.acquire()
            return
        try:
            with call.waiting():
                async with asyncio.timeout(call.left):
                    await queue.lock.acquire()
        except TimeoutError:
            holder = queue.calls[0].verb
            raise Unavailable(
                f"{call.verb} of {key}: not begun within {call.seconds:.0f} s, for its {holder} is still under way"
            ) from None


class _Queue:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.calls: list[CniCall] = []  # the one being served, and those that wait
