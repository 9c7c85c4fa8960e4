"""NICs in containers that a new table does not know: requests show whose they are."""

from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.phases import Phase
from qingcloud_cni.core.cni.network_config import NetworkConfig
from qingcloud_cni.core.drift.recovery import claimed, unclaimed_attachment
from qingcloud_cni.core.errors import InvalidNetns
from qingcloud_cni.core.nics.model import AttachmentKey, NicState
from qingcloud_cni.core.nics.names import aliased_nic
from qingcloud_cni.core.seams.kernel import Inspection, NicRecord


class Unclaimed:
    """Finds our alias on the interface that a request names."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._instance_id = context.identity.instance_id

    async def recognise(
        self, key: AttachmentKey, netns_path: str, call: CniCall, config: NetworkConfig | None = None
    ) -> bool:
        """Give the unclaimed attachment of this netns the request's key; False if there is none."""
        attachments = self._context.table.attachments
        if key not in attachments and any(k.is_unclaimed for k in attachments):
            await self._recognise(key, netns_path, call, config)
            return key in attachments
        return False

    async def fetch(self, key: AttachmentKey, netns_path: str, call: CniCall) -> None:
        """As `recognise`, for a DEL; and a link of ours whose NIC is not in the table yet is parked.

        The table is new, and the cloud, which knows the NIC, has not answered yet. Raises KernelRefused.
        """
        seen = await self._recognise(key, netns_path, call)
        link = seen.link if seen is not None else None
        nic_id = aliased_nic(link.alias, self._instance_id) if link is not None else ""
        if seen is None or link is None or not nic_id or nic_id in self._context.table.nics:
            return
        with call.phases.waiting(Phase.KERNEL):
            await self._context.kernel.detach(NicRecord(nic_id, link.alias), seen.netns, link.ifindex)
        self._context.note_and_push("nic.fetched", nic_id, str(key), "by a DEL; the table does not know the NIC yet")

    async def _recognise(
        self, key: AttachmentKey, netns_path: str, call: CniCall, config: NetworkConfig | None = None
    ) -> Inspection | None:
        """What the namespace has under the interface's name; None if it cannot be inspected."""
        context, table = self._context, self._context.table
        try:
            with call.phases.waiting(Phase.KERNEL):
                seen = await context.kernel.inspect(netns_path, key.ifname)
        except InvalidNetns:
            return None
        nic_id = aliased_nic(seen.link.alias, self._instance_id) if seen.link is not None else ""
        nic, holder = table.nics.get(nic_id), table.attachment_of(nic_id)
        if nic is not None and nic.state is NicState.MISSING:
            holder = unclaimed_attachment(nic, seen, context.now())
            table.found(holder, context.now())
        if holder is not None and holder.key.is_unclaimed:
            table.claimed(holder.key, claimed(holder, key, config), context.now())
            context.journal.push()
        return seen
