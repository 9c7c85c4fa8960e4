"""What all cloud writes have in common: they are on disk before they are asked, and the cloud tells what they did."""

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.core.nics.model import Intent, NicState
from qingcloud_cni.core.seams.cloud import CloudNic

JOB_LIMIT = 1800.0  # seconds after which a job that does not end is believed no more than the NICs it is about
FRESH = 5.0  # seconds for which an intent may have waited for the disk when the call is made


class CloudWrites:
    """Base of `Growth` and `Shrinking`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._table = context.table

    async def _announced(self, intent: Intent) -> Intent:
        """The intent as it is on disk, where it has to be before the cloud is asked.

        One that waited long for the disk is dated anew: after a restart its age tells what the call may still do.
        """
        self._context.plan_due.notify()
        await self._context.journal.save()
        while (now := self._context.now()) - self._table.intents[intent.op_id].since > FRESH:
            self._table.renew(intent.op_id, now)
            await self._context.journal.save()
        return self._table.intents[intent.op_id]

    def _changed(self) -> None:
        self._context.journal.push()
        self._context.plan_due.notify()

    def _is(self, nic_id: str, state: NicState) -> bool:
        nic = self._table.nics.get(nic_id)
        return nic is not None and nic.state is state

    def _in(self, intent: Intent, state: NicState) -> tuple[str, ...]:
        return tuple(n for n in intent.nic_ids if self._is(n, state))

    def _is_here(self, nic: CloudNic | None) -> bool:
        return nic is not None and nic.instance_id == self._context.instance_id

    def _is_gone(self, nic: CloudNic | None) -> bool:
        """Whether it is ours no more: deleted, or attached to another instance."""
        return nic is None or nic.instance_id not in ("", self._context.instance_id)

    def _left(self, intent: Intent, seconds: float) -> float:
        """What is left of *seconds* since the intent; after a restart much of it may have passed."""
        return max(intent.since + seconds - self._context.now(), 0.0)
