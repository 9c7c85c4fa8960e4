"""The state file on real disks: full, broken, replaced under a running agent. Containers notice nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import Container, Host, NewHost
from simulator import Sim, eventually, links, needs_root, running_sim
from small_disk import fill, small_disk

pytestmark = needs_root

POOL = {"min_idle": 2, "max_idle": 2, "max_nics": 5}


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--hosts", "6") as running:
        yield running


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "2m") as place:
        yield place


def metric(host: Host, name: str) -> float:
    lines = host.ask("GET", "/metrics").body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def names_of(container: Container) -> set[str]:
    return {link["ifname"] for link in container.ip("link", "show")}


def refused_add(host: Host) -> str:
    """ADDs until one is refused; earlier ones find room that the file has already. What it is told."""
    while True:
        container = host.container()
        answer = host.cni("ADD", container)
        if answer.status:
            assert answer.code == 11, answer
            assert names_of(container) == {"lo"}
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
    assert names_of(goes) == {"lo"}

    ready = host.ask("GET", "/readyz")
    assert (ready.status, ready.body.decode()) == (
        503,
        f"not ready: {trouble} (ADD is refused; DEL, CHECK and GC are served)\n",
    )
    status = host.status()
    assert (status["ready"], status["store_error"]) == (False, trouble)
    assert status["unsaved"] > 0
    assert f"disk:        {trouble} (" in host.qingagent("status").stdout
    assert metric(host, "qingagent_ready") == 0
    assert metric(host, "qingagent_store_refusals_total") >= 1
    assert metric(host, "qingagent_store_unsaved_changes") > 0
    assert metric(host, "qingagent_store_behind_seconds") > 0
    assert [line["level"] for line in agent.events("store.refused")] == ["warning"]
    nics = len(host.sim.status()["nics"])

    agent.kill()  # what it had not written is lost, and the kernel shows it
    agent = host.launch(state_dir=small, **POOL)
    eventually(lambda: host.socket.exists() and host.is_ready(agent), "ready, until it has to write")
    assert {a["container_id"] for a in host.attachments()} == {stays.name, last.name}
    assert host.add(stays) == before
    refused_add(host)
    host.delete(last)

    others.unlink()
    eventually(lambda: host.is_ready(agent), "ready again", seconds=30)
    eventually(lambda: not host.status()["unsaved"], "all on disk")
    assert agent.events("store.recovered")
    assert metric(host, "qingagent_store_behind_seconds") == 0
    host.add(host.container())
    host.add(goes)
    eventually(host.is_calm, "table and cloud agree")
    assert len(host.sim.status()["nics"]) == nics
    agent.kill()
    host.start(idle=0, state_dir=small, **POOL)
    assert len(host.attachments()) == 3
    assert host.add(stays) == before


def test_an_agent_that_is_stopped_while_its_disk_is_full_tells_what_it_could_not_write(
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
