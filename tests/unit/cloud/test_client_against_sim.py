"""The whole client against the simulated cloud, which checks signatures and keeps NICs with code of its own."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from inprocess.budgets import calls_of, make_limiter
from qingcloud_cni.cloud import Access, Caller, CallOutcome, CallSeen, Client
from qingcloud_cni.core.errors import (
    CloudBusy,
    CloudQuota,
    CloudRefused,
    CredentialsRefused,
    OutcomeUnknown,
    ResourceNotFound,
)
from qingcloud_cni.core.seams.cloud import CloudCalls, JobStatus
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.memory.local import LocalTransport, run_jobs
from qingcloud_cni.sim.topology import FaultSpec, HostSpec, Latencies, Limits, Topology, VxnetSpec, default_topology

HOST = "i-simhost1"
POD_VXNET = "vxnet-pods001"
NAME = "qingcni_i-simhost1_0123456789abcdef"


class LoopClock:
    """The loop's own time, so that transport, jobs and client agree; short pauses are real ones."""

    def now(self) -> float:
        return 1_700_000_000.0 + asyncio.get_running_loop().time()

    wall = now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


class Bench:
    def __init__(self, topology: Topology, cloud: CloudCalls, model: Model, seen: list[CallSeen]) -> None:
        self.topology, self.cloud, self.model, self.seen = topology, cloud, model, seen


@asynccontextmanager
async def bench(topology: Topology | None = None, secret: str = "") -> AsyncIterator[Bench]:
    topology = topology or default_topology("sim")
    topology = replace(topology, latencies=Latencies(attach=(0.01, 0.02), detach=(0.01, 0.02)))
    clock, rng = LoopClock(), random.Random(7)
    model = Model(topology, rng=rng, now=clock.now)
    api = Api(model, now=clock.now, sleep=asyncio.sleep, rng=rng)
    access = Access(topology.access_key_id, secret or topology.secret_access_key, topology.zone)
    seen: list[CallSeen] = []
    client = Client(Caller(access, LocalTransport(api), make_limiter(clock), clock, rng, seen.append))
    jobs = asyncio.create_task(run_jobs(model, lambda *_: None, asyncio.sleep, clock.now), name="jobs")
    try:
        yield Bench(topology, calls_of(client), model, seen)
    finally:
        await client.close()
        jobs.cancel()
        with suppress(asyncio.CancelledError):
            await jobs


async def ended(cloud: CloudCalls, job_id: str) -> JobStatus:
    async with asyncio.timeout(10):
        while True:
            (job,) = await cloud.jobs([job_id])
            if job.status is not JobStatus.PENDING:
                return job.status
            await asyncio.sleep(0.01)


async def test_the_life_of_nics() -> None:
    async with bench() as b:
        created = await b.cloud.create_nics(POD_VXNET, 3, NAME)
        macs = [nic.nic_id for nic in created]
        found = await b.cloud.nics(nic_ids=macs)
        assert {(nic.nic_id, nic.private_ip) for nic in found} == {(nic.nic_id, nic.private_ip) for nic in created}
        assert {(nic.status, nic.instance_id, nic.name, nic.role) for nic in found} == {("available", "", NAME, 0)}

        assert await ended(b.cloud, await b.cloud.attach_nics(HOST, macs)) is JobStatus.SUCCESSFUL
        attached = await b.cloud.nics(instance_id=HOST, status="in-use", name=NAME)
        assert {nic.nic_id for nic in attached} == set(macs)
        instance = await b.cloud.instance(HOST)
        assert instance is not None
        assert (instance.status, [nic.role for nic in instance.nics].count(1)) == ("running", 1)
        assert set(macs) < {nic.nic_id for nic in instance.nics}

        with pytest.raises(CloudRefused, match=r"DeleteNics .*1400"):
            await b.cloud.delete_nics(macs[:1])
        assert await ended(b.cloud, await b.cloud.detach_nics(macs)) is JobStatus.SUCCESSFUL
        await b.cloud.delete_nics(macs)
        assert await b.cloud.nics(nic_ids=macs) == ()
        with pytest.raises(ResourceNotFound):
            await b.cloud.delete_nics(macs)


async def test_vxnets_of_both_kinds_and_what_is_unknown() -> None:
    topology = default_topology("sim")
    topology = replace(topology, vxnets=(*topology.vxnets, VxnetSpec("vxnet-0", "base", vxnet_type=2)))
    async with bench(topology) as b:
        pods, base = await b.cloud.vxnets([POD_VXNET, "vxnet-none", "vxnet-0"])
        assert (pods.network, pods.gateway, pods.router_id) == ("172.20.1.0/24", "172.20.1.1", "rtr-sim00001")
        assert pods.available_ips is not None
        assert pods.available_ips > 200
        assert (base.vxnet_id, base.vxnet_type, base.router_id, base.network) == ("vxnet-0", 2, "", "")
        assert await b.cloud.instance("i-none") is None
        assert await b.cloud.nics(nic_ids=["52:54:00:00:00:00"]) == ()
        with pytest.raises(CloudRefused, match=r"DescribeJobs .*j-none"):
            await b.cloud.jobs(["j-none"])


async def test_a_cluster_node_is_found() -> None:
    topology = default_topology("sim")
    node = HostSpec("node", topology.hosts[0].vxnet_id, "i-simnode", is_cluster_node=True)
    async with bench(replace(topology, hosts=(*topology.hosts, node))) as b:
        instance = await b.cloud.instance("i-simnode")
        assert instance is not None
        assert len(instance.nics) == 1


@pytest.mark.defect("hostnic-16")
async def test_more_nics_than_a_page_holds() -> None:
    async with bench() as b:
        macs = {nic.nic_id for nic in await b.cloud.create_nics(POD_VXNET, 230, NAME)}
        assert {nic.nic_id for nic in await b.cloud.nics(name=NAME)} == macs
        assert {nic.nic_id for nic in await b.cloud.nics(nic_ids=sorted(macs))} == macs


async def test_a_full_vxnet_is_a_quota() -> None:
    topology = replace(default_topology("sim"), limits=Limits(nics_per_vxnet=2))
    async with bench(topology) as b:
        await b.cloud.create_nics(POD_VXNET, 2, NAME)
        with pytest.raises(CloudQuota, match=rf"CreateNics \(1 NICs in {POD_VXNET} .*2500"):
            await b.cloud.create_nics(POD_VXNET, 1, NAME)
        (vxnet,) = await b.cloud.vxnets([POD_VXNET])
        assert vxnet.available_ips == 0


@pytest.mark.defect("hostnic-7")
async def test_a_lost_reply_of_a_write_is_looked_up_by_name() -> None:
    topology = replace(default_topology("sim"), faults=(FaultSpec("CreateNics", "lose-reply"),))
    async with bench(topology) as b:
        with pytest.raises(OutcomeUnknown, match="closed before an answer"):
            await b.cloud.create_nics(POD_VXNET, 2, NAME)
        assert b.model.calls["CreateNics"] == 1
        assert len(await b.cloud.nics(name=NAME)) == 2


async def test_a_lost_reply_of_a_read_is_read_again() -> None:
    topology = replace(default_topology("sim"), faults=(FaultSpec("DescribeNics", "lose-reply", times=2),))
    async with bench(topology) as b:
        assert len(await b.cloud.nics(instance_id=HOST)) == 1
        assert [call.outcome for call in b.seen] == [CallOutcome.LOST, CallOutcome.LOST, CallOutcome.OK]


async def test_a_busy_cloud_is_asked_once_to_write() -> None:
    topology = replace(default_topology("sim"), faults=(FaultSpec("CreateNics", "refuse"),))
    async with bench(topology) as b:
        with pytest.raises(CloudBusy, match="ServerBusy"):
            await b.cloud.create_nics(POD_VXNET, 1, NAME)
        assert len(b.seen) == 1


async def test_a_failed_job_says_so() -> None:
    topology = replace(default_topology("sim"), faults=(FaultSpec("AttachNics", "fail-job"),))
    async with bench(topology) as b:
        (nic,) = await b.cloud.create_nics(POD_VXNET, 1, NAME)
        assert await ended(b.cloud, await b.cloud.attach_nics(HOST, [nic.nic_id])) is JobStatus.FAILED


async def test_a_wrong_secret_is_refused_and_not_shown() -> None:
    async with bench(secret="WRONGSECRET") as b:
        with pytest.raises(CredentialsRefused, match="check qy_access_key_id") as refused:
            await b.cloud.instance(HOST)
        assert "WRONGSECRET" not in str(refused.value)
        assert b.topology.access_key_id not in str(refused.value)


async def test_odd_names_survive_the_signature() -> None:
    async with bench() as b:
        name = "a b*~/+%中"
        await b.cloud.create_nics(POD_VXNET, 1, name)
        (nic,) = await b.cloud.nics(name=name)
        assert nic.name == name
