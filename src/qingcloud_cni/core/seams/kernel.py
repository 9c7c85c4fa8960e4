"""Links and namespaces of this host, one Protocol for each user, and the data that crosses this seam."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qingcloud_cni.core.nics.model import Netns, Route


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface (never a bridge, vlan, macvlan or bond); a NIC if it has a *fingerprint*."""

    mac: str
    name: str
    ifindex: int
    is_up: bool
    alias: str = ""
    mtu: int = 0
    permanent_mac: str = ""  # burnt in; a NIC of the simulator has none
    fingerprint: str = ""  # what identifies a NIC wherever it is, and no container can write

    @property
    def claimed_id(self) -> str:
        """The NIC that it says it is. A container can make a NIC of the simulator say anything."""
        return self.permanent_mac or self.mac


@dataclass(frozen=True, slots=True)
class OtherNamespace:
    """A namespace that is neither the host's nor the parking one, and the candidate links in it."""

    netns: Netns
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """Candidate links at one moment: of the host's and the parking namespace, or of all namespaces."""

    host: tuple[Link, ...]
    parked: tuple[Link, ...]
    elsewhere: tuple[OtherNamespace, ...] = ()
    is_wide: bool = False  # every reachable namespace was read …
    unseen: tuple[str, ...] = ()  # … except these paths, which the kernel refused


@dataclass(frozen=True, slots=True)
class HostMacs:
    """MACs of the host's own links and of the links below them, such as ports of a bond."""

    iface: frozenset[str] = frozenset()  # of --iface
    default_route: frozenset[str] = frozenset()  # of the link with the best IPv4 default route
    is_iface_default: bool = False  # --iface has a default route, too


@dataclass(frozen=True, slots=True)
class NicRecord:
    """What the agent has recorded about a NIC: how the kernel recognizes its link."""

    mac: str  # the NIC's id
    alias: str = ""  # written on the link inside a container, for people; at most 255 bytes
    fingerprint: str = ""  # of the link, taken at its arrival; "" if none was recorded
    plugged: str = ""  # the link's state at its arrival, as the kernel described it; "" if it did not

    def matches(self, link: Link) -> bool:
        """Whether *link* is the NIC; without a record, whether it claims to be."""
        if self.fingerprint:
            return link.fingerprint == self.fingerprint
        return bool(link.fingerprint) and link.claimed_id == self.mac


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the kernel saw of a NIC's link in a namespace that no container can write."""

    fingerprint: str = ""
    plugged: str = ""  # the link's state as the cloud plugged it in
    soil: str = ""  # what differs from that state and could not be restored; "" if nothing


@dataclass(frozen=True, slots=True)
class Detached:
    """The result of a detach: *arrival* is None if no reachable namespace holds the link."""

    arrival: Arrival | None = None
    spoofs: tuple[str, ...] = ()  # links that have its MAC, alias or index and are not the NIC, for people

    @property
    def is_parked(self) -> bool:
        return self.arrival is not None


@dataclass(frozen=True, slots=True)
class LinkOrder:
    """The configuration of a NIC inside a container."""

    nic: NicRecord
    netns: Netns
    ifname: str
    address: str  # "172.16.3.7/24"
    routes: tuple[Route, ...]  # in the order of installation; gateways are in the address's network

    @property
    def mac(self) -> str:
        return self.nic.mac


@dataclass(frozen=True, slots=True)
class PlacedLink:
    """The result of a LinkOrder; *routes* are those installed, as a container's own routes win."""

    ifindex: int
    mtu: int
    routes: tuple[Route, ...]
    arrival: Arrival = Arrival()


@dataclass(frozen=True, slots=True)
class Program:
    """A BPF program on a link."""

    hook: str  # "XDP", "TCX"
    number: int  # its id
    loaded: float  # in seconds of the host's uptime


@dataclass(frozen=True, slots=True)
class Inspection:
    """An interface of a container; *link* is None if it does not exist."""

    netns: Netns
    link: Link | None = None
    addresses: tuple[str, ...] = ()  # IPv4, with prefix length
    routes: tuple[Route, ...] = ()  # IPv4, through this link, of all tables; gw is "" for on-link routes
    is_silent: bool = False  # the link does not use ARP
    differences: tuple[str, ...] = ()  # from the link's state as the cloud plugged it in, for people
    programs: tuple[Program, ...] = ()  # on the link


@dataclass(frozen=True, slots=True)
class Gateway:
    """A NIC of this host that takes pods' packets to Service addresses."""

    mac: str
    link_name: str  # "hostnic", "hostnic1", ...: "" for an adopted NIC, whose link the agent leaves alone
    address: str  # "172.20.1.9/24"
    router: str  # the vxnet's own router: "172.20.1.1"
    index: int  # 0 to 62 with a link name: mark, routing table and rule preferences follow from it


@dataclass(frozen=True, slots=True)
class ServicePath:
    """What Services and hostPorts need on this host; empty if no container uses a gateway or ipMasq."""

    gateways: tuple[Gateway, ...] = ()
    masquerade: tuple[str, ...] = ()  # networks of pods (CIDR) whose translated flows are masqueraded (ipMasq)
    services: tuple[str, ...] = ()  # CIDR; flows first sent to them count as translated as well (ipvs)

    @property
    def forwards(self) -> bool:
        """Whether the host forwards packets of pods."""
        return bool(self.gateways or self.masquerade)


@dataclass(frozen=True, slots=True)
class Served:
    """The result of `serve`, for people but for *settings*."""

    settings: Mapping[str, str] = field(default_factory=dict)  # sysctls beyond the gateways' links, as they were
    changes: tuple[str, ...] = ()  # what was not as wanted and is now
    faults: tuple[str, ...] = ()  # what is not as wanted, and not the agent's to change


class ContainerLinks(Protocol):
    """NICs inside containers. All methods are idempotent, and undo their steps on failure; KernelRefused."""

    async def identify(self, path: str) -> Netns:
        """Return the namespace behind *path*; InvalidNetns if it is not one, or is the host's or the parking one."""

    async def inspect(self, path: str, ifname: str, nic: NicRecord | None = None) -> Inspection:
        """Read one interface of the namespace behind *path*; InvalidNetns as `identify`.

        With *nic*, whose link it should be, compare its state as well.
        """

    async def attach(self, order: LinkOrder) -> PlacedLink:
        """Move a link from the parking or the host's namespace into a container and configure it.

        On failure the link is parked again. NicSoiled if it is not as its record describes it, and cannot be
        restored. InvalidNetns if the namespace differs from the recorded one,
        InvalidConfig if *ifname* is taken there, LinkNotFound if the link is neither parked nor on the host.
        """

    async def detach(self, nic: NicRecord, netns: Netns, ifindex: int) -> Detached:
        """Move a link from its container into the parking namespace, reset it and restore its MAC.

        The kernel searches the recorded namespace, at *ifindex* first, then the host's, then all others it can reach.
        On the host, a link that claims to be the NIC is the NIC: one that returned may have a new fingerprint.
        Elsewhere, without a fingerprint it takes the only link that claims to be the NIC; of several it takes none.
        A namespace other than these that refuses is skipped: the NIC may be there, and a survey tells that.
        """

    async def is_gone(self, nic: NicRecord, netns: Netns) -> bool:
        """Return whether a recorded namespace is gone, as far as the kernel shows.

        It is if its path leads elsewhere or nowhere, and the link is back, or link and namespace are out of reach.
        A path that cannot be opened alone proves nothing, nor does a search that had to skip a namespace.
        """


class HostLinks(Protocol):
    """Links across namespaces, and the parking of those on the host. KernelRefused.

    No method of any Protocol here changes a reserved link: it raises KernelRefused.
    """

    async def host_macs(self) -> HostMacs:
        """Return the host's own MACs as they were at the start; all of them are reserved until `reserve`."""

    async def reserve(self, macs: Collection[str]) -> None:
        """Reserve the links with these MACs, beside that of --iface, which always is."""

    async def survey(self) -> Survey: ...

    async def survey_all(self, paths: Sequence[str]) -> Survey:
        """List the links of all namespaces: at *paths*, mounted, or in use by a process."""

    async def search(self, sought: Collection[NicRecord]) -> Mapping[str, Inspection]:
        """Search containers' namespaces for the NICs of *sought*; return the links found, by MAC.

        It skips namespaces that refuse.
        """

    async def compare(self, nics: Collection[NicRecord]) -> Mapping[str, Arrival]:
        """Restore parked NICs as their records describe them, thoroughly; return the outcome by MAC.

        Links above them are deleted in every reachable namespace. Nothing waits for it; NICs that are not parked are
        left out.
        """

    async def park(self, nic: NicRecord) -> Arrival:
        """Move a link from the host's into the parking namespace: down, reset, renamed. Idempotent.

        LinkNotFound if it is in neither namespace.
        """

    async def restore_parking(self) -> str | None:
        """Mount the parking namespace again if it is not where it was mounted; then return its path."""

    def changes(self) -> AsyncIterator[bool]:
        """Yield whenever links of the two namespaces may have changed; True if messages were lost."""


class Neighbours(Protocol):
    """Addresses of NICs, as others on the vxnet and the host's conntrack know them. KernelRefused."""

    async def announce(self, order: LinkOrder, ifindex: int) -> bool:
        """Announce the address of an attached NIC by gratuitous ARP.

        Return False if link, address or namespace are no longer as ordered. Nothing holds the namespace afterwards.
        """

    async def probe(self, mac: str, address: str) -> str:
        """Send ARP probes for *address* from a parked NIC; return the MAC that answers, or "".

        The link is up meanwhile, for some seconds. Other methods may use the NIC; LinkNotFound if one of them takes
        it away, or if it is not parked.
        """

    async def flush(self, addresses: Collection[str]) -> int:
        """Delete the host's conntrack entries from or to *addresses*; return how many. Nothing waits for it."""


class ServiceRouting(Protocol):
    """The host's gateways to Services. KernelRefused."""

    async def host_addresses(self) -> Mapping[str, tuple[str, ...]]:
        """Return the IPv4 addresses, with prefix length, of the host's links that are up, by MAC."""

    async def serve(self, path: ServicePath) -> Served:
        """Bring the host to exactly *path*. Idempotent.

        The link of a gateway that *path* does not list stays on the host: down, renamed, without address, rules and
        table. If it raises, it changed no sysctl beyond the gateways' links. LinkNotFound if a gateway is neither on
        the host nor parked, or if an adopted one lost its address; KernelRefused naming the link name if that is
        taken.
        """

    async def settings_before(self, path: ServicePath) -> Mapping[str, str]:
        """Return the `settings` of `serve` now, to persist them before it changes anything."""

    async def restore(self, settings: Mapping[str, str]) -> None:
        """Set sysctls to these values; those that no longer exist are skipped."""


class Kernel(ContainerLinks, HostLinks, Neighbours, ServiceRouting, Protocol):
    """All of the kernel, for its owner."""

    @property
    def lacks(self) -> tuple[str, ...]:
        """Return the abilities that this kernel or the service's rights lack, with what follows."""

    async def close(self) -> None: ...
