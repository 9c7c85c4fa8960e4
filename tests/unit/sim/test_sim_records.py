"""A cloud restored from its records answers as the first one would."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.cloud.records import ENDED_JOBS, CloudWriter, Records, SavedCloud, read_saved_cloud
from qingcloud_cni.sim.fabric.leftovers import Record, write_record
from qingcloud_cni.sim.topology import FaultSpec, Latencies, Limits, PlugNic, Topology, default_topology

BASE = default_topology("x")
TOPOLOGY = Topology(
    BASE.routers,
    BASE.vxnets,
    BASE.hosts,
    latencies=Latencies(attach=(2.0, 2.0), detach=(2.0, 2.0)),
    limits=Limits(calls_per_hour=1000),
    faults=(FaultSpec("CreateNics", "address-quota", nth=4, times=2),),
)
PODS = "vxnet-pods001"
HOST, OTHER_HOST = "i-xhost1", "i-xhost2"


class Cloud:
    """A model with a clock that the test turns."""

    def __init__(
        self, seed: int = 1, topology: Topology = TOPOLOGY, time: float = 1000.0, saved: Records | None = None
    ) -> None:
        self.time = time
        self.model = Model(topology, rng=random.Random(seed), now=lambda: self.time, saved=saved)

    def __call__(self, action: str, **params: Any) -> dict[str, Any]:
        wire = {"action": action, "zone": "pek3a"}
        for key, value in params.items():
            if isinstance(value, list):
                wire |= {f"{key}.{n}": item for n, item in enumerate(value, 1)}
            else:
                wire[key] = str(value)
        return self.model.call(wire)

    def create(self, count: int = 1) -> list[str]:
        return [nic["nic_id"] for nic in self("CreateNics", vxnet=PODS, count=count)["nics"]]

    def wait(self, seconds: float) -> None:
        self.time += seconds
        while (due := self.model.next_due()) is not None and due <= self.time:
            self.model.advance()

    def next_one(self, seed: int = 2) -> "Cloud":
        """The cloud that continues from the records of this one."""
        return Cloud(seed, time=self.time, saved=read_again(self.model.records()))

    def everything(self) -> list[dict[str, Any]]:
        return [self(action, limit=100) for action in DESCRIBES]


DESCRIBES = ("DescribeInstances", "DescribeVxnets", "DescribeNics", "DescribeJobs")


def read_again(records: Records) -> Records:
    return msgspec.json.decode(msgspec.json.encode(records), type=Records)


def test_the_next_cloud_shows_the_same_and_goes_on_alike() -> None:
    cloud = Cloud()
    first, second, third = cloud.create(3)
    cloud("AttachNics", nics=[first, second], instance=HOST)
    cloud.wait(2)
    cloud("DetachNics", nics=[first])
    cloud.wait(2)
    cloud("DeleteNics", nics=[first])
    cloud("AttachNics", nics=[third], instance=HOST)
    cloud("StopInstances", instances=[OTHER_HOST])
    cloud.time += 1
    other = cloud.next_one()
    assert other.everything() == cloud.everything()
    assert other.model.calls == cloud.model.calls
    for each in (cloud, other):
        each.model.take_effects()
        each.wait(1)
    assert other.model.take_effects() == cloud.model.take_effects() != []
    assert other.everything() == cloud.everything()
    addresses = [each("CreateNics", vxnet=PODS, count=2)["nics"][1]["private_ip"] for each in (cloud, other)]
    assert addresses[0] == addresses[1]


def test_faults_the_quota_of_calls_and_what_they_count_go_on() -> None:
    cloud = Cloud()
    cloud.create()
    cloud.create()
    cloud.create()
    assert cloud("CreateNics", vxnet=PODS)["ret_code"] == 2500
    other = cloud.next_one()
    room = {vxnet["vxnet_id"]: vxnet["available_ip_count"] for vxnet in other("DescribeVxnets")["vxnet_set"]}
    assert room[PODS] == 0
    assert [other("CreateNics", vxnet=PODS)["ret_code"] for _ in range(2)] == [2500, 0]
    other.model.set_faults([FaultSpec("DescribeNics", "refuse")])
    assert other.next_one()("DescribeNics")["ret_code"] == 5100
    spent = sum(cloud.model.calls.values())
    limited = Topology(BASE.routers, BASE.vxnets, BASE.hosts, limits=Limits(calls_per_hour=spent))
    full = Cloud(topology=limited, time=cloud.time, saved=read_again(cloud.model.records()))
    assert full("DescribeNics")["ret_code"] == 2500
    full.time += 3600
    assert full("DescribeNics")["ret_code"] == 0


def test_a_topology_with_other_faults_brings_them() -> None:
    cloud = Cloud()
    changed = Topology(BASE.routers, BASE.vxnets, BASE.hosts, faults=(FaultSpec("DescribeNics", "wrong-keys"),))
    other = Cloud(topology=changed, saved=cloud.model.records())
    assert other("DescribeNics")["ret_code"] == 1200


@pytest.mark.parametrize("is_landed", [False, True])
def test_a_link_that_a_job_was_about_to_plug_is_plugged_once(is_landed: bool) -> None:
    """The next simulator cannot know whether the link was made, and makes the missing ones."""
    cloud = Cloud()
    (nic,) = cloud.create()
    cloud("AttachNics", nics=[nic], instance=HOST)
    cloud.time += 2
    if is_landed:
        cloud.model.advance()
    other = cloud.next_one()
    arriving = [effect.nic_id for effect in other.model.arriving()]
    assert arriving == ([nic] if is_landed else [])
    assert (nic in {effect.nic_id for effect in other.model.plugged()}) is is_landed
    other.wait(0)
    landed = [effect.nic_id for effect in other.model.take_effects() if isinstance(effect, PlugNic)]
    assert arriving + landed == [nic]
    assert other.model.arriving() == ()
    assert [effect.nic_id for effect in other.model.plugged()].count(nic) == 1


def test_jobs_long_over_are_forgotten_those_under_way_never() -> None:
    cloud = Cloud()
    (nic,) = cloud.create()
    for _ in range(ENDED_JOBS // 2 + 5):
        cloud("AttachNics", nics=[nic], instance=HOST)
        cloud.wait(2)
        cloud("DetachNics", nics=[nic])
        cloud.wait(2)
    (busy,) = cloud.create()
    under_way = cloud("AttachNics", nics=[busy], instance=HOST)["job_id"]
    kept = cloud.model.records().jobs
    assert len(kept) == ENDED_JOBS + 1
    assert [job.job_id for job in kept] == list(cloud.model.state.jobs)[-len(kept) :]
    assert kept[-1].job_id == under_way


def claimed(tmp_path: Path) -> Path:
    directory = tmp_path / "sim"
    write_record(directory, Record(sim="x", namespaces=(), instance_ids=()))
    return directory


def test_what_is_kept_is_read_again_and_is_nobody_elses(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    assert read_saved_cloud(directory, "x") is None
    cloud = Cloud()
    keeper = CloudWriter(directory, "x", runs=3)
    keeper.save(cloud.model.records())
    cloud.create()
    keeper.save(cloud.model.records())
    assert read_saved_cloud(directory, "x") == SavedCloud(sim="x", runs=3, records=cloud.model.records())
    (file,) = directory.glob("cloud*")
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_saved_cloud(directory, "y") is None
    assert read_saved_cloud(tmp_path / "none", "x") is None


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    cloud, keeper = Cloud(), CloudWriter(directory, "x", runs=0)
    keeper.save(cloud.model.records())
    (file,) = directory.glob("cloud*")
    file.unlink()
    keeper.save(cloud.model.records())
    assert not file.exists()
    cloud.create()
    keeper.save(cloud.model.records())
    assert file.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"form": 1}', b"\xff"])
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    directory = claimed(tmp_path)
    (directory / "cloud.json").write_bytes(content)
    with pytest.raises(StartRefused, match=r"damaged.*qingcloud-sim down --name x") as refusal:
        read_saved_cloud(directory, "x")
    assert "\n" not in str(refusal.value)


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    kept = SavedCloud(form=99, sim="x", runs=0, records=Cloud().model.records())
    (directory / "cloud.json").write_bytes(msgspec.json.encode(kept))
    with pytest.raises(StartRefused, match="another version"):
        read_saved_cloud(directory, "x")
