"""Orphans of a simulated zone, found and deleted by the real client: many pages, lists that lie, calls that fail."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from inprocess import virtual_time
from inprocess.budgets import make_limiter
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.agent.orphans.orphan_finder import Deleted, Found, OrphanFinder
from qingcloud_cni.cloud import Access, Caller, Client
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.errors import CloudError, CloudUnreachable, CredentialsRefused, NotListed, OutcomeUnknown
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.memory.local import LocalTransport, run_jobs
from qingcloud_cni.sim.topology import FaultSpec, Limits, Topology, default_topology

OWN, OTHER, PODS = "i-simhost1", "i-simhost2", "vxnet-pods001"
OP = "0123456789abcdef"
DEAD = f"qingcni_i-dead_{OP}"


@dataclass
class Zone:
    """A cloud, and an operator's view of its orphans."""

    own: str = OWN
    topology: Topology = field(default_factory=lambda: default_topology("sim"))

    def __post_init__(self) -> None:
        self.clock, rng = VirtualClock(), random.Random(3)
        self.model = Model(self.topology, rng=rng, now=self.clock.now)
        api = Api(self.model, now=self.clock.now, sleep=self.clock.sleep, rng=rng)
        access = Access(self.topology.access_key_id, self.topology.secret_access_key, zone=self.topology.zone)
        transport = LocalTransport(api)
        limiter = make_limiter(self.clock)
        self.client = Client(Caller(access, transport, limiter, clock=self.clock, rng=rng, observe=lambda _: None))
        self.orphanage = self.finder()
        self.ends: list[Deleted] = []

    def finder(self, own_macs: Collection[str] = ()) -> OrphanFinder:
        return OrphanFinder(
            self.client, lambda: Urgency.WAITING, self.clock,
            prefixes=("qingcni", "hostnic"), own_instance=self.own, own_macs=own_macs, older_than=600.0,
        )  # fmt: skip

    def call(self, action: str, **params: object) -> dict[str, object]:
        flat = {"action": action, "zone": self.topology.zone}
        for key, value in params.items():
            items = value if isinstance(value, list) else None
            flat |= {f"{key}.{n}": str(i) for n, i in enumerate(items, 1)} if items else {key: str(value)}
        answer = self.model.call(flat)
        assert answer["ret_code"] == 0, answer
        return answer

    def make(self, name: str = DEAD, count: int = 1, vxnet: str = PODS) -> list[str]:
        answer = self.call("CreateNics", vxnet=vxnet, count=count, nic_name=name)
        return [nic["nic_id"] for nic in answer["nics"]]  # type: ignore[attr-defined]

    async def terminate(self, instance_id: str, **how: object) -> None:
        self.call("TerminateInstances", instances=[instance_id], **how)
        await self.clock.sleep(60)

    async def find(self) -> set[str]:
        return ids(await self.orphanage.find())

    async def delete(self, found: Found | None = None) -> list[Deleted]:
        self.ends.clear()
        found = found or await self.orphanage.find()
        await self.orphanage.delete(found.orphans, self.ends.append)
        return self.ends

    @property
    def left(self) -> set[str]:
        return {nic.nic_id for nic in self.model.state.nics.values() if nic.role == 0}


def ids(found: Found) -> set[str]:
    return {orphan.nic.nic_id for orphan in found.orphans}


def zoned(test: Callable[[Zone], Awaitable[None]], zone: Callable[[], Zone] = Zone) -> None:
    async def main() -> None:
        here = zone()
        jobs = asyncio.create_task(
            run_jobs(here.model, lambda *_: None, here.clock.sleep, here.clock.now), name="cloud jobs"
        )
        try:
            await test(here)
        finally:
            jobs.cancel()
            await asyncio.gather(jobs, return_exceptions=True)

    virtual_time.run(main())


def crowded() -> Zone:
    topology = replace(default_topology("sim"), limits=Limits(nics_per_vxnet=2000, nics_per_create=2000))
    return Zone(topology=replace(topology, vxnets=tuple(
        msgspec.structs.replace(v, network="172.20.16.0/20") if v.vxnet_id == PODS else v for v in topology.vxnets
    )))  # fmt: skip


# --- finding ---------------------------------------------------------------------------------------------


@zoned
async def test_a_nic_of_this_machine_is_no_orphan_whatever_the_cloud_calls_it(zone: Zone) -> None:
    mine, other = zone.make(count=2)
    await zone.clock.sleep(3600.0)
    zone.orphanage = zone.finder(own_macs={mine})
    found = await zone.orphanage.find()
    assert ids(found) == {other}
    assert [end.orphan.nic.nic_id for end in await zone.delete()] == [other]
    assert mine in zone.left


@pytest.mark.defect("others-1")
def test_nics_of_deleted_hosts_are_found_and_no_others() -> None:
    async def main(zone: Zone) -> None:
        dead, gateway = zone.make(), zone.make(f"hostnic_i-dead_{OP}")
        zone.make(f"qingcni_{OWN}_{OP}")
        zone.make(f"qingcni_{OTHER}_{OP}")
        zone.make(f"other_i-dead_{OP}")
        zone.make("hostnic_i-dead")
        attached = zone.make()
        zone.call("AttachNics", nics=attached, instance=OTHER)
        await zone.clock.sleep(601)
        young = zone.make()
        found = await zone.orphanage.find()
        assert ids(found) == {*dead, *gateway}
        assert {orphan.instance_is for orphan in found.orphans} == {"unknown"}
        assert [(s.nic.nic_id, s.why) for s in found.left_alone] == [(young[0], "free for 2 s only")]

    zoned(main)


@pytest.mark.parametrize(("how", "fate"), [({}, "terminated"), ({"direct_cease": 1}, "ceased")])
def test_a_host_that_is_terminated_leaves_orphans_once_they_have_been_free_for_a_while(
    how: dict[str, object], fate: str
) -> None:
    async def main(zone: Zone) -> None:
        nics = zone.make(f"qingcni_{OTHER}_{OP}", 3)
        zone.call("AttachNics", nics=nics, instance=OTHER)
        await zone.clock.sleep(3600)
        assert await zone.find() == set()
        await zone.terminate(OTHER, **how)
        found = await zone.orphanage.find()
        assert (ids(found), len(found.left_alone)) == (set(), 3)
        await zone.clock.sleep(600)
        found = await zone.orphanage.find()
        assert ids(found) == set(nics)
        assert {orphan.instance_is for orphan in found.orphans} == {fate}

    zoned(main)


def test_a_stopped_host_is_not_gone() -> None:
    async def main(zone: Zone) -> None:
        zone.make(f"qingcni_{OTHER}_{OP}")
        zone.call("StopInstances", instances=[OTHER])
        await zone.clock.sleep(3600)
        assert await zone.find() == set()

    zoned(main)


def test_a_node_of_a_cluster_is_asked_for_as_such() -> None:
    def with_node() -> Zone:
        base = default_topology("sim")
        hosts = (base.hosts[0], msgspec.structs.replace(base.hosts[1], is_cluster_node=True))
        return Zone(topology=replace(base, hosts=hosts))

    async def main(zone: Zone) -> None:
        zone.make(f"qingcni_{OTHER}_{OP}")
        await zone.clock.sleep(3600)
        assert await zone.find() == set()

    zoned(main, with_node)


def test_hundreds_of_nics_and_instances_take_a_few_calls() -> None:
    async def main(zone: Zone) -> None:
        dead = {nic for n in range(130) for nic in zone.make(f"qingcni_i-dead{n}_{OP}", 2)}
        zone.make(f"qingcni_{OTHER}_{OP}", 50)
        await zone.clock.sleep(601)
        zone.model.calls.clear()
        found = await zone.orphanage.find()
        assert ids(found) == dead
        # 310 NICs on 4 pages; 130 instances and one that lives in 2 questions, of both kinds, asked twice
        assert dict(zone.model.calls) == {"DescribeNics": 4, "DescribeInstances": 8}
        zone.model.calls.clear()
        ends = await zone.delete(found)
        assert {end.orphan.nic.nic_id for end in ends} == dead
        assert not [end for end in ends if end.error]
        assert zone.model.calls["DeleteNics"] == 3
        assert len(zone.left) == 50

    zoned(main, crowded)


# --- lists that lie --------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["empty-list", "partial-list"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_one_list_that_lacks_a_living_host_makes_no_orphan_of_its_nics(effect: str, nth: int) -> None:
    async def main(zone: Zone) -> None:
        zone.make(f"qingcni_{OTHER}_{OP}")
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DescribeInstances", effect, nth=nth)])
        with suppress(NotListed):  # not even this one was listed, so that nothing is concluded
            assert await zone.find() == set()

    zoned(main)


def test_a_cloud_that_lists_no_instance_at_all_is_not_believed() -> None:
    async def main(zone: Zone) -> None:
        zone.make()
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DescribeInstances", "empty-list", times=99)])
        with pytest.raises(NotListed, match=f"this instance {OWN} is not listed"):
            await zone.find()

    zoned(main)


def test_each_of_several_lists_has_to_show_this_instance() -> None:
    """Hundreds of instances take two questions a look, each of two kinds; the second one shows nothing, twice."""

    async def main(zone: Zone) -> None:
        for n in range(130):
            zone.make(f"qingcni_i-dead{n}_{OP}")
        zone.make(f"qingcni_{OTHER}_{OP}")  # it lives, and is asked for at the end
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DescribeInstances", "empty-list", nth=nth) for nth in (3, 4, 7, 8)])
        with pytest.raises(NotListed):
            await zone.find()

    zoned(main, crowded)


def test_from_elsewhere_one_empty_list_is_not_believed_either() -> None:
    async def main(zone: Zone) -> None:
        zone.make(f"qingcni_{OWN}_{OP}")
        dead = zone.make()
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DescribeInstances", "empty-list", times=2)])
        assert await zone.find() == set(dead)

    zoned(main, lambda: Zone(own=""))


@pytest.mark.parametrize("effect", ["missing-page", "partial-list", "empty-list"])
def test_a_list_of_nics_that_is_not_whole_at_most_hides_some(effect: str) -> None:
    async def main(zone: Zone) -> None:
        dead = {nic for n in range(3) for nic in zone.make(f"qingcni_i-dead{n}_{OP}", 60)}
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DescribeNics", effect, nth=2)])
        assert await zone.find() <= dead

    zoned(main, crowded)


@pytest.mark.parametrize("action", ["DescribeNics", "DescribeInstances"])
def test_a_question_that_stays_unanswered_ends_the_search(action: str) -> None:
    async def main(zone: Zone) -> None:
        zone.make()
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec(action, "refuse", times=99, code=5100)])
        with pytest.raises(CloudUnreachable):
            await zone.find()

    zoned(main)


# --- deleting --------------------------------------------------------------------------------------------


def test_a_nic_that_ceased_to_be_an_orphan_is_not_released() -> None:
    """Between question and answer somebody attached one and gave another a name; a host came back."""

    async def main(zone: Zone) -> None:
        one, two, three = zone.make(count=3)
        (back,) = zone.make(f"qingcni_{OTHER}_{OP}")
        zone.call("StopInstances", instances=[OTHER])
        await zone.clock.sleep(601)
        zone.model.state.hosts[OTHER].status = "terminated"
        found = await zone.orphanage.find()
        assert ids(found) == {one, two, three, back}
        zone.model.state.hosts[OTHER].status = "stopped"
        zone.call("AttachNics", nics=[one], instance=OWN)
        zone.call("ModifyNicAttributes", nic=two, nic_name="mine")
        await zone.clock.sleep(60)
        ends = {end.orphan.nic.nic_id: end.error for end in await zone.delete(found)}
        assert ends == {three: "", **dict.fromkeys((one, two, back), "it is not an orphan any more")}
        assert zone.left == {one, two, back}

    zoned(main)


def test_one_nic_that_the_cloud_will_not_delete_does_not_keep_the_others() -> None:
    async def main(zone: Zone) -> None:
        nics = zone.make(count=90)
        await zone.clock.sleep(601)
        found = await zone.orphanage.find()
        zone.model.state.nics[nics[40]].busy = "attaching"  # shown as free until the job ends
        zone.model.calls.clear()
        ends = await zone.delete(found)
        (kept,) = [end for end in ends if end.error]
        assert kept.orphan.nic.nic_id == nics[40]
        assert "attaching" in kept.error
        assert zone.left == {nics[40]}
        assert zone.model.calls["DeleteNics"] <= 2 * 7 + 1  # halves of halves

    zoned(main)


def test_a_nic_that_another_party_deletes_counts_as_deleted() -> None:
    async def main(zone: Zone) -> None:
        nics = zone.make(count=4)
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DeleteNics", "nic-gone")])
        ends = await zone.delete()
        assert [(end.orphan.nic.nic_id, end.error) for end in ends] == [(nic, "") for nic in sorted(nics)]
        assert zone.left == set()

    zoned(main)


@pytest.mark.parametrize("effect", ["lose-reply", "not-json", "bad-gateway", "reset", "refuse"])
def test_after_a_lost_reply_the_agent_checks_the_outcome_and_retries_the_rest(effect: str) -> None:
    async def main(zone: Zone) -> None:
        nics = zone.make(count=4)
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DeleteNics", effect, code=5000)])
        ends = await zone.delete()
        assert sorted(end.orphan.nic.nic_id for end in ends) == sorted(nics)
        assert not [end for end in ends if end.error]
        assert zone.left == set()

    zoned(main)


@pytest.mark.parametrize("nth", [2, 3])
def test_one_empty_list_does_not_prove_a_deletion(nth: int) -> None:
    async def main(zone: Zone) -> None:
        zone.make(count=4)
        await zone.clock.sleep(601)
        found = await zone.orphanage.find()
        empty = FaultSpec("DescribeNics", "empty-list", nth=nth)
        zone.model.set_faults([FaultSpec("DeleteNics", "bad-gateway"), empty])
        assert len(await zone.delete(found)) == 4
        assert zone.left == set()

    zoned(main)


def test_a_failure_during_a_release_of_orphans_reports_what_was_released() -> None:
    async def main(zone: Zone) -> None:
        for n in range(3):
            zone.make(f"qingcni_i-dead{n}_{OP}", 99)
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DeleteNics", "refuse", nth=2, times=99, code=5000)])
        with pytest.raises(OutcomeUnknown):
            await zone.delete()
        assert len(zone.ends) == 99
        assert len(zone.left) == 198

    zoned(main, crowded)


@pytest.mark.parametrize(("effect", "kind"), [("wrong-keys", CredentialsRefused), ("call-quota", CloudError)])
def test_a_refusal_of_all_calls_is_not_tried_nic_by_nic(effect: str, kind: type[CloudError]) -> None:
    async def main(zone: Zone) -> None:
        zone.make(count=9)
        await zone.clock.sleep(601)
        zone.model.set_faults([FaultSpec("DeleteNics", effect, times=99)])
        with pytest.raises(kind):
            await zone.delete()
        assert zone.model.calls["DeleteNics"] == 1
        assert len(zone.left) == 9

    zoned(main)
