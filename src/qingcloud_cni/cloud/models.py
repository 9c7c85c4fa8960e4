"""The fields of the API's replies that the agent uses. Those that may be absent or null have a default."""

from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from qingcloud_cni.core.seams.cloud import CloudNic, CreatedNic, Instance, InstanceNic, Job, JobStatus, Vxnet


class Reply(msgspec.Struct):
    """The envelope of every reply. Errors have no `action`, successes no `message`; either may be null."""

    ret_code: int
    action: str | None = None
    message: str | None = None


class NicItem(msgspec.Struct):
    nic_id: str
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
            nic_id=self.nic_id.lower(),
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


class VxnetItem(msgspec.Struct):
    vxnet_id: str
    vxnet_name: str | None = None
    vxnet_type: int | None = None
    vpc_router_id: str | None = None
    available_ip_count: int | None = None
    router: RouterItem | None = None  # null or absent if the vxnet is joined to none

    def plain(self) -> Vxnet:
        router = self.router or RouterItem()
        return Vxnet(
            vxnet_id=self.vxnet_id,
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


class InstanceItem(msgspec.Struct):
    instance_id: str
    status: str | None = None
    transition_status: str | None = None
    vxnets: list[InstanceVxnetItem] | None = None

    def plain(self) -> Instance:
        return Instance(
            instance_id=self.instance_id,
            status=self.status or "",
            nics=tuple(
                InstanceNic(item.nic_id.lower(), item.vxnet_id or "", item.private_ip or "", item.role or 0)
                for item in self.vxnets or ()
                if item.nic_id
            ),
            transition=self.transition_status or "",
        )


_JOB_ENDS = {
    "successful": JobStatus.SUCCESSFUL,
    "failed": JobStatus.FAILED,
    "done with failure": JobStatus.FAILED,
}


class JobItem(msgspec.Struct):
    job_id: str
    status: str | None = None
    error_codes: str | None = None

    def plain(self) -> Job:
        return Job(self.job_id, _JOB_ENDS.get(self.status or "", JobStatus.PENDING), self.error_codes or "")


class CreatedItem(msgspec.Struct):
    nic_id: str
    private_ip: str | None = None

    def plain(self) -> CreatedNic:
        return CreatedNic(self.nic_id.lower(), self.private_ip or "")


ItemT = TypeVar("ItemT")


class Page(Reply, Generic[ItemT]):
    """One page of a list."""

    total_count: int | None = None  # of the whole list

    def items(self) -> list[tuple[str, ItemT]] | None:
        """Return the items by id; None if the reply has no list."""
        return None


class NicPage(Page[CloudNic]):
    nic_set: list[NicItem] | None = None

    def items(self) -> list[tuple[str, CloudNic]] | None:
        return None if self.nic_set is None else [(nic.nic_id, nic) for nic in map(NicItem.plain, self.nic_set)]


class VxnetPage(Page[Vxnet]):
    vxnet_set: list[VxnetItem] | None = None

    def items(self) -> list[tuple[str, Vxnet]] | None:
        if self.vxnet_set is None:
            return None
        return [(vxnet.vxnet_id, vxnet) for vxnet in map(VxnetItem.plain, self.vxnet_set)]


class InstancePage(Page[Instance]):
    instance_set: list[InstanceItem] | None = None

    def items(self) -> list[tuple[str, Instance]] | None:
        if self.instance_set is None:
            return None
        return [(instance.instance_id, instance) for instance in map(InstanceItem.plain, self.instance_set)]


class JobPage(Page[Job]):
    job_set: list[JobItem] | None = None

    def items(self) -> list[tuple[str, Job]] | None:
        return None if self.job_set is None else [(job.job_id, job) for job in map(JobItem.plain, self.job_set)]


class CreatedReply(Reply):
    nics: list[CreatedItem] | None = None


class JobReply(Reply):
    job_id: str | None = None
