"""What must hold of the instance and its vxnets: checked at start, and looked at again now and then."""

from collections.abc import Iterable

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.cloudops.instance_status import InstanceStatus
from qingcloud_cni.agent.cloudops.vxnet_cache import VxnetCache
from qingcloud_cni.core.errors import NotListed, StartRefused, Unavailable
from qingcloud_cni.core.seams.cloud import HowUrgent, Vxnet

_MANAGED = 1  # vxnet_type of one that a router gives addresses in


class Preflight:
    """The instance exists and shares one VPC with every configured vxnet."""

    def __init__(
        self, context: Context, vxnets: VxnetCache, instance_status: InstanceStatus, configured: Iterable[str]
    ) -> None:
        self._context = context
        self._instance_status = instance_status
        self._vxnets = vxnets
        self._configured = tuple(configured)
        self.is_bare = False  # the instance has but its primary NIC, in no vxnet where that could be a gateway
        self._own: tuple[str, ...] = ()  # the vxnet of the instance's primary NIC, once it is known

    async def check(self) -> None:
        """Before anything else, for without it the pool cannot grow.

        StartRefused where the configuration is wrong, any CloudError means "again later".

        NotListed means one or the other: a cloud in trouble may answer with lists that are not whole.
        """
        instance_id = self._context.instance_id
        urgency = self._context.urgency.provisioning
        instance = await (await self._context.cloud.permit(urgency)).instance(instance_id)
        if instance is None:
            raise NotListed(
                f"instance {instance_id} is unknown to the cloud in this zone; check --zone, --instance-id and keys",
                action="DescribeInstances",
            )
        self._instance_status.learn(instance)
        self.is_bare = all(n.role == 1 and n.vxnet_id not in self._configured for n in instance.nics)
        own = tuple(n.vxnet_id for n in instance.nics if n.role == 1) or tuple(n.vxnet_id for n in instance.nics)
        self._own = tuple(dict.fromkeys(own))
        await self._check_vxnets(urgency)

    async def look_again(self) -> None:
        """What has become of instance and vxnets; Unavailable tells what does not fit any more.

        An agent that serves goes on all the same: containers have addresses there.
        """
        if self._own:
            await self._instance_status.ask(self._context.urgency.comparison)
            try:
                await self._check_vxnets(self._context.urgency.comparison)
            except StartRefused as err:
                self._context.note("vxnets.unfit", detail=str(err))
                self._context.journal.push()
                raise Unavailable(str(err)) from err

    async def _check_vxnets(self, urgency: HowUrgent) -> None:
        instance_id = self._context.instance_id
        wanted = tuple(dict.fromkeys((*self._configured, *self._own)))
        found = await self._vxnets.learn(wanted, urgency)
        for vxnet_id in wanted:
            if vxnet_id not in found:
                check = "--vxnet and --zone" if vxnet_id in self._configured else f"the primary NIC of {instance_id}"
                raise NotListed(
                    f"vxnet {vxnet_id} is unknown to the cloud in this zone; check {check}", action="DescribeVxnets"
                )
        routers = {found[v].router_id for v in self._own if found[v].router_id}
        if not routers:
            raise StartRefused(f"instance {instance_id} is in no VPC; its primary NIC must be in a router's vxnet")
        for vxnet_id in self._configured:
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
