"""Under kubelet and containerd: loopback and network at once, keys as Go spells them, sandboxes stopped late."""

import json

import pytest

from cni.chains import chain, libcni_of, ours, wait_until_all_is_back
from cni.networks import Failed, Network
from machines.hosts import Host
from machines.simulator import needs_root
from runtimes.kubelet import Kubelet, Sandbox

pytestmark = needs_root

VERSIONS = ("0.3.1", "1.0.0", "1.1.0")


@pytest.fixture(params=VERSIONS)
def network(request: pytest.FixtureRequest, host: Host) -> Network:
    asked = ("portMappings", "bandwidth", "dns", "cgroupPath", "io.kubernetes.cri.pod-annotations")
    return chain(request.param, ours(host, capabilities=dict.fromkeys(asked, True)))


@pytest.fixture
def kubelet(host: Host, network: Network) -> Kubelet:
    return Kubelet(libcni_of(host), network)


def test_loopback_and_network_are_added_at_once(host: Host, kubelet: Kubelet) -> None:
    sandbox = Sandbox(host.container())
    (address,) = kubelet.run_sandbox(sandbox)
    (held,) = host.attachments()
    assert held["address"].partition("/")[0] == address
    assert held["pod"] | {"uid": ""} == {
        "namespace": "default", "name": sandbox.pod, "uid": "", "infra_container_id": sandbox.id
    }  # fmt: skip
    assert sandbox.container.link("lo")["flags"].count("UP") == 1
    assert kubelet.is_node_ready()
    kubelet.stop_sandbox(sandbox)
    wait_until_all_is_back(host)


@pytest.mark.cni(75)
def test_what_a_pod_asks_for_is_understood_as_go_spells_it(host: Host, kubelet: Kubelet) -> None:
    """`Servers`, `Searches` and `Options` become the result's dns; keys for other plugins are ignored."""
    sandbox = Sandbox(host.container())
    kubelet.run_sandbox(sandbox)
    (added,) = [e for e in kubelet.library.executions if (e.verb, e.plugin) == ("ADD", "qingcni")]
    assert added.config["runtimeConfig"].keys() == added.config["capabilities"].keys()
    assert json.loads(added.stdout)["dns"] == {
        "nameservers": ["10.96.0.10"],
        "search": ["svc.cluster.local"],
        "options": ["ndots:5"],
    }
    kubelet.stop_sandbox(sandbox)
    wait_until_all_is_back(host)


def test_a_sandbox_is_stopped_several_times(host: Host, kubelet: Kubelet) -> None:
    """The first time with its namespace, then without."""
    sandbox = Sandbox(host.container())
    kubelet.run_sandbox(sandbox)
    for _ in range(3):
        kubelet.stop_sandbox(sandbox)
    sent = [
        e.environment["CNI_NETNS"] for e in kubelet.library.executions if (e.verb, e.plugin) == ("DEL", "qingcni")
    ]
    assert sent == [sandbox.container.path, "", ""]
    wait_until_all_is_back(host)


@pytest.mark.defect("others-23")
def test_a_late_stop_of_an_old_sandbox_spares_the_new_one_of_the_same_pod(host: Host, kubelet: Kubelet) -> None:
    old, new = Sandbox(host.container()), Sandbox(host.container())
    kubelet.run_sandbox(old)
    kubelet.stop_sandbox(old)
    (address,) = kubelet.run_sandbox(new)
    for _ in range(2):
        kubelet.stop_sandbox(old)
    (held,) = host.attachments()
    assert (held["container_id"], held["address"].partition("/")[0]) == (new.id, address)
    assert new.container.link()["address"] == held["nic_id"]
    kubelet.stop_sandbox(new)
    wait_until_all_is_back(host)


@pytest.mark.defect("others-17", "others-22")
def test_a_new_sandbox_may_come_before_the_old_one_is_stopped(host: Host, kubelet: Kubelet) -> None:
    """The namespace of the old one has died, and with it the sandbox's readiness."""
    old, new = Sandbox(host.container()), Sandbox(host.container())
    kubelet.run_sandbox(old)
    old.container.delete()
    kubelet.run_sandbox(new)
    kubelet.stop_sandbox(old)
    assert [held["container_id"] for held in host.attachments()] == [new.id]
    kubelet.stop_sandbox(new)
    wait_until_all_is_back(host)


def test_a_pod_that_cannot_be_added_is_removed_and_added_again(host: Host, kubelet: Kubelet) -> None:
    sandbox = Sandbox(host.container())
    bad = ours(host, ipam={"routes": [{"dst": "10.96.0.0/12", "gw": "192.0.2.1"}]})
    good, kubelet.network = kubelet.network, chain(kubelet.network.version, bad)
    with pytest.raises(Failed, match=r"192\.0\.2\.1"):
        kubelet.run_sandbox(sandbox)
    assert host.attachments() == []
    kubelet.network = good
    assert len(kubelet.run_sandbox(sandbox)) == 1
    kubelet.stop_sandbox(sandbox)
    wait_until_all_is_back(host)
