"""DELs that the plugin kept while the agent could not be asked: done at start, and when new ones come."""

from dataclasses import dataclass
from typing import Annotated

from qingcloud_cni.agent.attachments.attachments import Attachments
from qingcloud_cni.agent.attachments.spool_files import Oddity, SpoolFile, SpoolFiles
from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord, repeat
from qingcloud_cni.core.errors import AgentError, StoreRefused, Unavailable
from qingcloud_cni.core.metrics import gauge

PERIOD = 1.0  # seconds between glances at the directory
LONGEST_DELAY = 10.0  # seconds after a failure: others may come meanwhile


@dataclass(frozen=True, slots=True)
class SpoolStatistics:
    waiting: Annotated[int, gauge("qingagent_spooled", "Spooled DELs that the agent could not carry out yet.")]


class Spool:
    """The periodic task. An ADD does what is kept for its attachment by itself, so it never comes too late."""

    def __init__(self, context: Context, attachments: Attachments, files: SpoolFiles) -> None:
        self.record = TaskRecord(PERIOD)
        self.waiting = 0  # files that could not be dealt with yet
        self._context = context
        self._attachments = attachments
        self._files = files
        self._seen: int | None = None

    def statistics(self) -> SpoolStatistics:
        return SpoolStatistics(self.waiting)

    async def run(self) -> None:
        await repeat(
            self.look, self.record, clock=self._context.clock,
            backoff=lambda n: delay_after(n, self._context.rng, longest=LONGEST_DELAY),
        )  # fmt: skip

    async def look(self) -> None:
        """Do all that is there, if something has changed; Unavailable tells at the end what could not be done."""
        stamp = self._files.stamp()
        if self._seen is not None and stamp == self._seen and not self.waiting:
            return
        try:
            files = self._files.look()
        except Unavailable as err:
            self._note("spool.unusable", detail=str(err))
            raise
        failures: list[str] = []
        waiting = 0
        for found in files:
            match found:
                case Oddity("spool.failed", detail):
                    waiting += 1
                    failures.append(detail)
                    self._note("spool.failed", detail=detail)
                case Oddity(event, detail):
                    self._note(event, detail=detail)
                case SpoolFile():
                    try:
                        waiting += not await self._attachments.finish(found)
                    except StoreRefused:  # told already; the file stays until it is on disk
                        waiting += 1
                    except AgentError as err:
                        waiting += 1
                        failures.append(str(err))
                        self._note("spool.failed", str(found.kept.key), str(err))
        self.waiting = waiting
        self._seen = stamp
        if failures:
            raise Unavailable("; ".join(failures))

    def _note(self, event: str, subject: str = "", detail: str = "") -> None:
        self._context.note(event, subject=subject, detail=detail)
        self._context.journal.push()
