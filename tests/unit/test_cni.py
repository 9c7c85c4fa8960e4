"""The CNI protocol as data: what is read, what is refused in which words, and the results of each version."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.cni import (
    VERSIONS,
    NetworkConfig,
    check_key,
    folded,
    network_name,
    read_config,
    render,
    render_error,
    routes_for,
    version_of,
)
from qingcloud_cni.core.errors import (
    AgentError,
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    UndecodableRequest,
    wire,
)
from qingcloud_cni.core.model import Attachment, AttachmentKey, Dns, Netns, Nic, NicState, Route

SEED = """{ "cniVersion": "0.3.1", "name": "mynet", "type": "qingcni", "isGateway": true,
  "args": { "BindAddr":"127.0.0.1:31080" }, "ipMasq": true,
  "ipam": { "routes":[{"dst":"kubernetes service cidr","gw":"hostip or 0.0.0.0"}] } }"""
NIC = Nic("52:54:9e:01:02:03", "n", "vxnet-1", "172.16.3.7/24", "172.16.3.1", NicState.ASSIGNED, 1.0)
DNS = {"nameservers": ["172.16.0.2"], "domain": "vpc.local", "search": ["svc.vpc.local"], "options": ["ndots:2"]}


def conf(**keys: object) -> dict[str, object]:
    return {"cniVersion": "0.3.1", "name": "mynet", "type": "qingcni", **keys}


def routed(*routes: object) -> dict[str, object]:
    return conf(ipam={"routes": list(routes)})


# --- reading -----------------------------------------------------------------------------------------


def test_a_configuration_without_options() -> None:
    assert read_config(conf()) == NetworkConfig("0.3.1", "mynet", (), Dns(), is_gateway=True, ip_masq=False)


def test_a_configuration_with_all_of_them() -> None:
    config = conf(
        isGateway=False,
        ipMasq=True,
        dns=DNS,
        ipam={"type": "x", "routes": [{"dst": "10.96.0.0/12", "gw": "172.16.3.253"}, {"dst": "10.0.0.0/8"}]},
    )
    assert read_config(config) == NetworkConfig(
        "0.3.1",
        "mynet",
        (Route("10.96.0.0/12", "172.16.3.253"), Route("10.0.0.0/8", "")),
        Dns(("172.16.0.2",), "vpc.local", ("svc.vpc.local",), ("ndots:2",)),
        is_gateway=False,
        ip_masq=True,
    )


def respelled(value: Any, upper: bool) -> Any:
    """The same JSON with every key in another case, as Go programs may send it."""
    if isinstance(value, dict):
        return {(k.upper() if upper else k.lower()): respelled(v, upper) for k, v in value.items()}
    return [respelled(v, upper) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("upper", [True, False])
def test_keys_match_without_regard_to_case(upper: bool) -> None:
    config = conf(isGateway=False, ipMasq=True, dns=DNS, ipam={"routes": [{"dst": "10.96.0.0/12", "gw": "10.0.0.1"}]})
    assert read_config(respelled(config, upper)) == read_config(config)
    assert folded({"CNIVersion": 1}) == {"cniversion": 1}


@pytest.mark.parametrize("key", ["isGateway", "ipMasq", "ipam", "dns", "cniVersion"])
def test_null_is_absent(key: str) -> None:
    without = {k: v for k, v in conf().items() if k != key}
    assert read_config({**without, key: None}) == read_config(without)


def test_null_inside_a_route_and_dns_is_absent() -> None:
    assert read_config(routed({"dst": "10.96.0.0/12", "gw": None})).routes == (Route("10.96.0.0/12", ""),)
    assert read_config(conf(ipam={"routes": None}, dns=dict.fromkeys(DNS))) == read_config(conf())


@pytest.mark.parametrize(("value", "meant"), [(True, True), (False, False), ("true", True), ("false", False)])
def test_booleans_may_be_strings(value: object, meant: bool) -> None:
    config = read_config(conf(isGateway=value, ipMasq=value))
    assert (config.is_gateway, config.ip_masq) == (meant, meant)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (conf(isGateway="yes"), "isGateway 'yes' is neither true nor false"),
        (conf(ipMasq=1), "ipMasq 1 is neither true nor false"),
        (conf(ipam=[]), "ipam [] is not an object"),
        (conf(ipam={"routes": {}}), "ipam.routes {} is not a list"),
        (routed("10.96.0.0/12"), "ipam.routes[0] '10.96.0.0/12' is not an object like"),
        (routed({"gw": "172.16.3.1"}), "ipam.routes[0].dst None is not an IPv4 network"),
        (routed({"dst": "10.96.0.0"}), "ipam.routes[0].dst '10.96.0.0' is not an IPv4 network"),
        (
            routed({"dst": "10.96.0.1/12"}),
            "ipam.routes[0].dst '10.96.0.1/12' is not an IPv4 network (10.96.0.1/12 has",
        ),
        (routed({"dst": "fd00::/64"}), "ipam.routes[0].dst 'fd00::/64' is not an IPv4 network"),
        (routed({"dst": "10.0.0.0/8"}, {"dst": 7}), "ipam.routes[1].dst 7 is not an IPv4 network"),
        (routed({"dst": "10.0.0.0/8", "gw": 1}), "ipam.routes[0].gw 1 is not an IPv4 address"),
        (routed({"dst": "10.0.0.0/8", "gw": "fd00::1"}), "ipam.routes[0].gw 'fd00::1' is not an IPv4 address"),
        (conf(dns="1.1.1.1"), "dns '1.1.1.1' is not an object"),
        (conf(dns={"domain": 3}), "dns.domain 3 is not a string"),
        (conf(dns={"search": "a"}), "dns.search 'a' is not a list of strings"),
        (conf(dns={"nameservers": [1]}), "dns.nameservers [1] is not a list of strings"),
        (conf(name=""), "the network configuration has no name"),
        (conf(name=5), "the network configuration has no name"),
        (conf(name="my net"), "name 'my net': invalid characters"),
        (conf(name="mynet\n"), "name 'mynet\\n': invalid characters"),
    ],
)
def test_refusals_name_key_and_value(config: Mapping[str, object], says: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        read_config(config)
    assert str(refusal.value).startswith(says)
    assert wire(refusal.value) == (7, 400)


def test_a_gateway_of_0_0_0_0_is_this_hosts_and_replaced() -> None:
    config = read_config(routed({"dst": "10.96.0.0/12", "gw": "0.0.0.0"}, {"dst": "10.0.0.0/16", "gw": "172.16.3.9"}))
    assert config.services == ("10.96.0.0/12",)
    nic = Nic("52:54:00:00:00:01", "n", "vxnet-1", "172.16.3.7/24", "172.16.3.1", NicState.IDLE, 0.0)
    routes = routes_for(nic, config, "172.16.3.253")
    assert [(r.dst, r.gw) for r in routes] == [
        ("0.0.0.0/0", "172.16.3.1"),
        ("10.96.0.0/12", "172.16.3.253"),
        ("10.0.0.0/16", "172.16.3.9"),
    ]


def test_the_seeds_placeholders_are_refused_by_key_and_value() -> None:
    seed = json.loads(SEED)
    with pytest.raises(InvalidConfig, match=r"ipam\.routes\[0\]\.dst 'kubernetes service cidr'") as refusal:
        read_config(seed)
    assert wire(refusal.value)[0] == 7
    seed["ipam"]["routes"][0]["dst"] = "10.96.0.0/12"
    with pytest.raises(InvalidConfig, match=r"ipam\.routes\[0\]\.gw 'hostip or 0\.0\.0\.0'"):
        read_config(seed)
    seed["ipam"]["routes"][0]["gw"] = "172.16.3.253"
    config = read_config(seed)
    assert (config.name, config.cni_version, config.is_gateway, config.ip_masq) == ("mynet", "0.3.1", True, True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
routes = st.fixed_dictionaries(
    {},
    optional={
        "dst": st.from_regex(r"[0-9.]{1,10}/[0-9]{1,2}", fullmatch=True) | json_values,
        "gw": st.ip_addresses().map(str) | json_values,
    },
)
configs = st.fixed_dictionaries(
    {"name": st.just("mynet") | json_values},
    optional={
        "cniVersion": st.sampled_from(tuple(VERSIONS)) | json_values,
        "isGateway": st.booleans() | json_values,
        "ipMasq": json_values,
        "ipam": st.fixed_dictionaries({}, optional={"routes": st.lists(routes | json_values, max_size=3)})
        | json_values,
        "dns": st.fixed_dictionaries({}, optional=dict.fromkeys(DNS, json_values)) | json_values,
    },
)


@given(configs | st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_any_json_object_is_read_or_refused_in_a_sentence(config: dict[str, object]) -> None:
    refusal: AgentError | None = None
    try:
        read = read_config(config)
    except AgentError as err:
        refusal = err
    if refusal is None:
        assert read.cni_version in VERSIONS
        assert all(isinstance(r, Route) for r in read.routes)
    else:
        assert len(str(refusal).split()) > 3
        assert wire(refusal)[0] in {1, 6, 7}


# --- version, name, environment ----------------------------------------------------------------------


def test_versions() -> None:
    assert tuple(VERSIONS) == ("0.1.0", "0.2.0", "0.3.0", "0.3.1")
    assert version_of({}) == version_of({"cniVersion": ""}) == "0.1.0"
    assert [version_of({"CNIVERSION": v}) for v in VERSIONS] == list(VERSIONS)


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0", "0.3", "v0.3.1", "0.3.1 "])
def test_other_versions_are_incompatible(version: str) -> None:
    with pytest.raises(IncompatibleVersion, match=r"supported are 0\.1\.0, 0\.2\.0, 0\.3\.0, 0\.3\.1"):
        version_of({"cniVersion": version})


def test_a_version_that_is_no_string_cannot_be_decoded() -> None:
    with pytest.raises(UndecodableRequest, match=r"cniVersion 0\.3 is not a string"):
        version_of({"cniVersion": 0.3})


@pytest.mark.parametrize("name", ["a", "mynet", "a.b-c_9", "x" * 300])
def test_network_names(name: str) -> None:
    assert network_name({"Name": name}) == name


@pytest.mark.parametrize("ifname", ["eth0", "a" * 15, "ä" * 7, "eth0.1", "-", "..."])
def test_interface_names(ifname: str) -> None:
    assert check_key("net", "pod", ifname) == AttachmentKey("net", "pod", ifname)


@pytest.mark.parametrize(
    ("container_id", "ifname", "says"),
    [
        ("", "eth0", "required environment variables CNI_CONTAINERID are missing"),
        ("pod", "", "required environment variables CNI_IFNAME are missing"),
        ("", "", "required environment variables CNI_CONTAINERID, CNI_IFNAME are missing"),
        ("pod/1", "eth0", "CNI_CONTAINERID 'pod/1': invalid characters"),
        ("pod\n", "eth0", "CNI_CONTAINERID 'pod\\n': invalid characters"),
        (".pod", "eth0", "CNI_CONTAINERID '.pod': invalid characters"),
        ("pod", "a" * 16, "CNI_IFNAME 'aaaaaaaaaaaaaaaa' is longer than 15 bytes"),
        ("pod", "ä" * 8, "CNI_IFNAME 'ääääääää' is longer than 15 bytes"),
        ("pod", "..", "CNI_IFNAME '..' is no interface name"),
        ("pod", "eth%d", "CNI_IFNAME 'eth%d' is no interface name"),
        ("pod", "a b", "CNI_IFNAME 'a b' is no interface name"),
        ("pod", "a/b", "CNI_IFNAME 'a/b' is no interface name"),
        ("pod", "a:b", "CNI_IFNAME 'a:b' is no interface name"),
    ],
)
def test_refused_environments_name_the_variable(container_id: str, ifname: str, says: str) -> None:
    with pytest.raises(InvalidEnvironment) as refusal:
        check_key("net", container_id, ifname)
    assert str(refusal.value).startswith(says)


# --- routes ------------------------------------------------------------------------------------------

DEFAULT = Route("0.0.0.0/0", "172.16.3.1")


@pytest.mark.parametrize(
    ("asked", "installed"),
    [
        ((), (DEFAULT,)),
        (({"dst": "10.96.0.0/12", "gw": "172.16.3.253"},), (DEFAULT, Route("10.96.0.0/12", "172.16.3.253"))),
        (({"dst": "10.96.0.0/12"},), (DEFAULT, Route("10.96.0.0/12", "172.16.3.1"))),
        (({"dst": "0.0.0.0/0", "gw": "172.16.3.253"},), (Route("0.0.0.0/0", "172.16.3.253"),)),
        (({"dst": "0.0.0.0/0"},), (DEFAULT,)),
    ],
)
def test_routes_to_install(asked: tuple[object, ...], installed: tuple[Route, ...]) -> None:
    assert routes_for(NIC, read_config(routed(*asked))) == installed


@pytest.mark.parametrize("gateway", ["172.16.4.1", "10.0.0.1", "172.16.3.7"])
def test_a_gateway_must_be_a_neighbour_in_the_vxnet(gateway: str) -> None:
    config = read_config(routed({"dst": "10.96.0.0/12", "gw": gateway}))
    with pytest.raises(InvalidConfig) as refusal:
        routes_for(NIC, config)
    for word in ("10.96.0.0/12", gateway, "vxnet-1", "172.16.3.0/24"):
        assert word in str(refusal.value)


# --- results -----------------------------------------------------------------------------------------

ROUTES = [{"dst": "0.0.0.0/0", "gw": "172.16.3.1"}, {"dst": "10.96.0.0/12", "gw": "172.16.3.253"}]
ATTACHMENT = Attachment(
    AttachmentKey("mynet", "pod", "eth0"),
    NIC.nic_id,
    Netns("/var/run/netns/cni-1", 4, 4026532000),
    1.0,
    routes=(DEFAULT, Route("10.96.0.0/12", "172.16.3.253")),
    dns=Dns(("172.16.0.2",), "vpc.local", ("svc.vpc.local",), ("ndots:2",)),
    ifindex=9,
    mtu=1500,
    is_ready=True,
)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_results_up_to_0_2_0(version: str) -> None:
    assert render(ATTACHMENT, NIC, version) == {
        "cniVersion": version,
        "ip4": {"ip": "172.16.3.7/24", "gateway": "172.16.3.1", "routes": ROUTES},
        "dns": DNS,
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1"])
def test_results_from_0_3_0(version: str) -> None:
    assert render(ATTACHMENT, NIC, version) == {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "mac": "52:54:9e:01:02:03", "sandbox": "/var/run/netns/cni-1"}],
        "ips": [{"version": "4", "interface": 0, "address": "172.16.3.7/24", "gateway": "172.16.3.1"}],
        "routes": ROUTES,
        "dns": DNS,
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_dns_that_was_not_given_is_an_empty_object(version: str) -> None:
    bare = Attachment(ATTACHMENT.key, NIC.nic_id, ATTACHMENT.netns, 1.0)
    assert render(bare, NIC, version)["dns"] == {}


def test_error_objects() -> None:
    assert render_error(11, "busy") == {"cniVersion": "0.3.1", "code": 11, "msg": "busy"}
    assert render_error(7, "bad", "0.1.0", "why") == {
        "cniVersion": "0.1.0",
        "code": 7,
        "msg": "bad",
        "details": "why",
    }
