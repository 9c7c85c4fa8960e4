"""The agent ends, in every way and at every moment, and starts again: nothing is lost, doubled or left over."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from machines.containers import address_of
from machines.hosts import Host, NewHost
from machines.simulator import Sim, eventually, links, needs_root, running_sim

pytestmark = needs_root

FEW = {"min_idle": 2, "max_idle": 4}
OLD, NEW = "vxnet-pods001", "vxnet-pods002"
TIMES = frozenset({"since", "released"})


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    """With attaches slow enough to be interrupted."""
    with running_sim("--hosts", "16", "--attach-latency", "300ms", "--call-latency", "20ms..40ms") as running:
        yield running


def table(host: Host) -> dict[str, list[dict[str, Any]]]:
    """NICs and attachments as the API shows them, apart from times."""
    return {
        target: sorted(
            ({k: v for k, v in row.items() if k not in TIMES} for row in host.get(f"/v1/{target}")), key=str
        )
        for target in ("nics", "attachments")
    }


def agrees_with_cloud(host: Host) -> bool:
    """Every NIC of ours in the cloud is in the table and attached, and the other way round; nothing is under way."""
    cloud = host.cloud_nics()
    nics = host.nics()
    return (
        not host.status()["operations"]
        and {nic["nic_id"] for nic in nics} == set(cloud)
        and all(nic["instance_id"] == host.instance_id for nic in cloud.values())
        and all(nic["state"] in ("idle", "assigned", "cooling") for nic in nics)
    )


# --- killed --------------------------------------------------------------------------------------------


@pytest.mark.defect("others-15")
def test_after_a_kill_the_table_is_the_same_and_containers_never_noticed(new_host: NewHost) -> None:
    """Same NICs, same attachments, none created or lost in the cloud, and no ping went unanswered meanwhile."""
    host = new_host()
    agent = host.start(**FEW, max_nics=4)
    one, two = host.container(), host.container()
    first = host.cni("ADD", one).succeeded()
    address = address_of(host.add(two))
    host.wait_idle(2)
    before, cloud = table(host), host.cloud_nics()
    ping = ("ping", "-n", "-q", "-i", "0.05", "-c", "60", "-W", "1", address)
    pinging = subprocess.Popen(
        ("nsenter", f"--net={one.path}", *ping), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    agent.kill()
    host.start(**FEW, max_nics=4)
    told, _ = pinging.communicate(timeout=30)
    assert " 0% packet loss" in told
    assert table(host) == before
    assert host.cloud_nics() == cloud
    assert host.cni("ADD", one).stdout == first.stdout
    host.delete(one)
    host.delete(two)
    host.wait_idle(4)
    assert host.cloud_nics() == cloud


def nics_are_created(host: Host) -> bool:
    return bool(host.cloud_nics())


def attach_is_under_way(host: Host) -> bool:
    return any(nic["busy"] for nic in host.cloud_nics().values())


def links_are_there(host: Host) -> bool:
    """On the host, or parked already: a survey takes longer than a link lies there."""
    places = [host.netns, *([host.parking.name] if host.parking.exists() else [])]
    return any(set(links(place)) & set(host.cloud_nics()) for place in places)


def one_is_parked(host: Host) -> bool:
    return bool(host.agent.events("nic.parked"))


# Moments at which the cloud has got the call. For one it never got, tests/sim jumps over the time in which it might.
MOMENTS = (nics_are_created, attach_is_under_way, links_are_there, one_is_parked)


@pytest.mark.defect("hostnic-17", "others-5")
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_kill_while_nics_are_made_leaks_none_and_makes_none_twice(
    new_host: NewHost, moment: Callable[[Host], bool]
) -> None:
    """In the cloud there are just the three that were wanted, all of them in the table and idle."""
    host = new_host()
    agent = host.launch(min_idle=3, max_idle=3, max_nics=3)
    eventually(lambda: moment(host), moment.__name__)
    agent.kill()
    host.start(min_idle=3, max_idle=3, max_nics=3, idle=0)
    eventually(lambda: len(host.nics("idle")) == 3, "three idle NICs", seconds=60)
    eventually(lambda: agrees_with_cloud(host), "table and cloud agree")
    assert len(host.cloud_nics()) == 3
    assert not set(links(host.netns)) & set(host.cloud_nics())
    host.add(host.container())


def test_a_kill_while_nics_are_released_leaves_none(new_host: NewHost) -> None:
    host = new_host()
    agent = host.start(**FEW)
    assert host.ask("POST", "/v1/drain").status == 200
    eventually(lambda: any(nic["busy"] for nic in host.cloud_nics().values()), "a detach job under way")
    agent.kill()
    host.start(min_idle=0, max_idle=0)
    eventually(lambda: not host.cloud_nics() and not host.nics(), "no NIC left in cloud or table")


@pytest.mark.defect("others-5")
def test_a_kill_in_the_middle_of_an_add_leaves_no_half_attachment(new_host: NewHost) -> None:
    """The ADD fails; after the restart it is either undone or, if it had been recorded, answered as recorded."""
    host = new_host()
    agent = host.start(**FEW, max_nics=2)
    containers = [host.container(), host.container()]
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(host.cni, "ADD", container) for container in containers]
        eventually(lambda: agent.events("nic.assigned"), "an ADD under way")
        agent.kill()
        codes = [answer.result(timeout=20).code for answer in answers]
    assert set(codes) <= {0, 11}
    host.start(**FEW, max_nics=2, idle=0)
    eventually(lambda: agrees_with_cloud(host), "table and cloud agree")
    kept = {attachment["container_id"] for attachment in host.attachments()}
    assert all(attachment["is_ready"] for attachment in host.attachments())
    for container, code in zip(containers, codes, strict=True):
        assert code or container.name in kept
        has_nic = "eth0" in container.names
        assert has_nic == (container.name in kept)
        host.add(container)
        host.delete(container)
    host.wait_idle(2)
    assert len(host.cloud_nics()) == 2


def test_a_container_that_went_while_the_agent_was_away_gives_its_nic_back(new_host: NewHost) -> None:
    """Its namespace is gone and nobody sent a DEL; the NIC lies on the host and is taken in again."""
    host = new_host()
    agent = host.start(min_idle=1, max_idle=1, max_nics=1)
    container = host.container()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    agent.kill()
    container.delete()
    eventually(lambda: nic_id in links(host.netns), "the NIC's link back on the host")
    host.start(min_idle=1, max_idle=1, max_nics=1)
    assert host.attachments() == []
    assert [nic["nic_id"] for nic in host.nics("idle")] == [nic_id]
    assert nic_id in links(host.parking.name)


# --- stopped -------------------------------------------------------------------------------------------


@pytest.mark.defect("hostnic-20")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_with_status_0_and_nics_stay(new_host: NewHost, number: signal.Signals) -> None:
    host = new_host()
    agent = host.start(**FEW)
    host.add(host.container())
    host.wait_idle(2)
    eventually(lambda: agrees_with_cloud(host), "table and cloud agree")
    nics = host.cloud_nics()
    agent.process.send_signal(number)
    assert agent.wait() == 0
    assert agent.stderr == ""
    assert not host.socket.exists()
    assert host.cloud_nics() == nics


@pytest.mark.defect("ancestor-7")
def test_the_stop_command_waits_until_the_agent_is_gone(new_host: NewHost) -> None:
    host = new_host()
    agent = host.start(**FEW)
    host.qingagent("stop")
    assert agent.wait(1.0) == 0
    again = host.qingagent("stop", check=False)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "is qingagent running?" in again.stderr


def test_an_add_that_waits_is_answered_11_at_once_when_the_agent_stops(new_host: NewHost) -> None:
    host = new_host()
    agent = host.start(min_idle=1, max_idle=1, max_nics=1)
    first, second = host.container(), host.container()
    host.add(first)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(host.cni, "ADD", second)
        eventually(lambda: host.status()["waiting"] == 1, "an ADD that waits")
        assert agent.stop() == 0
        answer = waiting.result(timeout=20)  # an ADD may wait for 110 s
    assert answer.code == 11, answer
    assert "stopping" in answer.message
    host.start(min_idle=1, max_idle=1, max_nics=1, idle=0)
    assert [attachment["container_id"] for attachment in host.attachments()] == [first.name]


def test_a_second_agent_in_the_namespace_is_refused_with_status_3(new_host: NewHost) -> None:
    """Even with places of its own; the first one goes on."""
    host = new_host()
    first = host.start(**FEW)
    second = host.launch(
        state_dir=host.directory / "state2", run_dir=host.directory / "run2", bindaddr="127.0.0.1:31081"
    )
    assert second.wait() == 3
    assert second.stderr.count("\n") == 1
    assert "another agent runs" in second.stderr
    assert first.is_running
    host.add(host.container())


def test_a_start_with_another_vxnet_replaces_what_serves_nobody(new_host: NewHost) -> None:
    """status, plan and explain say what becomes of the others."""
    host = new_host()
    agent = host.start(vxnet=OLD, **FEW)
    container = host.container()
    nic_id = host.add(container, conf=host.conf("1.0.0"))["interfaces"][0]["mac"]
    assert agent.stop() == 0
    host.start(vxnet=NEW, **FEW, idle=0)
    eventually(lambda: [nic["vxnet_id"] for nic in host.nics("idle")] == [NEW] * 2, "idle NICs of the new vxnet")
    other = host.container()
    assert address_of(host.add(other, conf=host.conf("1.0.0"))).startswith("172.20.2.")
    eventually(lambda: f"1 in {OLD}, not in --vxnet" in host.qingagent("status").stdout, "the others are gone")
    says = f"{OLD}, which is not in --vxnet"
    assert f"{says}, are released after the DEL of their containers" in host.qingagent("plan").stdout
    assert f"{says}: released after the DEL of its container" in host.qingagent("explain", nic_id).stdout
    host.delete(container)
    eventually(lambda: nic_id not in host.cloud_nics(), "the NIC of the old vxnet is deleted")
    eventually(lambda: agrees_with_cloud(host), "table and cloud agree")
