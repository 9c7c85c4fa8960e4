"""NICs in containers that a new table does not know: requests show whose they are."""

from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.phases import Phase
from qingcloud_cni.core.cni.network_config import NetworkConfig
from qingcloud_cni.core.drift.recovery import claimed, unclaimed_attachment
from qingcloud_cni.core.errors import InvalidNetns
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Nic, NicState
from qingcloud_cni.core.seams.kernel import Link


class Unclaimed:
    """Finds a NIC on the interface that a request names."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ended: set[tuple[int, int, int]] = set()  # links: device and inode of the namespace, index

    async def recognise(
        self, key: AttachmentKey, netns_path: str, call: CniCall, config: NetworkConfig | None = None
    ) -> bool:
        """Give the unclaimed attachment of this netns the request's key; False if there is none."""
        attachments = self._context.table.attachments
        if key not in attachments and any(k.is_unclaimed for k in attachments):
            await self._recognise(key, netns_path, call, config)
            return key in attachments
        return False

    async def end(self, key: AttachmentKey, netns_path: str, call: CniCall) -> None:
        """As `recognise`, for a DEL. A NIC that is not in the table yet is noted, for `ended`.

        The table is new, and the cloud, which knows whose NIC it is, has not answered yet.
        """
        await self._recognise(key, netns_path, call, is_end=True)

    def ended(self) -> tuple[Attachment, ...]:
        """Return attachments of NICs that were found after the DEL of their container. The table is complete now."""
        ended, self._ended = self._ended, set()
        unclaimed = (a for a in self._context.table.attachments.values() if a.key.is_unclaimed)
        return tuple(a for a in unclaimed if (a.netns.dev, a.netns.inode, a.ifindex) in ended)

    async def _recognise(
        self,
        key: AttachmentKey,
        netns_path: str,
        call: CniCall,
        config: NetworkConfig | None = None,
        *,
        is_end: bool = False,
    ) -> None:
        context, table = self._context, self._context.table
        try:
            with call.phases.waiting(Phase.KERNEL):
                seen = await context.kernel.inspect(netns_path, key.ifname)
        except InvalidNetns:
            return
        nic = self._nic_of(seen.link)
        holder = table.attachment_of(nic.nic_id) if nic is not None else None
        if nic is not None and nic.state is NicState.MISSING:
            holder = unclaimed_attachment(nic, seen, context.now())
            table.found(holder, context.now())
        if holder is not None and holder.key.is_unclaimed:
            table.claimed(holder.key, claimed(holder, key, config), context.now())
            context.journal.push()
        if is_end and nic is None and seen.link is not None and seen.link.fingerprint:
            self._ended.add((seen.netns.dev, seen.netns.inode, seen.link.ifindex))

    def _nic_of(self, link: Link | None) -> Nic | None:
        nics = self._context.table.nics.values()
        return next((n for n in nics if link and self._context.identity.record_of(n).matches(link)), None)
