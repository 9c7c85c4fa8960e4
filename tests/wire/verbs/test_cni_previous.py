"""ADD behind other plugins of a chain: their result stays, ours follows it, and indexes fit.

The expected results are computed by the tests' own model of the library (`cni_results`).
"""

from typing import Any

import pytest

from cni.results import OLD, VERSIONS, convert, decode
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import needs_root

pytestmark = needs_root

SERVICES = "10.96.0.0/12"
ROUTES = [{"dst": SERVICES, "gw": "172.20.1.1"}]
V4 = {"address": "10.5.0.2/24", "gateway": "10.5.0.1", "interface": 1}
V6 = {"address": "fd00:5::2/64", "gateway": "fd00:5::1", "interface": 1}
LATER = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


def earlier(container: Container, version: str, *ips: dict[str, Any]) -> dict[str, Any]:
    """A result of plugins before us, with all that *version* can say: a bridge, and an interface inside."""
    whole = {
        "interfaces": [
            {"name": "cni0", "mac": "02:00:00:00:00:01", "mtu": 1400, "socketPath": "/run/x.sock"},
            {"name": "net0", "mac": "02:00:00:00:00:02", "sandbox": container.path, "pciID": "0000:00:06.0"},
        ],
        "ips": list(ips),
        "routes": [
            {"dst": "10.6.0.0/16", "gw": "10.5.0.1", "mtu": 1400, "advmss": 1300, "table": 0, "scope": 253},
            {"dst": "fd00:6::/48", "gw": "fd00:5::1", "priority": 7},
        ],
        "dns": {
            "nameservers": ["10.5.0.53"],
            "domain": "earlier.local",
            "search": ["a.local"],
            "options": ["rotate"],
        },
    }
    return _plain(convert(decode(whole, "1.1.0"), version))


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """Without what only 1.1.0 says, which the library lets pass."""
    if result["cniVersion"] != "1.1.0":
        for key, known in (("interfaces", {"name", "mac", "sandbox"}), ("routes", {"dst", "gw"})):
            if key in result:
                result[key] = [{k: v for k, v in row.items() if k in known} for row in result[key]]
    return result


def previous_result(result: dict[str, Any], given: str | None) -> dict[str, Any]:
    """As a configuration has it; where *given* is None without its version."""
    return {"prevResult": {k: v for k, v in result.items() if given or k != "cniVersion"}}


@pytest.mark.cni(38, 39, 40)
@pytest.mark.parametrize("version", LATER)
@pytest.mark.parametrize("given", [*VERSIONS, None])
def test_all_that_was_said_before_is_kept_and_ours_comes_behind(host: Host, version: str, given: str | None) -> None:
    """In whichever version it was said, or in none that it names. Repeated it is the same; DEL needs none of it."""
    container = host.container()
    plain = host.conf(version, routes=ROUTES) | {"dns": {"nameservers": ["10.96.0.10"]}}
    own = decode(host.add(container, conf=plain), version)
    host.delete(container, conf=plain)
    host.wait_idle(2)

    previous = earlier(container, given or version, V4, V6)
    before = _plain(convert(previous, version))
    conf = plain | previous_result(previous, given)
    answer = host.cni("ADD", container, conf=conf).succeeded()
    said = decode(answer.json, version)
    link, interfaces = container.link(), before.get("interfaces", [])
    (address,) = (f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["family"] == "inet")
    ours = own["interfaces"][0] | {"mac": link["address"]}
    assert said.get("interfaces") == [*interfaces, ours]
    assert said["ips"] == [*before["ips"], own["ips"][0] | {"address": address, "interface": len(interfaces)}]
    assert said["routes"] == [*before["routes"], *own["routes"]]
    assert said["dns"]["nameservers"] == ["10.5.0.53", "10.96.0.10"]
    assert {k: said["dns"][k] for k in ("domain", "search", "options")} == {
        k: before["dns"][k] for k in ("domain", "search", "options")
    }
    assert host.cni("ADD", container, conf=conf).stdout == answer.stdout
    host.delete(container, conf=plain)
    assert container.names == ["lo"]


@pytest.mark.cni(28, 38, 39)
@pytest.mark.parametrize("version", OLD)
@pytest.mark.parametrize("given", [*VERSIONS, None])
def test_where_a_version_has_room_for_one_address_a_second_one_is_refused(
    host: Host, version: str, given: str | None
) -> None:
    """Nothing is dropped in silence. An address of the other family has its place."""
    container = host.container()
    conf = host.conf(version)
    refused = host.cni("ADD", container, conf=conf | previous_result(earlier(container, given or version, V4), given))
    refused.refused(7, "10.5.0.2/24", version, "one address")
    assert container.names == ["lo"]
    assert host.is_untouched()

    previous = earlier(container, given or version, V6)
    said = host.add(container, conf=conf | previous_result(previous, given))
    assert said["ip6"] == convert(previous, version)["ip6"]
    assert said["ip4"]["ip"].partition("/")[0] in [a["local"] for a in container.link()["addr_info"]]


@pytest.mark.cni(28)
@pytest.mark.parametrize("version", ["0.2.0", "1.1.0"])
@pytest.mark.parametrize("key", ["runtimeConfig", "args.cni"])
def test_two_addresses_for_one_nic_are_refused(host: Host, version: str, key: str) -> None:
    wish = {"ips": ["172.20.1.77/24", "172.20.1.78"]}
    conf = host.conf(version)
    conf |= {"runtimeConfig": wish} if key == "runtimeConfig" else {"args": conf["args"] | {"cni": wish}}
    host.cni("ADD", host.container(), conf=conf).refused(7, f"{key}.ips", *wish["ips"])
    assert host.is_untouched()


@pytest.mark.cni(38)
@pytest.mark.parametrize("version", LATER)
def test_an_interface_that_a_plugin_before_us_made_is_not_made_again(host: Host, version: str) -> None:
    container = host.container()
    conf = host.conf(version) | {"prevResult": earlier(container, version, V4)}
    host.cni("ADD", container, "net0", conf).refused(7, "prevResult", "net0")
    assert container.names == ["lo"]
    assert host.is_untouched()


BAD_RESULTS: dict[str, Any] = {
    "no object": 5,
    "a list": [],
    "unknown version": {"cniVersion": "9.9.9"},
    "version that is no text": {"cniVersion": 1},
    "ips that are none": {"ips": "10.5.0.2/24"},
    "address without prefix": {"ips": [{"version": "4", "address": "10.5.0.2"}]},
    "index beyond the list": {"interfaces": [{"name": "net0"}], "ips": [{"address": "10.5.0.2/24", "interface": 1}]},
    "index below 0": {"interfaces": [{"name": "net0"}], "ips": [{"address": "10.5.0.2/24", "interface": -1}]},
    "index that is a text": {"interfaces": [{"name": "net0"}], "ips": [{"address": "10.5.0.2/24", "interface": "0"}]},
    "route without network": {"routes": [{"gw": "10.5.0.1"}]},
    "nameserver that is a number": {"dns": {"nameservers": [10]}},
}


@pytest.mark.cni(38)
@pytest.mark.parametrize("bad", BAD_RESULTS)
def test_a_previous_result_that_is_none_is_refused_and_nothing_is_held(host: Host, bad: str) -> None:
    container = host.container()
    host.cni("ADD", container, conf=host.conf("1.0.0") | {"prevResult": BAD_RESULTS[bad]}).refused(7, "prevResult")
    assert container.names == ["lo"]
    assert host.is_untouched()
