"""What the agent knows: NICs, attachments and the cloud operations under way. Frozen data."""

from dataclasses import dataclass, field
from enum import StrEnum

NO_GATEWAY = -1  # index of NICs that are no gateway
GONE = "gone"  # what events call the state of a NIC that left the table


class NicState(StrEnum):
    """The life of a NIC of ours (design section 3); a NIC is in exactly one state."""

    CREATING = "creating"  # exists in the cloud, attached nowhere
    ATTACHING = "attaching"  # asked of the cloud, its link not seen yet
    ARRIVING = "arriving"  # its link is on its way to a container or to the parking namespace
    IDLE = "idle"  # parked, ready to serve
    ASSIGNED = "assigned"  # serves an attachment
    COOLING = "cooling"  # parked; its address rests before it is used again
    DETACHING = "detaching"  # asked of the cloud, not confirmed yet
    DELETING = "deleting"  # detached; deletion asked of the cloud
    MISSING = "missing"  # attached says the cloud, but its link is nowhere
    QUARANTINED = "quarantined"  # parked; its address answered a duplicate probe
    GATEWAY = "gateway"  # on the host, pinned: takes pods' packets to Service addresses


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC of ours. *nic_id* is its MAC, lower case."""

    nic_id: str
    name: str  # the unique name it was created under (core.names)
    vxnet_id: str
    address: str  # with prefix length: "172.16.3.7/24"
    gateway: str  # the vxnet's router: "172.16.3.1"
    state: NicState
    since: float  # seconds since the epoch at which the state was entered
    released: float = 0.0  # when it last left a container; 0 while its address owes no rest
    gateway_index: int = NO_GATEWAY  # of a gateway NIC: its link's number, mark and routing table follow from it
    claimant: str = ""  # of a quarantined NIC: the MAC that answered for its address
    repairs: int = 0  # times in a row it was detached and attached again because its link was nowhere
    repaired: float = 0.0  # when that was begun last, in seconds since the epoch

    @property
    def host_address(self) -> str:
        """The address alone: "172.16.3.7"."""
        return self.address.partition("/")[0]

    @property
    def is_gateway(self) -> bool:
        return self.gateway_index != NO_GATEWAY


@dataclass(frozen=True, slots=True, order=True)
class AttachmentKey:
    """What identifies an attachment, as the CNI specification says."""

    network: str
    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.network or '?'}/{self.container_id}/{self.ifname}"

    @property
    def is_unclaimed(self) -> bool:
        """Of a NIC found in a container by a table begun anew, until a request tells whose it is.

        The NIC's id stands in the place of the container's.
        """
        return not self.network


@dataclass(frozen=True, slots=True)
class Netns:
    """A network namespace as it was when a container was added: the path given, and its identity behind it."""

    path: str  # CNI_NETNS, byte for byte
    dev: int
    inode: int

    def is_same(self, other: "Netns") -> bool:
        """Whether both are one namespace, by whichever paths."""
        return (self.dev, self.inode) == (other.dev, other.inode)


@dataclass(frozen=True, slots=True)
class Route:
    dst: str  # CIDR: "10.96.0.0/12"
    gw: str  # "172.16.3.1"


@dataclass(frozen=True, slots=True)
class Dns:
    """The `dns` of a network configuration, carried into results."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """What the runtime told of a container besides its id: shown to people, nothing is decided by it."""

    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    infra_container_id: str = ""
    labels: tuple[tuple[str, str], ...] = ()  # key and value

    @property
    def pod(self) -> str:
        """Namespace and name; the name alone where there is no namespace, "" where neither was told."""
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
    workload: Workload = field(default_factory=Workload)
    uptime: float = 0.0  # seconds the host had been up when it began; 0 of one that was found


class OpKind(StrEnum):
    """The cloud writes, by what they do to NICs."""

    CREATE = "create"
    ATTACH = "attach"
    DETACH = "detach"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Intent:
    """A cloud write that is about to be made, or was made and is not finished. On disk before the call."""

    op_id: str
    kind: OpKind
    since: float  # seconds since the epoch
    vxnet_id: str = ""  # create only
    name: str = ""  # create only: the unique name to look up after a lost reply
    count: int = 0  # create only: NICs asked for
    nic_ids: tuple[str, ...] = ()  # all but create
    job_id: str = ""  # attach and detach, once the cloud has answered
    is_repair: bool = False  # detach only: the NICs are to be attached again, not deleted


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, by a fixed name ("nic.assigned"); *fields* never hold secrets."""

    at: float  # seconds since the epoch
    name: str
    nic_id: str = ""
    subject: str = ""  # attachment key or operation id
    detail: str = ""
    state: str = ""  # of the NIC from now on: a NicState, or GONE; "" where it did not change
    job_id: str = ""  # the cloud's, of the operation
    pod: str = ""  # of the attachment: "namespace/name", where the runtime told it
    seq: int = field(default=0, compare=False)  # its place among all events; 0 until it is on disk
