"""What a runtime may ask for: an address, a MAC, name servers, the pod, labels."""

import json

import pytest

from cni.answers import Answer
from machines.hosts import Host, NewHost
from machines.simulator import needs_root

pytestmark = needs_root
HOSTS = 2

ABSENT = {"mac": "52:54:00:ff:ff:ff", "ip": "172.20.1.250"}
KUBELET = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-7;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"


def asking(host: Host, how: str, mac: str, ip: str) -> Answer:
    """ADD of a new container for this MAC and address."""
    conf, cni_args = host.conf("1.0.0"), ""
    match how:
        case "runtimeConfig":
            conf |= {"runtimeConfig": {"mac": mac, "ips": [ip]}, "capabilities": {"mac": True, "ips": True}}
        case "args":
            conf["args"] |= {"cni": {"mac": mac, "ips": [ip]}}
        case _:
            cni_args = f"IgnoreUnknown=1;IP={ip};MAC={mac}"
    return host.cni("ADD", host.container(), conf=conf, CNI_ARGS=cni_args)


@pytest.mark.parametrize("how", ["runtimeConfig", "args", "CNI_ARGS"])
def test_an_idle_nic_is_given_to_who_asks_for_its_address_and_mac(host: Host, how: str) -> None:
    nic = host.nics("idle")[-1]  # not the one whose turn it is
    result = asking(host, how, nic["nic_id"], nic["address"].partition("/")[0]).result
    assert result["interfaces"][0]["mac"] == host.containers[-1].link()["address"] == nic["nic_id"]
    assert result["ips"][0]["address"] == nic["address"]


@pytest.mark.parametrize("how", ["runtimeConfig", "args", "CNI_ARGS"])
def test_what_no_idle_nic_has_is_refused_in_a_sentence_and_nothing_is_held(host: Host, how: str) -> None:
    asking(host, how, **ABSENT).refused(7, *ABSENT.values(), how, "no idle NIC of this host has it", "leave it out")
    assert host.is_untouched()


@pytest.mark.cni(29)
@pytest.mark.parametrize("servers", ["servers", "Servers"])
def test_name_servers_of_the_runtime_are_in_the_result(host: Host, servers: str) -> None:
    conf = host.conf("1.0.0") | {"dns": {"nameservers": ["1.1.1.1"], "domain": "vpc.local"}}
    conf["runtimeConfig"] = {"dns": {servers: ["10.96.0.10"], "Searches": ["svc.cluster.local"], "options": None}}
    container = host.container()
    for _ in range(2):
        assert host.add(container, conf=conf)["dns"] == {
            "nameservers": ["10.96.0.10"],
            "domain": "vpc.local",
            "search": ["svc.cluster.local"],
        }


@pytest.mark.cni(73, 74)
def test_pod_and_labels_are_shown(host: Host) -> None:
    conf = host.conf()
    conf["args"] |= {
        "cni": {"labels": [{"key": "app", "value": "web"}]},
        "org.apache.mesos": {"network_info": {"name": "mynet", "labels": {"labels": [{"key": "m", "value": "1"}]}}},
    }
    pod, bare = host.container(), host.container()
    host.cni("ADD", pod, conf=conf, CNI_ARGS=KUBELET).succeeded()
    host.add(bare)
    shown = {row["container_id"]: row for row in host.attachments()}
    assert shown[pod.name]["pod"] == {
        "namespace": "shop",
        "name": "web-7",
        "uid": "u-1",
        "infra_container_id": "abc",
    }
    assert shown[pod.name]["labels"] == [{"key": "app", "value": "web"}, {"key": "m", "value": "1"}]
    assert set(shown[bare.name]["pod"].values()) == {""}
    told = host.qingagent("attachments").stdout.splitlines()
    assert told[0].split()[:2] == ["POD", "CONTAINER"]
    assert {tuple(line.split()[:2]) for line in told[1:]} == {("shop/web-7", pod.name), ("-", bare.name)}
    assert json.loads(host.qingagent("attachments", "-o", "json").stdout) == host.attachments()


def test_a_status_that_succeeds_is_no_news_in_the_log(new_host: NewHost) -> None:
    """Runtimes ask every few seconds."""
    host = new_host()
    host.start(min_idle=1, max_idle=1, loglevel="info")
    host.cni("STATUS", "", "", host.conf("1.1.0")).succeeded()
    host.add(host.container())
    assert [line["verb"] for line in host.agent.events("cni.request")] == ["ADD"]
