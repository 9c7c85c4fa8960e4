"""What containers cost: no cloud call where the pool is warm, few where it is not, and nothing that accumulates."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from machines.agents import open_files
from machines.containers import Container, address_of
from machines.hosts import Host, NewHost
from machines.simulator import Sim, eventually, needs_root

pytestmark = needs_root
HOSTS = 4

THREE = {"min_idle": 3, "max_idle": 3, "max_nics": 3}
PAIRS = 200
BURST = 20
RSS_NOISE = 2048  # kB; a leak of one object per request would show as more


def calls(sim: Sim) -> dict[str, int]:
    return dict(sim.status()["calls"])


def kernel_counts(pid: int) -> dict[str, int]:
    """Threads and resident memory (kB) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {"threads": int(fields["Threads"]), "rss": int(fields["VmRSS"].split()[0])}


def grown(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {kind: count for kind, count in now.items() if count > before.get(kind, 0)}


def table(host: Host) -> list[tuple[Any, ...]]:
    return sorted((nic["nic_id"], nic["name"], nic["address"], nic["state"]) for nic in host.nics())


@pytest.mark.defect("slow-6", "others-26")
def test_with_max_nics_equal_to_the_warm_ones_adds_and_dels_cause_no_cloud_call(new_host: NewHost, sim: Sim) -> None:
    """Also while all are taken, and while an ADD waits for the next NIC that comes free."""
    host = new_host()
    host.start(**THREE)
    before, nics = calls(sim), table(host)
    containers = [host.container() for _ in range(4)]
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            for container in containers[:3]:
                host.add(container)
            waiting = pool.submit(host.cni, "ADD", containers[3])
            eventually(lambda: host.status()["waiting"], "an ADD that waits")
            host.delete(containers[0])
            waiting.result().succeeded()
            for container in containers:
                host.delete(container)
    host.wait_idle(3)
    assert calls(sim) == before
    assert table(host) == nics


def test_200_pairs_leave_the_same_nics_and_no_growth(new_host: NewHost, sim: Sim) -> None:
    """Of descriptors, threads, memory; no cloud call either."""
    host = new_host()
    agent = host.start(**THREE)
    containers = [host.container() for _ in range(3)]

    def pairs(count: int) -> None:
        for number in range(count):
            host.add(containers[number % 3])
            host.delete(containers[number % 3])

    pairs(20)  # what is loaded or grown once has been by now
    host.wait_idle(3)
    nics, made, counts = table(host), calls(sim), kernel_counts(agent.pid)
    files = min((open_files(agent.pid) for _ in range(20)), key=lambda found: sum(found.values()))
    for _ in range(3):  # a leak grows each time; what other tests put into their namespaces is read into memory once
        before = kernel_counts(agent.pid)["rss"]
        pairs(PAIRS)
        host.wait_idle(3)
        grew = kernel_counts(agent.pid)["rss"] - before
        if grew <= RSS_NOISE:
            break
    assert table(host) == nics
    assert calls(sim) == made
    # Fewer are not growth: an idle connection to the cloud is closed after some seconds.
    eventually(lambda: grown(open_files(agent.pid), files) == {}, f"no more descriptors than before: {files}")
    assert kernel_counts(agent.pid)["threads"] == counts["threads"]
    assert grew <= RSS_NOISE


@pytest.mark.cni(36)
@pytest.mark.defect("ancestor-1", "slow-4")
def test_20_adds_at_once_on_three_idle_nics_all_get_one_of_their_own_for_few_calls(
    new_host: NewHost, sim: Sim
) -> None:
    """Each burst that is gathered is one CreateNics and one AttachNics; the links are watched, not polled for."""
    host = new_host()
    host.start(min_idle=3, max_idle=8, max_nics=40)
    before = calls(sim)
    containers = [host.container() for _ in range(BURST)]
    with ThreadPoolExecutor(BURST) as pool:
        results = dict(zip(containers, pool.map(host.add, containers), strict=True))
    host.wait_idle(3)
    assert {container: mac_of(container) for container in containers} == {
        container: result["interfaces"][0]["mac"] for container, result in results.items()
    }
    assert len({result["interfaces"][0]["mac"] for result in results.values()}) == BURST
    cloud = host.cloud_nics()
    assert all(cloud[mac_of(c)]["private_ip"] == address_of(result) for c, result in results.items())
    assert len({address_of(result) for result in results.values()}) == BURST
    made = {action: count - before.get(action, 0) for action, count in calls(sim).items()}
    made = {action: count for action, count in made.items() if count}
    assert set(made) == {"CreateNics", "AttachNics"}
    assert made["CreateNics"] == made["AttachNics"] <= 3
    assert sum(made.values()) / BURST <= 0.3
    with ThreadPoolExecutor(BURST) as pool:
        list(pool.map(host.delete, containers))
    assert host.is_untouched()


def mac_of(container: Container) -> str:
    return str(container.link()["address"])
