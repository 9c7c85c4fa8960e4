"""The QingCloud API as the agent uses it: `core.seams.cloud.Cloud` over HTTPS."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TypeVar

from qingcloud_cni.cloud.calls import Caller, Permit, Request
from qingcloud_cni.cloud.models import INSTANCES, JOBS, NICS, VXNETS, ListOf, Page, created, page
from qingcloud_cni.core.budget import Spending
from qingcloud_cni.core.errors import CloudUnreachable, OutcomeUnknown, ResourceNotFound
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, CreatedNic, HowUrgent, Instance, Job, Vxnet, batches

PAGE = 100  # the API's limit of items, and of ids, in one describe
ROUNDS = 3  # attempts to read a list that changes between two pages
MOST_ITEMS = 20_000  # of a list; a longer one has no end
BASE_NETWORK = "2"  # vxnet_type that DescribeVxnets lists only on request

PlainT = TypeVar("PlainT")


class Client:
    """Implements `Cloud`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._limiter = caller.limiter

    def __repr__(self) -> str:
        return f"Client({self._caller!r})"

    async def permit(self, urgency: HowUrgent) -> CloudCalls:
        await self._limiter.acquire(urgency)
        return self._permitted(urgency)

    def permit_now(self, urgency: HowUrgent) -> CloudCalls | None:
        return self._permitted(urgency) if self._limiter.try_acquire(urgency) else None

    def _permitted(self, urgency: HowUrgent) -> CloudCalls:
        return Calls(self._caller, Permit(urgency, is_unused=True))

    def reconsider(self) -> None:
        self._limiter.reconsider()

    def slow_down(self) -> None:
        self._limiter.throttled(self._caller.clock.now(), is_used_up=False)  # a guess of the caller

    def spending(self) -> Spending:
        return self._limiter.spending()

    def set_aside(self) -> Sequence[str]:
        return self._caller.set_aside.current()

    def newly_set_aside(self) -> AsyncIterator[str]:
        return self._caller.set_aside.changes()

    async def close(self) -> None:
        await self._caller.transport.close()


class Calls:
    """Implements `CloudCalls`."""

    def __init__(self, caller: Caller, permit: Permit) -> None:
        self._caller = caller
        self._permit = permit

    def return_permit(self) -> None:
        if self._permit.is_unused:
            self._permit.is_unused = False
            self._caller.limiter.return_permit(self._permit.urgency())

    # --- reads ---------------------------------------------------------------------------------------

    async def instance(self, instance_id: str) -> Instance | None:
        return next(iter(await self.instances((instance_id,))), None)

    async def instances(self, instance_ids: Sequence[str]) -> tuple[Instance, ...]:
        found: dict[str, Instance] = {}
        for extra in ({}, {"is_cluster_node": "1"}):  # nodes of AppCenter clusters are listed only on request
            missing = [instance_id for instance_id in _distinct(instance_ids) if instance_id not in found]
            for batch in batches(missing, PAGE):
                found |= await self._instances(batch, extra)
        return tuple(found[instance_id] for instance_id in _distinct(instance_ids) if instance_id in found)

    async def _instances(self, instance_ids: Sequence[str], extra: Mapping[str, str]) -> dict[str, Instance]:
        """Return those listed. The API does not document whether an unknown id fails the whole call."""
        params = {**_numbered("instances", instance_ids), **extra}
        try:
            found = await self._list(Request("DescribeInstances", params, _several(instance_ids)), INSTANCES)
        except ResourceNotFound:
            if len(instance_ids) == 1:
                return {}
            each = [await self._instances((instance_id,), extra) for instance_id in instance_ids]
            return {instance_id: instance for one in each for instance_id, instance in one.items()}
        return {instance.instance_id: instance for instance in found if instance.instance_id in instance_ids}

    async def vxnets(self, vxnet_ids: Sequence[str]) -> tuple[Vxnet, ...]:
        found: dict[str, Vxnet] = {}
        for extra in ({}, {"vxnet_type": BASE_NETWORK}):
            missing = [vxnet_id for vxnet_id in _distinct(vxnet_ids) if vxnet_id not in found]
            for batch in batches(missing, PAGE):
                params = {**_numbered("vxnets", batch), **extra}
                vxnets = await self._list(Request("DescribeVxnets", params, _several(batch)), VXNETS)
                found.update((vxnet.vxnet_id, vxnet) for vxnet in vxnets)
        return tuple(found[vxnet_id] for vxnet_id in _distinct(vxnet_ids) if vxnet_id in found)

    async def nics(
        self, *, instance_id: str = "", status: str = "", name: str = "", nic_ids: Sequence[str] = ()
    ) -> tuple[CloudNic, ...]:
        filters = {"instances.1": instance_id, "status": status, "nic_name": name}
        params = {key: value for key, value in filters.items() if value}
        wanted = _distinct(nic_id.lower() for nic_id in nic_ids)
        if nic_ids and not wanted:
            return ()
        found: dict[str, CloudNic] = {}
        for batch in batches(wanted, PAGE) if wanted else ((),):
            summary = ", ".join([*params.values(), *([_several(batch)] if batch else [])]) or "all"
            request = Request("DescribeNics", {**params, **_numbered("nics", batch)}, summary)
            nics = await self._list(request, NICS)
            for nic in nics:
                fits = (
                    (not instance_id or nic.instance_id == instance_id)  # the filter is undocumented: check
                    and (not status or nic.status == status)
                    and (not batch or nic.nic_id in batch)
                )
                if fits:
                    found[nic.nic_id] = nic
        return tuple(found.values())

    async def jobs(self, job_ids: Sequence[str]) -> tuple[Job, ...]:
        wanted = _distinct(job_ids)
        found: dict[str, Job] = {}
        for batch in batches(wanted, PAGE):
            jobs = await self._list(Request("DescribeJobs", _numbered("jobs", batch), _several(batch)), JOBS)
            found.update((job.job_id, job) for job in jobs)
        unknown = [job_id for job_id in wanted if job_id not in found]
        if unknown:
            raise ResourceNotFound(f"DescribeJobs: {_several(unknown)}: unknown to the cloud", action="DescribeJobs")
        return tuple(found[job_id] for job_id in wanted)

    # --- writes --------------------------------------------------------------------------------------

    async def create_nics(self, vxnet_id: str, count: int, name: str) -> tuple[CreatedNic, ...]:
        params = {"vxnet": vxnet_id, "count": str(count), "nic_name": name}
        request = Request("CreateNics", params, f"{count} NICs in {vxnet_id} named {name}")
        nics = created(await self._caller.write(request, self._permit))
        if len({nic.nic_id for nic in nics}) != count or len(nics) != count:
            raise OutcomeUnknown(f"{request}: the reply lists {len(nics)} usable NICs", action=request.action)
        return nics

    async def attach_nics(self, instance_id: str, nic_ids: Sequence[str]) -> str:
        params = {"instance": instance_id, **_numbered("nics", nic_ids)}
        return await self._job(Request("AttachNics", params, f"{_several(nic_ids)} to {instance_id}"))

    async def detach_nics(self, nic_ids: Sequence[str]) -> str:
        return await self._job(Request("DetachNics", _numbered("nics", nic_ids), _several(nic_ids)))

    async def delete_nics(self, nic_ids: Sequence[str]) -> None:
        request = Request("DeleteNics", _numbered("nics", nic_ids), _several(nic_ids))
        await self._caller.write(request, self._permit)

    async def set_antispoof(self, nic_id: str, *, is_on: bool) -> None:
        params = {"nic": nic_id, "enable_aspoof": str(int(is_on))}
        summary = f"anti-spoofing of {nic_id} {'on' if is_on else 'off'}"
        await self._caller.write(Request("ModifyNicAttributes", params, summary), self._permit)

    # -------------------------------------------------------------------------------------------------

    async def _job(self, request: Request) -> str:
        job_id = (await self._caller.write(request, self._permit)).text("job_id")
        if not job_id:
            raise OutcomeUnknown(f"{request}: the reply names no job", action=request.action)
        return job_id

    async def _list(self, request: Request, kind: ListOf[PlainT]) -> list[PlainT]:
        """Return the usable items of all pages; retry a list that changes meanwhile, up to ROUNDS times."""
        for _ in range(ROUNDS):
            items = await self._list_once(request, kind)
            if items is not None:
                return items
        raise CloudUnreachable(f"{request}: the list changed while it was read", action=request.action)

    async def _list_once(self, request: Request, kind: ListOf[PlainT]) -> list[PlainT] | None:
        """Return all items, None if the pages disagree. Without a total, the last page is the first empty one."""
        found: dict[str, PlainT | None] = {}
        total: int | None = None
        while len(found) < MOST_ITEMS:
            part = await self._page(request, kind, len(found))
            if part.items is None and part.total != 0:
                raise CloudUnreachable(f"{request}: the reply holds no list", action=request.action)
            if found and part.total != total:
                return None
            total = part.total
            size = len(found)
            found |= part.items or {}
            if total is None and part.count and not any((part.items or {}).values()):
                break  # without a total and ids, a repeated page looks like a new one
            if len(found) != size + part.count:
                return None
            if len(found) == total or (total is None and not part.count):
                return [item for item in found.values() if item is not None]
            if not part.count or (total is not None and len(found) > total):
                return None
        raise CloudUnreachable(f"{request}: the list has no end", action=request.action)

    async def _page(self, request: Request, kind: ListOf[PlainT], offset: int) -> Page[PlainT]:
        window = {"limit": str(PAGE), "offset": str(offset)}
        part = Request(request.action, {**request.params, **window}, request.summary)
        return page(await self._caller.read(part, self._permit), kind, offset)


def _numbered(name: str, values: Sequence[str]) -> dict[str, str]:
    return {f"{name}.{n}": value for n, value in enumerate(values, 1)}


def _distinct(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def _several(values: Sequence[str]) -> str:
    """Return the first three for a message, and how many more."""
    more = len(values) - 3
    return ", ".join(values[:3]) + (f" and {more} more" if more > 0 else "")
