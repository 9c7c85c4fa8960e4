"""Signals between the parts of the agent, and doubts about what table, kernel and cloud agree on."""

import asyncio

LINGER = 0.5  # seconds without a release until the path of released containers ends: the next one may need it
LONGEST_LINGER = 2.0  # seconds


class Signal:
    """Wakes all that wait for it, or the next one if none does. A waiter then checks its condition again."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}  # the longest waiting first
        self._is_pending = False

    def notify(self) -> None:
        self._is_pending = not self._waiting
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - a timeout is a result here
        """True if it was notified within *timeout* seconds, or since the last wait ended."""
        if self._is_pending:
            self._is_pending = False
            return True
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            done, _ = await asyncio.wait({future}, timeout=timeout)
        finally:
            self._waiting.pop(future, None)
        return bool(done)


class Signals:
    def __init__(self) -> None:
        self.plan_due = Signal()  # facts that the planner reads have changed
        self.path_due = Signal()  # the gateways, or what the kernel does for Services, may have to change
        self.arrivals = Signal()  # NICs have left ATTACHING
        self.links_due = Signal()  # the table is to be compared with the links
        self.doubt_due = Signal()  # a comparison with the cloud is wanted
        self._doubts: dict[str, None] = {}  # in the order in which they came
        self._lingering: asyncio.TimerHandle | None = None
        self._longest = 0.0  # on the loop's clock

    def obstacle_gone(self) -> None:
        """Whatever was held back may go on."""
        self.plan_due.notify()
        self.path_due.notify()

    def released(self) -> None:
        """An attachment has ended, whatever ended it."""
        loop = asyncio.get_running_loop()
        if self._lingering is None:
            self._longest = loop.time() + LONGEST_LINGER
        else:
            self._lingering.cancel()
        self._lingering = loop.call_at(min(loop.time() + LINGER, self._longest), self._end_path)

    def _end_path(self) -> None:
        self._lingering = None
        self.path_due.notify()

    def doubt(self, cause: str) -> None:
        """Something ended unexpectedly: table, kernel and cloud shall be compared soon."""
        self._doubts[cause] = None
        self.doubt_due.notify()

    @property
    def has_doubts(self) -> bool:
        return bool(self._doubts)

    def take_doubts(self) -> tuple[str, ...]:
        causes = tuple(self._doubts)
        self._doubts.clear()
        return causes


def settle(future: "asyncio.Future[None]", error: Exception | None = None) -> None:
    """End a wait, unless it was cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
