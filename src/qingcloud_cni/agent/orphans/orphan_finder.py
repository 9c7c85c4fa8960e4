"""`qingagent orphans`: finds NICs whose instance is gone, and deletes them. It needs no agent, and asks none."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from qingcloud_cni.agent.base import logs
from qingcloud_cni.agent.base.clock import SystemClock
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cloud import Access, AioTransport, Client, Limiter
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.drift.orphans import LeftAlone, Orphan, candidates, classify, gone_instances
from qingcloud_cni.core.errors import (
    ClockSkewed,
    CloudRefused,
    CredentialsRefused,
    NotListed,
    OutcomeUnknown,
    ResourceNotFound,
)
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import CloudCalls, Instance, batches

PAUSE = 2.0  # seconds between two looks: a cloud in trouble shows lists that lack what is there
BATCH = 99  # ids per question, so that our own instance fits in
KEYS_CALLS = 2000  # an hour: an operator waits for what is asked here, so it is no host's budget that holds
ROUNDS = 3  # times a delete whose reply was lost is tried


@dataclass(frozen=True, slots=True)
class Found:
    orphans: tuple[Orphan, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of an orphan that was to be deleted; *error* is why it is still there."""

    orphan: Orphan
    error: str = ""


class OrphanFinder:
    """Looks for orphans in the zone, as an operator asks."""

    def __init__(
        self, calls: CloudCalls, clock: Clock, *, prefixes: Sequence[str], own_instance: str, older_than: float
    ) -> None:
        """*own_instance* is "" where this machine is none."""
        self._calls = calls
        self._clock = clock
        self._prefixes = prefixes
        self._own_instance = own_instance
        self._older_than = older_than

    async def find(self) -> Found:
        """Any CloudError where the cloud does not tell all that is needed; nothing is concluded from a part."""
        found = candidates(await self._calls.nics(status="available"), self._prefixes, self._own_instance)
        if not found:
            return Found()
        instance_ids = tuple(dict.fromkeys(s.instance_id for s in found))
        first = await self._look(instance_ids)
        missed = tuple(gone_instances(instance_ids, (first,)))
        if not missed:
            return Found()
        await self._clock.sleep(PAUSE)
        gone = gone_instances(missed, (first, await self._look(missed)))
        return Found(*classify(found, gone, self._clock.wall(), self._older_than))

    async def _look(self, instance_ids: Sequence[str]) -> dict[str, Instance]:
        """What the cloud lists of these instances; NotListed if it does not even list our own, asked for as well."""
        found: dict[str, Instance] = {}
        for batch in batches(instance_ids, BATCH):
            wanted = (*batch, self._own_instance) if self._own_instance else batch
            listed = {instance.instance_id: instance for instance in await self._calls.instances(wanted)}
            found |= listed
            if self._own_instance and self._own_instance not in listed:
                raise NotListed(
                    f"the cloud lists no instance {self._own_instance}, which is this one, so it is not believed that"
                    " others are gone; check --zone, --instance-id and keys, or try again",
                    action="DescribeInstances",
                )
        return found

    async def delete(self, orphans: Sequence[Orphan], tell: Callable[[Deleted], None]) -> None:
        """Delete those of *orphans* that are orphans still, and tell of each; any CloudError ends it midway.

        It may be long since they were found: an instance may have been brought back, a NIC attached by somebody.
        """
        still = {orphan.nic.nic_id for orphan in (await self.find()).orphans}
        doomed = [orphan for orphan in orphans if orphan.nic.nic_id in still]
        for orphan in orphans:
            if orphan not in doomed:
                tell(Deleted(orphan, "it is no orphan any more"))
        for batch in batches(doomed, BATCH):
            await self._delete(batch, tell)

    async def _delete(self, orphans: Sequence[Orphan], tell: Callable[[Deleted], None], tries: int = 1) -> None:
        """The cloud deletes all NICs of a call or none: where it refuses, each half is tried."""
        try:
            await self._calls.delete_nics([orphan.nic.nic_id for orphan in orphans])
        except OutcomeUnknown:
            left = await self._still_there(orphans)
            _tell_all(tell, [orphan for orphan in orphans if orphan not in left])
            if left and tries == ROUNDS:
                raise
            if left:
                await self._delete(left, tell, tries + 1)
        except (CredentialsRefused, ClockSkewed):
            raise  # of all calls, so that halves fare no better
        except CloudRefused as err:
            if len(orphans) == 1:
                tell(Deleted(orphans[0], "" if isinstance(err, ResourceNotFound) else str(err)))
                return
            middle = len(orphans) // 2
            for half in (orphans[:middle], orphans[middle:]):
                await self._delete(half, tell)
        else:
            _tell_all(tell, orphans)

    async def _still_there(self, orphans: Sequence[Orphan]) -> list[Orphan]:
        """Those that one of two lists shows."""
        nic_ids = [orphan.nic.nic_id for orphan in orphans]
        seen: set[str] = set()
        for _ in range(2):
            await self._clock.sleep(PAUSE)
            seen |= {nic.nic_id for nic in await self._calls.nics(nic_ids=nic_ids)}
        return [orphan for orphan in orphans if orphan.nic.nic_id in seen]


@asynccontextmanager
async def orphan_finder(
    settings: Settings, access: Access, *, own_instance: str, older_than: float
) -> AsyncIterator[OrphanFinder]:
    """For as long as it is needed, with a connection to the cloud of its own."""
    clock, rng = SystemClock(), random.Random()
    limiter = Limiter(Budget(KEYS_CALLS, clock.now()), clock=clock, rng=rng, on_rate=logs.calls_refused)
    cloud = Client(access, AioTransport(access), limiter, clock=clock, rng=rng, observe=logs.cloud_call)
    prefixes = (settings.nic_name_prefix, settings.gatewayns)
    try:
        calls = await cloud.permit(lambda: Urgency.WAITING)
        yield OrphanFinder(calls, clock, prefixes=prefixes, own_instance=own_instance, older_than=older_than)
    finally:
        await cloud.close()


def _tell_all(tell: Callable[[Deleted], None], orphans: Sequence[Orphan]) -> None:
    for orphan in orphans:
        tell(Deleted(orphan))
