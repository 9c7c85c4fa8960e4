"""The state file on real disks: full, broken, replaced under a running agent. Containers notice nothing."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from machines.containers import address_of
from machines.hosts import Host, NewHost
from machines.simulator import disk_of, eventually, fill, links, needs_root

pytestmark = needs_root
HOSTS = 8

POOL = {"min_idle": 2, "max_idle": 2, "max_nics": 5}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with disk_of("2m", tmp_path / "small") as place:
        yield place


def answers(host: Host) -> bool:
    with suppress(OSError):
        return host.ask("GET", "/healthz").status == 200
    return False


def refused_add(host: Host) -> str:
    """ADDs until one is rejected; earlier ones find room that the file has already. Returns its error."""
    while True:
        container = host.container()
        answer = host.cni("ADD", container)
        if answer.status:
            assert answer.code == 11, answer
            assert container.names == ["lo"]
            return answer.message
        host.delete(container)


def test_a_full_disk_refuses_adds_and_nothing_else(new_host: NewHost, small: Path) -> None:
    host = new_host()
    agent = host.start(state_dir=small, **POOL)
    stays, goes, dies, last = (host.container() for _ in range(4))
    before = host.add(stays)
    for container in (goes, dies, last):
        host.add(container)
    others = fill(small)
    trouble = f"state file {small / 'agent.db'} cannot be written: database or disk is full; make room there"
    assert trouble in refused_add(host)
    assert trouble in host.cni("ADD", host.container()).message

    assert host.add(stays) == before
    host.cni("CHECK", stays, conf=host.conf("1.0.0") | {"prevResult": before | {"cniVersion": "1.0.0"}})
    host.cni("STATUS", "", "", conf=host.conf("1.1.0"), CNI_NETNS=None).succeeded()
    host.delete(goes)
    dies.delete()
    eventually(lambda: len(host.attachments()) == 2, "the dead container's NIC taken back")
    host.cni("GC", "", "", conf=host.conf("1.1.0") | {"cni.dev/valid-attachments": []}, CNI_NETNS=None).succeeded()
    assert {a["container_id"] for a in host.attachments()} == {stays.name, last.name}
    assert goes.names == ["lo"]

    ready = host.ask("GET", "/readyz")
    assert (ready.status, ready.body.decode()) == (
        503,
        f"not ready: {trouble} (ADD is rejected; DEL, CHECK and GC are served)\n",
    )
    status = host.status()
    assert (status["ready"], status["store_error"]) == (False, trouble)
    assert status["unsaved"] > 0
    assert f"disk:        {trouble} (" in host.qingagent("status").stdout
    assert host.metric("qingagent_ready ") == 0
    assert host.metric("qingagent_store_refusals_total") >= 1
    assert host.metric("qingagent_store_unsaved_changes") > 0
    assert host.metric("qingagent_store_behind_seconds") > 0
    assert [line["level"] for line in agent.events("store.refused")] == ["warning"]
    nics = len(host.sim.status()["nics"])

    agent.kill()  # what it had not written is lost, and the kernel shows it
    agent = host.launch(state_dir=small, **POOL)
    eventually(lambda: answers(host), "the agent to answer")
    assert {a["container_id"] for a in host.attachments()} == {stays.name, last.name}
    assert host.add(stays) == before
    refused_add(host)
    host.delete(last)

    others.unlink()
    eventually(lambda: host.is_ready(agent), "ready again", seconds=30)
    eventually(lambda: not host.status()["unsaved"], "all on disk")
    assert agent.events("store.recovered")
    assert host.metric("qingagent_store_behind_seconds") == 0
    host.add(host.container())
    host.add(goes)
    eventually(host.is_calm, "table and cloud agree")
    assert len(host.sim.status()["nics"]) == nics
    agent.kill()
    host.start(idle=0, state_dir=small, **POOL)
    assert len(host.attachments()) == 3
    assert host.add(stays) == before


def test_an_agent_stopped_while_its_disk_is_full_reports_what_it_could_not_write(
    new_host: NewHost, small: Path
) -> None:
    host = new_host()
    agent = host.start(state_dir=small, **POOL)
    container = host.container()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    others = fill(small)
    refused_add(host)
    host.delete(container)
    assert agent.stop() == 0
    (line,) = agent.events("store.unsaved")
    assert line["changes"] > 0
    assert "database or disk is full" in line["cause"]
    others.unlink()
    host.start(idle=0, state_dir=small, **POOL)
    assert host.attachments() == []
    assert nic_id in links(host.parking.name)


# --- damaged -----------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    """Garbage in the middle of the file, as a bad disk leaves it; what was in the WAL is in it by now, or lost."""
    raw = bytearray(path.read_bytes())
    start = len(raw) // 3
    raw[start : start + 8192] = b"\xa5" * len(raw[start : start + 8192])
    path.write_bytes(raw)


def test_a_damaged_file_is_set_aside_and_containers_keep_their_nics(new_host: NewHost) -> None:
    host = new_host()
    agent = host.start(**POOL)
    asked, dies, stays = (host.container() for _ in range(3))
    results = {container.name: host.add(container) for container in (asked, dies, stays)}
    macs = {name: result["interfaces"][0]["mac"] for name, result in results.items()}
    host.wait_idle(2)
    agent.stop()
    nics = host.cloud_nics()
    damage(host.state_dir / "agent.db")

    agent = host.start(idle=0, **POOL)
    (event,) = agent.events("store.set-aside")
    assert event["level"] == "warning"
    assert "is damaged" in event["detail"]
    (kept,) = host.state_dir.glob("agent.db.damaged-*")
    assert event["detail"].endswith(f"it was renamed to {kept}")
    found = host.attachments()
    assert {(a["container_id"], a["network"]) for a in found} == {("", "")}
    assert {(a["netns"], a["nic_id"]) for a in found} == {
        (container.path, macs[container.name]) for container in (asked, dies, stays)
    }
    assert stays.reaches(address_of(results[asked.name]))

    host.delete(asked)
    assert asked.names == ["lo"]
    assert macs[asked.name] in links(host.parking.name)
    assert host.add(stays) == results[stays.name]
    host.cni("CHECK", stays, conf=host.conf("1.0.0") | {"prevResult": results[stays.name] | {"cniVersion": "1.0.0"}})
    dies.delete()
    eventually(lambda: macs[dies.name] in links(host.parking.name), "the dead container's NIC parked")
    assert [(a["container_id"], a["nic_id"]) for a in host.attachments()] == [(stays.name, macs[stays.name])]
    eventually(host.is_calm, "table and cloud agree")
    assert set(host.cloud_nics()) >= set(nics)
    host.delete(stays)
    agent.stop()
    host.cleanup()
    assert list(host.state_dir.parent.glob("state/*")) == []
    assert host.cloud_nics() == {}


def test_cleanup_names_the_containers_that_nobody_has_named_and_takes_their_nics_if_forced(new_host: NewHost) -> None:
    host = new_host()
    host.start(**POOL)
    container = host.container()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    host.agent.stop()
    (host.state_dir / "agent.db").write_bytes(b"")
    refused = host.cleanup(check=False)
    assert refused.returncode == 1
    assert f"cleanup: containers have NICs: {nic_id} in {container.path}; remove them" in refused.stderr
    assert "eth0" in container.names
    host.cleanup("--force")
    assert container.names == ["lo"]
    assert host.cloud_nics() == {}


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_what_befalls_the_file_of_a_running_agent_costs_earlier_events_at_most(new_host: NewHost, how: str) -> None:
    host = new_host()
    agent = host.start(**POOL)
    one, two = host.container(), host.container()
    before = host.add(one)
    database = host.state_dir / "agent.db"
    if how == "removed":
        database.unlink()
    else:
        database.rename(database.with_name("elsewhere"))
        database.write_bytes(b"nothing of ours")
    host.add(two)
    host.delete(two)
    host.add(two)
    eventually(lambda: not host.status()["unsaved"], "all on disk")
    assert len(agent.events("store.set-aside")) == 1
    agent.kill()
    agent = host.start(idle=0, **POOL)
    assert not agent.events("store.set-aside")
    assert {a["container_id"] for a in host.attachments()} == {one.name, two.name}
    assert host.add(one) == before
    host.delete(one)
    host.delete(two)
    assert one.names == two.names == ["lo"]
