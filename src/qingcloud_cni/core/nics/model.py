"""NICs, attachments, intents and events. Frozen data."""

from dataclasses import dataclass, field
from enum import StrEnum

NO_GATEWAY = -1  # index of NICs that are not gateways
GONE = "gone"  # in events, the state of a NIC that left the table


class NicState(StrEnum):
    """The states of a NIC of ours; `table.FOLLOWS` has the transitions."""

    CREATING = "creating"  # exists in the cloud, attached nowhere
    ATTACHING = "attaching"  # requested from the cloud, its link not seen yet
    ARRIVING = "arriving"  # its link is on its way to the parking namespace or a container
    IDLE = "idle"  # parked, ready to serve
    ASSIGNED = "assigned"  # serves an attachment
    COOLING = "cooling"  # parked; its address cools down before it is used again
    DETACHING = "detaching"  # requested from the cloud, not confirmed yet
    DELETING = "deleting"  # detached; delete requested from the cloud
    MISSING = "missing"  # attached in the cloud, but its link is nowhere
    QUARANTINED = "quarantined"  # parked; another machine answered a probe of its address, or it is soiled
    GATEWAY = "gateway"  # stays on the host: takes pods' packets to Service addresses


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC of ours. *nic_id* is its MAC, lower case."""

    nic_id: str
    name: str  # the unique name of its create (core.nics.names)
    vxnet_id: str
    address: str  # with prefix length: "172.16.3.7/24"; "" if the cloud gave none that is usable: it never serves
    gateway: str  # the vxnet's router: "172.16.3.1"
    state: NicState
    since: float  # when the state was entered, in seconds since the epoch
    released: float = 0.0  # when it last left a container; 0 if its address need not cool down
    gateway_index: int = NO_GATEWAY  # of a gateway: link name, mark and routing table follow from it
    claimant: str = ""  # of a quarantined NIC: the MAC that answered the probe; "" if it is soiled
    repairs: int = 0  # times in a row that it was detached and attached again, as its link was nowhere
    repaired: float = 0.0  # when the last of them began, in seconds since the epoch
    plugged: str = ""  # its link's state as the cloud plugged it in, for the kernel; "" if not described yet
    soil: str = ""  # why no container may get it any more: what cannot be restored, or a person's wish
    fingerprint: str = ""  # identifies its link in any namespace; recorded when the link arrived on the host

    @property
    def host_address(self) -> str:
        """The address without prefix length."""
        return self.address.partition("/")[0]

    @property
    def is_gateway(self) -> bool:
        return self.gateway_index != NO_GATEWAY


@dataclass(frozen=True, slots=True, order=True)
class AttachmentKey:
    """What identifies an attachment, by the CNI specification."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network or '?'}/{self.container_id}/{self.ifname}"

    @property
    def is_unclaimed(self) -> bool:
        """Whether no request has named the attachment of a found NIC; `container_id` is the NIC's id meanwhile."""
        return not self.network


@dataclass(frozen=True, slots=True)
class Netns:
    """A network namespace at the time of ADD: the path, and the identity behind it."""

    path: str  # CNI_NETNS, byte for byte
    dev: int
    inode: int

    def is_same(self, other: "Netns") -> bool:
        """Whether both are one namespace, whatever the paths."""
        return (self.dev, self.inode) == (other.dev, other.inode)


MAIN_TABLE = 254  # the kernel's routing table for a route that names none
LINK_SCOPE = 253  # of a route without gateway: its destinations are neighbours


@dataclass(frozen=True, slots=True)
class Route:
    """A route of a container; None is what the configuration leaves to the kernel."""

    dst: str  # CIDR: "10.96.0.0/12"
    gw: str  # "172.16.3.1"; "" with LINK_SCOPE
    priority: int | None = None  # the metric
    table: int | None = None  # 0 is MAIN_TABLE as well
    mtu: int | None = None
    advmss: int | None = None
    scope: int | None = None

    @property
    def destination(self) -> tuple[int, str]:
        """The routing table and the network; the metric and who installed the route do not count."""
        return self.table or MAIN_TABLE, self.dst


@dataclass(frozen=True, slots=True)
class Dns:
    """The `dns` of a network configuration and of results."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """Further data of a container, for people only."""

    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    infra_container_id: str = ""
    labels: tuple[tuple[str, str], ...] = ()  # key and value

    def names(self) -> dict[str, str]:
        """By the names that they have in CNI_ARGS."""
        return {
            "K8S_POD_NAME": self.pod_name,
            "K8S_POD_NAMESPACE": self.pod_namespace,
            "K8S_POD_UID": self.pod_uid,
            "K8S_POD_INFRA_CONTAINER_ID": self.infra_container_id,
        }

    @property
    def pod(self) -> str:
        """Namespace and name, the name alone, or ""."""
        return f"{self.pod_namespace}/{self.pod_name}" if self.pod_namespace else self.pod_name


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's use of a NIC. *is_ready* is False from the choice of the NIC until the link is configured."""

    key: AttachmentKey
    nic_id: str
    netns: Netns
    since: float  # seconds since the epoch
    routes: tuple[Route, ...] = ()  # as installed, the default route included
    dns: Dns = field(default_factory=Dns)
    ifindex: int = 0  # of the link inside the container
    mtu: int = 0
    is_ready: bool = False
    services: tuple[str, ...] = ()  # ranges (CIDR) it reaches through this host's gateway
    ip_masq: bool = False  # its flows to Services are masqueraded
    is_compared: bool = False  # its NIC was found to be as plugged when the container got it
    workload: Workload = field(default_factory=Workload)
    uptime: float = 0.0  # of the host when the attachment began, in seconds; 0 if it was found


class OpKind(StrEnum):
    """The cloud writes."""

    CREATE = "create"
    ATTACH = "attach"
    DETACH = "detach"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Intent:
    """A cloud write that is not finished; on disk before the call."""

    op_id: str
    kind: OpKind
    since: float  # seconds since the epoch
    vxnet_id: str = ""  # create only
    name: str = ""  # create only: the unique name to look up after a lost reply
    count: int = 0  # create only: NICs requested
    nic_ids: tuple[str, ...] = ()  # all but create
    job_id: str = ""  # attach and detach, after the cloud's answer
    is_repair: bool = False  # detach only: attach the NICs again, do not delete them


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, by a fixed name ("nic.assigned"); *fields* never hold secrets."""

    at: float  # seconds since the epoch
    name: str
    nic_id: str = ""
    subject: str = ""  # attachment key or operation id
    detail: str = ""
    state: str = ""  # the NIC's new state: a NicState or GONE; "" if unchanged
    job_id: str = ""  # the cloud's, of the operation
    pod: str = ""  # of the attachment: "namespace/name", if known
    seq: int = field(default=0, compare=False)  # its number among all events; 0 until it is on disk
