"""Files and mounts of the agent that others may remove: looked at every few seconds, and put back."""

from collections.abc import Awaitable, Callable

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord, repeat
from qingcloud_cni.core.errors import AgentError, Unavailable

PERIOD = 2.0  # seconds between looks; what was removed is back within 5

Restore = Callable[[], Awaitable[str | None]]


class OwnFiles:
    """The periodic task."""

    def __init__(self, context: Context) -> None:
        self.record = TaskRecord(PERIOD)
        self._context = context
        self._restores: list[Restore] = []
        self._looked: set[Restore] = set()  # a start makes what is missing; later it was removed
        self._obstacles: set[str] = set()  # as noted; each once

    def watch(self, *restores: Restore) -> None:
        """Each of *restores* puts one thing back if it is missing, and then returns its name for an event.

        The first look records no event: a start finds an empty run directory after a boot or a stop.
        It raises AgentError if something else is in the way; the thing stays missing until that is gone.
        """
        self._restores += restores

    async def run(self) -> None:
        await repeat(self.check, self.record, backoff=lambda _failures: PERIOD, clock=self._context.clock)

    async def check(self) -> None:
        """Put back all that is missing, in the order of `watch`; at the end Unavailable names what is in the way."""
        obstacles: dict[str, None] = {}  # one may hinder several
        for restore in self._restores:
            try:
                if (restored := await restore()) and restore in self._looked:
                    self._context.note_and_push("file.restored", detail=restored)
            except AgentError as err:
                obstacles[str(err)] = None
            self._looked.add(restore)
        for obstacle in obstacles:
            if obstacle not in self._obstacles:
                self._context.note_and_push("file.obstructed", detail=obstacle)
        self._obstacles = set(obstacles)
        if obstacles:
            raise Unavailable("; ".join(obstacles))
