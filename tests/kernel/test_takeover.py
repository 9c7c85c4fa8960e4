"""A simulator continues where an earlier one ended: same cloud, namespaces and links."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.containers import new_namespace
from machines.containers import pings as reaches
from machines.simulator import QINGCLOUD_SIM, Sim, eventually, links, needs_root, run, running_sim, unique_name

pytestmark = needs_root

GATEWAY = "172.20.1.1"
PODS = "vxnet-pods001"


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qs", dir="/run") as directory:
        yield Path(directory) / "s"


def give(sim: Sim, pod: str, nic: dict[str, str]) -> None:
    name = links(sim.netns())[nic["nic_id"]]["ifname"]
    run("ip", "-n", sim.netns(), "link", "set", name, "netns", pod, "name", "eth0")
    batch = f"addr add {nic['private_ip']}/24 dev eth0\nlink set eth0 up\nroute add default via {GATEWAY}\n"
    run("ip", "-n", pod, "-batch", "-", input=batch)


def kill(sim: Sim) -> None:
    sim.process.kill()
    sim.process.wait()


def test_after_kill_9_the_next_one_has_the_same_cloud_and_containers_live_on(state_dir: Path) -> None:
    name = unique_name()
    args = ("--state-dir", str(state_dir), "--hosts", "1")
    with running_sim(*args, name=name) as first, new_namespace() as pod, new_namespace() as doomed:
        kept, lost, deleted = first.new_nics("host1", PODS, count=3)
        give(first, pod, kept)
        give(first, doomed, lost)
        first.remove_nics(deleted["nic_id"])
        before = first.status()
        kill(first)
        run("ip", "netns", "delete", doomed)
        assert reaches(pod, GATEWAY), "the vxnet lives without the API"
        with running_sim("--state-dir", str(state_dir), name=name) as second:
            after = second.status()
            assert {key: after[key] for key in ("instances", "jobs", "calls", "namespaces")} == {
                key: before[key] for key in ("instances", "jobs", "calls", "namespaces")
            }
            assert [nic["nic_id"] for nic in after["nics"]] == [nic["nic_id"] for nic in before["nics"]]
            assert reaches(pod, GATEWAY)
            back = eventually(lambda: links(second.netns()).get(lost["nic_id"]), "the NIC whose container died")
            assert back["ifname"] == f"dev{back['ifindex']}"
            (new,) = second.new_nics("host1", PODS)
            assert new["nic_id"] not in {nic["nic_id"] for nic in (kept, lost, deleted)}
            assert new["private_ip"] not in {nic["private_ip"] for nic in (kept, lost, deleted)}
            second.remove_nics(kept["nic_id"])
            assert kept["nic_id"] not in links(pod)
        assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(f"{name}-")]
        assert not state_dir.exists(), "a signal takes down what was taken over as well"


def test_a_job_cut_off_by_kill_9_ends_and_a_link_nobody_knows_goes(state_dir: Path) -> None:
    name = unique_name()
    args = ("--state-dir", str(state_dir), "--hosts", "1")
    with running_sim(*args, "--attach-latency", "700ms", name=name) as first:
        (there,) = first.new_nics("host1", PODS)
        (coming,) = first.call("CreateNics", vxnet=PODS)["nics"]
        job = first.call("AttachNics", instance=first.host()["instance_id"], nics=[coming["nic_id"]])["job_id"]
        kill(first)
        cloud = json.loads((state_dir / "cloud.json").read_text())
        nic = next(nic for nic in cloud["records"]["nics"] if nic["nic_id"] == there["nic_id"])
        nic.update(status="available", instance_id="", is_plugged=False, sequence=0)  # as if detached
        (state_dir / "cloud.json").write_text(json.dumps(cloud))
        with running_sim("--state-dir", str(state_dir), name=name) as second:
            assert there["nic_id"] not in links(second.netns())
            second.wait_job(job)
            assert coming["nic_id"] in links(second.netns())


def test_what_is_kept_at_the_end_is_taken_over_too(state_dir: Path) -> None:
    name = unique_name()
    with running_sim("--state-dir", str(state_dir), "--hosts", "1", "--keep", name=name) as first:
        (nic,) = first.new_nics("host1", PODS)
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(timeout=30) == 0
        assert nic["nic_id"] in links(first.netns())
        access_file = Path(first.host()["client_yaml"])
        with access_file.open() as opened, running_sim("--state-dir", str(state_dir), name=name) as second:
            assert nic["nic_id"] in {known["nic_id"] for known in second.status()["nics"]}
            assert links(second.netns())[nic["nic_id"]]["ifname"] == "eth1"
            assert os.fstat(opened.fileno()).st_nlink == 0, "replaced: an agent that starts meanwhile reads it whole"


def test_after_a_reboot_attached_nics_come_back_on_their_hosts(state_dir: Path) -> None:
    name = unique_name()
    with running_sim("--state-dir", str(state_dir), "--hosts", "1", "--keep", name=name) as first:
        (nic,) = first.new_nics("host1", PODS)
        kill(first)
        for namespace in (f"{name}-router", f"{name}-host1"):
            run("ip", "netns", "delete", namespace)
        with running_sim("--state-dir", str(state_dir), name=name) as second:
            found = links(second.netns())
            assert found[nic["nic_id"]]["ifname"] == "eth1"
            assert found[second.host()["nic_id"]]["ifname"] == "eth0"
            assert second.host()["address"] == first.host()["address"]
            assert reaches(second.netns(), "172.20.0.1")


def test_what_cannot_be_taken_over_is_refused_in_a_sentence_and_stays(state_dir: Path) -> None:
    name = unique_name()
    with running_sim("--state-dir", str(state_dir), "--hosts", "2", name=name) as first:
        kill(first)

        def refused(*args: str, status: int) -> str:
            done = run(QINGCLOUD_SIM, "up", "--name", name, *args, check=False)
            assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 1), done.stderr
            return done.stderr

        here = ("--state-dir", str(state_dir))
        assert "other hosts" in refused(*here, "--hosts", "3", status=2)
        assert "--state-dir" in refused(status=3)
        content = (state_dir / "cloud.json").read_bytes()
        (state_dir / "cloud.json").write_bytes(content[:-9])
        assert "damaged" in refused(*here, status=2)
        (state_dir / "cloud.json").write_bytes(content)
        assert links(first.netns("host2")), "what is refused stays"
        run("ip", "netns", "delete", f"{name}-host2")
        assert f"{name}-host2" in refused(*here, status=2)
        assert links(first.netns("host1"))
        run(QINGCLOUD_SIM, "down", "--name", name, *here)
        assert not state_dir.exists()
