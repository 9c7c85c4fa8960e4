"""Links and namespaces of this host, and the data that crosses this seam."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qingcloud_cni.core.nics.model import Netns, Route


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
class OtherNamespace:
    """A namespace that is neither the host's nor the parking one, and the candidate links in it."""

    netns: Netns
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """Candidate links at one moment: of the two namespaces that are the agent's own, or of all there are."""

    host: tuple[Link, ...]
    parked: tuple[Link, ...]
    elsewhere: tuple[OtherNamespace, ...] = ()
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
