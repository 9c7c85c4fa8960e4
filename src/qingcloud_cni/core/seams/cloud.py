"""The QingCloud API as the agent uses it: CloudReads and CloudWrites, both from the permits of Cloud."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol, TypeVar

from qingcloud_cni.core.budget import Spending, Urgency

PRIMARY = 1  # role of the NIC that came with the instance


@dataclass(frozen=True, slots=True)
class CloudNic:
    """A NIC in DescribeNics."""

    nic_id: str  # MAC, lower case
    name: str
    status: str  # "available" or "in-use"
    instance_id: str  # "" when attached nowhere
    vxnet_id: str
    private_ip: str  # IPv4, "" where the cloud sends none that is usable
    role: int  # or PRIMARY
    enable_aspoof: int | None = None  # anti-spoofing; None where the cloud does not say
    created: float = 0.0  # seconds since the epoch; 0 where the cloud does not say
    since: float = 0.0  # when it entered its status, in the same unit


@dataclass(frozen=True, slots=True)
class CreatedNic:
    nic_id: str
    private_ip: str  # as in CloudNic


@dataclass(frozen=True, slots=True)
class Vxnet:
    vxnet_id: str
    name: str
    vxnet_type: int  # 0 unmanaged, 1 managed, 2 base network
    router_id: str  # "" when joined to none
    network: str  # CIDR: "172.16.3.0/24"; "" when joined to no router
    gateway: str  # the router's address in it
    available_ips: int | None  # free addresses; None where the cloud does not say
    flaw: str = ""  # why what the cloud says of it is unusable; it then has neither network nor gateway

    def address_of(self, private_ip: str) -> str:
        """Return the address with the vxnet's prefix length, "172.16.3.7/24"; "" if it is not a host's in it."""
        if not self.network:
            return ""
        network = IPv4Network(self.network)
        is_usable = is_host(private_ip, network) and private_ip != self.gateway
        return f"{private_ip}/{network.prefixlen}" if is_usable else ""


def is_host(address: str, network: IPv4Network) -> bool:
    """Whether a host of *network* can have this IPv4 address, or ""."""
    if not address or (host := IPv4Address(address)) not in network:
        return False
    return host not in (network.network_address, network.broadcast_address)


@dataclass(frozen=True, slots=True)
class InstanceNic:
    nic_id: str
    vxnet_id: str
    private_ip: str
    role: int


_GONE = frozenset({"terminated", "ceased"})
_AWAY = frozenset({"stopped", "suspended"}) | _GONE
_GOING = frozenset({"stopping", "suspending", "terminating", "ceasing"})  # transitions
_COMING = frozenset({"starting", "resuming", "recovering"})


@dataclass(frozen=True, slots=True)
class Instance:
    instance_id: str
    status: str  # "running", "stopped", ...
    nics: tuple[InstanceNic, ...]
    transition: str = ""  # "stopping", "terminating", ...; "" if none

    @property
    def is_gone(self) -> bool:
        """Whether it will not run again. A terminated instance can be recovered for two hours."""
        return self.status in _GONE and self.transition not in _COMING

    @property
    def going_away(self) -> str:
        """Why no NIC should be attached any more; "" while the instance runs or starts."""
        if self.transition in _COMING:
            return ""
        cause = self.status if self.status in _AWAY else self.transition if self.transition in _GOING else ""
        return f"instance {self.instance_id} is {cause} in the cloud" if cause else ""


class JobStatus(StrEnum):
    PENDING = "pending"  # "working" and every unknown status as well
    SUCCESSFUL = "successful"
    FAILED = "failed"  # "done with failure" as well


@dataclass(frozen=True, slots=True)
class Job:
    job_id: str
    status: JobStatus
    error: str  # the cloud's error_codes


_T = TypeVar("_T")


def batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


HowUrgent = Callable[[], Urgency]  # evaluated again while a call waits for a permit


class CloudReads(Protocol):
    """Reads of the QingCloud API: complete (all pages), or they raise a CloudError."""

    async def instance(self, instance_id: str) -> Instance | None: ...

    async def instances(self, instance_ids: Sequence[str]) -> tuple[Instance, ...]:
        """Return those of *instance_ids* that the cloud lists, nodes of clusters included."""

    async def vxnets(self, vxnet_ids: Sequence[str]) -> tuple[Vxnet, ...]:
        """Return those of *vxnet_ids* that exist, base networks included."""

    async def nics(
        self, *, instance_id: str = "", status: str = "", name: str = "", nic_ids: Sequence[str] = ()
    ) -> tuple[CloudNic, ...]:
        """Return the NICs that match every filter given. The cloud may match *name* loosely: compare it again."""

    async def jobs(self, job_ids: Sequence[str]) -> tuple[Job, ...]:
        """Return the jobs; ResourceNotFound if the cloud does not know one of them."""


class CloudWrites(Protocol):
    """Writes of the QingCloud API, each sent at most once. After OutcomeUnknown read before you repeat one."""

    async def create_nics(self, vxnet_id: str, count: int, name: str) -> tuple[CreatedNic, ...]: ...

    async def attach_nics(self, instance_id: str, nic_ids: Sequence[str]) -> str:
        """Return the id of the job."""

    async def detach_nics(self, nic_ids: Sequence[str]) -> str:
        """Return the id of the job."""

    async def delete_nics(self, nic_ids: Sequence[str]) -> None: ...

    async def set_antispoof(self, nic_id: str, *, is_on: bool) -> None:
        """Set whether the cloud drops packets that the NIC sends from other addresses; safe to repeat."""


class CloudCalls(CloudReads, CloudWrites, Protocol):
    """Calls under one permit. The first request uses it; further ones, such as more pages, wait for their own."""

    def return_permit(self) -> None:
        """Return the permit if no request was made with it."""


class Cloud(Protocol):
    """The API behind the call budget."""

    async def permit(self, urgency: HowUrgent) -> CloudCalls:
        """Wait, without a bound, until a call may go. Make it at once: the budget has counted it."""

    def permit_now(self, urgency: HowUrgent) -> CloudCalls | None:
        """Return None if no call may go now."""

    def reconsider(self) -> None:
        """Evaluate the urgencies of waiting calls again."""

    def slow_down(self) -> None:
        """Lower the rate: a refusal suggests that the key's API calls are used up."""

    def spending(self) -> Spending: ...

    def set_aside(self) -> Sequence[str]:
        """Return what was unusable in replies of the last hour: the latest value of each field."""

    def newly_set_aside(self) -> AsyncIterator[str]:
        """Yield an unusable value when its field had none for an hour."""

    async def close(self) -> None: ...
