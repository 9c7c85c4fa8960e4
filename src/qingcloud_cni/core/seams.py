"""The four seams between the agent and the world, and the plain data that crosses them."""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Interface, IPv4Network
from typing import Protocol

from qingcloud_cni.core.budget import Spending, Urgency
from qingcloud_cni.core.changes import Change, Snapshot
from qingcloud_cni.core.model import Event, Netns, Route

# --- the cloud ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CloudNic:
    """A NIC as DescribeNics gives it."""

    nic_id: str  # MAC, lower case
    name: str
    status: str  # "available" or "in-use"
    instance_id: str  # "" when attached nowhere
    vxnet_id: str
    private_ip: str
    role: int  # 1 = primary
    enable_aspoof: int | None = None  # anti-spoofing, where the cloud tells
    created: float = 0.0  # seconds since the epoch; 0 where the cloud does not tell
    since: float = 0.0  # when it entered its status, likewise


@dataclass(frozen=True, slots=True)
class CreatedNic:
    nic_id: str
    private_ip: str


@dataclass(frozen=True, slots=True)
class Vxnet:
    vxnet_id: str
    name: str
    vxnet_type: int  # 0 unmanaged, 1 managed, 2 base network
    router_id: str  # "" when joined to none
    network: str  # CIDR: "172.16.3.0/24"; "" when joined to no router
    gateway: str  # the router's address in it
    available_ips: int | None  # addresses left, where the cloud tells

    def address_of(self, private_ip: str) -> str:
        """An address with the prefix length of this vxnet, which has a network: "172.16.3.7/24"."""
        return str(IPv4Interface((private_ip, IPv4Network(self.network).prefixlen)))


@dataclass(frozen=True, slots=True)
class InstanceNic:
    nic_id: str
    vxnet_id: str
    private_ip: str
    role: int


@dataclass(frozen=True, slots=True)
class Instance:
    instance_id: str
    status: str  # "running", "stopped", ...
    nics: tuple[InstanceNic, ...]
    transition: str = ""  # "stopping", "terminating", ...; "" where it is not about to change


class JobStatus(StrEnum):
    PENDING = "pending"  # "working" and anything not known to be an end as well
    SUCCESSFUL = "successful"
    FAILED = "failed"  # "done with failure" as well


@dataclass(frozen=True, slots=True)
class Job:
    job_id: str
    status: JobStatus
    error: str  # the cloud's error_codes, "" when it gave none


HowUrgent = Callable[[], Urgency]  # how urgent a call is; asked again as long as the call waits for a permit


class CloudCalls(Protocol):
    """The QingCloud API, as far as it is needed. Every method may raise any CloudError.

    Reads are complete (all pages) or raise. Writes are sent at most once; OutcomeUnknown means "look first". The
    first request goes at once; further ones, such as more pages of a list, wait for permits of their own.
    """

    def give_back(self) -> None:
        """Return the permit of the first request, if that was not made; others may need it."""

    async def instance(self, instance_id: str) -> Instance | None: ...

    async def instances(self, instance_ids: Sequence[str]) -> tuple[Instance, ...]:
        """Those of *instance_ids* that are listed, nodes of clusters included."""

    async def vxnets(self, vxnet_ids: Sequence[str]) -> tuple[Vxnet, ...]:
        """Those of *vxnet_ids* that exist, base networks included."""

    async def nics(
        self, *, instance_id: str = "", status: str = "", name: str = "", nic_ids: Sequence[str] = ()
    ) -> tuple[CloudNic, ...]:
        """NICs that fit every filter given; *name* may match loosely, so compare it again."""

    async def create_nics(self, vxnet_id: str, count: int, name: str) -> tuple[CreatedNic, ...]: ...

    async def attach_nics(self, instance_id: str, nic_ids: Sequence[str]) -> str:
        """Ask for the NICs on the instance; the id of the job."""

    async def detach_nics(self, nic_ids: Sequence[str]) -> str:
        """Ask for the NICs off their instance; the id of the job."""

    async def delete_nics(self, nic_ids: Sequence[str]) -> None: ...

    async def set_antispoof(self, nic_id: str, *, is_on: bool) -> None:
        """Whether the cloud drops what the NIC sends under another address than its own; safe to repeat."""

    async def jobs(self, job_ids: Sequence[str]) -> tuple[Job, ...]:
        """The jobs asked for; raises ResourceNotFound where one of them is unknown to the cloud."""


class Cloud(Protocol):
    """The way to the API, which lets as many calls through as the call budget has."""

    async def permit(self, urgency: HowUrgent) -> CloudCalls:
        """Wait until a call may go, however long that is; make it at once, for it is counted."""

    def permit_now(self, urgency: HowUrgent) -> CloudCalls | None:
        """The same where a call may go now; else None."""

    def reconsider(self) -> None:
        """Urgencies of calls that wait may have changed."""

    def slow_down(self) -> None:
        """A refusal seems to mean that the key's calls are used up."""

    def spending(self) -> Spending: ...

    async def close(self) -> None: ...


# --- the kernel --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface that may be a NIC (never a bridge, vlan, macvlan or bond)."""

    mac: str
    name: str
    ifindex: int
    is_up: bool
    alias: str = ""
    mtu: int = 0
    permanent_mac: str = ""  # burnt in; "" where the device has none, or the kernel does not tell


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace that is neither the host's nor the parking one, and the candidate links in it."""

    netns: Netns
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """Candidate links at one moment: of the two namespaces that are the agent's own, or of all there are."""

    host: tuple[Link, ...]
    parked: tuple[Link, ...]
    elsewhere: tuple[Place, ...] = ()
    is_wide: bool = False  # every namespace that can be reached was looked into …
    unseen: tuple[str, ...] = ()  # … but for those at these paths, which the kernel refused


@dataclass(frozen=True, slots=True)
class LinkOrder:
    """How a NIC shall look inside a container."""

    mac: str
    netns: Netns
    ifname: str
    address: str  # "172.16.3.7/24"
    routes: tuple[Route, ...]  # in the order of installation; gateways lie in the address's network
    alias: str  # written on the link, so that DEL knows it without the table; at most 255 bytes


@dataclass(frozen=True, slots=True)
class PlacedLink:
    """What the kernel made of a LinkOrder; *routes* are those installed, for a container keeps those it had."""

    ifindex: int
    mtu: int
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What there is under an interface's name in a container; *link* is None where nothing is."""

    netns: Netns
    link: Link | None = None
    addresses: tuple[str, ...] = ()  # IPv4, with prefix length
    routes: tuple[Route, ...] = ()  # IPv4, through this link, of all tables; a gateway of "" where it needs none


@dataclass(frozen=True, slots=True)
class Gateway:
    """A NIC of this host that takes pods' packets to Service addresses."""

    mac: str
    link_name: str  # "hostnic", "hostnic1", ...: its link shall have it; "" for a NIC that is used as it is
    address: str  # "172.20.1.9/24"
    router: str  # the vxnet's own router: "172.20.1.1"
    index: int  # 0 to 62 among those with a link name, where it sets mark, routing table and rule preferences


@dataclass(frozen=True, slots=True)
class ServicePath:
    """All that Services need on this host; empty where no container uses a gateway."""

    gateways: tuple[Gateway, ...] = ()
    masquerade: tuple[str, ...] = ()  # networks of pods (CIDR) whose translated flows are masqueraded (ipMasq)
    services: tuple[str, ...] = ()  # CIDR; a flow first sent to one of them counts as translated as well (ipvs)


class Kernel(Protocol):
    """Links of this host. Methods may raise KernelRefused; verbs are idempotent and undo themselves on failure."""

    async def identify(self, path: str) -> Netns:
        """The namespace behind *path*; InvalidNetns if there is none, or if it is the host's or the parking one."""

    async def inspect(self, path: str, ifname: str) -> Inspection:
        """Look at one interface of the namespace behind *path*, and change nothing; InvalidNetns as `identify`."""

    async def survey(self) -> Survey: ...

    async def survey_all(self, paths: Sequence[str]) -> Survey:
        """Links of every namespace that can be reached: those at *paths*, those mounted, those processes are in."""

    async def park(self, mac: str, alias: str = "") -> None:
        """Bring a link from the host's namespace into the parking one: down, reset, under a name of its own.

        Known by its MAC or, if that was changed, by *alias*. Nothing to do if it is parked already; LinkNotFound if
        it is in neither.
        """

    async def attach(self, order: LinkOrder) -> PlacedLink:
        """Move a parked link, or one on the host, into a container and configure it; on failure it is parked again.

        InvalidNetns if the namespace is no longer the recorded one, InvalidConfig if *ifname* is taken there,
        LinkNotFound if the NIC is neither parked nor on the host.
        """

    async def detach(self, mac: str, netns: Netns, ifindex: int, alias: str) -> bool:
        """Bring a link back from its container into the parking namespace, reset, its own MAC restored.

        Looked for by ifindex, alias and MAC in the recorded namespace, then on the host, then in every namespace
        that can be reached. True: it is parked now. False: no reachable namespace holds it.
        """

    async def search(self, sought: Mapping[str, str]) -> Mapping[str, Inspection]:
        """Look for the links of NICs, alias by MAC, in all namespaces that can be reached but the host's and parking.

        What was found, as `inspect` tells of it, by MAC.
        """

    async def announce(self, order: LinkOrder, ifindex: int) -> bool:
        """Tell the neighbours of an attached NIC whose its address is, and hold nothing of its namespace afterwards.

        False where there is nothing to tell any more: link, address or namespace are no longer as ordered.
        """

    async def probe(self, mac: str, address: str) -> str:
        """Ask the vxnet for a parked NIC, in the name of nobody, who uses *address*: the MAC that shows, else "".

        It takes some seconds, in which the link is up; other verbs may go on with the NIC meanwhile. LinkNotFound if
        one of them takes it away, or if it is not parked.
        """

    async def flush(self, addresses: Collection[str]) -> int:
        """Have the host forget all flows that it tracks from or to any of *addresses*; how many that were.

        It is not done in the order of the verbs: none waits for it.
        """

    async def is_gone(self, mac: str, netns: Netns, alias: str) -> bool:
        """Whether a recorded namespace is no more, as far as it can be known.

        That is: its path leads elsewhere or nowhere, and the NIC it had is back, or neither it nor the namespace can
        be reached any more. A path that cannot be opened is no evidence by itself.
        """

    async def host_addresses(self) -> Mapping[str, tuple[str, ...]]:
        """IPv4 addresses, with prefix length, of the host's links that are up, by MAC."""

    async def serve(self, path: ServicePath) -> Mapping[str, str]:
        """Bring the host to exactly *path*, whatever it was before; nothing changes where all is right already.

        A gateway no longer listed is undone: its link stays on the host, down, under another name, without address,
        rules and table. The answer: settings of the kernel beyond the gateways' own links that this call changed, and
        the values they had before; none were changed if it raises. LinkNotFound if a gateway is neither on the host
        nor parked, or if one used as it is has not its address; KernelRefused naming the link name if that is taken.
        """

    async def settings_before(self, path: ServicePath) -> Mapping[str, str]:
        """What `serve` would answer if it were called now: to be recorded before it changes anything."""

    async def restore(self, settings: Mapping[str, str]) -> None:
        """Put settings of the kernel back to the values *settings* says; those that exist no longer are left out."""

    def changes(self) -> AsyncIterator[bool]:
        """Yield whenever links of the host or the parking namespace may have changed; True after a lost message."""

    async def close(self) -> None: ...


# --- the store ---------------------------------------------------------------------------------------


EVENTS_KEPT = 10_000  # the latest events, or somewhat more; about 3 MB


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; empty fields admit all."""

    limit: int  # the latest so many; with *after* the first so many
    after: int = 0  # only those behind the event of this number
    nic_id: str = ""
    container: str = ""  # of attachments of containers whose id begins so
    pod: str = ""  # "namespace/name", or the name alone
    subject: str = ""
    name: str = ""  # "nic.assigned", or all of a kind: "nic"


class Store(Protocol):
    """The truth on disk. Its text is what messages call it by."""

    async def load(self) -> Snapshot:
        """Everything there is. A file that is damaged is set aside, and the answer is empty but for that.

        StartRefused where the file is in use or of a newer version, StoreRefused where the disk allows no file.
        """

    async def save(self, changes: Sequence[Change]) -> None:
        """Write *changes* in one transaction; they are durable when it returns.

        StoreRefused if the disk does not take them: to be repeated with the same changes first, for they may be there
        all the same. StoreDamaged if `begin_anew` has to come first.
        """

    async def begin_anew(self, changes: Sequence[Change]) -> str:
        """Set aside a file that is damaged, and write a new one that holds *changes*; where the old one is now.

        StoreRefused as `save`; to be repeated then. "" if there was none any more.
        """

    async def tidy(self) -> None:
        """What has to be done now and then. StoreRefused where the disk allows nothing, StoreDamaged as `save`."""

    async def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        """Those on disk that fit, oldest first."""

    async def close(self) -> None: ...


# --- time --------------------------------------------------------------------------------------------


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch, by a clock that never jumps: for all that is decided and recorded."""

    def wall(self) -> float:
        """Seconds since the epoch, as the host's clock shows now: for the cloud, which compares it with its own."""

    async def sleep(self, seconds: float) -> None: ...


class HostClock(Clock, Protocol):
    """What tells in which order things happened in several processes, too."""

    boot: str  # the kernel's id of this boot

    def uptime(self) -> float:
        """Seconds since the host booted: nobody can set them."""
