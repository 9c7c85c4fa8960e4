"""What all cloud writes share: the intent is on disk before the call, and DescribeNics shows what a lost one did."""

from collections.abc import Coroutine
from typing import Any

from qingcloud_cni.agent.base.clock import Backoff
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.cloudops.jobs import Jobs
from qingcloud_cni.agent.cloudops.lookups import Lookups
from qingcloud_cni.core.nics.model import Intent, NicState
from qingcloud_cni.core.seams.cloud import CloudNic

JOB_LIMIT = 1800.0  # seconds after which a pending job is ignored, and the state of its NICs decides
GONE_FROM_HERE = "the cloud does not list it, or has it attached to another instance"
FRESH = 5.0  # seconds for which an intent may have waited for the disk when the call is made


class CloudWrites:
    """Base of `Provisioner` and `Releaser`.

    A write can be resumed at any point after its intent was saved. No write is repeated before DescribeNics has shown
    what the first one did.
    """

    def __init__(self, context: Context, jobs: Jobs) -> None:
        self.backoff = Backoff(context.rng)
        self._context = context
        self._table = context.table
        self._jobs = jobs
        self._lookups = Lookups(context)

    @property
    def cause(self) -> str:
        """Why the latest read or write failed; "" if it did not."""
        return self._lookups.error or self.backoff.cause

    def _spawn(self, intent: Intent, work: Coroutine[Any, Any, None]) -> None:
        self._context.tasks.spawn(f"{intent.kind} {intent.op_id}", work)

    async def _persisted(self, intent: Intent) -> Intent:
        """The intent as it is on disk, where it has to be before the cloud is called.

        One that waited long for the disk gets a new date: after a restart its age decides whether the call may still
        take effect.
        """
        self._context.signals.plan_due.notify()
        await self._context.journal.save()
        while (now := self._context.now()) - self._table.intents[intent.op_id].since > FRESH:
            self._table.restarted(intent.op_id, now)
            await self._context.journal.save()
        return self._table.intents[intent.op_id]

    def _changed(self) -> None:
        self._context.journal.push()
        self._context.signals.plan_due.notify()

    def _is(self, nic_id: str, state: NicState) -> bool:
        nic = self._table.nics.get(nic_id)
        return nic is not None and nic.state is state

    def _in(self, intent: Intent, state: NicState) -> tuple[str, ...]:
        return tuple(n for n in intent.nic_ids if self._is(n, state))

    def _is_here(self, nic: CloudNic | None) -> bool:
        return nic is not None and nic.instance_id == self._context.identity.instance_id

    def _is_gone(self, nic: CloudNic | None) -> bool:
        """Whether the NIC was deleted, or attached to another instance."""
        return nic is None or nic.instance_id not in ("", self._context.identity.instance_id)

    def _left(self, intent: Intent, seconds: float) -> float:
        """How many of *seconds* since the intent are left; a restart may have used them up."""
        return max(intent.since + seconds - self._context.now(), 0.0)
