"""Requests for one attachment take turns; and whoever waits learns when nobody wants its answer any more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from qingcloud_cni.agent.base.phases import Phases
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import Unavailable
from qingcloud_cni.core.nics.model import AttachmentKey

GLANCE = 0.5  # seconds between looks whether a caller who waits is still there
_HEEDED = frozenset({Verb.ADD, Verb.DEL})  # of these a caller that has gone may have asked the opposite since


class CniCall:
    """A request while it is served: it may wait, for its turn, a NIC or a gateway, and be called off meanwhile."""

    def __init__(
        self,
        verb: Verb,
        seconds: float = float("inf"),
        *,
        phases: Phases | None = None,
        is_awaited: Callable[[], bool] = lambda: True,
    ) -> None:
        """*seconds* bounds all its waiting together; *is_awaited* tells whether the caller is still there."""
        self.verb = verb
        self.seconds = seconds
        self.phases = phases or Phases()
        self.cause = ""  # why it was called off; "" while it was not
        self._end = asyncio.get_running_loop().time() + seconds
        self._is_awaited = is_awaited
        self._waiting: asyncio.Task[object] | None = None  # the task to wake, while it waits
        self._glance: asyncio.TimerHandle | None = None

    @property
    def left(self) -> float:
        """Seconds it may still wait; not below 0."""
        return max(self._end - asyncio.get_running_loop().time(), 0.0)

    def call_off(self, cause: str) -> None:
        """Nobody wants the answer any more. What waits ends at once, what is being done runs to its end."""
        self.cause = self.cause or cause
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def check(self) -> None:
        """Unavailable if the answer is not wanted any more."""
        self._look()
        if self.cause:
            raise Unavailable(self.cause)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which nothing is done but waiting: it ends with Unavailable once the call is off.

        Caution: what it waits for may come at the very moment it is called off; it must be given back then.
        """
        self.check()
        task = self._waiting = asyncio.current_task()
        assert task is not None
        self._glance = asyncio.get_running_loop().call_later(GLANCE, self._look_again)
        try:
            yield
        except asyncio.CancelledError:
            if self._waiting is None and not task.uncancel():  # ours, and nobody else's besides
                raise Unavailable(self.cause) from None
            raise
        finally:
            self._glance.cancel()
            self._waiting = None

    def _look_again(self) -> None:
        self._glance = asyncio.get_running_loop().call_later(GLANCE, self._look_again)
        self._look()

    def _look(self) -> None:
        if self.verb in _HEEDED and not self._is_awaited():
            self.call_off(f"the caller of its {self.verb} has gone")


class AttachmentLock:
    """First come, first served, for each attachment."""

    def __init__(self) -> None:
        self._rows: dict[AttachmentKey, _Row] = {}

    def __contains__(self, key: AttachmentKey) -> bool:
        """Whether a request for this attachment is being served, or waits."""
        return key in self._rows

    def call_off_adds(self, key: AttachmentKey, cause: str) -> None:
        """End the ADDs that wait; those that are past waiting are undone as soon as they are done."""
        for call in tuple(self._rows[key].calls) if key in self._rows else ():
            if call.verb is Verb.ADD:
                call.call_off(cause)

    @asynccontextmanager
    async def hold(self, key: AttachmentKey, call: CniCall) -> AsyncIterator[None]:
        """Be the only one for *key*; Unavailable if that is not to be had in time, or if the call is off."""
        row = self._rows.setdefault(key, _Row())
        row.calls.append(call)
        try:
            await self._acquire(row, key, call)
            try:
                yield
            finally:
                row.lock.release()
        finally:
            row.calls.remove(call)
            if not row.calls:
                del self._rows[key]

    async def _acquire(self, row: "_Row", key: AttachmentKey, call: CniCall) -> None:
        if len(row.calls) == 1:
            await row.lock.acquire()
            return
        try:
            with call.waiting():
                async with asyncio.timeout(call.left):
                    await row.lock.acquire()
        except TimeoutError:
            holder = row.calls[0].verb
            raise Unavailable(
                f"{call.verb} of {key}: not begun within {call.seconds:.0f} s, for its {holder} is still under way"
            ) from None


class _Row:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.calls: list[CniCall] = []  # the one that is served, and those that wait
