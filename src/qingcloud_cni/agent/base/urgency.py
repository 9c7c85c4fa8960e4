"""How urgent cloud calls are, and permits for work that is decided only once a call may go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qingcloud_cni.agent.base.signals import Signal
from qingcloud_cni.agent.base.tasks import Tasks
from qingcloud_cni.core.budget import Urgency, explain
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import Cloud, CloudCalls, HowUrgent


class CallUrgency:
    """Computes the urgency of each kind of call; the limiter asks again while a call waits for its permit."""

    def __init__(self, on_more: Callable[[], None]) -> None:
        """*on_more* is called when calls have become more urgent."""
        self._on_more = on_more
        self._adds = 0
        self._askers = 0
        self._is_serving = False
        self.is_draining = False

    def drain(self) -> None:
        """An operator waits until the NICs of this host are deleted."""
        self.is_draining = True
        self._on_more()

    def serve(self) -> None:
        """ADDs are served from now on; until then every container of this host waits for the calls."""
        self._is_serving = True

    @contextmanager
    def waits(self) -> Iterator[None]:
        """The time in which an ADD waits for something that takes calls."""
        self._adds += 1
        self._on_more()
        try:
            yield
        finally:
            self._adds -= 1

    @contextmanager
    def asks(self) -> Iterator[None]:
        """The time in which somebody waits for a comparison with the cloud."""
        self._askers += 1
        self._on_more()
        try:
            yield
        finally:
            self._askers -= 1

    def provisioning(self) -> Urgency:
        return Urgency.REFILL if self._is_serving and not self._adds else Urgency.WAITING

    def comparison(self) -> Urgency:
        return Urgency.REFILL if self._askers or self.is_draining else Urgency.RECONCILE

    def release(self) -> Urgency:
        return Urgency.REFILL if self.is_draining else Urgency.RELEASE


class Permits:
    """Permits for work that is decided only when a call may go; NICs and ADDs may change until then."""

    def __init__(self, name: str, urgency: HowUrgent, due: Signal, cloud: Cloud, tasks: Tasks) -> None:
        """*due* is notified when a permit has come that `take` did not get at once."""
        self._name = name
        self._urgency = urgency
        self._due = due
        self._cloud = cloud
        self._tasks = tasks
        self._granted: CloudCalls | None = None
        self._is_waiting = False

    def take(self) -> CloudCalls | None:
        """A call that may go now. If there is none, a task waits for one and then notifies *due*."""
        calls, self._granted = self._granted, None
        if calls is None and not self._is_waiting:
            calls = self._cloud.permit_now(self._urgency)
            if calls is None:
                self._is_waiting = True
                self._tasks.spawn(f"permit for {self._name}", self._wait())
        return calls

    async def _wait(self) -> None:
        try:
            self._granted = await self._cloud.permit(self._urgency)
        finally:
            self._is_waiting = False
        self._due.notify()


def explain_budget(cloud: Cloud, clock: Clock) -> str:
    """Why ADDs or the refill wait for the call budget; "" if they do not. Background calls usually wait."""
    spending = cloud.spending()
    is_waited_for = any(not urgency.is_background for urgency in spending.queued)
    return explain(spending, clock.now()) if is_waited_for else ""
