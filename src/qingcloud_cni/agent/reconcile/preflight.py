"""Requirements on the instance and its vxnets: checked at start, and again every hour."""

from collections.abc import Collection, Iterable, Sequence

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.cloudops.instance_status import InstanceStatus
from qingcloud_cni.agent.cloudops.lookups import VxnetCache
from qingcloud_cni.core.errors import CloudUnreachable, NotListed, StartRefused, Unavailable
from qingcloud_cni.core.seams.cloud import PRIMARY, CloudNic, HowUrgent, InstanceNic, Vxnet

_MANAGED = 1  # vxnet_type of one that a router gives addresses in


class Preflight:
    """The instance exists, is this machine, and shares one VPC with every configured vxnet."""

    def __init__(
        self, context: Context, vxnets: VxnetCache, instance_status: InstanceStatus, configured: Iterable[str]
    ) -> None:
        self._context = context
        self._instance_id = context.identity.instance_id
        self._instance_status = instance_status
        self._vxnets = vxnets
        self._configured = tuple(configured)
        self.is_bare = False  # the instance has only its primary NIC, in a vxnet where that cannot be a gateway
        self._own: tuple[str, ...] = ()  # the vxnet of the instance's primary NIC, once it is known

    async def check(self) -> None:
        """StartRefused or NotListed if the configuration seems wrong; any other CloudError means "retry later".

        One answer proves little: an overloaded cloud may return incomplete lists, and a field may be corrupt.
        """
        instance_id = self._instance_id
        urgency = self._context.urgency.provisioning
        instance = await (await self._context.cloud.permit(urgency)).instance(instance_id)
        if instance is None:
            raise NotListed(
                f"instance {instance_id} is unknown to the cloud in this zone; check --zone, --instance-id and keys",
                action="DescribeInstances",
            )
        nics = await self._with_iface(instance.nics, urgency)
        self._instance_status.learn(instance)
        await self._context.reserved.learn(nics)
        self.is_bare = all(n.role == PRIMARY and n.vxnet_id not in self._configured for n in nics)
        own = [n.vxnet_id for n in nics if n.role == PRIMARY] or [n.vxnet_id for n in nics]
        self._own = tuple(dict.fromkeys(own))
        await self._check_vxnets(urgency)

    async def _with_iface(self, nics: Sequence[InstanceNic], urgency: HowUrgent) -> Sequence[InstanceNic | CloudNic]:
        """The instance's NICs, that of --iface among them; NotListed if it is another instance's or unknown.

        Under the id of another instance the agent would plug NICs into that one.
        """
        iface = self._context.reserved.iface
        if any(nic.nic_id in iface for nic in nics):
            return nics
        found = await (await self._context.cloud.permit(urgency)).nics(nic_ids=sorted(iface))
        check_iface_nic(found, iface, self._instance_id)
        return [*nics, *found]

    async def check_again(self) -> None:
        """Unavailable if instance or vxnets do not fit any more; the agent goes on serving, for containers run."""
        if self._own:
            await self._instance_status.ask(self._context.urgency.comparison)
            try:
                await self._check_vxnets(self._context.urgency.comparison)
            except StartRefused as err:
                self._context.note_and_push("vxnets.unfit", detail=str(err))
                raise Unavailable(str(err)) from err

    async def _check_vxnets(self, urgency: HowUrgent) -> None:
        instance_id = self._instance_id
        wanted = tuple(dict.fromkeys((*self._configured, *self._own)))
        found = await self._vxnets.read(wanted, urgency)
        for vxnet_id in wanted:
            if vxnet_id not in found:
                check = "--vxnet and --zone" if vxnet_id in self._configured else f"the primary NIC of {instance_id}"
                raise NotListed(
                    f"vxnet {vxnet_id} is unknown to the cloud in this zone; check {check}", action="DescribeVxnets"
                )
        routers = {found[v].router_id for v in self._own if found[v].router_id}
        _check_flaws([found[v] for v in self._own if not routers])
        if not self._own:
            raise CloudUnreachable(
                f"instance {instance_id}: the cloud shows no NIC of it", action="DescribeInstances"
            )
        if not routers:
            raise StartRefused(f"instance {instance_id} is not in a VPC; its primary NIC must be in a router's vxnet")
        _check_flaws([found[v] for v in self._configured])
        for vxnet_id in self._configured:
            if not found[vxnet_id].flaw:
                _check_vxnet(found[vxnet_id], instance_id, routers)


def check_iface_nic(found: Sequence[CloudNic], iface: Collection[str], instance_id: str = "") -> str:
    """Return the instance that the NIC of --iface is attached to; NotListed if it is not *instance_id*.

    *found* is what the cloud shows of the NICs with the MACs *iface*.
    """
    holders = {nic.instance_id: nic.nic_id for nic in found if nic.instance_id and nic.nic_id in iface}
    if not holders:
        macs = ", ".join(sorted(iface)) or "without a MAC"
        why = f"NIC {macs} of --iface is attached to no instance in this zone; check --iface, --zone and keys"
    elif len(holders) > 1:
        why = f"the NICs of --iface belong to several instances: {', '.join(sorted(holders))}; check --iface"
    elif instance_id in ("", *holders):
        return next(iter(holders))
    else:
        ((holder, nic_id),) = holders.items()
        why = f"NIC {nic_id} of --iface belongs to instance {holder}, not {instance_id}; set --instance-id {holder}"
    raise NotListed(f"instance {instance_id or 'id'}: check failed: {why}", action="DescribeNics")


def _check_flaws(vxnets: Sequence[Vxnet]) -> None:
    """CloudUnreachable if what the cloud says of each of them is unusable; one that is usable is enough."""
    if vxnets and all(vxnet.flaw for vxnet in vxnets):
        flaws = "; ".join(f"vxnet {vxnet.vxnet_id}: {vxnet.flaw}" for vxnet in vxnets)
        raise CloudUnreachable(f"{flaws}; retried until the cloud answers otherwise", action="DescribeVxnets")


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
