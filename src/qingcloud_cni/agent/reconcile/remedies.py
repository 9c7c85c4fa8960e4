"""Remedies for differences: what each does to table, kernel and cloud."""

from collections.abc import Iterable
from math import inf

from qingcloud_cni.agent.attachments.attachments import Attachments
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.cloudops.lookups import VxnetCache
from qingcloud_cni.agent.pool.pool import Pool
from qingcloud_cni.agent.reconcile.links import Links
from qingcloud_cni.core.drift import schedule
from qingcloud_cni.core.drift.cloud_drift import Adopt, Await, Forget, Readdress, Renew, Replug, Unattach
from qingcloud_cni.core.drift.differences import Remedy
from qingcloud_cni.core.drift.link_drift import Fetch, Release
from qingcloud_cni.core.drift.recovery import adopted, adopted_gateway
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.nics.model import Attachment, NicState
from qingcloud_cni.core.pool.pool_state import Mode
from qingcloud_cni.core.seams.cloud import CloudNic
from qingcloud_cni.core.seams.kernel import Link


class Remedies:
    """Changes the table at once; everything else goes on in tasks of its own."""

    def __init__(
        self, context: Context, pool: Pool, links: Links, attachments: Attachments, vxnets: VxnetCache
    ) -> None:
        self._context = context
        self._pool = pool
        self._releaser = pool.releaser
        self._links = links
        self._attachments = attachments
        self._vxnets = vxnets
        self.next_at = inf  # when a postponed repair is due, in seconds since the epoch
        self.has_begun = False  # a remedy that takes time, since the latest `begin`
        self._to_repair: set[str] = set()  # as soon as a call may go
        self._repairs = sorted({n.repaired for n in context.table.nics.values() if n.repairs})  # when

    def reset_repairs(self) -> None:
        """Let NICs be repaired again whose repairs have failed too often."""
        for nic in self._context.table.in_state(NicState.MISSING):
            self._context.table.reset_repairs(nic.nic_id)

    def begin(self) -> None:
        self.next_at, self.has_begun = inf, False

    def carry_out(self, remedies: Iterable[Remedy]) -> None:
        replug = []
        for remedy in remedies:
            match remedy:
                case Replug(nic_id):
                    replug.append(nic_id)
                case Renew(nic_id):
                    self._renew(nic_id)
                case Fetch(nic_id, netns):
                    self.has_begun = True
                    self._links.park(nic_id, netns)
                case Release(nic_id):
                    self._release(nic_id)
                case _:
                    self._record(remedy)
        if replug:
            self._replug(replug)

    # --- in the table --------------------------------------------------------------------------------

    def _record(self, remedy: Remedy) -> None:
        table, now = self._context.table, self._context.now()
        match remedy:
            case Adopt(_, found, link):
                self._adopt(found, link)
            case Forget(nic_id, detail):
                table.drop(nic_id, "nic.gone", now, detail)
            case Unattach(nic_id):
                table.not_attached(nic_id, now, "the cloud has it attached nowhere, and its link is gone")
            case Await(nic_id):
                table.lost(nic_id, now, "attached according to the cloud, but its link is nowhere")
            case Readdress(nic_id, vxnet_id, address, gateway):
                table.readdressed(nic_id, vxnet_id, address, gateway, now)
                self._context.signals.path_due.notify()

    def _adopt(self, found: CloudNic, link: Link | None) -> None:
        vxnet = self._vxnets.known(found.vxnet_id)
        assert vxnet is not None, found
        nic = adopted(found, vxnet, vxnet.address_of(found.private_ip), self._context.now())
        if self._context.identity.names_gateway(nic.name):
            nic = adopted_gateway(nic, link, self._context.identity.gateway_prefix)
        nic = self._context.identity.indexed(nic, self._context.table.nics.values())
        self._context.table.add(nic, "nic.adopted", detail=f"{found.status} {nic.address}")

    # --- in the kernel -------------------------------------------------------------------------------

    def release_ended(self) -> None:
        """Release NICs that are known now and whose container was deleted before."""
        for attachment in self._attachments.ended():
            self._context.note("nic.fetched", attachment.nic_id, detail="the table did not know it when its DEL came")
            self._spawn_release(attachment, "DEL")

    def _release(self, nic_id: str) -> None:
        if attachment := self._context.table.attachment_of(nic_id):
            self._spawn_release(attachment, "its namespace is gone, and no DEL came")

    def _spawn_release(self, attachment: Attachment, cause: str) -> None:
        release = self._attachments.release_left(attachment, cause)
        self._context.tasks.spawn(f"release {attachment.key}", release)

    # --- in the cloud --------------------------------------------------------------------------------

    def _replug(self, nic_ids: list[str]) -> None:
        """Detach them in one call, to attach them again; those that are not due are postponed."""
        context, now = self._context, self._context.now()
        if self._pool.mode is not Mode.SERVING:
            return
        due = {
            nic_id: schedule.repair_due_at(context.table.nics[nic_id], self._repairs, now)
            for nic_id in nic_ids
            if nic_id not in self._to_repair
        }
        now_due = [nic_id for nic_id, at in due.items() if at <= now]
        self.next_at = min((at for at in due.values() if at > now), default=inf)
        if not now_due:
            return
        self.has_begun = True
        self._repairs = [*self._repairs[-schedule.REPAIRS_PER_HOUR :], now]
        self._to_repair.update(now_due)
        context.tasks.spawn(f"repair {', '.join(now_due)}", self._repair(now_due))

    async def _repair(self, nic_ids: list[str]) -> None:
        """Only what is still missing: the permit may take long, and a link may come by itself meanwhile."""
        table = self._context.table
        try:
            calls = await self._context.cloud.permit(self._context.urgency.comparison)
        finally:
            self._to_repair.difference_update(nic_ids)
        nics = {n.nic_id: n for n in table.in_state(NicState.MISSING) if n.nic_id not in table.busy}
        still = [nic_id for nic_id in nic_ids if nic_id in nics]
        if still and self._pool.mode is Mode.SERVING:
            now = self._context.now()
            tries = {nic_id: schedule.recent_repairs(nics[nic_id], now) + 1 for nic_id in still}
            await self._releaser.repair(still, tries, calls)
        else:
            calls.return_permit()

    def _renew(self, nic_id: str) -> None:
        """Attach a gateway again, for containers use its address; delete any other NIC, for the pool creates more."""
        table = self._context.table
        is_needed = table.nics[nic_id].is_gateway and nic_id not in unused(
            table.nics.values(), (*table.attachments.values(),)
        )
        if not self._pool.may_begin or (is_needed and self._pool.mode is Mode.LEAVING):
            return
        self.has_begun = True
        now = self._context.now()
        detail = "the cloud has it attached nowhere, though its link is here"
        if table.nics[nic_id].state is NicState.GATEWAY:
            table.lost(nic_id, now, detail)
        table.not_attached(nic_id, now, detail)
        if is_needed:
            self._context.signals.path_due.notify()
        else:
            self._releaser.start_delete([nic_id])
