"""Table, kernel and cloud compared on a real fabric: what operators see, and links in unexpected namespaces."""

import json
import time
from typing import Any

import pytest

from machines.containers import Container, address_of
from machines.hosts import Host, NewHost
from machines.simulator import QINGCLOUD_SIM, Sim, eventually, links, needs_root, run
from qingcloud_cni.agent.agent import TASKS
from qingcloud_cni.core.drift.differences import CONFIRM_SECONDS, DifferenceKind
from qingcloud_cni.core.nics.names import link_alias

pytestmark = needs_root
HOSTS = 12

ONE: dict[str, Any] = {"min_idle": 1, "max_idle": 1}
NAMES = [task.name for task in TASKS]
IDLE = {"jobs", "links", "flows", "comparisons", "duplicate probes"}  # they may have had nothing to do yet


def reconcile(host: Host) -> list[dict[str, Any]]:
    """Have it compare now; the differences that are left."""
    answer = host.ask("POST", "/v1/reconcile").json
    assert (answer["compared"], answer["error"]) == (True, "")
    return list(answer["differences"])


def kinds(host: Host) -> list[str]:
    return [difference["kind"] for difference in reconcile(host)]


def move(source: str, mac: str, target: str, alias: str = "") -> None:
    """What somebody does by hand with a link; both are names of namespaces."""
    name, spare = links(source)[mac]["ifname"], f"m{mac.replace(':', '')}"
    run("ip", "-n", source, "link", "set", name, "down")
    run("ip", "-n", source, "link", "set", name, "alias", alias, "name", spare)
    run("ip", "-n", source, "link", "set", spare, "netns", target)


# --- told --------------------------------------------------------------------------------------------------


def test_the_periodic_tasks_are_shown_with_what_hinders_them(new_host: NewHost, sim: Sim) -> None:
    host = new_host()
    host.start(**ONE)
    tasks = {task["name"]: task for task in host.get("/v1/tasks")}
    assert list(tasks) == NAMES
    assert json.loads(host.qingagent("tasks", "-o", "json").stdout)[0].keys() == tasks["pool"].keys()
    shown = host.qingagent("tasks").stdout.splitlines()
    assert shown[0].split() == ["TASK", "EVERY", "SUCCEEDED", "TOOK", "NEXT", "FAILURES", "ERROR"]
    assert [line.partition("  ")[0] for line in shown[1:]] == NAMES
    now = time.time()
    for name in NAMES:
        if name not in (
            "jobs",
            "links",
            "flows",
            "comparisons",
            "duplicate probes",
        ):  # which may have had nothing to do yet
            assert 0 <= now - tasks[name]["last_success"] < 60
            assert host.metric(f'qingagent_task_last_success_seconds{{task="{name}"}}') > now - 60
        assert tasks[name]["failures"] == tasks[name]["all_failures"] == 0
    assert 700 < tasks["cloud reconcile"]["next_run"] - now < 1100
    with sim.fault("DescribeNics", "reset"):
        answer = host.ask("POST", "/v1/reconcile").json
        assert not answer["compared"]
        assert "DescribeNics" in answer["error"]
        (line,) = (n for n in host.qingagent("tasks").stdout.splitlines() if n.startswith("cloud reconcile"))
        assert "DescribeNics" in line
    assert host.metric('qingagent_task_failures_total{task="cloud reconcile"}') >= 1
    assert host.metric('qingagent_task_duration_seconds{task="cloud reconcile"}') > 0
    reconcile(host)
    assert {task["failures"] for task in host.get("/v1/tasks")} == {0}


@pytest.mark.defect("hostnic-20")
def test_what_differs_is_shown_in_status_and_metrics(new_host: NewHost, sim: Sim) -> None:
    host = new_host()
    host.start(**ONE)
    name = f"qingcni_{host.instance_id}_0123456789abcdef"
    (made,) = sim.call("CreateNics", vxnet=host.vxnet, count=1, nic_name=name)["nics"]
    (difference,) = reconcile(host)
    assert (difference["kind"], difference["nic_id"], difference["is_cured"]) == ("young", made["nic_id"], False)
    assert host.status()["differences"] == [difference]
    (line,) = (n for n in host.qingagent("status").stdout.splitlines() if n.startswith("drift:"))
    assert made["nic_id"] in line
    assert "reported only" in line
    assert host.metric('qingagent_drift{kind="young"}') == 1
    assert host.metric('qingagent_drift{kind="twice"}') == 0
    (event,) = host.agent.events("drift.seen")
    assert (event["nic"], event["detail"].partition(":")[0]) == (made["nic_id"], "young")
    sim.call("DeleteNics", nics=[made["nic_id"]])
    assert reconcile(host) == []
    assert len(host.agent.events("drift.over")) == 1
    assert not [n for n in host.qingagent("status").stdout.splitlines() if n.startswith("drift:")]


# --- links -------------------------------------------------------------------------------------------------


@pytest.mark.defect("others-12")
def test_links_in_wrong_places_and_links_that_did_not_come(new_host: NewHost, sim: Sim) -> None:
    """On two hosts at once, since it takes time: nothing is done before a second look."""
    faults = json.dumps([{"action": "AttachNics", "effect": "lose-link", "times": 1}])
    run(QINGCLOUD_SIM, "faults", "set", "-", "--name", sim.name, input=faults)
    one, two = new_host(), new_host()
    one.launch(min_idle=1, max_idle=1, max_nics=1)
    eventually(lambda: one.is_ready() and one.nics("attaching"), "attached, and no link will come")
    places = Places(two)
    places.make()
    eventually(lambda: one.nics("missing"), "given up waiting for its link", seconds=60)
    (missing,) = one.nics("missing")
    assert DifferenceKind.NO_LINK in kinds(one)
    reconcile(two)
    time.sleep(CONFIRM_SECONDS + 0.5)
    reconcile(one)
    reconcile(two)

    places.check()
    one.wait_idle(1)
    (nic,) = one.nics()
    assert {key: nic[key] for key in ("nic_id", "address")} == {key: missing[key] for key in ("nic_id", "address")}
    assert nic["repairs"] == 1
    assert nic["nic_id"] in links(one.parking.name)
    assert kinds(one) == []
    one.add(one.container())


class Places:
    """An idle NIC in a container, one that a container moved on, the same of a dead container, a false claim."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.start(min_idle=3, max_idle=5)
        self.asking, self.served, self.moved, self.dead, self.inner, self.theirs = (
            host.container() for _ in range(6)
        )

    def make(self) -> None:
        host = self.host
        results = [host.add(container) for container in (self.asking, self.served, self.moved)]
        self.address, self.moved_id = address_of(results[1]), results[2]["interfaces"][0]["mac"]
        host.wait_idle(3)
        self.dead_id = host.add(self.dead)["interfaces"][0]["mac"]
        host.wait_idle(3)
        self.stray = host.nics("idle")[0]["nic_id"]
        for container, mac in ((self.moved, self.moved_id), (self.dead, self.dead_id)):
            move(container.name, mac, self.inner.name, links(container.name)[mac]["ifalias"])
        self.dead.delete()
        move(host.parking.name, self.stray, self.theirs.name, link_alias(host.instance_id, self.stray))
        self.claimed = self.served.link()["address"]
        veth = ("veth9", "address", self.claimed, "type", "veth", "peer", "name", "veth8")
        run("ip", "-n", host.netns, "link", "add", *veth)

    def check(self) -> None:
        host, parking = self.host, self.host.parking.name
        eventually(lambda: {self.stray, self.dead_id} <= set(links(parking)), "those that serve nothing are home")
        assert sorted(kinds(host)) == sorted([DifferenceKind.MOVED, DifferenceKind.SPOOFED])
        assert self.moved_id in links(self.inner.name)
        assert self.asking.reaches(self.address)
        assert self.claimed in links(host.netns)
        served = {a["container_id"] for a in host.attachments()}
        assert served == {c.name for c in (self.asking, self.served, self.moved)}
        host.delete(self.moved)
        assert self.moved_id in links(parking)
        run("ip", "-n", host.netns, "link", "del", "veth9")
        assert kinds(host) == []


# --- the host is booted -------------------------------------------------------------------------------------


def boot(host: Host, containers: list[Container]) -> None:
    """As after a boot: no container is left, nor the parking namespace, and every link is the host's, up."""
    for name in (host.parking.name, *(container.name for container in containers)):
        for mac, link in links(name).items():
            if link["ifname"] != "lo":
                move(name, mac, host.netns)
        run("ip", "netns", "delete", name)


@pytest.mark.defect("others-8", "others-13")
def test_after_a_boot_containers_are_over_and_all_nics_are_parked(new_host: NewHost) -> None:
    host = new_host()
    boot_id = host.directory / "boot-id"
    boot_id.write_text("first\n")
    host.start(boot_id_file=boot_id, min_idle=2, max_idle=4)
    containers = [host.container(), host.container()]
    for container in containers:
        host.add(container)
    host.wait_idle(2)
    cloud = host.cloud_nics()
    host.agent.kill()
    boot(host, containers)
    boot_id.write_text("second\n")
    host.start(boot_id_file=boot_id, min_idle=2, max_idle=4)
    assert host.attachments() == []
    assert len(host.agent.events("host.booted")) == 1
    eventually(lambda: {nic["state"] for nic in host.nics()} == {"idle"}, "all idle")
    assert set(links(host.parking.name)) >= set(cloud)
    assert set(host.cloud_nics()) == set(cloud)
    again = host.container()
    host.add(again)
    host.agent.stop()
    host.start(boot_id_file=boot_id, min_idle=2, max_idle=4)
    assert [a["container_id"] for a in host.attachments()] == [again.name]
