"""What is compared before the agent trusts its table: instance and vxnets, then table, kernel and cloud."""

from dataclasses import dataclass

from qingcloud_cni.agent.context import Context
from qingcloud_cni.agent.gateways import Gateways
from qingcloud_cni.agent.links import Links
from qingcloud_cni.agent.operations import Operations
from qingcloud_cni.agent.pool import Pool
from qingcloud_cni.agent.vxnet_book import VxnetBook, address_in
from qingcloud_cni.core.drift import Adopt, Attached, CloudCure, Forget, Unattached, cloud_drift
from qingcloud_cni.core.errors import NotListed, StartRefused
from qingcloud_cni.core.recovery import adopted, adopted_gateway
from qingcloud_cni.core.seams import CloudNic, Instance, Survey, Vxnet

_MANAGED = 1  # vxnet_type of one that a router gives addresses in


@dataclass(slots=True)
class CloudComparison:
    """Compares instance, vxnets and NICs with what the agent expects, and takes up what was left undone."""

    context: Context
    pool: Pool
    operations: Operations
    links: Links
    gateways: Gateways
    vxnets: VxnetBook
    configured: tuple[str, ...]  # --vxnet
    iface: str  # the host's own link: its NIC is never adopted

    async def run(self) -> None:
        """Compare once; any CloudError means "again later", StartRefused that the configuration is wrong.

        NotListed means one or the other: a cloud in trouble may answer with lists that are not whole.
        """
        instance = await self.context.cloud.instance(self.context.instance_id)
        await self._check(instance)
        cloud = await self._list_nics()
        for vxnet_id in sorted({n.vxnet_id for n in cloud.values() if self.context.is_ours(n.name)}):
            await self.vxnets.get(vxnet_id)  # now: nothing may change between the survey and the cures
        survey = await self.context.kernel.survey()
        reserved = {link.mac for link in survey.host if link.name == self.iface}
        here = [n for n in cloud.values() if n.instance_id == self.context.instance_id]
        others = tuple(n for n in here if n.nic_id in reserved or not self.context.is_ours(n.name))
        self.pool.others = sum(n.role == 0 for n in others)
        for nic_id in reserved:
            cloud.pop(nic_id, None)
        cures = cloud_drift(self.context.table, cloud, survey, self.context.instance_id, self.context.is_ours)
        for cure in cures:
            self._cure(cure, survey)
        self.context.journal.push()
        await self.links.look()
        await self.links.seek()
        self.gateways.learn(others)  # last: from now on gateways that serve nothing are undone
        for intent in tuple(self.context.table.intents.values()):
            self.context.tasks.spawn(f"resume {intent.kind} {intent.op_id}", self.operations.resume(intent))

    async def _list_nics(self) -> dict[str, CloudNic]:
        """All NICs that are free, and all that are attached here: the cloud's own name filter is not relied on."""
        free = await self.context.cloud.nics(status="available")
        here = await self.context.cloud.nics(instance_id=self.context.instance_id)
        return {n.nic_id: n for n in (*free, *here)}

    def _cure(self, cure: CloudCure, survey: Survey) -> None:
        table, now = self.context.table, self.context.now()
        match cure:
            case Adopt(found):
                vxnet = self.vxnets.known(found.vxnet_id)
                if vxnet is None or not found.private_ip:
                    detail = f"it has no address, or its vxnet {found.vxnet_id} none"
                    self.context.note("nic.not-adopted", found.nic_id, detail=detail)
                    return
                nic = adopted(found, vxnet, address_in(vxnet, found.private_ip), now)
                if self.context.names_gateway(nic.name):
                    link = next((link for link in survey.host if link.mac == nic.nic_id), None)
                    nic = adopted_gateway(nic, link, self.context.gateway_prefix)
                self.context.enter(nic, "nic.adopted", detail=f"{found.status} {nic.address}")
            case Forget(nic_id):
                table.drop(nic_id, "nic.gone", now, "neither cloud nor kernel knows it")
            case Unattached(nic_id):
                table.not_attached(nic_id, now, "the cloud has it attached nowhere, and its link is gone")
            case Attached(nic_id):
                table.lost(nic_id, now, "attached according to the cloud, but its link is nowhere")

    async def _check(self, instance: Instance | None) -> None:
        """The instance exists and shares one VPC with every configured vxnet."""
        instance_id = self.context.instance_id
        if instance is None:
            raise NotListed(
                f"instance {instance_id} is unknown to the cloud in this zone; check --zone, --instance-id and keys",
                action="DescribeInstances",
            )
        own = tuple(n.vxnet_id for n in instance.nics if n.role == 1) or tuple(n.vxnet_id for n in instance.nics)
        wanted = tuple(dict.fromkeys((*self.configured, *own)))
        found = await self.vxnets.learn(wanted)
        for vxnet_id in wanted:
            if vxnet_id not in found:
                check = "--vxnet and --zone" if vxnet_id in self.configured else f"the primary NIC of {instance_id}"
                raise NotListed(
                    f"vxnet {vxnet_id} is unknown to the cloud in this zone; check {check}", action="DescribeVxnets"
                )
        routers = {found[v].router_id for v in own if found[v].router_id}
        if not routers:
            raise StartRefused(f"instance {instance_id} is in no VPC; its primary NIC must be in a router's vxnet")
        for vxnet_id in self.configured:
            _check_vxnet(found[vxnet_id], instance_id, routers)


def _check_vxnet(vxnet: Vxnet, instance_id: str, routers: set[str]) -> None:
    if vxnet.vxnet_type != _MANAGED or not vxnet.network:
        raise StartRefused(
            f"vxnet {vxnet.vxnet_id} is unmanaged or joined to no router; join it to the VPC of {instance_id}"
        )
    if vxnet.router_id not in routers:
        raise StartRefused(
            f"vxnet {vxnet.vxnet_id} belongs to VPC {vxnet.router_id}, instance {instance_id} to"
            f" {', '.join(sorted(routers))}; choose a vxnet of that VPC"
        )
