"""The writing actions: their preconditions and changes (docs/reference/qingcloud-api.md, "Actions")."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from qingcloud_cni.sim.cloud import errors
from qingcloud_cni.sim.cloud.addresses import AddressPool
from qingcloud_cni.sim.cloud.faults import JobFault
from qingcloud_cni.sim.cloud.jobs import ATTACH, DETACH, Jobs
from qingcloud_cni.sim.cloud.params import Params
from qingcloud_cni.sim.cloud.state import (
    AVAILABLE,
    CEASED,
    IN_USE,
    RUNNING,
    STOPPED,
    TERMINATED,
    CloudState,
    NicRecord,
    VxnetRecord,
)


@dataclass(frozen=True, slots=True)
class InstanceChange:
    allowed: tuple[str, ...]  # status before it
    transition: str
    becomes: str


INSTANCE_CHANGES = {
    "StopInstances": InstanceChange((RUNNING,), "stopping", STOPPED),
    "StartInstances": InstanceChange((STOPPED,), "starting", RUNNING),
    "TerminateInstances": InstanceChange((RUNNING, STOPPED), "terminating", TERMINATED),
    "CeaseInstances": InstanceChange((TERMINATED,), "ceasing", CEASED),
}


def create_nics(state: CloudState, params: Params) -> dict[str, Any]:
    """Create *count* NICs or none; *private_ips*, where given, are as many as *count*."""
    vxnet = state.find_vxnet(params.required("vxnet"))
    wanted = params.values("private_ips")
    count = params.number("count", len(wanted) or 1)
    most = state.topology.limits.nics_per_create
    if not 1 <= count <= most:
        raise errors.bad_value("count", count, f"1 to {most}")
    if wanted and len(wanted) != count:
        raise errors.bad_value("count", count, f"{len(wanted)}, the number of private_ips")
    without_ip = params.number("disable_ip", 0) == 1
    book = None if without_ip else vxnet.book
    addresses = [_wanted_address(vxnet, book, text) for text in wanted]
    account = state.topology.limits.nics_per_account
    if account and state.count_secondary() + count > account:
        raise errors.quota(f"this account has {state.count_secondary()} nics, its quota is {account}")
    _check_room(state, vxnet, count, needs_address=book is not None)
    made = []
    for n in range(count):
        address = _take(book, addresses[n] if addresses else None)
        made.append(state.add_nic(vxnet, params.text("nic_name"), address))
    state.replenish(vxnet.vxnet_id)
    return {"nics": [{"nic_id": nic.nic_id, "private_ip": nic.private_ip} for nic in made]}


def attach_nics(state: CloudState, jobs: Jobs, params: Params, fault: JobFault) -> dict[str, Any]:
    """Queue one job for all NICs. Beyond the instance's limit the code is 1400: a bound of the platform, no quota."""
    host = state.find_host(params.required("instance"))
    nics = state.find_nics(params.required_list("nics"))
    if host.status != RUNNING or host.transition:
        raise errors.denied(f"instance [{host.instance_id}] is not running, can not attach nics")
    for nic in nics:
        _check_idle(nic)
        if nic.status != AVAILABLE:
            raise errors.denied(f"resource [{nic.nic_id}] is [{nic.status}], can not be attached")
    held = len(state.nics_of(host.instance_id)) + jobs.count_attaching(host.instance_id)
    most = state.topology.limits.nics_per_instance
    if held + len(nics) > most:
        raise errors.denied(f"instance [{host.instance_id}] holds {held} of at most {most} nics")
    return {"job_id": jobs.submit(ATTACH, nics, (host.instance_id,), fault).job_id}


def detach_nics(state: CloudState, jobs: Jobs, params: Params, fault: JobFault) -> dict[str, Any]:
    nics = state.find_nics(params.required_list("nics"))
    for nic in nics:
        if nic.role == 1:
            raise errors.denied(f"resource [{nic.nic_id}] is the primary nic, can not be detached")
        _check_idle(nic)
        if nic.status != IN_USE:
            raise errors.denied(f"resource [{nic.nic_id}] is [{nic.status}], can not be detached")
    instance_ids = tuple(dict.fromkeys(nic.instance_id for nic in nics))
    return {"job_id": jobs.submit(DETACH, nics, instance_ids, fault).job_id}


def delete_nics(state: CloudState, params: Params) -> dict[str, Any]:
    """Delete all the NICs, or none if one of them cannot be deleted."""
    nics = state.find_nics(params.required_list("nics"))
    for nic in nics:
        _check_idle(nic)
        if nic.status != AVAILABLE:
            raise errors.denied(f"resource [{nic.nic_id}] is [{nic.status}], can not be deleted")
    for nic in nics:
        state.remove(nic)
    return {}


def lose_nics(state: CloudState, nic_ids: Iterable[str]) -> None:
    """Delete NICs as somebody at the console does, attached or not; NICs in an open job and primary ones stay."""
    for nic in [state.nics[nic_id] for nic_id in map(str.lower, nic_ids) if nic_id in state.nics]:
        if not nic.busy and nic.role != 1:
            state.remove(nic)


def modify_nic_attributes(state: CloudState, params: Params) -> dict[str, Any]:
    """Change name, address, vxnet or anti-spoofing, once all of them are checked."""
    nic = state.find_nic(params.required("nic"))
    _check_idle(nic)
    aspoof = params.number("enable_aspoof", int(nic.enable_aspoof))
    if aspoof not in {0, 1}:
        raise errors.bad_value("enable_aspoof", aspoof, "0, 1")
    _move(state, nic, params.text("vxnet") or nic.vxnet_id, params.text("private_ip"))
    nic.name = params.text("nic_name") or nic.name
    if aspoof != nic.enable_aspoof:
        state.set_aspoof(nic, is_on=bool(aspoof))
    return {}


def change_instances(state: CloudState, jobs: Jobs, action: str, params: Params) -> dict[str, Any]:
    """Queue one job for all instances, or none if one of them is in the wrong state.

    The guest does not notice: its namespace and processes continue, with the NICs it still has.
    """
    change = INSTANCE_CHANGES[action]
    hosts = [state.find_host(instance_id) for instance_id in params.required_list("instances")]
    for host in hosts:
        if host.transition:
            raise errors.denied(f"resource [{host.instance_id}] is [{host.transition}], please try later")
        if host.status not in change.allowed:
            raise errors.denied(f"instance [{host.instance_id}] is [{host.status}], so {action} is not allowed")
    is_final = action == "TerminateInstances" and params.number("direct_cease", 0) == 1
    for host in hosts:
        host.transition = change.transition
    instance_ids = tuple(host.instance_id for host in hosts)
    becomes = CEASED if is_final else change.becomes
    return {"job_id": jobs.submit(action, [], instance_ids, JobFault(), becomes).job_id}


def _check_idle(nic: NicRecord) -> None:
    if nic.busy:
        raise errors.denied(f"resource [{nic.nic_id}] is [{nic.busy}], please try later")


def _check_room(state: CloudState, vxnet: VxnetRecord, count: int, *, needs_address: bool) -> None:
    limit = state.topology.limits.nics_per_vxnet
    room = limit - state.count_in(vxnet.vxnet_id)
    if count > room:
        raise errors.quota(
            f"vxnet [{vxnet.vxnet_id}] has room for {max(room, 0)} of {count} nics, its quota is {limit}"
        )
    if needs_address and vxnet.book and count > vxnet.book.free:
        raise errors.quota(f"vxnet [{vxnet.vxnet_id}] has {vxnet.book.free} of {count} free addresses")


def _wanted_address(vxnet: VxnetRecord, book: AddressPool | None, text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except ValueError:
        raise errors.malformed("private_ip", text, "an IPv4 address") from None
    if book is None or address not in book.network or address in book.reserved:
        raise errors.bad_value("private_ip", text, f"addresses for nics in vxnet [{vxnet.vxnet_id}]")
    if not book.is_free(address):
        raise errors.denied(f"private ip [{text}] in vxnet [{vxnet.vxnet_id}] is in use")
    return address


def _take(book: AddressPool | None, wanted: IPv4Address | None) -> str:
    """Take an address that is known to be free; "" in a vxnet without addresses."""
    if book is None:
        return ""
    if wanted is not None:
        book.claim(wanted)
        return str(wanted)
    return str(book.take())


def _move(state: CloudState, nic: NicRecord, vxnet_id: str, private_ip: str) -> None:
    """Move a NIC to another vxnet, another address or both; without *private_ip* it gets a free address."""
    vxnet = state.find_vxnet(vxnet_id)
    if vxnet_id == nic.vxnet_id and private_ip in {"", nic.private_ip}:
        return
    if nic.status != AVAILABLE:
        raise errors.denied(f"resource [{nic.nic_id}] is [{nic.status}], its address can not be changed")
    wanted = _wanted_address(vxnet, vxnet.book, private_ip) if private_ip else None
    if vxnet_id != nic.vxnet_id:
        _check_room(state, vxnet, 1, needs_address=True)
    state.free_address(nic)
    nic.vxnet_id, nic.private_ip = vxnet_id, _take(vxnet.book, wanted)
