"""What a runtime adds to the network configuration: it is tolerated, and some of it recorded.

What is refused before the agent is asked is proved in test_plugin.py.
"""

from typing import Any

import pytest

from cni.results import VERSIONS
from machines.hosts import Host
from machines.simulator import needs_root, run

pytestmark = needs_root

POD = {
    "K8S_POD_NAMESPACE": "default",
    "K8S_POD_NAME": "web-0",
    "K8S_POD_INFRA_CONTAINER_ID": "5b1f",
    "K8S_POD_UID": "0d2a-44",
}
OTHER_KEYS: dict[str, dict[str, Any]] = {
    "keys of other plugins": {"bridge": "cni0", "mtu": 1400, "hairpinMode": True, "plugins": [{"x": None}]},
    "keys of a list": {"disableCheck": True, "disableGC": "true", "cniVersions": ["1.1.0"]},
    "keys of the runtime": {"cni.dev/valid-attachments": [], "cni.dev/x": {}, "prevResult": None},
    "keys in other languages": {"": 1, "中": {"é": ["😀", "\u2028"]}, "a b": [[[]], {}], "$ref": "#"},
    "capabilities": {"capabilities": {"portMappings": True, "bandwidth": True, "x": False}},
    "nothing where something may be": {"dns": None, "ipam": None, "capabilities": None, "runtimeConfig": None},
    "numbers": {"x": [0, -0.0, 1e308, 10**30, 1.5]},
    "other types where they mean nothing": {"type": 5, "capabilities": [], "disableCheck": "maybe"},
}
OTHER_ARGS: dict[str, dict[str, Any]] = {
    "labels": {"cni": {"labels": [{"key": "app", "value": "web"}]}},
    "what means nothing": {"cni": {"x": 1}, "org.example": [1, {"y": None}], "": {}, "BINDADDR2": "x"},
    "Mesos": {"org.apache.mesos": {"network_info": {"name": "mynet", "groups": ["a"], "labels": {"labels": []}}}},
    "Mesos, and nothing in it": {"org.apache.mesos": {}},
    "other types": {"cni": 5, "org.apache.mesos": [None]},
    "other types further in": {"cni": {"labels": "x", "ips": None}, "org.apache.mesos": {"network_info": "mynet"}},
    "labels that are none": {"cni": {"labels": [5, {"key": 1, "value": []}, {}, {"key": "a"}]}},
}


def assert_works(host: Host, conf: dict[str, Any], **variables: str) -> dict[str, Any]:
    """ADD, the same again, DEL: as with the plain configuration. Returns what the agent recorded."""
    container = host.container()
    first = host.cni("ADD", container, "eth0", conf, **variables).succeeded()
    assert host.cni("ADD", container, "eth0", conf, **variables).stdout == first.stdout
    (attachment,) = host.attachments()
    assert container.link()["address"] == attachment["nic_id"]
    host.cni("DEL", container, "eth0", conf, **variables).succeeded()
    assert container.names == ["lo"]
    assert host.is_untouched()
    return attachment


@pytest.mark.cni(72)
@pytest.mark.parametrize("version", ["0.1.0", "0.4.0", "1.1.0"])
@pytest.mark.parametrize("keys", OTHER_KEYS)
def test_other_keys_are_no_obstacle(host: Host, keys: str, version: str) -> None:
    assert_works(host, host.conf(version) | OTHER_KEYS[keys])


@pytest.mark.cni(73)
@pytest.mark.parametrize("args", OTHER_ARGS)
def test_other_args_are_no_obstacle(host: Host, args: str) -> None:
    conf = host.conf()
    assert_works(host, conf | {"args": OTHER_ARGS[args] | conf["args"]})


@pytest.mark.cni(72)
def test_keys_are_found_without_regard_to_case(host: Host) -> None:
    """Programs in Go write and read them so."""
    conf = host.conf("1.0.0", routes=[{"dst": "10.96.0.0/12", "gw": "172.20.1.1"}]) | {"dns": {"domain": "x.y"}}
    swapped = {key.swapcase(): value for key, value in conf.items()} | {
        "ARGS": {key.upper(): value for key, value in conf["args"].items()},
        "IPAM": {"ROUTES": [{"DST": "10.96.0.0/12", "Gw": "172.20.1.1"}]},
        "Dns": {"Domain": "x.y"},
    }
    del swapped["DNS"]
    container, other = host.container(), host.container()
    first, second = (host.add(container, conf=conf), host.add(other, conf=swapped))
    assert second["cniVersion"] == first["cniVersion"] == "1.0.0"
    assert (second["routes"], second["dns"]) == (first["routes"], first["dns"])
    assert {"dst": "10.96.0.0/12", "gw": "172.20.1.1"} in second["routes"]


@pytest.mark.cni(19)
@pytest.mark.parametrize("versions", [("0.4.0", "1.0.0"), ("1.0.0", "0.4.0"), ("9.9.9", "1.0.0")], ids=str)
def test_of_keys_that_differ_in_case_the_last_one_counts(host: Host, versions: tuple[str, str]) -> None:
    """For the plugin and for the agent alike, as for programs in Go."""
    first, last = versions
    conf = {"CNIVERSION": first, "NAME": "first", "cniversion": last, **host.conf(None)}
    assert host.add(host.container(), conf=conf)["cniVersion"] == last
    assert [attachment["network"] for attachment in host.attachments()] == ["mynet"]


PAIRS = [f"{key}={value}" for key, value in POD.items()]
ORDERS = {
    "as kubelet's runtimes": ["IgnoreUnknown=1", *PAIRS],
    "backwards": [*reversed(PAIRS), "IgnoreUnknown=1"],
    "with unknown ones": ["FOO=bar", *PAIRS, "IgnoreUnknown=true", "X=y=z"],
    "without leave": [*PAIRS, "FOO=bar"],
    "with empty ones": ["", "IgnoreUnknown=1", "", *PAIRS, "A=", ""],
}
# The last one is not UTF-8: `\udcff` is how Python takes a byte that cannot be decoded.
NONSENSE = ("IgnoreUnknown", "=", "a", ";;;", "=x", "a=b;c", " ", "é=ü", "IgnoreUnknown=maybe", "a=\udcff")


@pytest.mark.cni(74)
@pytest.mark.parametrize("order", ORDERS)
def test_arguments_in_any_order_are_no_obstacle_and_a_pods_are_kept(host: Host, order: str) -> None:
    attachment = assert_works(host, host.conf(), CNI_ARGS=";".join(ORDERS[order]))
    assert attachment["pod"] == {
        "namespace": POD["K8S_POD_NAMESPACE"],
        "name": POD["K8S_POD_NAME"],
        "uid": POD["K8S_POD_UID"],
        "infra_container_id": POD["K8S_POD_INFRA_CONTAINER_ID"],
    }


@pytest.mark.cni(74)
@pytest.mark.parametrize("text", NONSENSE, ids=ascii)
def test_arguments_that_make_no_sense_are_no_obstacle(host: Host, text: str) -> None:
    assert_works(host, host.conf(), CNI_ARGS=text, CNI_PATH=text)


MAPPING = {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}
SPELLINGS = {
    "as the conventions": {key[0].lower() + key[1:]: value for key, value in MAPPING.items()},
    "as Go writes them": MAPPING,
}


@pytest.mark.cni(75)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("key", ["runtimeConfig", "RuntimeConfig"])
def test_port_mappings_are_left_to_the_plugin_for_them(host: Host, spelling: str, key: str) -> None:
    """In both spellings no obstacle, and nothing is translated on the host."""
    before = run(*host.command("nft", "list", "ruleset")).stdout
    asked = {"capabilities": {"portMappings": True}, key: {"portMappings": [SPELLINGS[spelling]]}}
    assert_works(host, host.conf("1.0.0") | asked)
    assert run(*host.command("nft", "list", "ruleset")).stdout == before


@pytest.mark.cni(13)
@pytest.mark.parametrize("name", ["a.b_c-D9", "0", "n" * 300])
def test_every_allowed_network_name_works(host: Host, name: str) -> None:
    assert assert_works(host, host.conf() | {"name": name})["network"] == name


@pytest.mark.cni(14)
@pytest.mark.parametrize("stdin", [b"", b"[]", b"x", b"{} x", b'{"name":"\xff"}', b"\xef\xbb\xbf{}"], ids=repr)
def test_a_configuration_that_cannot_be_read_is_refused_and_nothing_is_held(host: Host, stdin: bytes) -> None:
    container = host.container()
    for verb in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        host.cni(verb, container, conf=stdin).refused(6, "network configuration", "JSON")
    assert container.names == ["lo"]
    assert host.is_untouched()


@pytest.mark.cni(16)
@pytest.mark.parametrize("version", ["2.0.0", "1.0", "0.5.0", "1.1", "v1.0.0", " 1.0.0", "1.0.0-rc1", "unknown"])
def test_an_unsupported_version_is_refused_and_nothing_is_held(host: Host, version: str) -> None:
    container = host.container()
    host.cni("ADD", container, conf=host.conf(version)).refused(1, repr(version), ", ".join(VERSIONS))
    assert container.names == ["lo"]
    assert host.is_untouched()


@pytest.mark.cni(17)
@pytest.mark.parametrize("version", [1, 0.4, True, [], {}])
def test_a_version_that_is_no_text_is_refused_and_nothing_is_held(host: Host, version: object) -> None:
    host.cni("ADD", "c1", conf=host.conf() | {"cniVersion": version}).refused(6, "cniVersion", "string")
    assert host.is_untouched()
