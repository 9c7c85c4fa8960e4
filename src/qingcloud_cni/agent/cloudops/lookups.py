"""What the cloud has: asked until it answers, and not believed from one answer that something is not there."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from qingcloud_cni.agent.base.clock import Backoff, delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.cloudops.vxnet_cache import VxnetCache
from qingcloud_cni.core.errors import CloudBusy, CloudError, OutcomeUnknown
from qingcloud_cni.core.nics.model import Intent
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, CreatedNic, HowUrgent, Vxnet

LOOK_AGAIN = 5.0  # seconds between two looks at what a write without a reply has done, or at what a list lacks
LATE_EFFECT = 30.0  # seconds from an intent after which its call has no effect any more (a call takes at most 20)

_T = TypeVar("_T")
_Read = Callable[[CloudCalls], Awaitable[tuple[CloudNic, ...]]]


class Lookups:
    """Reads that operations cannot go on without."""

    def __init__(self, context: Context, vxnets: VxnetCache, growth: Backoff) -> None:
        """*growth* is told the trouble: it is what an ADD that waits meanwhile is told."""
        self._context = context
        self._vxnets = vxnets
        self._provisioner = growth
        self._to_grow = context.urgency.provisioning

    async def created(self, intent: Intent, patience: float = LATE_EFFECT) -> tuple[CreatedNic, ...]:
        """What a create without a reply has made; nothing is concluded before it can take effect no more.

        Nor from one answer alone, unless the cloud said itself that it failed, which is no patience.
        """
        looks = 0
        while True:
            looks += 1
            seen = await self._describe(lambda calls: calls.nics(name=intent.name), self._to_grow)
            found = tuple(CreatedNic(n.nic_id, n.private_ip) for n in seen.values() if n.name == intent.name)
            is_over = self._context.now() - intent.since > patience and (looks > 1 or not patience)
            if len(found) >= intent.count or is_over:
                return found
            await self._context.clock.sleep(LOOK_AGAIN)

    async def nics(self, nic_ids: Sequence[str], urgency: HowUrgent) -> dict[str, CloudNic]:
        """NICs by id. One that is not among them was looked for twice: a cloud in trouble may show empty lists."""
        seen = await self._describe(lambda calls: calls.nics(nic_ids=nic_ids), urgency)
        if unlisted := [nic_id for nic_id in nic_ids if nic_id not in seen]:
            await self._context.clock.sleep(LOOK_AGAIN)
            seen |= await self._describe(lambda calls: calls.nics(nic_ids=unlisted), urgency)
        return seen

    async def vxnet(self, vxnet_id: str) -> Vxnet | None:
        """As VxnetCache.get."""
        return await self._answered(lambda: self._vxnets.get(vxnet_id, self._to_grow))

    async def _answered(self, read: Callable[[], Awaitable[_T]]) -> _T:
        """Ask until the cloud answers."""
        failures = 0
        while True:
            try:
                return await read()
            except CloudError as err:
                failures += 1
                self._provisioner.cause = str(err)
                self._context.note("nics.unanswered", detail=str(err))
                self._context.journal.push()
                await self._context.clock.sleep(delay_after(failures, self._context.rng))

    async def _describe(self, read: _Read, urgency: HowUrgent) -> dict[str, CloudNic]:
        async def ask() -> tuple[CloudNic, ...]:
            return await read(await self._context.cloud.permit(urgency))

        return {n.nic_id: n for n in await self._answered(ask)}


def patience_after(err: CloudError) -> float:
    """Seconds for which a failed write may still take effect: none where the cloud answered or was not reached."""
    is_open = isinstance(err, OutcomeUnknown) and not isinstance(err, CloudBusy)
    return LATE_EFFECT if is_open else 0.0
