"""The QingCloud API as the agent uses it: `core.seams.Cloud` over HTTPS."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from qingcloud_cni.cloud.access import Access
from qingcloud_cni.cloud.calls import ApiCall, Caller, CallSeen, Ticket
from qingcloud_cni.cloud.limiter import Limiter
from qingcloud_cni.cloud.models import (
    CreatedItem,
    CreatedReply,
    InstancePage,
    JobPage,
    JobReply,
    NicPage,
    Page,
    Reply,
    VxnetPage,
)
from qingcloud_cni.cloud.transport import Transport
from qingcloud_cni.core.budget import Spending
from qingcloud_cni.core.errors import CloudUnreachable, OutcomeUnknown, ResourceNotFound
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, CreatedNic, HowUrgent, Instance, Job, Vxnet

PAGE = 100  # items per describe, and ids per describe (qingcloud-api.md section 3.15)
ROUNDS = 3  # times a list is read anew when it changed between two pages
BASE_NETWORK = "2"  # vxnet_type that DescribeVxnets leaves out unless asked for

ItemT = TypeVar("ItemT")


class Client:
    """Implements `Cloud`. *observe* hears of every request made; it must not raise."""

    def __init__(
        self,
        access: Access,
        transport: Transport,
        limiter: Limiter,
        *,
        clock: Clock,
        rng: random.Random,
        observe: Callable[[CallSeen], None],
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._clock = clock
        self._caller = Caller(access, transport, limiter, clock=clock, rng=rng, observe=observe)

    def __repr__(self) -> str:
        return f"Client({self._caller!r})"

    async def permit(self, urgency: HowUrgent) -> CloudCalls:
        await self._limiter.enter(urgency)
        return self._permitted(urgency)

    def permit_now(self, urgency: HowUrgent) -> CloudCalls | None:
        return self._permitted(urgency) if self._limiter.try_enter(urgency) else None

    def _permitted(self, urgency: HowUrgent) -> CloudCalls:
        return Calls(self._caller, Ticket(urgency, has_permit=True), self._limiter)

    def reconsider(self) -> None:
        self._limiter.reconsider()

    def slow_down(self) -> None:
        self._limiter.refused(self._clock.now(), is_used_up=False)  # not so sure

    def spending(self) -> Spending:
        return self._limiter.spending()

    async def close(self) -> None:
        await self._transport.close()


class Calls:
    """Implements `CloudCalls`."""

    def __init__(self, caller: Caller, ticket: Ticket, limiter: Limiter) -> None:
        self._caller = caller
        self._ticket = ticket
        self._limiter = limiter

    def give_back(self) -> None:
        if self._ticket.has_permit:
            self._ticket.has_permit = False
            self._limiter.give_back(self._ticket.urgency())

    # --- reads ---------------------------------------------------------------------------------------

    async def instance(self, instance_id: str) -> Instance | None:
        return next(iter(await self.instances((instance_id,))), None)

    async def instances(self, instance_ids: Sequence[str]) -> tuple[Instance, ...]:
        found: dict[str, Instance] = {}
        for extra in ({}, {"is_cluster_node": "1"}):  # a node of an AppCenter cluster is returned only when asked for
            missing = [instance_id for instance_id in _distinct(instance_ids) if instance_id not in found]
            for batch in _batches(missing):
                found |= await self._instances(batch, extra)
        return tuple(found[instance_id] for instance_id in _distinct(instance_ids) if instance_id in found)

    async def _instances(self, instance_ids: Sequence[str], extra: Mapping[str, str]) -> dict[str, Instance]:
        """Those that one list shows. Whether an unknown id spoils the whole list is not documented."""
        params = {**_numbered("instances", instance_ids), **extra}
        try:
            found = await self._list(ApiCall("DescribeInstances", params, _several(instance_ids)), InstancePage)
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
            for batch in _batches(missing):
                params = {**_numbered("vxnets", batch), **extra}
                vxnets = await self._list(ApiCall("DescribeVxnets", params, _several(batch)), VxnetPage)
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
        for batch in _batches(wanted) if wanted else ((),):
            wish = ", ".join([*params.values(), *([_several(batch)] if batch else [])]) or "all"
            call = ApiCall("DescribeNics", {**params, **_numbered("nics", batch)}, wish)
            nics = await self._list(call, NicPage)
            for nic in nics:
                fits = (
                    (not instance_id or nic.instance_id == instance_id)  # an undocumented filter: not trusted alone
                    and (not status or nic.status == status)
                    and (not batch or nic.nic_id in batch)
                )
                if fits:
                    found[nic.nic_id] = nic
        return tuple(found.values())

    async def jobs(self, job_ids: Sequence[str]) -> tuple[Job, ...]:
        wanted = _distinct(job_ids)
        found: dict[str, Job] = {}
        for batch in _batches(wanted):
            jobs = await self._list(ApiCall("DescribeJobs", _numbered("jobs", batch), _several(batch)), JobPage)
            found.update((job.job_id, job) for job in jobs)
        unknown = [job_id for job_id in wanted if job_id not in found]
        if unknown:
            raise ResourceNotFound(
                f"DescribeJobs: the cloud does not know {_several(unknown)}", action="DescribeJobs"
            )
        return tuple(found[job_id] for job_id in wanted)

    # --- writes --------------------------------------------------------------------------------------

    async def create_nics(self, vxnet_id: str, count: int, name: str) -> tuple[CreatedNic, ...]:
        params = {"vxnet": vxnet_id, "count": str(count), "nic_name": name}
        call = ApiCall("CreateNics", params, f"{count} NICs in {vxnet_id} named {name}")
        reply = await self._caller.write(call, CreatedReply, self._ticket)
        created = tuple(map(CreatedItem.plain, reply.nics or ()))
        if len({nic.nic_id for nic in created}) != count or len(created) != count:
            raise OutcomeUnknown(f"{call}: the reply lists {len(created)} NICs", action=call.action)
        return created

    async def attach_nics(self, instance_id: str, nic_ids: Sequence[str]) -> str:
        params = {"instance": instance_id, **_numbered("nics", nic_ids)}
        return await self._job(ApiCall("AttachNics", params, f"{_several(nic_ids)} to {instance_id}"))

    async def detach_nics(self, nic_ids: Sequence[str]) -> str:
        return await self._job(ApiCall("DetachNics", _numbered("nics", nic_ids), _several(nic_ids)))

    async def delete_nics(self, nic_ids: Sequence[str]) -> None:
        call = ApiCall("DeleteNics", _numbered("nics", nic_ids), _several(nic_ids))
        await self._caller.write(call, Reply, self._ticket)

    async def set_antispoof(self, nic_id: str, *, is_on: bool) -> None:
        params = {"nic": nic_id, "enable_aspoof": str(int(is_on))}
        wish = f"anti-spoofing of {nic_id} {'on' if is_on else 'off'}"
        await self._caller.write(ApiCall("ModifyNicAttributes", params, wish), Reply, self._ticket)

    # -------------------------------------------------------------------------------------------------

    async def _job(self, call: ApiCall) -> str:
        reply = await self._caller.write(call, JobReply, self._ticket)
        if not reply.job_id:
            raise OutcomeUnknown(f"{call}: the reply names no job", action=call.action)
        return reply.job_id

    async def _list(self, call: ApiCall, kind: type[Page[ItemT]]) -> list[ItemT]:
        """All items, of all pages. A list that changes under the reader is read anew, then given up."""
        for _ in range(ROUNDS):
            items = await self._list_once(call, kind)
            if items is not None:
                return items
        raise CloudUnreachable(f"{call}: the pages of the list do not fit together", action=call.action)

    async def _list_once(self, call: ApiCall, kind: type[Page[ItemT]]) -> list[ItemT] | None:
        """All items; None if the pages disagree. A reply without a total is read on until a page is empty."""
        found: dict[str, ItemT] = {}
        total: int | None = None
        while True:
            window = {"limit": str(PAGE), "offset": str(len(found))}
            part = ApiCall(call.action, {**call.params, **window}, call.wish)
            page = await self._caller.read(part, kind, self._ticket)
            items = page.items()
            if items is None and page.total_count != 0:
                raise CloudUnreachable(f"{call}: the reply holds no list", action=call.action)
            if found and page.total_count != total:
                return None
            total = page.total_count
            size = len(found)
            found.update(items or ())
            if len(found) != size + len(items or ()):
                return None
            if len(found) == total or (total is None and not items):
                return list(found.values())
            if not items or (total is not None and len(found) > total):
                return None


def _numbered(name: str, values: Sequence[str]) -> dict[str, str]:
    return {f"{name}.{n}": value for n, value in enumerate(values, 1)}


def _distinct(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def _batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), PAGE):
        yield values[start : start + PAGE]


def _several(values: Sequence[str]) -> str:
    """Names for a message: the first three, and how many more."""
    more = len(values) - 3
    return ", ".join(values[:3]) + (f" and {more} more" if more > 0 else "")
