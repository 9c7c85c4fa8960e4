"""NICs released: surplus ones, all of them, and never one that is not the pool's."""

import secrets
from datetime import datetime
from typing import Any

import pytest

from machines.hosts import Host, NewHost
from machines.simulator import eventually, links, needs_root, run

pytestmark = needs_root
HOSTS = 12

PODS = "vxnet-pods001"


def seconds_of(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def attach_by_hand(host: Host, name: str) -> tuple[str, str]:
    """A second NIC that somebody gave the host: its id, and its link's name."""
    (nic,) = host.sim.call("CreateNics", vxnet=PODS, count=1, nic_name=name)["nics"]
    nic_id = str(nic["nic_id"])
    host.sim.wait_job(host.sim.call("AttachNics", instance=host.instance_id, nics=[nic_id])["job_id"])
    return nic_id, str(eventually(lambda: links(host.netns).get(nic_id), "the NIC's link")["ifname"])


def is_as_it_was(host: Host, nic_id: str, before: dict[str, Any]) -> bool:
    """The NIC is attached, and its link is in the host's namespace under its name, as up as it was."""
    (nic,) = (nic for nic in host.sim.status()["nics"] if nic["nic_id"] == nic_id)
    now = links(host.netns)[nic_id]
    return nic["instance_id"] == host.instance_id and all(now[k] == before[k] for k in ("ifname", "flags", "mtu"))


# --- surplus -------------------------------------------------------------------------------------------


@pytest.mark.defect("hostnic-15")
def test_an_idle_surplus_nic_is_detached_and_deleted_after_its_time(new_host: NewHost) -> None:
    """Back to max-idle, not before idle-ttl is over; the NICs vanish from host and cloud, eth0's never."""
    host = new_host()
    agent = host.start(min_idle=1, max_idle=1, idle_ttl="1s")
    containers = [host.container() for _ in range(3)]
    for container in containers:
        host.add(container)
    host.wait_idle(1)
    assert len(host.cloud_nics()) == 4
    for container in containers:
        host.delete(container)
    eventually(lambda: len(host.cloud_nics()) == 1, "one NIC of ours in the cloud")
    eventually(lambda: len(host.nics()) == 1 and not host.status()["operations"], "one NIC in the table")
    assert set(host.cloud_nics()) == {nic["nic_id"] for nic in host.nics("idle")}
    released = {event["nic"]: seconds_of(event) for event in agent.events("nic.released")}
    detached = {event["nic"]: seconds_of(event) for event in agent.events("nic.detaching")}
    rested = [detached[nic_id] - released[nic_id] for nic_id in detached.keys() & released.keys()]
    assert (len(detached), len(released)) == (3, 3)
    assert min(rested) >= 0.99
    assert len(agent.events("nic.deleted")) == 3
    assert set(links(host.parking.name)) & set(detached) == set()
    primary = host.sim.host(host.name)["nic_id"]
    assert links(host.netns)[primary]["ifname"] == "eth0"


# --- not ours ------------------------------------------------------------------------------------------


@pytest.mark.defect("hostnic-18", "ancestor-7")
def test_the_nic_of_iface_and_foreign_ones_are_never_touched(new_host: NewHost) -> None:
    """The one of --iface even if it bears our name. Not while the pool grows, nor by drain and cleanup.

    What others hold counts against the instance's limit.
    """
    host = new_host()
    ours = f"qingcni_{host.instance_id}_{secrets.token_hex(8)}"
    own, ifname = attach_by_hand(host, ours)
    names = ("by-hand", "qingcni_i-another_0123456789abcdef", f"qingcni_{host.instance_id}", "")
    foreign = [attach_by_hand(host, name)[0] for name in names]
    before = links(host.netns)
    settings: dict[str, Any] = {"iface": ifname, "min_idle": 1, "max_idle": 1, "instance_nic_limit": 6}
    host.start(**settings)
    host.add(host.container())
    refused = host.cni("ADD", host.container(), conf=host.conf(TimeoutSeconds=4))
    assert refused.code == 11, refused
    assert "limit" in refused.message
    (nic,) = host.nics()
    assert nic["nic_id"] not in {own, *foreign}
    assert host.agent.stop() == 0
    host.cleanup("--force", **settings)
    assert all(is_as_it_was(host, nic_id, before[nic_id]) for nic_id in (own, *foreign))
    assert list(host.cloud_nics()) == [own]


def test_a_nic_of_ours_left_from_an_earlier_life_is_adopted(new_host: NewHost) -> None:
    """It bears our name and the table does not know it: if attached it serves the next container.

    One that is free and was just made is left alone for minutes, since it may be about to be attached
    (tests/sim/test_reconcile.py has the time to see it adopted).
    """
    host = new_host()
    attached, _ = attach_by_hand(host, f"qingcni_{host.instance_id}_{secrets.token_hex(8)}")
    (free,) = host.sim.call(
        "CreateNics", vxnet=PODS, count=1, nic_name=f"qingcni_{host.instance_id}_{secrets.token_hex(8)}"
    )["nics"]
    host.start(min_idle=1, max_idle=1, max_nics=1)
    assert [nic["nic_id"] for nic in host.nics("idle")] == [attached]
    assert set(host.cloud_nics()) == {attached, free["nic_id"]}
    assert host.add(host.container())["interfaces"][0]["mac"] == attached


# --- drain and cleanup -----------------------------------------------------------------------------------


@pytest.mark.defect("others-2")
def test_drain_leaves_nothing_and_refuses_adds_with_code_11(new_host: NewHost) -> None:
    host = new_host()
    host.start(min_idle=3, max_idle=3)
    told = host.qingagent("drain").stdout
    assert told.splitlines()[-1] == "drained: no NICs left"
    assert (host.nics(), host.cloud_nics()) == ([], {})
    answer = host.cni("ADD", host.container())
    assert answer.code == 11, answer
    assert "drained" in answer.message
    assert host.cloud_nics() == {}


def test_drain_waits_for_a_container_and_names_it(new_host: NewHost) -> None:
    """All others go; once its DEL comes, its NIC goes too, and the drain is over."""
    host = new_host()
    host.start(min_idle=2, max_idle=2)
    container = host.container()
    address = host.add(container)["ips"][0]["address"]
    host.wait_idle(2)
    waiting = host.qingagent("drain", "--timeout", "3s", check=False)
    assert waiting.returncode == 1
    assert container.name in waiting.stdout
    assert address in waiting.stdout
    assert "not drained within 3s" in waiting.stderr
    assert [nic["state"] for nic in host.nics()] == ["assigned"]
    assert len(host.cloud_nics()) == 1
    assert container.reaches("172.20.1.1")
    host.delete(container)
    assert host.qingagent("drain").stdout.splitlines()[-1] == "drained: no NICs left"
    assert host.cloud_nics() == {}


def test_cleanup_is_refused_while_the_agent_runs(new_host: NewHost) -> None:
    host = new_host()
    agent = host.start(min_idle=1, max_idle=1)
    refused = host.cleanup("--force", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (3, 1)
    assert agent.is_running
    assert host.is_ready()
    assert len(host.cloud_nics()) == 1


def test_cleanup_removes_everything_but_refuses_while_a_container_lives_unless_forced(new_host: NewHost) -> None:
    """NICs in the cloud, parking namespace, run and state directory; a refused one changes nothing."""
    host = new_host()
    agent = host.start(min_idle=2, max_idle=2)
    container = host.container()
    host.add(container)
    host.wait_idle(2)
    assert agent.stop() == 0
    nics = host.cloud_nics()
    refused = host.cleanup(check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert container.name in refused.stderr
    assert "--force" in refused.stderr
    assert host.cloud_nics() == nics
    assert host.state_dir.exists()
    assert host.parking.exists()
    assert container.reaches("172.20.1.1")

    host.cleanup("--force")
    assert host.cloud_nics() == {}
    assert container.names == ["lo"]
    assert not host.parking.exists()
    assert not host.state_dir.exists()
    assert not host.run_dir.exists()
    assert set(links(host.netns)) & set(nics) == set()
    assert host.cleanup().returncode == 0  # again: there is nothing to do
    assert run("ip", "netns", "list").stdout.count(host.instance_id) == 0
