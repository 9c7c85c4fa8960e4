"""DELs that the plugin spooled while it could not reach the agent: carried out at start, and as new ones come."""

from qingcloud_cni.agent.attachments.attachments import Attachments
from qingcloud_cni.agent.attachments.spool_files import Oddity, SpoolFile, SpoolFiles
from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord, repeat
from qingcloud_cni.core.errors import AgentError, StoreRefused, Unavailable

PERIOD = 1.0  # seconds between scans of the directory
LONGEST_DELAY = 10.0  # seconds after a failure: others may come meanwhile


class Spool:
    """The periodic task. An ADD carries out the spooled DEL of its attachment itself."""

    def __init__(self, context: Context, attachments: Attachments, files: SpoolFiles) -> None:
        self.record = TaskRecord(PERIOD)
        self.waiting = 0  # files that could not be processed yet
        self._context = context
        self._attachments = attachments
        self._files = files
        self._seen: int | None = None

    async def run(self) -> None:
        await repeat(
            self.scan, self.record, clock=self._context.clock,
            backoff=lambda n: delay_after(n, self._context.rng, longest=LONGEST_DELAY),
        )  # fmt: skip

    async def remove_drafts(self) -> None:
        self._files.remove_drafts()

    async def scan(self) -> None:
        """Carry out all spooled DELs, if the directory has changed; at the end Unavailable names what failed."""
        stamp = self._files.stamp()
        if self._seen is not None and stamp == self._seen and not self.waiting:
            return
        try:
            files = self._files.scan()
        except Unavailable as err:
            self._context.note_and_push("spool.unusable", detail=str(err))
            raise
        failures: list[str] = []
        waiting = 0
        for found in files:
            match found:
                case Oddity(event, detail):
                    self._context.note_and_push(event, detail=detail)
                    if event == "spool.failed":
                        waiting += 1
                        failures.append(detail)
                case SpoolFile():
                    try:
                        waiting += not await self._attachments.finish(found)
                    except StoreRefused:  # noted by the journal; the file stays until the release is on disk
                        waiting += 1
                    except AgentError as err:
                        waiting += 1
                        failures.append(str(err))
                        self._context.note_and_push("spool.failed", "", str(found.spooled.key), str(err))
        self.waiting = waiting
        self._seen = stamp
        if failures:
            raise Unavailable("; ".join(failures))
