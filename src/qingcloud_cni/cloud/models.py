"""The fields of the API's replies that the agent uses. Those that may be absent or null have a default."""

from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from qingcloud_cni.core.seams.cloud import CloudNic, CreatedNic, Instance, InstanceNic, Job, JobStatus, Vxnet


class Reply(msgspec.Struct):
    """The envelope of every reply. Errors have no `action`, successes no `message`; either may be null."""

    ret_code: int
    action: str | None = None
    message: str | None = None


PlainT = TypeVar("PlainT")


class Item(msgspec.Struct, Generic[PlainT]):
    """An item of a list."""

    id: str

    @abstractmethod
    def plain(self) -> PlainT:
        """Return the item as the agent uses it."""


class NicItem(Item[CloudNic]):
    id: str = msgspec.field(name="nic_id")
    nic_name: str | None = None
    status: str | None = None
    instance_id: str | None = None
    vxnet_id: str | None = None
    private_ip: str | None = None
    role: int | None = None
    enable_aspoof: bool | int | None = None  # undocumented; most clouds do not send it
    create_time: str | None = None
    status_time: str | None = None

    def plain(self) -> CloudNic:
        return CloudNic(
            nic_id=self.id.lower(),
            name=self.nic_name or "",
            status=self.status or "",
            instance_id=self.instance_id or "",
            vxnet_id=self.vxnet_id or "",
            private_ip=self.private_ip or "",
            role=self.role or 0,
            enable_aspoof=None if self.enable_aspoof is None else int(self.enable_aspoof),
            created=_seconds(self.create_time),
            since=_seconds(self.status_time),
        )


def _seconds(stamp: str | None) -> float:
    """Convert 2016-12-23T13:35:56Z, with or without Z, to seconds since the epoch; 0 if malformed."""
    try:
        time = datetime.fromisoformat(stamp or "")
    except ValueError:
        return 0.0
    return time.replace(tzinfo=time.tzinfo or UTC).timestamp()


class RouterItem(msgspec.Struct):
    router_id: str | None = None
    manager_ip: str | None = None
    ip_network: str | None = None


class VxnetItem(Item[Vxnet]):
    id: str = msgspec.field(name="vxnet_id")
    vxnet_name: str | None = None
    vxnet_type: int | None = None
    vpc_router_id: str | None = None
    available_ip_count: int | None = None
    router: RouterItem | None = None  # null or absent if the vxnet is joined to none

    def plain(self) -> Vxnet:
        router = self.router or RouterItem()
        return Vxnet(
            vxnet_id=self.id,
            name=self.vxnet_name or "",
            vxnet_type=1 if self.vxnet_type is None else self.vxnet_type,
            router_id=self.vpc_router_id or router.router_id or "",
            network=router.ip_network or "",
            gateway=router.manager_ip or "",
            available_ips=self.available_ip_count,
        )


class InstanceVxnetItem(msgspec.Struct):
    nic_id: str | None = None
    vxnet_id: str | None = None
    private_ip: str | None = None
    role: int | None = None


class InstanceItem(Item[Instance]):
    id: str = msgspec.field(name="instance_id")
    status: str | None = None
    transition_status: str | None = None
    vxnets: list[InstanceVxnetItem] | None = None

    def plain(self) -> Instance:
        return Instance(
            instance_id=self.id,
            status=self.status or "",
            nics=tuple(
                InstanceNic(item.nic_id.lower(), item.vxnet_id or "", item.private_ip or "", item.role or 0)
                for item in self.vxnets or ()
                if item.nic_id
            ),
            transition=self.transition_status or "",
        )


_FAILED = JobStatus.FAILED
_JOB_ENDS = {"successful": JobStatus.SUCCESSFUL, "failed": _FAILED, "done with failure": _FAILED}


class JobItem(Item[Job]):
    id: str = msgspec.field(name="job_id")
    status: str | None = None
    error_codes: str | None = None

    def plain(self) -> Job:
        return Job(self.id, _JOB_ENDS.get(self.status or "", JobStatus.PENDING), self.error_codes or "")


class CreatedItem(msgspec.Struct):
    nic_id: str
    private_ip: str | None = None

    def plain(self) -> CreatedNic:
        return CreatedNic(self.nic_id.lower(), self.private_ip or "")


class Page(Reply, Generic[PlainT]):
    """One page of a list."""

    total_count: int | None = None  # of the whole list
    items: Sequence[Item[PlainT]] | None = None


class NicPage(Page[CloudNic]):
    items: list[NicItem] | None = msgspec.field(default=None, name="nic_set")


class VxnetPage(Page[Vxnet]):
    items: list[VxnetItem] | None = msgspec.field(default=None, name="vxnet_set")


class InstancePage(Page[Instance]):
    items: list[InstanceItem] | None = msgspec.field(default=None, name="instance_set")


class JobPage(Page[Job]):
    items: list[JobItem] | None = msgspec.field(default=None, name="job_set")


class CreatedReply(Reply):
    nics: list[CreatedItem] | None = None


class JobReply(Reply):
    job_id: str | None = None
