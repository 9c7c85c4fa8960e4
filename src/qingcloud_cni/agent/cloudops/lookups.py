"""Reads from the cloud: vxnets, and NICs whose state a write depends on."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.core.errors import CloudBusy, CloudError, OutcomeUnknown
from qingcloud_cni.core.nics.model import Intent
from qingcloud_cni.core.seams.cloud import Cloud, CloudCalls, CloudNic, CreatedNic, HowUrgent, Vxnet

RECHECK = 5.0  # seconds until the second read of what a write without a reply did, or of what a list lacks
LATE_EFFECT = 30.0  # seconds from an intent after which its call has no effect any more: it takes at most 20

_T = TypeVar("_T")
_Read = Callable[[CloudCalls], Awaitable[tuple[CloudNic, ...]]]


class VxnetCache:
    def __init__(self, cloud: Cloud, on_room: Callable[[str, int], None]) -> None:
        """*on_room* gets a vxnet's id and its number of free addresses whenever the cloud reports one."""
        self._cloud = cloud
        self._on_room = on_room
        self._known: dict[str, Vxnet] = {}

    async def get(self, vxnet_id: str, urgency: HowUrgent) -> Vxnet | None:
        """None if the vxnet does not exist or has no network; CloudError if the cloud has to be asked and fails."""
        if vxnet_id not in self._known:
            await self.read((vxnet_id,), urgency)
        return self.known(vxnet_id)

    def known(self, vxnet_id: str) -> Vxnet | None:
        vxnet = self._known.get(vxnet_id)
        return vxnet if vxnet is not None and vxnet.network else None

    def flaw(self, vxnet_id: str) -> str:
        """Why no NIC can be made in this vxnet, as the cloud last said; "" if one can."""
        if self.known(vxnet_id) is not None:
            return ""
        vxnet = self._known.get(vxnet_id)
        return f"vxnet {vxnet_id}: {vxnet.flaw if vxnet and vxnet.flaw else 'the cloud shows no network of it'}"

    async def read(self, vxnet_ids: tuple[str, ...], urgency: HowUrgent) -> dict[str, Vxnet]:
        """Those of *vxnet_ids* that exist, read from the cloud even if they are known.

        One whose fields are unusable counts as full; if an earlier answer was usable, that one remains valid.
        """
        calls = await self._cloud.permit(urgency)
        found = {v.vxnet_id: v for v in await calls.vxnets(vxnet_ids)}
        for vxnet in found.values():
            if vxnet.flaw and self.known(vxnet.vxnet_id) is not None:
                continue
            self._known[vxnet.vxnet_id] = vxnet
            room = 0 if vxnet.flaw else vxnet.available_ips
            if room is not None:
                self._on_room(vxnet.vxnet_id, room)
        return found


class Lookups:
    """Reads that a cloud write cannot go on without: each is retried until the cloud answers."""

    def __init__(self, context: Context) -> None:
        self.error = ""  # of the latest read; "" once one has succeeded
        self._context = context

    async def created(self, intent: Intent, patience: float = LATE_EFFECT) -> tuple[CreatedNic, ...]:
        """What a create without a reply has created.

        *patience*: seconds after the intent for which the create may still take effect; 0 if the cloud has said that
        it failed. Until then, and on one answer alone, missing NICs prove nothing.
        """
        reads = 0
        urgency = self._context.urgency.provisioning
        while True:
            reads += 1
            seen = await self._describe(lambda calls: calls.nics(name=intent.name), urgency)
            found = tuple(CreatedNic(n.nic_id, n.private_ip) for n in seen.values() if n.name == intent.name)
            is_over = self._context.now() - intent.since > patience and (reads > 1 or not patience)
            if len(found) >= intent.count or is_over:
                return found
            await self._context.clock.sleep(RECHECK)

    async def nics(self, nic_ids: Sequence[str], urgency: HowUrgent) -> dict[str, CloudNic]:
        """NICs by id. A missing one was read twice: an overloaded cloud may return empty lists."""
        seen = await self._describe(lambda calls: calls.nics(nic_ids=nic_ids), urgency)
        if unlisted := [nic_id for nic_id in nic_ids if nic_id not in seen]:
            await self._context.clock.sleep(RECHECK)
            seen |= await self._describe(lambda calls: calls.nics(nic_ids=unlisted), urgency)
        return seen

    async def answered(self, read: Callable[[], Awaitable[_T]]) -> _T:
        failures = 0
        while True:
            try:
                answer = await read()
            except CloudError as err:
                failures += 1
                self.error = str(err)
                self._context.note_and_push("nics.unanswered", detail=str(err))
                await self._context.clock.sleep(delay_after(failures, self._context.rng))
            else:
                self.error = ""
                return answer

    async def _describe(self, read: _Read, urgency: HowUrgent) -> dict[str, CloudNic]:
        async def ask() -> tuple[CloudNic, ...]:
            return await read(await self._context.cloud.permit(urgency))

        return {n.nic_id: n for n in await self.answered(ask)}


def patience_after(err: CloudError) -> float:
    """Seconds for which a failed write may still take effect: 0 if the cloud answered or was not reached."""
    is_open = isinstance(err, OutcomeUnknown) and not isinstance(err, CloudBusy)
    return LATE_EFFECT if is_open else 0.0
