"""Later in a list of plugins, or after another one: earlier results stay, and `qingcni` adds its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cni.chains import call_of, chain, ours, wait_until_all_is_back
from cni.libcni import Libcni
from cni.networks import Failed
from machines.hosts import Host
from machines.simulator import needs_root
from runtimes.gocni import interfaces

pytestmark = needs_root

LISTS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0")
CHECKED = ("0.4.0", "1.0.0")


def begins_with(longer: Mapping[str, Any], shorter: Mapping[str, Any]) -> bool:
    """Whether interfaces, addresses and routes of *longer* begin with those of *shorter*."""
    lists = ("interfaces", "ips", "routes")
    return all(longer.get(key, [])[: len(shorter.get(key, []))] == shorter.get(key, []) for key in lists)


def attached_to(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Addresses by the interface they say they belong to."""
    found: dict[str, list[str]] = {each["name"]: [] for each in result["interfaces"]}
    for ip in result["ips"]:
        found[result["interfaces"][ip["interface"]]["name"]].append(ip["address"])
    return found


@pytest.mark.cni(38, 39)
@pytest.mark.parametrize("version", LISTS)
def test_after_loopback_both_are_in_the_result(host: Host, library: Libcni, version: str) -> None:
    """`loopback` returns its addresses without the version that 0.3.0 to 0.4.0 want."""
    container = host.container()
    network = chain(version, {"type": "loopback"}, ours(host))
    result = library.add(network, call_of(container))
    (held,) = host.attachments()
    assert attached_to(result) == {"lo": ["127.0.0.1/8", "::1/128"], "eth0": [held["address"]]}
    before = next(e.config for e in library.executions if e.plugin == "qingcni")["prevResult"]
    assert begins_with(result, before | {"ips": result["ips"][:2]})
    assert interfaces([result])["eth0"].addresses == (held["address"].partition("/")[0],)
    if version in CHECKED:
        library.check(network, call_of(container))
    for _ in range(2):
        library.delete(network, call_of(container))
    wait_until_all_is_back(host)


@pytest.mark.cni(38)
@pytest.mark.parametrize("version", LISTS)
@pytest.mark.parametrize("plugin", ["ptp", "bridge"])
def test_after_an_interface_of_another_name_nothing_is_lost(
    host: Host, library: Libcni, tmp_path: Path, plugin: str, version: str
) -> None:
    """As a plugin that calls others does it: the first one under net1, ours under eth0 with its result."""
    container = host.container()
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "ipam"), "subnet": "10.77.0.0/24"}
    theirs = chain(version, {"type": plugin, "ipam": ipam, "dns": {"nameservers": ["10.77.0.53"]}}, name="theirs")
    before = library.add(theirs, call_of(container, "net1"))
    conf = {"name": "mynet", "cniVersion": version, **ours(host), "prevResult": before}
    result = host.add(container, conf=conf)
    (held,) = host.attachments()
    own = [{"name": "eth0", "mac": held["nic_id"], "sandbox": container.path}]
    assert result["interfaces"] == before["interfaces"] + own
    assert begins_with(result, before)
    assert attached_to(result)["eth0"] == [held["address"]]
    assert attached_to(result)["net1"] == [ip["address"] for ip in before["ips"]]
    assert result["dns"] == before["dns"]
    if version in CHECKED:
        host.cni("CHECK", container, conf=conf | {"prevResult": result}).succeeded()
    host.delete(container)
    assert container.names == ["lo", "net1"]
    library.delete(theirs, call_of(container, "net1"))
    wait_until_all_is_back(host)


@pytest.mark.cni(31)
@pytest.mark.parametrize("plugin", ["ptp", "bridge"])
def test_after_an_interface_of_the_same_name_it_refuses(
    host: Host, library: Libcni, tmp_path: Path, plugin: str
) -> None:
    """A list has one interface name, so only one plugin of it can make the interface."""
    container = host.container()
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "ipam"), "subnet": "10.77.0.0/24"}
    network = chain("1.0.0", {"type": plugin, "ipam": ipam}, ours(host))
    with pytest.raises(Failed, match="eth0") as failure:
        library.add(network, call_of(container))
    assert failure.value.code == 7
    assert host.attachments() == []
    assert container.names == ["lo", "eth0"]
    library.delete(network, call_of(container))
    assert container.names == ["lo"]
    wait_until_all_is_back(host)
