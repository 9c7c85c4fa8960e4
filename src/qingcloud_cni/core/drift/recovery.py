"""NICs that a new table finds in containers; requests tell whose they are. Pure."""

from dataclasses import replace

from qingcloud_cni.core.cni.network_config import NetworkConfig
from qingcloud_cni.core.gateway import index_of
from qingcloud_cni.core.nics.model import NO_GATEWAY, Attachment, AttachmentKey, Nic, NicState
from qingcloud_cni.core.seams.cloud import CloudNic, Vxnet
from qingcloud_cni.core.seams.kernel import Inspection, Link


def adopted(found: CloudNic, vxnet: Vxnet, address: str, now: float) -> Nic:
    """Return a NIC of ours that was not in the table; a survey finds its link later.

    Its address cools down first: it may have served a container until just now.
    """
    state = NicState.MISSING if found.instance_id else NicState.CREATING
    return Nic(found.nic_id, found.name, vxnet.vxnet_id, address, vxnet.gateway, state, now, released=now)


def adopted_gateway(nic: Nic, link: Link | None, prefix: str) -> Nic:
    """Return the gateway that *nic* is by its link's name, as containers use its address; else *nic*."""
    index = index_of(prefix, link.name) if link is not None else NO_GATEWAY
    if index == NO_GATEWAY:
        return nic
    return replace(nic, gateway_index=index, state=NicState.GATEWAY, released=0.0)


def unclaimed_attachment(nic: Nic, seen: Inspection, now: float) -> Attachment:
    """Return the attachment of the container in which the NIC's link was seen.

    The kernel shows no configuration. To keep connections alive, routes through another gateway than the vxnet's
    router are taken as routes to Services, and ipMasq as set: without it a hostPort answers nobody.
    """
    assert seen.link is not None
    routes = tuple(r for r in seen.routes if r.gw)
    services = tuple(r.dst for r in routes if r.gw != nic.gateway)
    return Attachment(
        AttachmentKey("", nic.nic_id, seen.link.name), nic.nic_id, seen.netns, now, routes=routes,
        ifindex=seen.link.ifindex, mtu=seen.link.mtu, is_ready=True, services=services, ip_masq=True,
    )  # fmt: skip


def claimed(found: Attachment, key: AttachmentKey, config: NetworkConfig | None) -> Attachment:
    """Return it under the key that a request names; *config* is an ADD's."""
    if config is None:
        return replace(found, key=key)
    order = [r.dst for r in config.routes]  # behind a default route that the configuration does not have
    routes = sorted(found.routes, key=lambda r: order.index(r.dst) if r.dst in order else -1)
    return replace(
        found, key=key, routes=tuple(routes), dns=config.dns, services=config.services, ip_masq=config.ip_masq,
        workload=config.workload,
    )  # fmt: skip
