"""How urgent calls of the cloud are, and calls that are begun only when they may go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qingcloud_cni.agent.base.tasks import Signal, Tasks
from qingcloud_cni.core.budget import Urgency, explain
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import Cloud, CloudCalls, HowUrgent


class CallUrgency:
    """What the urgency of calls depends on; it is asked again whenever a call waits for its turn."""

    def __init__(self, on_more: Callable[[], None]) -> None:
        """*on_more* is told when calls have become more urgent."""
        self._on_more = on_more
        self._adds = 0
        self._askers = 0
        self.is_serving: Callable[[], bool] = lambda: False  # until then every container of this host waits
        self.is_draining = False

    @contextmanager
    def waits(self) -> Iterator[None]:
        """As long as an ADD waits for something that takes calls."""
        self._adds += 1
        self._on_more()
        try:
            yield
        finally:
            self._adds -= 1

    @contextmanager
    def asks(self) -> Iterator[None]:
        """As long as somebody waits for a comparison with the cloud."""
        self._askers += 1
        self._on_more()
        try:
            yield
        finally:
            self._askers -= 1

    def provisioning(self) -> Urgency:
        return Urgency.WAITING if self._adds or not self.is_serving() else Urgency.REFILL

    def comparison(self) -> Urgency:
        """Of comparisons with the cloud, and of the repairs that follow from them."""
        return Urgency.REFILL if self._askers or self.is_draining else Urgency.RECONCILE

    def release(self) -> Urgency:
        """An operator who drains a host waits for it; nobody else does."""
        return Urgency.REFILL if self.is_draining else Urgency.RELEASE


class Permits:
    """Calls for work that is decided only when they are permitted: until then NICs stay as they are, ADDs come."""

    def __init__(self, name: str, urgency: HowUrgent, due: Signal, cloud: Cloud, tasks: Tasks) -> None:
        """*due* is notified when a turn has come that was not to be had at once."""
        self._name = name
        self._urgency = urgency
        self._due = due
        self._cloud = cloud
        self._tasks = tasks
        self._come: CloudCalls | None = None
        self._is_waiting = False

    def take(self) -> CloudCalls | None:
        """A call that may go now; where there is none, one is waited for, and *due* tells."""
        calls, self._come = self._come, None
        if calls is None and not self._is_waiting:
            calls = self._cloud.permit_now(self._urgency)
            if calls is None:
                self._is_waiting = True
                self._tasks.spawn(f"permit for {self._name}", self._wait())
        return calls

    async def _wait(self) -> None:
        try:
            self._come = await self._cloud.permit(self._urgency)
        finally:
            self._is_waiting = False
        self._due.notify()


def explain_budget(cloud: Cloud, clock: Clock) -> str:
    """Why growth waits for the call budget; "" where it does not. Background calls wait as a matter of course."""
    spending = cloud.spending()
    is_waited_for = any(not urgency.is_background for urgency in spending.queued)
    return explain(spending, clock.now()) if is_waited_for else ""
