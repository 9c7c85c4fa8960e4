"""Finds NICs whose instance is gone, and deletes them, for `qingagent orphans` and for tasks of an agent."""

import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from qingcloud_cni.agent.base import logs
from qingcloud_cni.agent.base.clock import SystemClock
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cloud import Access, AioTransport, Caller, Client, Limiter
from qingcloud_cni.core import errors
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.drift.orphans import LeftAlone, Orphan, candidates, classify, gone_instances
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import Cloud, CloudCalls, HowUrgent, Instance, batches
from qingcloud_cni.kernel import local_macs

PAUSE = 2.0  # seconds between two reads: an overloaded cloud may return incomplete lists
BATCH = 99  # ids per call, so that our own instance fits in
CALLS_PER_HOUR = 2000  # of one API key: an operator waits, so the budget of a host does not apply
ROUNDS = 3  # tries of a delete whose reply was lost


@dataclass(frozen=True, slots=True)
class Found:
    orphans: tuple[Orphan, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()


@dataclass(frozen=True, slots=True)
class Deleted:
    """The end of one deletion; *error* is "" if it succeeded."""

    orphan: Orphan
    error: str = ""


class OrphanFinder:
    def __init__(
        self,
        cloud: Cloud,
        urgency: HowUrgent,
        clock: Clock,
        *,
        prefixes: Sequence[str],
        own_instance: str,
        own_macs: Collection[str] = (),
        older_than: float,
    ) -> None:
        """*prefixes* of NIC names; *own_instance* is "" if this machine is not an instance.

        NICs with *own_macs*, those of links of this machine, are never touched, whatever the cloud calls them.

        NICs that have been free for less than *older_than* seconds are left alone.
        """
        self._cloud = cloud
        self._urgency = urgency
        self._clock = clock
        self._prefixes = prefixes
        self._own_instance = own_instance
        self._own_macs = own_macs
        self._older_than = older_than

    async def _calls(self) -> CloudCalls:
        return await self._cloud.permit(self._urgency)

    async def find(self) -> Found:
        """Orphans, and NICs left alone; any CloudError if one of the reads fails."""
        free = await (await self._calls()).nics(status="available")
        found = candidates(
            (nic for nic in free if nic.nic_id not in self._own_macs), self._prefixes, self._own_instance
        )
        if not found:
            return Found()
        instance_ids = tuple(dict.fromkeys(s.instance_id for s in found))
        first = await self._instances(instance_ids)
        missed = tuple(gone_instances(instance_ids, (first,)))
        if not missed:
            return Found()
        await self._clock.sleep(PAUSE)
        gone = gone_instances(missed, (first, await self._instances(missed)))
        return Found(*classify(found, gone, self._clock.wall(), self._older_than))

    async def _instances(self, instance_ids: Sequence[str]) -> dict[str, Instance]:
        """The listed ones of these instances; NotListed if the cloud does not even list our own."""
        found: dict[str, Instance] = {}
        for batch in batches(instance_ids, BATCH):
            wanted = (*batch, self._own_instance) if self._own_instance else batch
            listed = {instance.instance_id: instance for instance in await (await self._calls()).instances(wanted)}
            found |= listed
            if self._own_instance and self._own_instance not in listed:
                raise errors.NotListed(
                    f"this instance {self._own_instance} is not listed by the cloud, so others may exist as well;"
                    " check --zone, --instance-id and keys, or try again",
                    action="DescribeInstances",
                )
        return found

    async def delete(self, orphans: Sequence[Orphan], report: Callable[[Deleted], None]) -> None:
        """Delete those of *orphans* that still are orphans; *report* gets each result. Any CloudError ends it midway.

        They may have been found long ago: an instance may have been recovered, or a NIC attached.
        """
        still = {orphan.nic.nic_id for orphan in (await self.find()).orphans}
        doomed = [orphan for orphan in orphans if orphan.nic.nic_id in still]
        for orphan in orphans:
            if orphan not in doomed:
                report(Deleted(orphan, "it is not an orphan any more"))
        for batch in batches(doomed, BATCH):
            await self._delete(batch, report)

    async def _delete(self, orphans: Sequence[Orphan], report: Callable[[Deleted], None], tries: int = 1) -> None:
        """The cloud deletes all NICs of a call or none: if it refuses, each half is tried."""
        try:
            await (await self._calls()).delete_nics([orphan.nic.nic_id for orphan in orphans])
        except errors.OutcomeUnknown:
            left = await self._still_there(orphans)
            _report_all(report, [orphan for orphan in orphans if orphan not in left])
            if left and tries == ROUNDS:
                raise
            if left:
                await self._delete(left, report, tries + 1)
        except (errors.CredentialsRefused, errors.ClockSkewed):
            raise  # halves would fail as well
        except errors.CloudRefused as err:
            if len(orphans) == 1:
                report(Deleted(orphans[0], "" if isinstance(err, errors.ResourceNotFound) else str(err)))
                return
            middle = len(orphans) // 2
            for half in (orphans[:middle], orphans[middle:]):
                await self._delete(half, report)
        else:
            _report_all(report, orphans)

    async def _still_there(self, orphans: Sequence[Orphan]) -> list[Orphan]:
        nic_ids = [orphan.nic.nic_id for orphan in orphans]
        seen: set[str] = set()
        for _ in range(2):
            await self._clock.sleep(PAUSE)
            seen |= {nic.nic_id for nic in await (await self._calls()).nics(nic_ids=nic_ids)}
        return [orphan for orphan in orphans if orphan.nic.nic_id in seen]


@asynccontextmanager
async def orphan_finder(
    settings: Settings, access: Access, *, own_instance: str, older_than: float
) -> AsyncIterator[OrphanFinder]:
    """A finder with a cloud client of its own, which needs no agent."""
    clock, rng = SystemClock(), random.Random()
    limiter = Limiter(Budget(CALLS_PER_HOUR, clock.now()), clock=clock, rng=rng, on_rate=logs.calls_refused)
    cloud = Client(Caller(access, AioTransport(access), limiter, clock=clock, rng=rng, observe=logs.cloud_call))
    prefixes = (settings.nic_name_prefix, settings.gatewayns)
    try:
        yield OrphanFinder(
            cloud, lambda: Urgency.WAITING, clock,
            prefixes=prefixes, own_instance=own_instance, own_macs=local_macs(), older_than=older_than,
        )  # fmt: skip
    finally:
        await cloud.close()


def _report_all(report: Callable[[Deleted], None], orphans: Sequence[Orphan]) -> None:
    for orphan in orphans:
        report(Deleted(orphan))
