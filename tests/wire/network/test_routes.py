"""Routes by the installed plugin: what the configuration asks for, beside what another plugin installed."""

from typing import Any

import pytest

from machines.containers import Container
from machines.hosts import Host
from machines.simulator import needs_root, run

pytestmark = needs_root

ROUTER = "172.20.1.1"
SERVICES = "10.96.0.0/12"
CHECK_FAILED = 104
THEIRS = (
    ("via", "10.9.0.1", "dev", "eth0", "metric", "100"),
    ("via", "10.9.0.1", "dev", "eth0", "metric", "1024", "proto", "dhcp"),
)


def give_eth0(container: Container) -> None:
    """What another plugin did before, without a route."""
    ip = ("ip", "-n", container.name)
    run(*ip, "link", "add", "eth0", "type", "veth", "peer", "name", "other0")
    run(*ip, "addr", "add", "10.9.0.7/24", "dev", "eth0")
    run(*ip, "link", "set", "other0", "up")
    run(*ip, "link", "set", "eth0", "up")


def checked(conf: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    return conf | {"prevResult": result}


@pytest.mark.parametrize("theirs", THEIRS, ids=["metric", "dhcp"])
def test_a_default_route_of_another_plugin_stays_the_only_one(host: Host, theirs: tuple[str, ...]) -> None:
    container, conf = host.container(), host.conf("1.1.0", routes=[{"dst": SERVICES, "gw": ROUTER}])
    give_eth0(container)
    run("ip", "-n", container.name, "route", "add", "default", *theirs)
    result = host.cni("ADD", container, "net1", conf).succeeded().result
    assert [row["dev"] for row in container.ip("route", "show", "default")] == ["eth0"]
    assert result["routes"] == [{"dst": SERVICES, "gw": ROUTER}]
    host.cni("CHECK", container, "net1", checked(conf, result)).succeeded()
    run("ip", "-n", container.name, "route", "del", SERVICES)
    host.cni("CHECK", container, "net1", checked(conf, result)).refused(CHECK_FAILED, SERVICES, "missing")
    host.cni("DEL", container, "net1", conf).succeeded()


def test_what_a_route_asks_for_is_installed_and_in_the_result(host: Host) -> None:
    asked = {"dst": SERVICES, "gw": ROUTER, "priority": 7, "table": 100, "mtu": 1400, "advmss": 1300, "scope": 0}
    container, conf = host.container(), host.conf("1.1.0") | {"ipam": {"routes": [asked]}}
    result = host.add(container, conf=conf)
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": ROUTER}, asked]
    (route,) = container.ip("route", "show", "table", "100")
    assert (route["gateway"], route["metric"], route["metrics"]) == (ROUTER, 7, [{"mtu": 1400, "advmss": 1300}])
    host.cni("CHECK", container, conf=checked(conf, result)).succeeded()
    assert host.attachments()[0]["routes"][1] == asked
    host.delete(container)


REJECTED: dict[str, tuple[dict[str, Any], str]] = {
    "another IPAM plugin": ({"ipam": {"type": "host-local"}}, "ipam.type 'host-local'"),
    "its range": ({"ipam": {"subnet": "10.0.0.0/24"}}, "ipam.subnet '10.0.0.0/24'"),
    "a route's key": ({"ipam": {"routes": [{"dst": SERVICES, "via": "x"}]}}, "ipam.routes[0].via 'x'"),
    "a key of dns": ({"dns": {"servers": ["1.1.1.1"]}}, "dns.servers ['1.1.1.1']"),
    "a capability": ({"runtimeConfig": {"deviceID": "0000:00:06.0"}}, "runtimeConfig.deviceID '0000:00:06.0'"),
}


@pytest.mark.cni(81)
@pytest.mark.parametrize("what", REJECTED)
def test_what_cannot_be_done_is_code_7_for_add_and_no_obstacle_elsewhere(host: Host, what: str) -> None:
    keys, says = REJECTED[what]
    container, conf = host.container(), host.conf("1.1.0") | keys
    host.cni("ADD", container, conf=conf).refused(7, f"{says} is not supported")
    assert container.names == ["lo"]
    host.cni("DEL", container, conf=conf).succeeded()
    host.cni("STATUS", "", "", conf, CNI_NETNS="", CNI_ARGS="").succeeded()
    assert host.is_untouched()
