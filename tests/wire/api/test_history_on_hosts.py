"""`qingagent events` and `explain`, and the API behind them, as an operator meets them."""

import json
import subprocess
from pathlib import Path
from typing import Any

from machines.hosts import QINGAGENT, Host, NewHost
from machines.simulator import eventually, needs_root

pytestmark = needs_root
HOSTS = 4

ONE: dict[str, Any] = {"min_idle": 1, "max_idle": 1, "max_nics": 3}
POD = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"


def test_a_container_is_explained_by_its_id_its_pod_and_its_nic(new_host: NewHost) -> None:
    host = new_host()
    host.start(**ONE)
    container = host.container()
    nic_id = host.cni("ADD", container, CNI_ARGS=POD).result["interfaces"][0]["mac"]
    eventually(lambda: not host.status()["unsaved"], "all on disk")
    told = host.qingagent("explain", container.name[:-2]).stdout
    lines = told.splitlines()
    assert lines[0] == f"mynet/{container.name}/eth0, pod shop/web-1, NIC {nic_id}, continues"
    for word in ("attachment.requested", "nic.assigned", "attachment.ready", "kernel 0.0", "create", "attach"):
        assert word in told
    for of in ("shop/web-1", "web-1", f"mynet/{container.name}/eth0"):
        assert host.qingagent("explain", of).stdout == told
    assert f"mynet/{container.name}/eth0" in host.qingagent("explain", nic_id).stdout

    host.delete(container)
    (story,) = json.loads(host.qingagent("explain", container.name, "-o", "json").stdout)
    assert (story["nic_id"], story["pod"], story["is_over"]) == (nic_id, "shop/web-1", True)
    assert [step["name"] for step in story["steps"]][-1] == "nic.released"
    attach = story["operations"][-1]
    assert attach["kind"] == "attach"
    assert attach["job_id"].startswith("j-")
    assert attach["job_id"] in host.qingagent("explain", attach["op_id"]).stdout


def test_explain_reports_a_subject_without_events(new_host: NewHost) -> None:
    host = new_host()
    host.start(**ONE)
    answer = host.qingagent("explain", "nothing-of-that-name", check=False)
    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (1, "", 1)
    said = "no event has a container, pod, NIC or operation 'nothing-of-that-name'; the oldest is of"
    assert said in answer.stderr
    for target, words in {
        "limit=0": "limit",
        "limit=x": "limit",
        "after=-1": "after",
        "nonsense=1": "nonsense",
        "limit=1&limit=2": "twice",
        "nic=a%20b": "nic",
    }.items():
        reply = host.ask("GET", f"/v1/events?{target}")
        assert (reply.status, reply.json["code"]) == (400, 6), target
        assert words in reply.json["msg"]
    refused = host.qingagent("events", "-n", "0", check=False)
    assert refused.returncode == 2


def test_events_are_listed_filtered_and_followed_through_a_restart(new_host: NewHost, tmp_path: Path) -> None:
    host = new_host()
    agent = host.start(**ONE)
    container = host.container()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    listed = json.loads(host.qingagent("events", "-o", "json").stdout)
    assert [e["seq"] for e in listed] == sorted(e["seq"] for e in listed)
    assert len(json.loads(host.qingagent("events", "-n", "3", "-o", "json").stdout)) == 3
    assert {e["nic_id"] for e in _asked(host, "--nic", nic_id.upper())} == {nic_id}
    key = f"mynet/{container.name}/eth0"
    assert {e["subject"] for e in _asked(host, "--container", container.name[:10])} == {key}
    assert {e["name"].partition(".")[0] for e in _asked(host, "--name", "attach")} == {"attach"}
    line = host.qingagent("events", "--name", "nic.assigned").stdout
    assert f"  nic.assigned           {nic_id}  {key}" in line

    out, complaints = tmp_path / "followed", tmp_path / "complaints"
    argv = host.command(QINGAGENT, "events", "--follow", "-n", "1", "-o", "json", "--run-dir", str(host.run_dir))
    with (
        out.open("wb") as stdout,
        complaints.open("wb") as stderr,
        subprocess.Popen(argv, stdout=stdout, stderr=stderr) as following,
    ):
        try:
            eventually(lambda: out.read_text().count("\n") == 1, "the latest event")
            host.delete(container)
            eventually(lambda: "nic.released" in out.read_text(), "the release")
            agent.stop()
            eventually(lambda: "connect failed" in complaints.read_text(), "the agent missed")
            host.start(idle=0, **ONE)
            host.add(container)
            eventually(lambda: "attachment.ready" in out.read_text(), "the next ADD")
        finally:
            following.kill()
    followed = [json.loads(text) for text in out.read_text().splitlines()]
    kept = {e["seq"]: e for e in json.loads(host.qingagent("events", "-n", "1000", "-o", "json").stdout)}
    first, last = followed[0]["seq"], followed[-1]["seq"]
    assert followed == [event for seq, event in kept.items() if first <= seq <= last]
    assert complaints.read_text().count("\n") == 1


def _asked(host: Host, *args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(host.qingagent("events", *args, "-o", "json").stdout)
    assert found
    return found
