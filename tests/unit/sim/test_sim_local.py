"""The real client on the simulated cloud in one process, and the task that ends its jobs."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from inprocess.budgets import calls_of, make_limiter
from qingcloud_cni.cloud import Access, Caller, Client
from qingcloud_cni.core.errors import CloudQuota, CredentialsRefused, NotAllowedNow, OutcomeUnknown, ResourceNotFound
from qingcloud_cni.core.seams.cloud import CloudCalls, JobStatus
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.memory.kernel import FakeKernel
from qingcloud_cni.sim.memory.local import LocalTransport, run_jobs
from qingcloud_cni.sim.topology import Effect, FaultSpec, Latencies, PlugNic, Topology, UnplugNic, default_topology

HOST = "i-xhost1"
PODS = "vxnet-pods001"
NOW = 1_704_164_645.0


class Turned:
    """A clock that only the test turns; sleepers wake when their time has come."""

    def __init__(self) -> None:
        self.time = NOW
        self._wake = asyncio.Event()

    def now(self) -> float:
        return self.time

    wall = now

    async def sleep(self, seconds: float) -> None:
        end = self.time + seconds
        while self.time < end:
            await self._wake.wait()

    async def turn(self, seconds: float) -> None:
        """Move on and let everybody run that can."""
        self.time += seconds
        self._wake.set()
        self._wake = asyncio.Event()
        for _ in range(50):
            await asyncio.sleep(0)


class World:
    def __init__(self, **changes: Any) -> None:
        base = default_topology("x")
        parts: dict[str, Any] = {"latencies": Latencies(attach=(2.0, 2.0), detach=(2.0, 2.0)), **changes}
        self.topology = Topology(base.routers, base.vxnets, base.hosts, **parts)
        self.clock = Turned()
        self.model = Model(self.topology, rng=random.Random(1), now=self.clock.now)
        self.api = Api(self.model, now=self.clock.now, sleep=self.clock.sleep, rng=random.Random(2))
        self.client = self.make_client(self.topology.secret_access_key)

    def make_client(self, secret: str) -> CloudCalls:
        access = Access(self.topology.access_key_id, secret, self.topology.zone)
        transport = LocalTransport(self.api)
        limiter = make_limiter(self.clock)
        client = Client(Caller(access, transport, limiter, self.clock, random.Random(3), lambda _: None))
        return calls_of(client)

    @asynccontextmanager
    async def running(self, sink: Any) -> AsyncIterator[None]:
        pump = asyncio.create_task(run_jobs(self.model, sink, self.clock.sleep, self.clock.now))
        await self.clock.turn(0)
        try:
            yield
        finally:
            pump.cancel()
            with suppress(asyncio.CancelledError):
                await pump


async def test_the_real_client_lives_on_the_simulated_cloud() -> None:
    world = World()
    client, clock = world.client, world.clock
    kernel = FakeKernel(HOST, rng=random.Random(4), sleep=clock.sleep)
    async with world.running(kernel.apply):
        (vxnet,) = await client.vxnets([PODS])
        assert (vxnet.network, vxnet.gateway, vxnet.available_ips) == ("172.20.1.0/24", "172.20.1.1", 252)
        made = await client.create_nics(PODS, 2, f"qingcni_{HOST}_0123456789abcdef")
        ids = [nic.nic_id for nic in made]
        job = await client.attach_nics(HOST, ids)
        assert [j.status for j in await client.jobs([job])] == [JobStatus.PENDING]
        with pytest.raises(NotAllowedNow, match="please try later"):
            await client.delete_nics(ids)
        await clock.turn(2.0)
        assert [j.status for j in await client.jobs([job])] == [JobStatus.SUCCESSFUL]
        assert [link.mac for link in (await kernel.survey()).host] == ids
        instance = await client.instance(HOST)
        assert instance is not None
        assert {nic.nic_id for nic in instance.nics} >= set(ids)
        assert {nic.nic_id for nic in await client.nics(instance_id=HOST)} == {nic.nic_id for nic in instance.nics}
        job = await client.detach_nics(ids)
        await clock.turn(2.0)
        assert (await kernel.survey()).host == ()
        await client.delete_nics(ids)
        with pytest.raises(ResourceNotFound):
            await client.delete_nics(ids)
        await client.create_nics(PODS, 252, "a")
        with pytest.raises(CloudQuota):
            await client.create_nics(PODS, 1, "b")
        with pytest.raises(ResourceNotFound):
            await client.jobs([job, "j-none"])


async def test_a_wrong_secret_is_refused() -> None:
    with pytest.raises(CredentialsRefused):
        await World().make_client("wrong").nics()


async def test_a_lost_reply_leaves_the_outcome_unknown_and_the_work_done() -> None:
    world = World(faults=(FaultSpec("CreateNics", "lose-reply"),))
    with pytest.raises(OutcomeUnknown):
        await world.client.create_nics(PODS, 1, "mine")
    assert len(await world.client.nics(name="mine")) == 1


async def test_a_slow_answer_ends_in_time() -> None:
    world = World(latencies=Latencies(call=(60.0, 60.0)))
    with pytest.raises(OutcomeUnknown, match=r"0\.01 s"):
        await LocalTransport(world.api).send("GET", "/iaas/?action=DescribeNics", b"", 0.01)


async def test_effects_are_carried_out_before_the_end_of_the_job_shows() -> None:
    world = World()
    seen: list[tuple[str, list[str]]] = []

    async def sink(*effects: Effect) -> None:
        await asyncio.sleep(0)
        statuses = [job["status"] for job in call(world, "DescribeJobs")["job_set"]]
        seen.extend((type(effect).__name__, statuses) for effect in effects)

    async with world.running(sink):
        ids = [nic["nic_id"] for nic in call(world, "CreateNics", vxnet=PODS, count="2")["nics"]]
        call(world, "AttachNics", instance=HOST, **{"nics.1": ids[0], "nics.2": ids[1]})
        await world.clock.turn(2.0)
        assert seen == [("PlugNic", ["working"])] * 2
        assert call(world, "DescribeJobs")["job_set"][0]["status"] == "successful"
        call(world, "ModifyNicAttributes", nic=ids[0], enable_aspoof="0")
        await world.clock.turn(0)
        assert seen[2:] == [("FilterNic", ["successful"])]


async def test_an_earlier_job_is_not_missed_while_waiting_for_a_later_one() -> None:
    world = World(latencies=Latencies(attach=(50.0, 50.0), detach=(1.0, 1.0)))
    seen: list[Effect] = []

    def sink(*effects: Effect) -> None:
        seen.extend(effects)

    async with world.running(sink):
        first, second = (nic["nic_id"] for nic in call(world, "CreateNics", vxnet=PODS, count="2")["nics"])
        call(world, "AttachNics", instance=HOST, **{"nics.1": first})
        await world.clock.turn(50.0)
        call(world, "AttachNics", instance="i-xhost2", **{"nics.1": second})
        await world.clock.turn(0)
        call(world, "DetachNics", **{"nics.1": first})
        await world.clock.turn(0)
        await world.clock.turn(1.0)
        assert [type(effect) for effect in seen] == [PlugNic, UnplugNic]
        assert (
            len([task for task in asyncio.all_tasks() if not task.done()]) <= 4
        )  # this test, the pump, its two waits


async def test_a_bug_in_the_sink_ends_the_pump() -> None:
    world = World()

    def sink(*_: Effect) -> None:
        raise ZeroDivisionError

    pump = asyncio.create_task(run_jobs(world.model, sink, world.clock.sleep, world.clock.now))
    nic = call(world, "CreateNics", vxnet=PODS)["nics"][0]["nic_id"]
    call(world, "AttachNics", instance=HOST, **{"nics.1": nic})
    await world.clock.turn(0)
    await world.clock.turn(2.0)
    with pytest.raises(ZeroDivisionError):
        await pump


def call(world: World, action: str, **params: str) -> dict[str, Any]:
    reply = world.model.call({"action": action, "zone": world.topology.zone, **params})
    assert reply["ret_code"] == 0, reply
    return reply
