"""NICs that are found in containers by a table begun anew: whom they serve is learned from requests. Pure."""

from dataclasses import replace

from qingcloud_cni.core.cni.network_config import NetworkConfig
from qingcloud_cni.core.gateway import index_of
from qingcloud_cni.core.nics.model import NO_GATEWAY, Attachment, AttachmentKey, Nic, NicState
from qingcloud_cni.core.seams.cloud import CloudNic, Vxnet
from qingcloud_cni.core.seams.kernel import Inspection, Link


def adopted(found: CloudNic, vxnet: Vxnet, address: str, now: float) -> Nic:
    """A NIC of ours that the table does not know; where its link is, shows the look that follows.

    Its address rests first: nobody knows whom it served, and how lately.
    """
    state = NicState.MISSING if found.instance_id else NicState.CREATING
    return Nic(found.nic_id, found.name, vxnet.vxnet_id, address, vxnet.gateway, state, now, released=now)


def adopted_gateway(nic: Nic, link: Link | None, prefix: str) -> Nic:
    """A gateway NIC that serves, by its link's name, goes on as what it is: containers have its address."""
    index = index_of(prefix, link.name) if link is not None else NO_GATEWAY
    if index == NO_GATEWAY:
        return nic
    return replace(nic, gateway_index=index, state=NicState.GATEWAY, released=0.0)


def unclaimed_attachment(nic: Nic, seen: Inspection, now: float) -> Attachment:
    """The attachment of a container in which the NIC's link was seen.

    What the kernel does not tell of is taken for what keeps its connections: a route through another gateway than the
    vxnet's router leads to Services, and flows there are masqueraded.
    """
    assert seen.link is not None
    routes = tuple(r for r in seen.routes if r.gw)
    services = tuple(r.dst for r in routes if r.gw != nic.gateway)
    return Attachment(
        AttachmentKey("", nic.nic_id, seen.link.name), nic.nic_id, seen.netns, now, routes=routes,
        ifindex=seen.link.ifindex, mtu=seen.link.mtu, is_ready=True, services=services, ip_masq=bool(services),
    )  # fmt: skip


def named(found: Attachment, key: AttachmentKey, config: NetworkConfig | None) -> Attachment:
    """The same, once a request has told whose it is; an ADD tells what was asked for as well."""
    if config is None:
        return replace(found, key=key)
    order = [r.dst for r in config.routes]  # behind a default route that was not asked for
    routes = sorted(found.routes, key=lambda r: order.index(r.dst) if r.dst in order else -1)
    return replace(
        found, key=key, routes=tuple(routes), dns=config.dns, services=config.services, ip_masq=config.ip_masq,
        workload=config.workload,
    )  # fmt: skip
