"""What the simulated cloud holds: hosts, vxnets, NICs, jobs and effects, and the methods that keep them in step."""

import random
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from math import inf

from qingcloud_cni.sim.cloud import errors
from qingcloud_cni.sim.cloud.addresses import AddressPool
from qingcloud_cni.sim.cloud.faults import JobFault
from qingcloud_cni.sim.topology import Effect, FilterNic, HostSpec, PlugNic, Topology, UnplugNic, VxnetSpec

AVAILABLE = "available"
IN_USE = "in-use"

RUNNING = "running"
STOPPED = "stopped"
TERMINATED = "terminated"
CEASED = "ceased"


@dataclass(slots=True)
class NicRecord:
    nic_id: str
    name: str
    vxnet_id: str
    private_ip: str  # "" for one without an address
    create_time: float
    status_time: float
    status: str = AVAILABLE
    instance_id: str = ""
    role: int = 0  # 1 = primary
    sequence: int = 0
    enable_aspoof: bool = True
    busy: str = ""  # what an open job does with it: "attaching", "detaching"
    is_plugged: bool = False  # a PlugNic was emitted, and no UnplugNic since
    link_name: str = ""  # prefix of the link's name if a fault sets it


@dataclass(slots=True)
class HostRecord:
    spec: HostSpec
    create_time: float
    status: str = RUNNING
    transition: str = ""  # what an open job does with it: "stopping", "terminating", ...

    @property
    def instance_id(self) -> str:
        return self.spec.instance_id


@dataclass(slots=True)
class VxnetRecord:
    spec: VxnetSpec
    create_time: float
    manager_ip: str
    book: AddressPool | None  # None where the vxnet has no network

    @property
    def vxnet_id(self) -> str:
        return self.spec.vxnet_id


@dataclass(slots=True)
class JobRecord:
    """A job, open or ended; *begin*, *due* and *ends* are seconds on the model's clock."""

    job_id: str
    action: str
    nic_ids: tuple[str, ...]
    instance_ids: tuple[str, ...]
    directive: str
    create_time: float
    begin: float
    due: float  # when links appear or vanish
    ends: float  # when DescribeJobs shows its end
    fault: JobFault
    becomes: str = ""  # status that its instances will have; "" for a job on NICs
    has_landed: bool = False  # its effects were emitted
    end: str = ""  # "successful", "failed" or "done with failure" once it has ended
    end_time: float = 0.0
    error_codes: str = ""


@dataclass(frozen=True, slots=True)
class LateLink:
    """A link that appears after the end of its attach job."""

    nic_id: str
    instance_id: str
    due: float


@dataclass(slots=True)
class CloudState:
    """All records by id, in the order of their creation."""

    topology: Topology
    rng: random.Random
    now: Callable[[], float]
    hosts: dict[str, HostRecord] = field(default_factory=dict)
    vxnets: dict[str, VxnetRecord] = field(default_factory=dict)
    nics: dict[str, NicRecord] = field(default_factory=dict)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    late_links: list[LateLink] = field(default_factory=list)
    # Vxnets that a fault shows without free addresses, and until when; infinity: until a create there succeeds.
    exhausted: dict[str, float] = field(default_factory=dict)

    def new_nic_id(self) -> str:
        """Draw a MAC of the cloud's form: 52:54 and four octets."""
        while True:
            octets = self.rng.getrandbits(32).to_bytes(4, "big")
            nic_id = bytes((0x52, 0x54, *octets)).hex(":")
            if nic_id not in self.nics:
                return nic_id

    def new_job_id(self) -> str:
        while True:
            job_id = "j-" + "".join(self.rng.choices(string.ascii_lowercase + string.digits, k=8))
            if job_id not in self.jobs:
                return job_id

    def nics_of(self, instance_id: str) -> list[NicRecord]:
        """NICs attached to an instance, primary first."""
        return sorted((n for n in self.nics.values() if n.instance_id == instance_id), key=lambda n: n.sequence)

    def count_secondary(self) -> int:
        return sum(nic.role != 1 for nic in self.nics.values())

    def count_in(self, vxnet_id: str) -> int:
        return sum(nic.vxnet_id == vxnet_id for nic in self.nics.values())

    def room_in(self, vxnet: VxnetRecord) -> int:
        """NICs that still fit into a vxnet, by its quota and by its addresses if it has any."""
        if self.now() < self.exhausted.get(vxnet.vxnet_id, -inf):
            return 0
        by_quota = self.topology.limits.nics_per_vxnet - self.count_in(vxnet.vxnet_id)
        return max(min(by_quota, vxnet.book.free) if vxnet.book else by_quota, 0)

    def exhaust(self, vxnet_id: str, until: float) -> None:
        """Show no free address in a vxnet until then, or until a create there succeeds."""
        self.exhausted[vxnet_id] = until

    def replenish(self, *vxnet_ids: str) -> None:
        """End `exhaust` for these vxnets, or for all."""
        for vxnet_id in vxnet_ids or tuple(self.exhausted):
            self.exhausted.pop(vxnet_id, None)

    def find_host(self, instance_id: str) -> HostRecord:
        if host := self.hosts.get(instance_id):
            return host
        raise errors.not_found(instance_id)

    def find_vxnet(self, vxnet_id: str) -> VxnetRecord:
        if vxnet := self.vxnets.get(vxnet_id):
            return vxnet
        raise errors.not_found(vxnet_id)

    def find_nic(self, nic_id: str) -> NicRecord:
        if nic := self.nics.get(nic_id.lower()):
            return nic
        raise errors.not_found(nic_id)

    def find_nics(self, nic_ids: Iterable[str]) -> list[NicRecord]:
        return list({nic.nic_id: nic for nic in map(self.find_nic, nic_ids)}.values())

    def add_nic(self, vxnet: VxnetRecord, name: str, private_ip: str) -> NicRecord:
        """Record a new NIC; the caller has taken its address."""
        now = self.now()
        nic = NicRecord(self.new_nic_id(), name, vxnet.vxnet_id, private_ip, create_time=now, status_time=now)
        self.nics[nic.nic_id] = nic
        return nic

    def attach(self, nic: NicRecord, instance_id: str) -> None:
        """Record a NIC as attached, at the instance's lowest free sequence number."""
        used = {other.sequence for other in self.nics_of(instance_id)}
        nic.sequence = next(n for n in range(len(used) + 1) if n not in used)
        nic.instance_id, nic.status, nic.status_time = instance_id, IN_USE, self.now()

    def detach(self, nic: NicRecord) -> None:
        nic.sequence, nic.instance_id, nic.status, nic.status_time = 0, "", AVAILABLE, self.now()

    def take_effects(self) -> list[Effect]:
        """Return the effects in order, each one once."""
        effects, self.effects = self.effects, []
        return effects

    def plug(self, nic: NicRecord, instance_id: str) -> None:
        """Have a NIC's link appear on an instance."""
        nic.is_plugged = True
        self.effects.append(plug_effect(nic, instance_id))

    def plug_later(self, nic: NicRecord, instance_id: str, due: float) -> None:
        self.late_links.append(LateLink(nic.nic_id, instance_id, due))

    def plug_due(self, now: float) -> None:
        """Have the late links appear that are due."""
        for late in [late for late in self.late_links if late.due <= now]:
            self.late_links.remove(late)
            self.plug(self.nics[late.nic_id], late.instance_id)

    def unplug(self, nic: NicRecord) -> None:
        """Have a NIC's link vanish, also one that is still to come."""
        self.late_links = [late for late in self.late_links if late.nic_id != nic.nic_id]
        nic.link_name = ""
        if nic.is_plugged:
            nic.is_plugged = False
            self.effects.append(UnplugNic(nic.nic_id))

    def set_aspoof(self, nic: NicRecord, *, is_on: bool) -> None:
        nic.enable_aspoof = is_on
        if nic.is_plugged:
            self.effects.append(FilterNic(nic.nic_id, nic.private_ip, is_on))

    def remove(self, nic: NicRecord) -> None:
        """Delete a NIC that is in no open job, attached or not, and free its address."""
        self.unplug(nic)
        self.free_address(nic)
        del self.nics[nic.nic_id]

    def free_address(self, nic: NicRecord) -> None:
        book = self.vxnets[nic.vxnet_id].book
        if book and nic.private_ip:
            book.release(IPv4Address(nic.private_ip))


def plug_effect(nic: NicRecord, instance_id: str) -> PlugNic:
    return PlugNic(nic.nic_id, instance_id, nic.vxnet_id, nic.private_ip, nic.enable_aspoof, nic.link_name)


def build(topology: Topology, rng: random.Random, now: Callable[[], float]) -> CloudState:
    """Build the cloud of a topology: hosts running with their primary NICs; ValueError names a contradiction."""
    state = CloudState(topology, rng, now)
    routers = {router.router_id for router in topology.routers}
    for spec in topology.vxnets:
        if spec.vxnet_id in state.vxnets:
            raise ValueError(f"vxnet {spec.vxnet_id}: given twice")
        if spec.router_id and (spec.router_id not in routers or not spec.network):
            raise ValueError(
                f"vxnet {spec.vxnet_id}: joined to router {spec.router_id}: needs that router and a network"
            )
        state.vxnets[spec.vxnet_id] = _vxnet(spec, now())
    for host in topology.hosts:
        if host.instance_id in state.hosts:
            raise ValueError(f"instance {host.instance_id}: given twice")
        if host.vxnet_id not in state.vxnets:
            raise ValueError(f"instance {host.instance_id}: vxnet {host.vxnet_id} does not exist")
        state.hosts[host.instance_id] = HostRecord(host, now())
        _add_primary(state, host)
    return state


def _vxnet(spec: VxnetSpec, created: float) -> VxnetRecord:
    if not spec.network:
        return VxnetRecord(spec, created, "", None)
    network = IPv4Network(spec.network)
    manager_ip = IPv4Address(spec.manager_ip) if spec.manager_ip else network.network_address + 1
    if manager_ip not in network:
        raise ValueError(f"vxnet {spec.vxnet_id}: manager_ip {manager_ip} lies outside {network}")
    return VxnetRecord(spec, created, str(manager_ip), AddressPool(network, manager_ip))


def _add_primary(state: CloudState, host: HostSpec) -> None:
    vxnet = state.vxnets[host.vxnet_id]
    if not state.room_in(vxnet):
        raise ValueError(f"instance {host.instance_id}: vxnet {host.vxnet_id} has no free address")
    address = vxnet.book.take() if vxnet.book else None
    nic = state.add_nic(vxnet, "", str(address or ""))
    nic.role = 1
    state.attach(nic, host.instance_id)
    nic.is_plugged = True
