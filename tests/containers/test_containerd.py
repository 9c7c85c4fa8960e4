"""Pods of a real containerd on two hosts, run, stopped and removed as the kubelet does it, with NICs of the agents.

containerd is the one installed, configured as `examples/containerd` says. Each test begins and ends without pods.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from machines.agents import attached_address
from machines.machine import EXAMPLES, Before, Machine, left_as_found
from machines.simulator import eventually, needs_root
from pages import page, table
from runtimes.containerd import Containerd, Pod, containerd_on

pytestmark = [needs_root, pytest.mark.timeout(300)]

NETWORK = EXAMPLES / "containerd" / "10-mynet.conflist"
MAX_PODS = 4
POOL = {"min_idle": MAX_PODS, "max_idle": MAX_PODS, "max_nics": MAX_PODS + 1}  # one is the gateway
SetNetwork = Callable[[Callable[[dict[str, Any]], dict[str, Any]]], Containerd]


@dataclass(frozen=True)
class Cluster:
    nodes: tuple[Containerd, ...]
    before: Before


@pytest.fixture(scope="module")
def cluster(machines: tuple[Machine, ...]) -> Iterator[Cluster]:
    """Two nodes, ready for pods."""
    with ExitStack() as stack:
        nodes = tuple(stack.enter_context(containerd_on(machine)) for machine in machines)
        before = Before.of(machines)
        for node in nodes:
            node.machine.start(idle=MAX_PODS, **POOL)
            node.new_pod("first").end()  # makes the host's gateway
        eventually(
            lambda: all("masquerade" not in machine.rules() for machine in machines),
            "no rules for pods that are gone",
        )
        yield Cluster(nodes, before)


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[tuple[Containerd, ...]]:
    with left_as_found(cluster.nodes, MAX_PODS):
        yield cluster.nodes


@pytest.fixture
def node(nodes: tuple[Containerd, ...]) -> Containerd:
    return nodes[0]


@pytest.fixture
def network(node: Containerd) -> Iterator[SetNetwork]:
    """Changes the first node's network configuration, for one test."""
    document = json.loads(NETWORK.read_text())

    def change(by: Callable[[dict[str, Any]], dict[str, Any]]) -> Containerd:
        node.set_network(by(document))
        return node

    yield change
    node.end_all()
    node.set_network(document)


def attachment(pod: Pod) -> dict[str, Any]:
    """A pod's attachment, as the agent shows it."""
    (found,) = [a for a in pod.runtime.machine.attachments() if a["container_id"] == pod.sandbox_id]
    return dict(found)


def asked_about(pod: Pod) -> list[tuple[str, str | None, int]]:
    """What its agent was asked about a pod since it started: verb, namespace and code."""
    told = pod.runtime.machine.agent.events("cni.request")
    return [(e["verb"], e.get("netns"), e["code"]) for e in told if e["container"] == pod.sandbox_id]


def gateway_of(known: dict[str, Any]) -> str:
    return next(str(route["gw"]) for route in known["routes"] if route["dst"] == "0.0.0.0/0")


def test_the_page_of_runtimes_names_this_version(node: Containerd) -> None:
    version = node.ask("Version").runtime_version.partition("~")[0]
    (row,) = [cells for cells in table(page("docs/runtimes.md"), "Runtime", "Proven") if cells[0] == "containerd"]
    assert row[1].startswith(f"{version}, ")


def test_a_pod_has_the_address_its_nic_has_in_the_cloud(node: Containerd) -> None:
    pod = node.new_pod("web")
    known = attachment(pod)
    nic = node.machine.cloud_nics()[known["nic_id"]]
    assert pod.is_ready
    assert pod.address == nic["private_ip"] == attached_address(known)
    assert list(pod.status().network.additional_ips) == []
    assert (known["ifname"], known["netns"]) == ("eth0", pod.netns)
    pod.start_container()
    _, said = pod.run("ip", "address", "show", "dev", "eth0")
    assert nic["nic_id"] in said
    assert f"inet {known['address']} " in said
    _, routes = pod.run("ip", "route")
    for route in known["routes"]:
        assert f"{route['dst'].replace('0.0.0.0/0', 'default')} via {route['gw']} dev eth0" in routes


@pytest.mark.cni(74)
def test_the_agent_knows_whose_pod_it_is(node: Containerd) -> None:
    pod = node.new_pod("web")
    told = pod.config.metadata
    assert attachment(pod)["pod"] == {
        "namespace": told.namespace,
        "name": "web",
        "uid": told.uid,
        "infra_container_id": pod.sandbox_id,
    }
    assert f"{told.namespace}/web" in node.machine.qingagent("attachments").stdout


def test_pods_on_two_hosts_reach_each_other(nodes: tuple[Containerd, ...]) -> None:
    one, other = (node.new_pod(f"peer-{node.machine.name}") for node in nodes)
    for pod in (one, other):
        pod.start_container()
    assert one.address != other.address
    assert one.reaches(other.address)
    assert other.reaches(one.address)


@pytest.mark.cni(42)
def test_a_pod_is_stopped_as_often_as_the_kubelet_likes_and_its_nic_comes_back_once(node: Containerd) -> None:
    pod = node.new_pod("web")
    nic_id = attachment(pod)["nic_id"]
    pod.stop()
    assert not pod.is_ready
    assert node.machine.attachments() == []
    again = node.new_pod("web")  # the same pod, recreated: a new sandbox
    pod.stop()
    pod.remove()
    assert [a["container_id"] for a in node.machine.attachments()] == [again.sandbox_id]
    assert nic_id in {nic["nic_id"] for nic in node.machine.nics()}


def test_pods_at_once_get_a_nic_each(node: Containerd) -> None:
    names = [f"pod{n}" for n in range(MAX_PODS)]
    with ThreadPoolExecutor(len(names)) as threads:
        pods = list(threads.map(node.new_pod, names))
    assert len({pod.address for pod in pods}) == len(names)
    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(Pod.end, pods))


def test_pods_outlive_a_restart_of_containerd_and_are_stopped_by_the_next(node: Containerd) -> None:
    pod = node.new_pod("web")
    pod.start_container()
    known = attachment(pod)
    node.stop()
    node.start()
    assert pod.is_ready
    assert pod.address == attached_address(known)
    assert attachment(pod) == known
    assert pod.reaches(gateway_of(known))
    node.kill()
    node.start()
    pod.end()
    assert node.machine.attachments() == []


@pytest.mark.cni(7)
def test_after_a_reboot_the_sandboxes_that_were_are_stopped_and_their_nics_free(node: Containerd) -> None:
    """They are still listed: containerd keeps them, and libcni its results, where a reboot does not reach."""
    pods = [node.new_pod(f"pod{n}") for n in range(2)]
    node.machine.reboot()
    node.kill()
    node.machine.start(idle=0, **POOL)
    node.start()
    for pod in pods:
        assert not pod.is_ready
        pod.end()
        assert ("DEL", None, 0) in asked_about(pod)
    assert node.machine.attachments() == []
    again = node.new_pod("again")
    again.start_container()
    assert again.reaches(gateway_of(attachment(again)))


def test_pods_outlive_a_restart_of_the_agent(node: Containerd) -> None:
    pod = node.new_pod("web")
    pod.start_container()
    known = attachment(pod)
    node.machine.agent.kill()
    assert pod.reaches(gateway_of(known))
    node.machine.start(idle=0, **POOL)
    assert attachment(pod) == known
    assert pod.reaches(gateway_of(known))


def test_a_pod_that_cannot_have_a_nic_is_refused_with_the_agents_words_and_leaves_nothing(node: Containerd) -> None:
    assert node.machine.agent.stop() == 0
    with pytest.raises(grpc.RpcError, match=r"agent at 127\.0\.0\.1:31080: connect failed.*is qingagent running"):
        node.new_pod("web")
    assert node.conditions() == {"RuntimeReady": True, "NetworkReady": True}
    node.machine.start(idle=0, **POOL)
    node.end_all()
    assert node.machine.attachments() == []


@pytest.mark.cni(33)
def test_a_deadline_of_the_kubelet_ends_an_add_that_waits(node: Containerd) -> None:
    """The plugin is killed at the deadline; what it asked for must not be done for nobody."""
    pods = [node.new_pod(f"pod{n}") for n in range(MAX_PODS)]
    with pytest.raises(grpc.RpcError) as late:
        node.new_pod("late", seconds=2.0)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: node.machine.status()["waiting"] == 0, "nobody waits for a NIC")
    pods.pop().end()
    fits = node.new_pod("fits")
    assert {a["container_id"] for a in node.machine.attachments()} == {p.sandbox_id for p in (*pods, fits)}


@pytest.mark.cni(53)
def test_a_pod_stopped_while_the_agent_is_away_gives_its_nic_back(node: Containerd) -> None:
    pod = node.new_pod("web")
    nic_id = attachment(pod)["nic_id"]
    node.machine.agent.kill()
    pod.stop()
    pod.remove()
    node.machine.start(idle=0, **POOL)
    eventually(lambda: not node.machine.attachments(), "the release that was left for the agent")
    assert nic_id in {nic["nic_id"] for nic in node.machine.nics()}


@pytest.mark.cni(47)
def test_a_pod_whose_namespace_vanished_is_stopped_and_gives_its_nic_back(node: Containerd) -> None:
    """As after a reboot: containerd names no namespace then, and sends DEL all the same."""
    pod = node.new_pod("web")
    known = attachment(pod)
    netns, pause = pod.netns, pod.details()["pid"]
    node.machine.run("umount", "--lazy", netns)  # a survey may have it open
    node.machine.run("rm", netns)
    node.machine.run("kill", "-KILL", str(pause))
    eventually(lambda: not pod.is_ready, "containerd sees the end of the pause process")
    pod.stop()
    assert asked_about(pod)[-1] == ("DEL", None, 0)
    assert node.machine.attachments() == []
    pod.remove()
    eventually(lambda: not node.machine.nics("arriving", "missing"), "the NIC is back on the host")
    assert node.machine.cloud_nics()[known["nic_id"]]["private_ip"] == attached_address(known)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_pods_are_the_same_in_every_version_that_containerd_speaks(network: SetNetwork, version: str) -> None:
    node = network(lambda document: document | {"cniVersion": version})
    pod = node.new_pod("web")
    assert pod.address == attached_address(attachment(pod))
    pod.end()
    assert node.machine.attachments() == []


def test_a_version_that_containerd_cannot_read_leaves_no_nic_behind(network: SetNetwork) -> None:
    node = network(lambda document: document | {"cniVersion": "1.1.0"})
    with pytest.raises(grpc.RpcError, match="unsupported CNI result version"):
        node.new_pod("web")
    assert node.machine.attachments() == []


@pytest.mark.cni(79)
@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_plugins_chained_behind_ours_do_their_work(network: SetNetwork, version: str) -> None:
    tuning = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
    chained = [{"type": "portmap", "capabilities": {"portMappings": True}}, tuning]
    node = network(lambda document: document | {"cniVersion": version, "plugins": [*document["plugins"], *chained]})
    pod = node.new_pod("web")
    pod.start_container()
    assert pod.address == attached_address(attachment(pod))
    assert pod.run("cat", "/proc/sys/net/core/somaxconn") == (0, "500\n")
    pod.end()
    assert node.machine.attachments() == []


def test_afterwards_hosts_and_cloud_are_as_they_were_before(cluster: Cluster) -> None:
    assert cluster.before.is_again()
