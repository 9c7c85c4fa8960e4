"""The writing actions: what must hold before them, and what they change (qingcloud-api.md section 3)."""

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any

from qingcloud_cni.sim.cloud import refusals
from qingcloud_cni.sim.cloud.addresses import AddressBook
from qingcloud_cni.sim.cloud.faults import JobFault
from qingcloud_cni.sim.cloud.jobs import ATTACH, DETACH, Jobs
from qingcloud_cni.sim.cloud.params import Params
from qingcloud_cni.sim.cloud.state import AVAILABLE, IN_USE, RUNNING, CloudState, NicRecord, VxnetRecord
from qingcloud_cni.sim.topology.effects import FilterNic


def create_nics(state: CloudState, params: Params) -> dict[str, Any]:
    """Create *count* NICs or none; *private_ips*, where given, are as many as *count*."""
    vxnet = state.find_vxnet(params.needed("vxnet"))
    wanted = params.listed("private_ips")
    count = params.number("count", len(wanted) or 1)
    most = state.topology.limits.nics_per_create
    if not 1 <= count <= most:
        raise refusals.bad_value("count", count, f"1 to {most}")
    if wanted and len(wanted) != count:
        raise refusals.bad_value("count", count, f"{len(wanted)}, the number of private_ips")
    without_ip = params.number("disable_ip", 0) == 1
    book = None if without_ip else vxnet.book
    addresses = [_wanted_address(vxnet, book, text) for text in wanted]
    account = state.topology.limits.nics_per_account
    if account and state.count_secondary() + count > account:
        raise refusals.quota(f"this account has {state.count_secondary()} nics, its quota is {account}")
    _check_room(state, vxnet, count, needs_address=book is not None)
    made = []
    for n in range(count):
        address = _take(book, addresses[n] if addresses else None)
        made.append(state.add_nic(vxnet, params.text("nic_name"), address))
    state.exhausted.pop(vxnet.vxnet_id, None)
    return {"nics": [{"nic_id": nic.nic_id, "private_ip": nic.private_ip} for nic in made]}


def attach_nics(state: CloudState, jobs: Jobs, params: Params, fault: JobFault) -> dict[str, Any]:
    """Queue one job for all NICs. Beyond the instance's limit it is 1400: the platform's bound, not a quota."""
    host = state.find_host(params.needed("instance"))
    nics = state.find_nics(params.needed_list("nics"))
    if host.status != RUNNING or host.transition:
        raise refusals.denied(f"instance [{host.instance_id}] is not running, can not attach nics")
    for nic in nics:
        _check_idle(nic)
        if nic.status != AVAILABLE:
            raise refusals.denied(f"resource [{nic.nic_id}] is [{nic.status}], can not be attached")
    held = len(state.nics_of(host.instance_id)) + jobs.coming(host.instance_id)
    most = state.topology.limits.nics_per_instance
    if held + len(nics) > most:
        raise refusals.denied(f"instance [{host.instance_id}] holds {held} of at most {most} nics")
    return {"job_id": jobs.submit(ATTACH, nics, (host.instance_id,), fault).job_id}


def detach_nics(state: CloudState, jobs: Jobs, params: Params, fault: JobFault) -> dict[str, Any]:
    nics = state.find_nics(params.needed_list("nics"))
    for nic in nics:
        if nic.role == 1:
            raise refusals.denied(f"resource [{nic.nic_id}] is the primary nic, can not be detached")
        _check_idle(nic)
        if nic.status != IN_USE:
            raise refusals.denied(f"resource [{nic.nic_id}] is [{nic.status}], can not be detached")
    instance_ids = tuple(dict.fromkeys(nic.instance_id for nic in nics))
    return {"job_id": jobs.submit(DETACH, nics, instance_ids, fault).job_id}


def delete_nics(state: CloudState, params: Params) -> dict[str, Any]:
    """Delete all the NICs or, if one of them cannot be, none."""
    nics = state.find_nics(params.needed_list("nics"))
    for nic in nics:
        _check_idle(nic)
        if nic.status != AVAILABLE:
            raise refusals.denied(f"resource [{nic.nic_id}] is [{nic.status}], can not be deleted")
    for nic in nics:
        state.remove(nic)
    return {}


def lose_nics(state: CloudState, nic_ids: Iterable[str]) -> None:
    """Somebody deletes NICs at the console, attached or not; those that a job is about stay, and primary ones."""
    for nic in [state.nics[nic_id] for nic_id in map(str.lower, nic_ids) if nic_id in state.nics]:
        if not nic.busy and nic.role != 1:
            state.remove(nic)


def modify_nic_attributes(state: CloudState, params: Params) -> dict[str, Any]:
    """Change name, address, vxnet or anti-spoofing; all checked before any is changed."""
    nic = state.find_nic(params.needed("nic"))
    _check_idle(nic)
    aspoof = params.number("enable_aspoof", int(nic.enable_aspoof))
    if aspoof not in {0, 1}:
        raise refusals.bad_value("enable_aspoof", aspoof, "0, 1")
    _move(state, nic, params.text("vxnet") or nic.vxnet_id, params.text("private_ip"))
    nic.name = params.text("nic_name") or nic.name
    if aspoof != nic.enable_aspoof:
        nic.enable_aspoof = bool(aspoof)
        if nic.is_plugged:
            state.effects.append(FilterNic(nic.nic_id, nic.private_ip, nic.enable_aspoof))
    return {}


def _check_idle(nic: NicRecord) -> None:
    if nic.busy:
        raise refusals.denied(f"resource [{nic.nic_id}] is [{nic.busy}], please try later")


def _check_room(state: CloudState, vxnet: VxnetRecord, count: int, *, needs_address: bool) -> None:
    limit = state.topology.limits.nics_per_vxnet
    room = limit - state.count_in(vxnet.vxnet_id)
    if count > room:
        raise refusals.quota(
            f"vxnet [{vxnet.vxnet_id}] has room for {max(room, 0)} of {count} nics, its quota is {limit}"
        )
    if needs_address and vxnet.book and count > vxnet.book.free:
        raise refusals.quota(f"vxnet [{vxnet.vxnet_id}] has {vxnet.book.free} of {count} free addresses")


def _wanted_address(vxnet: VxnetRecord, book: AddressBook | None, text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except ValueError:
        raise refusals.malformed("private_ip", text, "an IPv4 address") from None
    if book is None or address not in book.network or address in book.reserved:
        raise refusals.bad_value("private_ip", text, f"addresses for nics in vxnet [{vxnet.vxnet_id}]")
    if not book.is_free(address):
        raise refusals.denied(f"private ip [{text}] in vxnet [{vxnet.vxnet_id}] is in use")
    return address


def _take(book: AddressBook | None, wanted: IPv4Address | None) -> str:
    """Take an address that is known to be there; "" without a book."""
    if book is None:
        return ""
    if wanted is not None:
        book.claim(wanted)
        return str(wanted)
    return str(book.take())


def _move(state: CloudState, nic: NicRecord, vxnet_id: str, private_ip: str) -> None:
    """Give a NIC another vxnet, another address or both; in another vxnet it gets a free address if none is named."""
    vxnet = state.find_vxnet(vxnet_id)
    if vxnet_id == nic.vxnet_id and private_ip in {"", nic.private_ip}:
        return
    if nic.status != AVAILABLE:
        raise refusals.denied(f"resource [{nic.nic_id}] is [{nic.status}], its address can not be changed")
    wanted = _wanted_address(vxnet, vxnet.book, private_ip) if private_ip else None
    if vxnet_id != nic.vxnet_id:
        _check_room(state, vxnet, 1, needs_address=True)
    state.free_address(nic)
    nic.vxnet_id, nic.private_ip = vxnet_id, _take(vxnet.book, wanted)
