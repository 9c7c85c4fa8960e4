"""The objects of the API's replies as the agent uses them; None for one that is set aside as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Generic, TypeVar

from qingcloud_cni.cloud.fields import Fields
from qingcloud_cni.core.seams.cloud import CloudNic, CreatedNic, Instance, InstanceNic, Job, JobStatus, Vxnet, is_host

PlainT = TypeVar("PlainT")

_SHORTEST, _LONGEST = 8, 30  # prefixes of networks with hosts and a router
_UNFIT = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))


@dataclass(frozen=True, slots=True)
class ListOf(Generic[PlainT]):
    """A list in a reply: its field, the field of its items' ids, and the reader of an item."""

    field: str
    id_field: str
    read: Callable[[Fields], PlainT | None]


@dataclass(frozen=True, slots=True)
class Page(Generic[PlainT]):
    """One page of a list. *items* by id; those set aside are None, under a place of their own."""

    total: int | None  # of the whole list
    items: dict[str, PlainT | None] | None  # None: the reply has no list
    count: int = 0  # of items, with those that are there twice


def page(fields: Fields, kind: ListOf[PlainT], offset: int) -> Page[PlainT]:
    total = fields.whole("total_count")
    total = None if total is None or total < 0 else total
    parts = fields.parts(kind.field, kind.id_field)
    if parts is None:
        return Page(total, None)
    items: dict[str, PlainT | None] = {}
    for number, part in enumerate(parts, offset):
        item = kind.read(part)
        if item is None and not part.flaws:
            part.set_aside(kind.id_field, "is absent")
        items[part.text(kind.id_field).lower() if item is not None else f"{kind.field}[{number}]"] = item
    return Page(total, items, len(parts))


def _nic(fields: Fields) -> CloudNic | None:
    """A wrong name, instance or role would make the agent give up the NIC, so it is set aside with one of these."""
    nic_id = fields.mac("nic_id")
    name, instance_id, role = fields.text("nic_name"), fields.text("instance_id"), fields.whole("role")
    if not nic_id or fields.flaws:
        return None
    return CloudNic(
        nic_id=nic_id,
        name=name,
        status=fields.text("status"),
        instance_id=instance_id,
        vxnet_id=fields.text("vxnet_id"),
        private_ip=fields.address("private_ip"),
        role=role or 0,
        enable_aspoof=fields.whole("enable_aspoof"),  # undocumented; most clouds do not send it
        created=fields.seconds("create_time"),
        since=fields.seconds("status_time"),
    )


def _vxnet(fields: Fields) -> Vxnet | None:
    vxnet_id = fields.text("vxnet_id")
    if not vxnet_id:
        return None
    kind, vpc_router_id = fields.whole("vxnet_type"), fields.text("vpc_router_id")
    router = fields.part("router")  # absent if the vxnet is joined to none
    router_id, network, gateway = vpc_router_id or router.text("router_id"), *_network(router)
    flaw = "; ".join(fields.flaws)
    return Vxnet(
        vxnet_id=vxnet_id,
        name=fields.text("vxnet_name"),
        vxnet_type=1 if kind is None else kind,
        router_id=router_id,
        network="" if flaw else network,
        gateway="" if flaw else gateway,
        available_ips=fields.whole("available_ip_count"),
        flaw=flaw,
    )


def _network(router: Fields) -> tuple[str, str]:
    """The network and the router's address in it; empty if the vxnet has none."""
    text, gateway = router.text("ip_network"), router.address("manager_ip")
    if not text:
        return "", ""
    try:
        network = IPv4Network(text)
    except ValueError:
        router.set_aside("ip_network", "is not an IPv4 network without host bits")
        return "", ""
    if any(network.overlaps(unfit) for unfit in _UNFIT) or not _SHORTEST <= network.prefixlen <= _LONGEST:
        router.set_aside("ip_network", "is not a network of hosts")
    elif not is_host(gateway, network) and not router.flaws:
        router.set_aside("manager_ip", f"is not a host's address in {network}")
    return str(network), gateway


def _instance(fields: Fields) -> Instance | None:
    instance_id = fields.text("instance_id")
    if not instance_id:
        return None
    nics = [_instance_nic(part) for part in fields.parts("vxnets", "nic_id") or ()]
    return Instance(
        instance_id=instance_id,
        status=fields.text("status"),
        nics=tuple(nic for nic in nics if nic is not None),
        transition=fields.text("transition_status"),
    )


def _instance_nic(fields: Fields) -> InstanceNic | None:
    nic_id, role = fields.mac("nic_id"), fields.whole("role")
    if not nic_id or fields.flaws:
        return None
    return InstanceNic(nic_id, fields.text("vxnet_id"), fields.address("private_ip"), role or 0)


_FAILED = JobStatus.FAILED
_JOB_ENDS = {"successful": JobStatus.SUCCESSFUL, "failed": _FAILED, "done with failure": _FAILED}


def _job(fields: Fields) -> Job | None:
    job_id = fields.text("job_id")
    if not job_id:
        return None
    return Job(job_id, _JOB_ENDS.get(fields.text("status"), JobStatus.PENDING), fields.text("error_codes"))


def _created(fields: Fields) -> CreatedNic | None:
    nic_id = fields.mac("nic_id")
    return CreatedNic(nic_id, fields.address("private_ip")) if nic_id else None


def created(fields: Fields) -> tuple[CreatedNic, ...]:
    nics = map(_created, fields.parts("nics", "nic_id") or ())
    return tuple(nic for nic in nics if nic is not None)


NICS = ListOf("nic_set", "nic_id", _nic)
VXNETS = ListOf("vxnet_set", "vxnet_id", _vxnet)
INSTANCES = ListOf("instance_set", "instance_id", _instance)
JOBS = ListOf("job_set", "job_id", _job)
