"""The QingCloud API as the agent uses it, and the data that crosses this seam."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Interface, IPv4Network
from typing import Protocol

from qingcloud_cni.core.budget import Spending, Urgency


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
