"""Faults with a time, a chance or a delay: when they strike, and their effect on jobs, links and lists."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import yarl
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from inprocess import virtual_time
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.cloud.calls import canonical, signature
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.api.fault_list import faults_document, read_faults
from qingcloud_cni.sim.api.http import add_admin, make_app
from qingcloud_cni.sim.cloud.faults import Faults
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.cloud.records import Records
from qingcloud_cni.sim.memory.local import run_jobs
from qingcloud_cni.sim.topology import (
    Effect,
    FaultSpec,
    KeySpec,
    Latencies,
    Limits,
    PlugNic,
    Topology,
    UnplugNic,
    default_topology,
)

HOST = "i-xhost1"
PODS = "vxnet-pods001"
CREATE = {"action": "CreateNics", "vxnet": PODS}


class Cloud:
    """A model whose jobs take 2 s, with a clock that the test turns."""

    def __init__(self, *faults: FaultSpec, seed: int = 1, saved: Records | None = None, **parts: Any) -> None:
        base = default_topology("x")
        quick = Latencies(attach=(2.0, 2.0), detach=(2.0, 2.0))
        self.time = 1000.0
        self.topology = Topology(base.routers, base.vxnets, base.hosts, latencies=quick, faults=faults, **parts)
        self.model = Model(self.topology, rng=random.Random(seed), now=lambda: self.time, saved=saved)
        self.hardware: list[tuple[float, Effect]] = []

    def __call__(self, action: str, *nic_ids: str, **params: str) -> dict[str, Any]:
        ids = {f"nics.{n}": nic_id for n, nic_id in enumerate(nic_ids, 1)}
        return self.model.call({"action": action, "zone": "pek3a"} | ids | params)

    def code(self, action: str, *nic_ids: str, **params: str) -> int:
        return int(self(action, *nic_ids, **params)["ret_code"])

    def create(self, count: int = 1) -> list[str]:
        return [nic["nic_id"] for nic in self("CreateNics", vxnet=PODS, count=str(count))["nics"]]

    def attach(self, *nic_ids: str) -> str:
        return str(self("AttachNics", *nic_ids, instance=HOST)["job_id"])

    def attached(self, count: int = 1) -> list[str]:
        """NICs that are there, whatever the faults say."""
        specs = self.model.faults.specs
        self.model.set_faults(())
        nics = self.create(count)
        self.attach(*nics)
        self.wait(3.0)
        self.model.set_faults(specs)
        self.hardware.clear()
        return nics

    def wait(self, seconds: float) -> None:
        end = self.time + seconds
        while (due := self.model.next_due()) is not None and due <= end:
            self.time = max(self.time, due)
            self.model.advance()
            self.take()
        self.take()
        self.time = end

    def take(self) -> None:
        self.hardware += [(self.time, effect) for effect in self.model.take_effects()]

    def job(self, job_id: str) -> str:
        return str(self("DescribeJobs", **{"jobs.1": job_id})["job_set"][0]["status"])

    def nic(self, nic_id: str) -> str:
        (row,) = self("DescribeNics", nic_id)["nic_set"]
        return str(row["status"])

    def room(self, vxnet_id: str) -> int:
        (row,) = self("DescribeVxnets", **{"vxnets.1": vxnet_id})["vxnet_set"]
        return int(row["available_ip_count"])

    def links(self) -> list[tuple[float, type[Effect]]]:
        return [(when, type(effect)) for when, effect in self.hardware]


# --- when ----------------------------------------------------------------------------------------------


def test_an_api_may_be_down_for_some_minutes_however_often_it_is_asked() -> None:
    cloud = Cloud(FaultSpec("*", "refuse", after=60.0, lasts=300.0))
    codes = []
    for _ in range(8):
        codes.append(cloud.code("DescribeNics"))
        cloud.time += 55.0
    assert codes == [0, 0, 5100, 5100, 5100, 5100, 5100, 0]


def test_calls_are_counted_within_the_time_of_a_fault() -> None:
    cloud = Cloud(FaultSpec("DescribeNics", "refuse", nth=2, times=1, after=10.0, lasts=100.0))
    before = [cloud.code("DescribeNics") for _ in range(3)]
    cloud.time += 10.0
    assert (before, [cloud.code("DescribeNics") for _ in range(3)]) == ([0, 0, 0], [0, 5100, 0])


def test_the_time_of_a_fault_begins_when_its_list_is_given() -> None:
    cloud = Cloud()
    cloud.time += 5000.0
    cloud.model.set_faults([FaultSpec("*", "refuse", lasts=60.0)])
    assert cloud.code("DescribeNics") == 5100
    assert faults_document(cloud.model.faults, cloud.time + 20.0)[0]["ends_in"] == 40.0
    cloud.time += 60.0
    assert cloud.code("DescribeNics") == 0


def test_a_chance_strikes_some_calls_the_same_ones_for_the_same_seed() -> None:
    def codes(seed: int) -> list[int]:
        cloud = Cloud(FaultSpec("DescribeNics", "refuse", chance=0.25), seed=seed)
        return [cloud.code("DescribeNics") for _ in range(400)]

    assert 60 <= Counter(codes(1))[5100] <= 140
    assert codes(1) == codes(1)
    assert codes(1) != codes(2)


def test_a_chance_may_be_bounded() -> None:
    cloud = Cloud(FaultSpec("DescribeNics", "refuse", chance=0.5, times=3))
    assert [cloud.code("DescribeNics") for _ in range(100)].count(5100) == 3
    assert faults_document(cloud.model.faults, cloud.time)[0]["left"] == 0


@given(
    nth=st.integers(1, 4),
    times=st.none() | st.integers(1, 4),
    after=st.integers(0, 5),
    lasts=st.none() | st.integers(1, 6),
    steps=st.lists(st.integers(0, 2), max_size=30),
)
def test_a_fault_strikes_from_its_nth_call_on_within_its_time_and_no_more_than_it_may(
    nth: int, times: int | None, after: int, lasts: int | None, steps: list[int]
) -> None:
    spec = FaultSpec("CreateNics", "reset", nth=nth, times=times, after=float(after), lasts=lasts and float(lasts))
    faults = Faults([spec], rng=random.Random(1))
    now, expected, seen = 0, 0, 0
    for step in steps:
        now += step
        is_in_time = after <= now and (lasts is None or now < after + lasts)
        seen += is_in_time
        strikes = is_in_time and seen >= nth and (spec.most is None or expected < spec.most)
        expected += strikes
        assert bool(faults.strike({"action": "CreateNics"}, float(now))) == strikes


def test_a_fault_of_one_vxnet_spares_the_others() -> None:
    cloud = Cloud(FaultSpec("CreateNics", "address-quota", lasts=60.0, vxnet=PODS))
    assert cloud.code("CreateNics", vxnet="vxnet-pods002") == 0
    assert cloud.code("CreateNics", vxnet=PODS) == 2500
    assert (cloud.room(PODS), cloud.room("vxnet-pods002")) == (0, 251)
    cloud.time += 60.0
    assert (cloud.room(PODS), cloud.code("CreateNics", vxnet=PODS)) == (252, 0)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"action": "*", "effect": "reset", "lasts": "soon"}, "faults[0].lasts: 'soon' is not a duration"),
        ({"action": "*", "effect": "reset", "lasts": "2s..4s"}, "faults[0].lasts: '2s..4s' is a range"),
        ({"action": "*", "effect": "reset", "lasts": 0}, "leaves it no time"),
        ({"action": "*", "effect": "reset", "chance": 0}, "chance 0 is not above 0 and up to 1"),
        ({"action": "*", "effect": "reset", "chance": 1.5}, "chance 1.5 is not above 0"),
        ({"action": "*", "effect": "reset", "by": "3s"}, "by is for late-reply, slow-job, late-link, early-link"),
        ({"action": "*", "effect": "late-reply", "by": "4s..2s"}, "faults[0].by: '4s..2s' ends before it begins"),
        ({"action": "AttachNics", "effect": "reset", "vxnet": PODS}, "vxnet is for CreateNics"),
        ({"action": "AttachNics", "effect": "odd-name", "name": "eth0/1"}, "faults[0].name: 'eth0/1'"),
        ({"action": "CreateNics", "effect": "empty-list"}, "empty-list is for Describe"),
        ({"action": "*", "effect": "refuse", "message": "\ud800"}, r"faults[0].message: '\ud800' is not valid UTF-8"),
    ],
)
def test_a_fault_that_could_not_do_as_it_says_is_refused_in_a_sentence(entry: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are looked at
        read_faults([entry])
    assert says in str(caught.value)


def test_a_fault_of_a_vxnet_that_is_not_there_is_refused_and_the_old_list_stays() -> None:
    cloud = Cloud(FaultSpec("*", "refuse", times=9))
    with pytest.raises(ValueError, match="vxnet 'vxnet-none' does not exist"):
        cloud.model.set_faults(read_faults([{"action": "CreateNics", "effect": "reset", "vxnet": "vxnet-none"}]))
    assert cloud.code("DescribeNics") == 5100


def test_durations_are_read_as_everywhere() -> None:
    entry = {"action": "AttachNics", "effect": "slow-job", "after": "1m", "lasts": "2h", "by": "90s..2m"}
    assert read_faults([entry]) == (FaultSpec("AttachNics", "slow-job", after=60.0, lasts=7200.0, by=(90.0, 120.0)),)


# --- jobs and links ------------------------------------------------------------------------------------


def test_a_slow_job_takes_longer_and_those_behind_it_wait() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "slow-job", by=(100.0, 100.0)))
    first, second = cloud.create(2)
    jobs = [cloud.attach(first), cloud.attach(second)]
    cloud.wait(101.0)
    assert [cloud.job(job) for job in jobs] == ["working", "pending"]
    cloud.wait(3.0)
    assert [cloud.job(job) for job in jobs] == ["successful", "successful"]
    assert cloud.links() == [(1102.0, PlugNic), (1104.0, PlugNic)]


@pytest.mark.parametrize(
    ("effect", "low", "high"),
    [("late-reply", 5.0, 15.0), ("slow-job", 60.0, 180.0), ("late-link", 5.0, 15.0), ("early-link", 5.0, 15.0)],
)
def test_what_does_not_say_how_late_it_comes_is_as_late_as_documented(effect: str, low: float, high: float) -> None:
    action = "CreateNics" if effect == "late-reply" else "AttachNics"
    faults = Faults([FaultSpec(action, effect, times=100)], rng=random.Random(1))
    drawn = [strike.seconds for _ in range(100) for strike in faults.strike({"action": action}, 0.0)]
    assert low <= min(drawn) < low + (high - low) / 10
    assert high - (high - low) / 10 < max(drawn) <= high


def test_half_a_job_is_done_with_failure() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "half-job", times=2))
    nics = cloud.create(3)
    job = cloud.attach(*nics)
    cloud.wait(3.0)
    assert cloud.job(job) == "done with failure"
    assert [cloud.nic(nic) for nic in nics] == ["in-use", "available", "available"]
    assert len(cloud.hardware) == 1
    job = cloud.attach(nics[1])
    cloud.wait(3.0)
    assert (cloud.job(job), cloud.nic(nics[1])) == ("done with failure", "available")


def test_an_endless_job_holds_its_nics_and_nobody_else_until_the_faults_are_replaced() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "endless-job"))
    stuck, free = cloud.create(2)
    job = cloud.attach(stuck)
    other = cloud.attach(free)
    cloud.wait(100_000.0)
    assert (cloud.job(job), cloud.job(other)) == ("working", "successful")
    assert "attaching" in cloud("AttachNics", stuck, instance=HOST)["message"]
    assert cloud.code("DeleteNics", stuck) == 1400
    cloud.model.set_faults(())
    cloud.wait(0.0)
    assert (cloud.job(job), cloud.nic(stuck)) == ("failed", "available")


def test_a_late_link_comes_after_the_end_of_its_job() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "late-link", by=(7.0, 7.0)))
    (nic,) = cloud.create()
    job = cloud.attach(nic)
    cloud.wait(3.0)
    assert (cloud.job(job), cloud.nic(nic), cloud.links()) == ("successful", "in-use", [])
    cloud.wait(10.0)
    assert cloud.links() == [(1009.0, PlugNic)]


def test_a_late_link_does_not_come_once_its_nic_is_detached() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "late-link", by=(60.0, 60.0)))
    (nic,) = cloud.create()
    cloud.attach(nic)
    cloud.wait(3.0)
    cloud("DetachNics", nic)
    cloud.wait(100.0)
    assert (cloud.nic(nic), cloud.links()) == ("available", [])


def test_a_late_link_is_not_forgotten_by_the_cloud_that_goes_on() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "late-link", by=(60.0, 60.0)))
    (nic,) = cloud.create()
    cloud.attach(nic)
    cloud.wait(3.0)
    other = Cloud(saved=cloud.model.records())
    other.wait(100.0)
    assert other.links() == [(1062.0, PlugNic)]


def test_an_early_link_is_there_before_the_end_of_its_job() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "early-link", by=(50.0, 50.0)))
    (nic,) = cloud.create()
    job = cloud.attach(nic)
    cloud.wait(40.0)
    assert (cloud.job(job), cloud.nic(nic), cloud.links()) == ("working", "available", [(1002.0, PlugNic)])
    cloud.wait(20.0)
    assert (cloud.job(job), cloud.nic(nic)) == ("successful", "in-use")


def test_an_odd_name_goes_with_the_link_until_it_is_detached() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "odd-name", name="wlan"))
    (nic,) = cloud.create()
    cloud.attach(nic)
    cloud.wait(3.0)
    assert [plug.link_name for plug in cloud.model.plugged() if plug.nic_id == nic] == ["wlan"]
    cloud("DetachNics", nic)
    cloud.wait(3.0)
    cloud.attach(nic)
    cloud.wait(3.0)
    assert [plug.link_name for plug in cloud.model.plugged() if plug.nic_id == nic] == [""]


# --- somebody at the console ---------------------------------------------------------------------------


def test_a_nic_may_be_gone_as_soon_as_it_is_created() -> None:
    cloud = Cloud(FaultSpec("CreateNics", "nic-gone"))
    (nic,) = cloud.create()
    assert cloud.code("AttachNics", nic, instance=HOST) == 2100
    assert cloud.room(PODS) == 252


def test_a_nic_may_be_gone_when_its_attach_is_over() -> None:
    cloud = Cloud(FaultSpec("AttachNics", "nic-gone"))
    (nic,) = cloud.create()
    job = cloud.attach(nic)
    cloud.wait(3.0)
    assert (cloud.job(job), cloud("DescribeNics", nic)["total_count"]) == ("successful", 0)
    assert [kind for _, kind in cloud.links()] == [PlugNic, UnplugNic]


@pytest.mark.parametrize("action", ["DetachNics", "DeleteNics"])
def test_a_nic_may_be_gone_when_it_is_to_be_given_back(action: str) -> None:
    cloud = Cloud(FaultSpec(action, "nic-gone"))
    first, second = cloud.attached(2)
    assert cloud.code(action, first) == 2100
    cloud.take()
    assert [kind for _, kind in cloud.links()] == [UnplugNic]
    assert (cloud("DescribeNics", first)["total_count"], cloud.nic(second)) == (0, "in-use")


def test_what_is_busy_or_primary_is_never_gone() -> None:
    cloud = Cloud(FaultSpec("DetachNics", "nic-gone", times=9))
    (busy,) = cloud.create()
    cloud.attach(busy)
    (primary,) = (nic["nic_id"] for nic in cloud("DescribeNics", **{"instances.1": HOST})["nic_set"])
    assert [cloud.code("DetachNics", nic) for nic in (busy, primary)] == [1400, 1400]
    assert cloud("DescribeNics", busy, primary)["total_count"] == 2


# --- lists ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "first", "second"),
    [
        ("missing-page", (0, 150), (0, 150)),
        ("partial-list", (75, 75), (0, 75)),
        ("empty-list", (0, 0), (0, 0)),
    ],
)
def test_a_list_may_be_short_with_or_without_telling(
    effect: str, first: tuple[int, int], second: tuple[int, int]
) -> None:
    cloud = Cloud(FaultSpec("DescribeNics", effect, times=2))
    cloud.create(150)
    answers = [cloud("DescribeNics", status="available", limit="100", offset=str(n)) for n in (0, 100, 0, 100)]
    assert [(len(answer["nic_set"]), answer["total_count"]) for answer in answers] == [
        first, second, (100, 150), (50, 150),
    ]  # fmt: skip
    assert all(answer["ret_code"] == 0 for answer in answers)


# --- quotas --------------------------------------------------------------------------------------------


def test_the_quota_of_calls_is_each_keys_own() -> None:
    cloud = Cloud(limits=Limits(calls_per_hour=2), more_keys=(KeySpec("SECOND", "hush"),))
    codes = [cloud.code("DescribeNics", access_key_id=key) for key in ("FIRST", "FIRST", "FIRST", "SECOND", "SECOND")]
    assert codes == [0, 0, 2500, 0, 0]
    cloud.time += 3600.0
    assert cloud.code("DescribeNics", access_key_id="FIRST") == 0


def test_the_account_has_a_quota_of_nics() -> None:
    cloud = Cloud(limits=Limits(nics_per_account=3))
    assert [cloud.code("CreateNics", vxnet=PODS, count=n) for n in ("2", "2", "1")] == [0, 2500, 0]
    assert "account" in cloud("CreateNics", vxnet="vxnet-pods002")["message"]


# --- answers that come late ----------------------------------------------------------------------------


class Line:
    """The API on a virtual clock: what is sent, and when its answer comes."""

    def __init__(self, *faults: FaultSpec, **parts: Any) -> None:
        base = default_topology("x")
        self.clock = VirtualClock()
        self.topology = Topology(base.routers, base.vxnets, base.hosts, faults=faults, **parts)
        self.model = Model(self.topology, rng=random.Random(1), now=self.clock.now)
        self.api = Api(self.model, now=self.clock.now, sleep=self.clock.sleep, rng=random.Random(2))

    async def send(self, *, key: str = "", secret: str = "", **params: str) -> tuple[int, float]:
        """The code that is answered, and how long it took."""
        begun = self.clock.now()
        wire = {
            "access_key_id": key or self.topology.access_key_id,
            "signature_method": "HmacSHA256",
            "signature_version": "1",
            "time_stamp": datetime.fromtimestamp(begun, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "zone": self.topology.zone,
            **params,
        }
        signed = signature(secret or self.topology.secret_access_key, "GET", "/iaas/", canonical(wire))
        reply = await self.api.respond("GET", f"/iaas/?{urlencode(wire | {'signature': signed})}", b"")
        assert reply is not None
        return int(json.loads(reply.body)["ret_code"]), round(self.clock.now() - begun, 3)

    @property
    def made(self) -> int:
        return sum(not nic.role for nic in self.model.state.nics.values())


def test_a_late_reply_comes_in_its_time_and_the_work_was_done_at_once() -> None:
    async def main() -> None:
        line = Line(FaultSpec("CreateNics", "late-reply", by=(7.0, 7.0)))
        sent = asyncio.create_task(line.send(**CREATE))
        await line.clock.sleep(1.0)
        assert (line.made, sent.done()) == (1, False)
        assert await sent == (0, 7.0)
        assert await line.send(**CREATE) == (0, 0.0)

    virtual_time.run(main())


def test_a_reply_may_be_overtaken_by_that_to_a_later_call() -> None:
    async def main() -> None:
        line = Line(FaultSpec("CreateNics", "overtaken-reply"))
        first = asyncio.create_task(line.send(**CREATE))
        await line.clock.sleep(5.0)
        assert (line.made, first.done()) == (1, False)
        assert await line.send(action="DescribeNics") == (0, 0.0)
        code, seconds = await first
        assert code == 0
        assert 5.0 <= seconds <= 6.0

    virtual_time.run(main())


def test_a_refusal_may_come_late_as_well() -> None:
    async def main() -> None:
        line = Line(FaultSpec("CreateNics", "late-reply", by=(3.0, 3.0)), FaultSpec("CreateNics", "refuse"))
        assert await line.send(**CREATE) == (5100, 3.0)

    virtual_time.run(main())


def test_each_key_has_its_own_secret() -> None:
    async def main() -> None:
        line = Line(more_keys=(KeySpec("SECOND", "hush"),))
        assert (await line.send(key="SECOND", secret="hush", action="DescribeNics"))[0] == 0
        assert (await line.send(key="SECOND", action="DescribeNics"))[0] == 1200
        assert (await line.send(key="THIRD", action="DescribeNics"))[0] == 1200

    virtual_time.run(main())


# --- over HTTP -----------------------------------------------------------------------------------------


class Site:
    """The API and its admin calls on a real socket; jobs take a moment."""

    def __init__(self, session: aiohttp.ClientSession, url: str, topology: Topology) -> None:
        self._session = session
        self._url = url
        self._topology = topology

    async def set_faults(self, *entries: dict[str, Any]) -> tuple[int, Any]:
        return await self.set_faults_to(json.dumps(entries).encode())

    async def set_faults_to(self, body: bytes) -> tuple[int, Any]:
        async with self._session.post(f"{self._url}/admin/faults", data=body) as answer:
            return answer.status, await answer.json()

    async def __call__(self, action: str, *nic_ids: str, **params: str) -> dict[str, Any]:
        wire = {f"nics.{n}": nic_id for n, nic_id in enumerate(nic_ids, 1)} | {
            "action": action,
            "access_key_id": self._topology.access_key_id,
            "signature_method": "HmacSHA256",
            "signature_version": "1",
            "time_stamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "zone": self._topology.zone,
            **params,
        }
        signed = signature(self._topology.secret_access_key, "GET", "/iaas/", canonical(wire))
        url = yarl.URL(f"{self._url}/iaas/?{urlencode(wire | {'signature': signed})}", encoded=True)
        async with self._session.get(url) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def create(self, count: int = 1) -> list[str]:
        return [nic["nic_id"] for nic in (await self("CreateNics", vxnet=PODS, count=str(count)))["nics"]]

    async def sees_job(self, job_id: str, status: str) -> None:
        async with asyncio.timeout(10.0):
            while (await self("DescribeJobs", **{"jobs.1": job_id}))["job_set"][0]["status"] != status:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    base = default_topology("x")
    quick = Latencies(attach=(0.0, 0.0), detach=(0.0, 0.0))
    topology = Topology(base.routers, base.vxnets, base.hosts, latencies=quick)
    model = Model(topology, rng=random.Random(1), now=time.time)
    app = make_app(Api(model, now=time.time, sleep=asyncio.sleep, rng=random.Random(2)))
    add_admin(app, model, dict)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    pump = asyncio.create_task(run_jobs(model, lambda *_: None, asyncio.sleep, time.time))
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession() as session:
            yield Site(session, f"http://{host}:{port}", topology)
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        await runner.cleanup()


@pytest.mark.parametrize(
    ("fault", "status", "shown"),
    [
        ({"effect": "slow-job", "by": "1m"}, "working", 0),
        ({"effect": "half-job"}, "done with failure", 1),
        ({"effect": "endless-job"}, "working", 0),
        ({"effect": "late-link", "by": "1m"}, "successful", 2),
        ({"effect": "early-link", "by": "1m"}, "working", 0),
        ({"effect": "odd-name", "name": "wlan"}, "successful", 2),
        ({"effect": "nic-gone"}, "successful", 0),
    ],
    ids=lambda value: value["effect"] if isinstance(value, dict) else "",
)
async def test_faults_of_jobs_go_over_http(fault: dict[str, Any], status: str, shown: int) -> None:
    async with site() as cloud:
        nics = await cloud.create(2)
        assert (await cloud.set_faults({"action": "AttachNics", **fault}))[0] == 200
        job_id = (await cloud("AttachNics", *nics, instance=HOST))["job_id"]
        await cloud.sees_job(job_id, status)
        assert (await cloud("DescribeNics", *nics, status="in-use"))["total_count"] == shown


async def test_faults_of_answers_and_lists_go_over_http() -> None:
    async with site() as cloud:
        await cloud.create(4)
        shown = []
        for effect in ("missing-page", "partial-list", "empty-list"):
            await cloud.set_faults({"action": "DescribeNics", "effect": effect})
            answer = await cloud("DescribeNics", status="available")
            shown.append((len(answer["nic_set"]), answer["total_count"]))
        assert shown == [(0, 4), (2, 2), (0, 0)]
        await cloud.set_faults(
            {"action": "CreateNics", "effect": "overtaken-reply"},
            {"action": "DescribeVxnets", "effect": "late-reply", "by": "200ms"},
        )
        create = asyncio.create_task(cloud("CreateNics", vxnet=PODS))
        assert not (await asyncio.wait({create}, timeout=0.2))[0]
        begun = time.monotonic()
        assert (await cloud("DescribeVxnets"))["ret_code"] == 0
        assert time.monotonic() - begun >= 0.2
        assert (await create)["ret_code"] == 0


async def test_a_list_over_http_tells_what_is_left_and_a_bad_one_is_refused() -> None:
    async with site() as cloud:
        fault = {"action": "*", "effect": "refuse", "chance": 0.5, "after": "1m", "lasts": "5m", "code": 1400}
        status, told = await cloud.set_faults(fault)
        (row,) = told["faults"]
        assert (status, row["left"], row["lasts"], row["after"]) == (200, None, 300.0, 60.0)
        assert 355.0 < row["ends_in"] <= 360.0
        status, told = await cloud.set_faults({"action": "*", "effect": "reset", "lasts": "soon"})
        assert (status, told) == (400, {"message": "faults[0].lasts: 'soon' is not a duration; write 3s, 500ms or a"
                                        " range such as 2s..4s"})  # fmt: skip
        assert (await cloud("DescribeNics"))["ret_code"] == 0


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'[{"action": "*", "effect": "reset", "after": NaN}]'],
    ids=["nothing", "no end", "no text", "too deep", "no number"],
)
async def test_what_is_no_list_is_refused_over_http_and_the_old_one_stays(body: bytes) -> None:
    async with site() as cloud:
        await cloud.set_faults({"action": "DescribeVxnets", "effect": "refuse"})
        status, told = await cloud.set_faults_to(body)
        assert (status, list(told)) == (400, ["message"])
        assert (await cloud("DescribeVxnets"))["ret_code"] == 5100
