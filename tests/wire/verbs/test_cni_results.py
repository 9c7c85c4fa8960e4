"""Results of ADD in every version, key by key: what they say is what kernel and cloud have."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

import pytest

from cni.results import MIDDLE, NEW, OLD, VERSIONS
from machines.containers import Container
from machines.hosts import Host, NewHost
from machines.simulator import needs_root, run

HOSTS = 2
pytestmark = needs_root

ROUTER = "172.20.1.1"
SERVICES = "10.96.0.0/12"
DNS = {
    "nameservers": ["10.96.0.10", "fd00::a"],
    "domain": "cluster.local",
    "search": ["svc.cluster.local"],
    "options": ["ndots:2"],
}
ROUTES = [{"dst": "0.0.0.0/0", "gw": ROUTER}, {"dst": SERVICES, "gw": ROUTER}]


def expected(host: Host, container: Container, version: str, ifname: str, dns: Mapping[str, Any]) -> dict[str, Any]:
    """What the specification wants said in *version*, of the NIC that the container has."""
    link = container.link(ifname)
    nic_id = link["address"]
    address = f"{host.cloud_nics()[nic_id]['private_ip']}/24"
    assert [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["family"] == "inet"] == [address]
    assert container.routes() == {"default": ROUTER, SERVICES: ROUTER}
    if version in OLD:
        return {"cniVersion": version, "ip4": {"ip": address, "gateway": ROUTER, "routes": ROUTES}, "dns": dns}
    interface = {"name": ifname, "mac": nic_id, "sandbox": container.path}
    ip = {"interface": 0, "address": address, "gateway": ROUTER}
    if version in MIDDLE:
        ip["version"] = "4"
    if version == "1.1.0":
        interface["mtu"] = link["mtu"]
    return {"cniVersion": version, "interfaces": [interface], "ips": [ip], "routes": ROUTES, "dns": dns}


@pytest.mark.cni(19, 20, 21, 22, 23, 24, 25, 26, 27, 29, 30)
@pytest.mark.defect("hostnic-14")
@pytest.mark.parametrize("version", VERSIONS)
def test_the_result_is_exactly_what_the_version_wants(host: Host, version: str) -> None:
    """While the agent logs all it does; DEL says nothing."""
    container = host.container()
    conf = host.conf(version, routes=ROUTES[1:]) | {"dns": DNS}
    answer = host.cni("ADD", container, "net7", conf).succeeded()
    assert answer.json == expected(host, container, version, "net7", DNS)
    assert len(answer.stdout.splitlines()) == 1
    host.delete(container, "net7", conf)
    assert container.names == ["lo"]


@pytest.mark.cni(18)
@pytest.mark.parametrize("given", [{}, {"cniVersion": ""}, {"CNIVersion": ""}, {"cniVersion": None}], ids=str)
def test_without_a_version_the_answer_is_in_the_oldest(host: Host, given: dict[str, Any]) -> None:
    container = host.container()
    result = host.add(container, conf=host.conf(None, routes=ROUTES[1:]) | given)
    dns = result.get("dns", {})
    assert result | {"dns": dns} == expected(host, container, "0.1.0", "eth0", {})
    (attachment,) = host.attachments()
    assert attachment["container_id"] == container.name


@pytest.mark.cni(29)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, {}),
        (None, {}),
        ({"nameservers": []}, {}),
        ({"nameservers": ["10.96.0.10"]}, {"nameservers": ["10.96.0.10"]}),
        ({"Search": ["a", "b"], "domain": "", "options": None}, {"search": ["a", "b"]}),
    ],
    ids=str,
)
def test_dns_is_said_as_it_was_given_and_never_null(
    host: Host, version: str, given: dict[str, Any] | None, said: dict[str, Any]
) -> None:
    container = host.container()
    answer = host.cni("ADD", container, conf=host.conf(version) | {"dns": given}).succeeded()
    assert answer.json.get("dns", {}) == said
    assert b"null" not in answer.stdout


@pytest.mark.cni(24)
def test_the_mtu_is_that_of_the_link(new_host: NewHost) -> None:
    """A link that the agent finds with another than the usual one keeps it."""
    host = new_host()
    host.start(min_idle=1, max_idle=1, duplicate_probe="false")
    host.wait_idle(1)
    macs = [nic["nic_id"] for nic in host.nics()]
    host.agent.stop()
    shutil.rmtree(host.state_dir)
    for mac in macs:
        link = next(row for row in json.loads(run("ip", "-n", host.parking.name, "-j", "link").stdout)
                    if row.get("address") == mac)  # fmt: skip
        run("ip", "-n", host.parking.name, "link", "set", link["ifname"], "mtu", "1442")
    host.start(min_idle=1, max_idle=1, duplicate_probe="false")
    host.wait_idle(1)
    container = host.container()
    result = host.add(container, conf=host.conf("1.1.0"))
    assert result["interfaces"][0]["mtu"] == container.link()["mtu"] == 1442


@pytest.mark.cni(25)
@pytest.mark.defect("hostnic-14")
@pytest.mark.parametrize("version", [*MIDDLE, *NEW])
def test_the_namespace_is_said_byte_for_byte(host: Host, version: str) -> None:
    """Though the path could be written shorter; the same ADD by another path says that one."""
    container = host.container()
    for path in (f"/run/../run//netns/./{container.name}", container.path, f"/var{container.path}"):
        result = host.cni("ADD", container, conf=host.conf(version), CNI_NETNS=path).result
        assert [interface["sandbox"] for interface in result["interfaces"]] == [path]
    assert len(host.attachments()) == 1


@pytest.mark.cni(27)
@pytest.mark.parametrize("version", VERSIONS)
def test_routes_that_are_not_there_are_not_said(host: Host, version: str) -> None:
    """The second interface finds the default route taken: it is the first one's, and listed there alone."""
    container = host.container()
    conf = host.conf(version)
    first, second = (host.add(container, ifname, conf) for ifname in ("eth0", "net1"))
    listed = [(result.get("ip4") or result).get("routes", []) for result in (first, second)]
    assert listed == [ROUTES[:1], []]
    assert [row["dev"] for row in container.ip("route", "show", "default")] == ["eth0"]
