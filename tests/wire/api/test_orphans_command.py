"""`qingagent orphans`: what dead hosts left in the cloud, shown and deleted, on a simulated zone with real agents."""

import json
import os
import pty
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from machines.hosts import QINGAGENT, Host, NewHost
from machines.simulator import Sim, eventually, needs_root, run

pytestmark = needs_root
HOSTS = 8

PODS = "vxnet-pods001"
OP = "0123456789abcdef"
NONE: Mapping[str, str] = MappingProxyType({})


def orphans(
    host: Host, *args: str, check: bool = True, settings: Mapping[str, str] = NONE
) -> "subprocess.CompletedProcess[str]":
    """The command on a host, as an operator types it there."""
    here = host.sim.host(host.name)
    given = {"QYAccessFilePath": here["client_yaml"], "instance-id-file": here["instance_id_file"], **settings}
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    argv = host.command(QINGAGENT, "orphans", *flags, *args)
    return run(*argv, check=check, cwd=host.directory, stdin=subprocess.DEVNULL)


def listed(host: Host, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(orphans(host, "-o", "json", *args).stdout)
    return found


def ids(found: list[dict[str, Any]]) -> set[str]:
    return {nic["nic_id"] for nic in found}


def left(sim: Sim, name: str) -> set[str]:
    return {nic["nic_id"] for nic in sim.status()["nics"] if name in nic["name"]}


def make(sim: Sim, name: str, count: int = 1) -> set[str]:
    return {nic["nic_id"] for nic in sim.call("CreateNics", vxnet=PODS, count=count, nic_name=name)["nics"]}


def test_nics_of_a_host_that_died_are_found_and_deleted_from_another_one(new_host: NewHost, sim: Sim) -> None:
    """The other one's own, idle or in use, and everybody else's stay; its agent may run or not."""
    dead, alive = new_host(), new_host()
    for host in (dead, alive):
        host.start(min_idle=2, max_idle=2)
        host.add(host.container())
        host.wait_idle(2)
    theirs = make(sim, "by-hand") | make(sim, f"other_i-dead_{OP}") | make(sim, "qingcni_i-dead")
    spare = make(sim, f"qingcni_{alive.instance_id}_{OP}")  # ours, and attached nowhere: our agent's matter
    gone = set(dead.cloud_nics())
    assert len(gone) == 3
    assert orphans(alive, "--older-than", "0s").stdout == "no orphans\n"
    dead.agent.kill()
    sim.call("TerminateInstances", instances=[dead.instance_id])
    eventually(lambda: all(n["status"] == "available" for n in dead.cloud_nics().values()), "the NICs free")
    found = listed(alive)
    assert (found["orphans"], ids(found["left_alone"])) == ([], gone)  # for they have only just become free
    shown = orphans(alive, "--older-than", "0s").stdout
    assert all(nic_id in shown and dead.instance_id in shown for nic_id in gone)
    assert "terminated" in shown
    assert set(dead.cloud_nics()) == gone  # nobody asked for more
    done = orphans(alive, "--older-than", "0s", "--delete", "--yes").stdout
    assert {line.removeprefix("deleted: ") for line in done.splitlines() if "deleted" in line} == gone
    assert dead.cloud_nics() == {}
    assert theirs | spare <= left(sim, "")
    assert len(alive.cloud_nics()) == 4
    assert len(alive.nics("assigned")) == 1
    assert orphans(alive, "--older-than", "0s", "--delete", "--yes").stdout == "no orphans\n"
    sim.call("DeleteNics", nics=[*theirs, *spare])


def test_the_command_needs_no_agent_and_no_vxnets_and_nothing_on_disk(new_host: NewHost, sim: Sim) -> None:
    nics = make(sim, f"hostnic_i-dead1_{OP}", 120)
    host = new_host()
    found = listed(host, "--older-than", "0s", "--delete", "--yes")
    assert ids(found["orphans"]) >= nics
    assert all(nic["is_deleted"] and not nic["error"] for nic in found["orphans"])
    assert {nic["instance_is"] for nic in found["orphans"]} == {"unknown"}
    assert left(sim, "i-dead1") == set()
    assert list(host.directory.iterdir()) == []


def test_a_question_comes_before_anything_is_deleted(new_host: NewHost, sim: Sim) -> None:
    nics = make(sim, f"qingcni_i-dead2_{OP}", 2)
    host = new_host()
    refused = orphans(host, "--older-than", "0s", "--delete", check=False)
    assert refused.returncode == 2
    assert "add --yes" in refused.stderr
    assert left(sim, "i-dead2") == nics
    status, said = typed(host, "n\n")
    assert (status, left(sim, "i-dead2")) == (0, nics)
    assert "Delete 2 NICs of i-dead2? [y/N]: " in said
    status, said = typed(host, "y\n")
    assert (status, left(sim, "i-dead2")) == (0, set())
    assert all(f"deleted: {nic_id}" in said for nic_id in nics)


def typed(host: Host, answer: str) -> tuple[int, str]:
    """`orphans --delete` at a terminal, where somebody types this; exit status, and what was to be seen there."""
    here = host.sim.host(host.name)
    ours, theirs = pty.openpty()
    argv = host.command(QINGAGENT, "orphans", "--delete", "--older-than", "0s")
    argv += ["--QYAccessFilePath", here["client_yaml"], "--instance-id-file", here["instance_id_file"]]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=host.directory) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        said = ""
        while True:
            try:
                said += os.read(ours, 4096).decode()
            except OSError:  # the other end is closed
                break
    os.close(ours)
    return process.returncode, said


def test_another_prefix_is_another_programs(new_host: NewHost, sim: Sim) -> None:
    other = make(sim, f"qingcni_i-dead3_{OP}")
    mine = make(sim, f"mine_i-dead3_{OP}") | make(sim, f"gate_i-dead3_{OP}")
    settings = {"nic-name-prefix": "mine", "gatewayns": "gate"}
    found = orphans(new_host(), "--older-than", "0s", "-o", "json", settings=settings)
    assert ids(json.loads(found.stdout)["orphans"]) == mine
    sim.call("DeleteNics", nics=[*mine, *other])


def test_a_nic_the_cloud_does_not_delete_is_reported_and_is_a_failure(new_host: NewHost, sim: Sim) -> None:
    nics = make(sim, f"qingcni_i-dead4_{OP}", 3)
    host = new_host()
    fault = [{"action": "DeleteNics", "effect": "refuse", "code": 1400, "message": "NotYours", "times": 99}]
    with sim.faults(*fault):
        done = orphans(host, "--older-than", "0s", "--delete", "--yes", check=False)
        assert done.returncode == 1
        assert "3 of 3 NICs: delete failed" in done.stderr
        assert all(f"not deleted: {nic_id}: DeleteNics" in done.stdout for nic_id in nics)
        assert "NotYours" in done.stdout
    assert left(sim, "i-dead4") == nics
    sim.call("DeleteNics", nics=[*nics])


def test_if_the_cloud_lists_nothing_no_nic_is_deleted(new_host: NewHost, sim: Sim) -> None:
    nics = make(sim, f"qingcni_i-dead5_{OP}")
    host = new_host()
    with sim.fault("DescribeInstances", "empty-list"):
        done = orphans(host, "--older-than", "0s", "--delete", "--yes", check=False)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert f"this instance {host.instance_id} is not listed" in done.stderr
    assert left(sim, "i-dead5") == nics
    sim.call("DeleteNics", nics=[*nics])


@pytest.mark.parametrize(
    ("args", "settings", "words"),
    [
        (("--yes",), {}, "--yes needs --delete"),
        (("--older-than", "soon"), {}, "--older-than 'soon': rejected: expected"),
        ((), {"QYAccessFilePath": "/nowhere/client.yaml"}, "access file /nowhere/client.yaml does not exist"),
        ((), {"instance-id-file": "/etc/hostname"}, "instance id file /etc/hostname holds"),
        ((), {"gatewayns": "qingcni"}, "they tell NICs apart"),
    ],
)
def test_wrong_options_are_rejected_in_one_sentence(
    host_files: Host, args: tuple[str, ...], settings: dict[str, str], words: str
) -> None:
    done = orphans(host_files, *args, check=False, settings=settings)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def host_files(sim: Sim, tmp_path: Path) -> Host:
    """A host of the simulator on which nothing runs."""
    return Host(sim, "host1", tmp_path, tmp_path)
