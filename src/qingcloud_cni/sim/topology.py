"""What a simulated cloud consists of: its VPC routers, vxnets, hosts, limits, latencies and faults."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RouterSpec:
    router_id: str
    vpc_network: str  # CIDR that holds the networks of its vxnets


@dataclass(frozen=True, slots=True)
class VxnetSpec:
    vxnet_id: str
    name: str
    network: str = ""  # CIDR; "" for one that is joined to no router
    router_id: str = ""
    vxnet_type: int = 1  # 0 unmanaged, 1 managed, 2 base network
    manager_ip: str = ""  # the router's address in it; default: the first host address


@dataclass(frozen=True, slots=True)
class HostSpec:
    name: str  # its network namespace is "<sim name>-<name>"
    instance_id: str
    vxnet_id: str  # of its primary NIC
    is_cluster_node: bool = False  # DescribeInstances returns it only when asked with is_cluster_node=1


@dataclass(frozen=True, slots=True)
class Limits:
    """Quotas, as qingcloud-api.md section 3.15 gives them."""

    nics_per_instance: int = 64  # the primary included
    nics_per_vxnet: int = 252
    nics_per_create: int = 252
    calls_per_hour: int = 0  # 0: unlimited


@dataclass(frozen=True, slots=True)
class Latencies:
    """Ranges in seconds from which the seeded generator draws."""

    attach: tuple[float, float] = (2.0, 4.0)
    detach: tuple[float, float] = (2.0, 4.0)
    call: tuple[float, float] = (0.0, 0.0)  # before an answer
    replug: tuple[float, float] = (0.2, 0.5)  # from the death of a NIC's namespace to its return
    dhcp: tuple[float, float] = (0.0, 0.5)  # from a link's appearance on a host to its lease, with --guest-dhcp


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """On the *nth* call of *action* (counted from 1, "*" counts every call), and the *times* - 1 after it: *effect*.

    The effects are those of sim.faults; *code* and *message* are for "refuse".
    """

    action: str
    effect: str
    nth: int = 1
    times: int = 1
    code: int = 5100
    message: str = "ServerBusy"


@dataclass(frozen=True, slots=True)
class Topology:
    routers: tuple[RouterSpec, ...]
    vxnets: tuple[VxnetSpec, ...]
    hosts: tuple[HostSpec, ...]
    zone: str = "pek3a"
    access_key_id: str = "SIMULATEDACCESSKEYID"
    secret_access_key: str = field(default="simulated-secret-access-key", repr=False)
    limits: Limits = field(default_factory=Limits)
    latencies: Latencies = field(default_factory=Latencies)
    faults: tuple[FaultSpec, ...] = ()


def default_topology(name: str, hosts: int = 2) -> Topology:
    """One VPC with a vxnet for the hosts' primary NICs and three for pods; *name* makes the instance ids unique."""
    tag = "".join(c for c in name.lower() if c.isascii() and c.isalnum())
    router = RouterSpec("rtr-sim00001", "172.20.0.0/16")
    vxnets = (
        VxnetSpec("vxnet-hosts001", "hosts", "172.20.0.0/24", router.router_id),
        *(VxnetSpec(f"vxnet-pods00{n}", f"pods-{n}", f"172.20.{n}.0/24", router.router_id) for n in (1, 2, 3)),
    )
    return Topology(
        routers=(router,),
        vxnets=vxnets,
        hosts=tuple(HostSpec(f"host{n}", f"i-{tag}host{n}", vxnets[0].vxnet_id) for n in range(1, hosts + 1)),
    )
