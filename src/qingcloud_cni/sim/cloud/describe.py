"""The reading actions: filters, pages and the shape of records (docs/reference/qingcloud-api.md, "Actions")."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Network
from typing import Any, TypeVar

from qingcloud_cni.sim.cloud import errors
from qingcloud_cni.sim.cloud import jobs as job_queue
from qingcloud_cni.sim.cloud.faults import EMPTY_LIST, MISSING_PAGE, PARTIAL_LIST
from qingcloud_cni.sim.cloud.params import Params
from qingcloud_cni.sim.cloud.state import CloudState, HostRecord, JobRecord, NicRecord, VxnetRecord

Record = TypeVar("Record")

OWNER = "usr-sim00001"
BASE_NETWORK = 2  # the vxnet_type that is listed only on request


def describe_instances(state: CloudState, params: Params) -> dict[str, Any]:
    asked = params.values("instances")
    statuses = params.choices("status")
    search = params.text("search_word")
    with_cluster_nodes = params.number("is_cluster_node", 0) == 1
    hits = [
        host
        for host in state.hosts.values()
        if _matches(host.instance_id, asked)
        and _matches(host.status, statuses)
        and (search in host.instance_id or search in host.spec.name)
        and (with_cluster_nodes or not host.spec.is_cluster_node)
    ]
    return _page("instance_set", hits, params, lambda host: _instance(state, host))


def describe_vxnets(state: CloudState, params: Params) -> dict[str, Any]:
    """Omit base networks unless vxnet_type asks for them, even those that are named."""
    asked = params.values("vxnets")
    excluded = params.values("excluded_vxnets")
    types = params.numbers("vxnet_type")
    search = params.text("search_word")
    is_verbose = params.number("verbose", 0) == 1
    hits = [
        vxnet
        for vxnet in state.vxnets.values()
        if _matches(vxnet.vxnet_id, asked)
        and vxnet.vxnet_id not in excluded
        and (vxnet.spec.vxnet_type in types if types else vxnet.spec.vxnet_type != BASE_NETWORK)
        and (search in vxnet.vxnet_id or search in vxnet.spec.name)
    ]
    return _page("vxnet_set", hits, params, lambda vxnet: _vxnet(state, vxnet, is_verbose=is_verbose))


def describe_nics(state: CloudState, params: Params) -> dict[str, Any]:
    """Omit unknown ids. *nic_name* matches parts of a name: the cloud's own way is not documented."""
    asked = tuple(nic_id.lower() for nic_id in params.values("nics"))
    instances = params.values("instances")
    statuses = params.choices("status")
    vxnets = params.values("vxnets")
    types = params.numbers("vxnet_type")
    name = params.text("nic_name")
    search = params.text("search_word")
    hits = [
        nic
        for nic in state.nics.values()
        if _matches(nic.nic_id, asked)
        and _matches(nic.instance_id, instances)
        and _matches(nic.status, statuses)
        and _matches(nic.vxnet_id, vxnets)
        and (not types or state.vxnets[nic.vxnet_id].spec.vxnet_type in types)
        and name in nic.name
        and any(search in field for field in (nic.nic_id, nic.name, nic.private_ip))
    ]
    return _page("nic_set", hits, params, _nic)


def describe_jobs(state: CloudState, params: Params) -> dict[str, Any]:
    """Reject an unknown job or status, unlike the other lists."""
    asked = params.values("jobs")
    for job_id in asked:
        if job_id not in state.jobs:
            raise errors.not_found(job_id)
    statuses = params.choices("status")
    for status in statuses:
        if status not in job_queue.STATUSES:
            raise errors.bad_value("status", status, ", ".join(job_queue.STATUSES))
    now = state.now()
    hits = [
        job
        for job in state.jobs.values()
        if _matches(job.job_id, asked)
        and _matches(job_queue.status(job, now), statuses)
        and _matches(job.action, params.choices("job_action"))
    ]
    return _page("job_set", hits, params, lambda job: _job(job, now))


def apply_list_faults(answer: dict[str, Any], params: Params, faults: Iterable[str]) -> dict[str, Any]:
    """A page of a list after the list faults among *faults*."""
    (name,) = (key for key in answer if key != "total_count")
    items, total = answer[name], answer["total_count"]
    for fault in faults:
        if fault == MISSING_PAGE:
            items = []
        elif fault == EMPTY_LIST:
            items, total = [], 0
        elif fault == PARTIAL_LIST:
            total //= 2
            items = items[: max(total - params.page().start, 0)]
    return {name: items, "total_count": total}


def stamp(seconds: float) -> str:
    """Seconds since the epoch in the cloud's form, ``2016-12-23T13:35:56Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _matches(value: str, allowed: Sequence[str]) -> bool:
    return not allowed or value in allowed


def _page(name: str, hits: list[Record], params: Params, show: Callable[[Record], dict[str, Any]]) -> dict[str, Any]:
    found = hits if _matches(OWNER, params.choices("owner")) else []
    return {name: [show(hit) for hit in found[params.page()]], "total_count": len(found)}


def _instance(state: CloudState, host: HostRecord) -> dict[str, Any]:
    return {
        "instance_id": host.instance_id,
        "instance_name": host.spec.name,
        "hostname": host.spec.name,
        "description": None,
        "status": host.status,
        "transition_status": host.transition,
        "zone_id": state.topology.zone,
        "vcpus_current": 2,
        "memory_current": 2048,
        "instance_type": "s1.large.r1",
        "instance_class": 101,
        "create_time": stamp(host.create_time),
        "status_time": stamp(host.create_time),
        "owner": OWNER,
        "sub_code": 0,
        "tags": [],
        "vxnets": [_instance_vxnet(state, nic) for nic in state.nics_of(host.instance_id)],
        "image": {
            "image_id": "simulated",
            "os_family": "debian",
            "features_supported": {"nic_hot_plug": 1, "join_multiple_managed_vxnets": 0},
        },
        "extra": {"nic_mqueue": 0, "sriov_nic_type": 0},
    }


def _instance_vxnet(state: CloudState, nic: NicRecord) -> dict[str, Any]:
    spec = state.vxnets[nic.vxnet_id].spec
    return {
        "vxnet_id": spec.vxnet_id,
        "vxnet_name": spec.name,
        "vxnet_type": spec.vxnet_type,
        "nic_id": nic.nic_id,
        "private_ip": nic.private_ip,
        "role": nic.role,
        "ipv6_address": "",
        "security_groups": [],
    }


def _vxnet(state: CloudState, vxnet: VxnetRecord, *, is_verbose: bool) -> dict[str, Any]:
    spec = vxnet.spec
    shown: dict[str, Any] = {
        "vxnet_id": spec.vxnet_id,
        "vxnet_name": spec.name,
        "vxnet_type": spec.vxnet_type,
        "description": None,
        "create_time": stamp(vxnet.create_time),
        "owner": OWNER,
        "zone_id": state.topology.zone,
        "vpc_router_id": spec.router_id,
        "available_ip_count": state.room_in(vxnet),
        "tags": [],
        "tunnel_type": "",
        "router": _vxnet_router(vxnet) if spec.router_id else None,
    }
    if is_verbose:
        here = (nic.instance_id for nic in state.nics.values() if nic.vxnet_id == spec.vxnet_id and nic.instance_id)
        shown["instance_ids"] = list(dict.fromkeys(here))
    return shown


def _vxnet_router(vxnet: VxnetRecord) -> dict[str, Any]:
    network = IPv4Network(vxnet.spec.network)
    return {
        "router_id": vxnet.spec.router_id,
        "router_name": vxnet.spec.router_id,
        "manager_ip": vxnet.manager_ip,
        "ip_network": str(network),
        "dyn_ip_start": str(network.network_address + 2),
        "dyn_ip_end": str(network.broadcast_address - 1),
        "mode": 0,
    }


def _nic(nic: NicRecord) -> dict[str, Any]:
    return {
        "nic_id": nic.nic_id,
        "nic_name": nic.name,
        "status": nic.status,
        "instance_id": nic.instance_id,
        "vxnet_id": nic.vxnet_id,
        "private_ip": nic.private_ip,
        "role": nic.role,
        "sequence": nic.sequence,
        "security_group": "",
        "enable_aspoof": int(nic.enable_aspoof),
        "tags": [],
        "owner": OWNER,
        "root_user_id": OWNER,
        "create_time": stamp(nic.create_time),
        "status_time": stamp(nic.status_time),
    }


def _job(job: JobRecord, now: float) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "job_action": job.action,
        "status": job_queue.status(job, now),
        "error_codes": job.error_codes,
        "owner": OWNER,
        "resource_ids": " ".join((*job.nic_ids, *job.instance_ids)),
        "directive": job.directive,
        "create_time": stamp(job.create_time),
        "status_time": stamp(job_queue.status_time(job, now)),
    }
