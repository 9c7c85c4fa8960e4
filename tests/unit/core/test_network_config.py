"""The network configuration: what is read, what is refused in which words, what a runtime may ask for besides."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.cni.network_config import (
    AddressRequest,
    NetworkConfig,
    read_cni_args,
    read_config,
)
from qingcloud_cni.core.cni.protocol import VERSIONS
from qingcloud_cni.core.cni.reading import folded
from qingcloud_cni.core.cni.results import Result
from qingcloud_cni.core.cni.routes import routes_for
from qingcloud_cni.core.errors import AgentError, InvalidConfig, wire
from qingcloud_cni.core.nics.model import Dns, NicState, Route, Workload

SEED = """{ "cniVersion": "0.3.1", "name": "mynet", "type": "qingcni", "isGateway": true,
  "args": { "BindAddr":"127.0.0.1:31080" }, "ipMasq": true,
  "ipam": { "routes":[{"dst":"kubernetes service cidr","gw":"hostip or 0.0.0.0"}] } }"""
NIC = make_nic(state=NicState.ASSIGNED, nic_id="52:54:9e:01:02:03")
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
        ipam={"type": "qingcni", "routes": [{"dst": "10.96.0.0/12", "gw": "172.16.3.253"}, {"dst": "10.0.0.0/8"}]},
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
        (routed({"dst": "10.0.0.0/8", "mtu": "x"}), "ipam.routes[0].mtu 'x' is not a whole number"),
        (routed({"dst": "10.0.0.0/8", "mtu": 67}), "ipam.routes[0].mtu 67 is not between 68 and 65520"),
        (routed({"dst": "10.0.0.0/8", "advmss": 0}), "ipam.routes[0].advmss 0 is not between 1 and 65495"),
        (routed({"dst": "10.0.0.0/8", "priority": 2**32}), "ipam.routes[0].priority 4294967296 is not between 0 and"),
        (routed({"dst": "10.0.0.0/8", "table": 255}), "ipam.routes[0].table 255 is the kernel's own table"),
        (routed({"dst": "10.0.0.0/8", "scope": 254}), "ipam.routes[0].scope 254 is not supported; use 0 (global)"),
        (
            routed({"dst": "10.0.0.0/8", "gw": "172.16.3.9", "scope": 253}),
            "ipam.routes[0].scope 253 has no gateway, and ipam.routes[0].gw is '172.16.3.9'; remove one of them",
        ),
        (
            routed({"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8", "gw": "172.16.3.9", "table": 254}),
            "ipam.routes[1] and ipam.routes[0] differ and lead to 10.0.0.0/8; remove one of them",
        ),
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
    routes = routes_for(make_nic(), config.routes, "172.16.3.253")
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
        "args": st.fixed_dictionaries({}, optional={"cni": json_values, "org.apache.mesos": json_values})
        | json_values,
        "runtimeConfig": st.fixed_dictionaries({}, optional=dict.fromkeys(("ips", "mac", "dns"), json_values))
        | json_values,
        "prevResult": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(("cniVersion", "ip4", "ips", "interfaces", "routes", "dns"), json_values)
        )
        | json_values,
    },
)


@given(configs | st.dictionaries(st.text(max_size=8), json_values, max_size=4), st.text(max_size=20))
def test_any_json_object_is_read_or_refused_in_a_sentence(config: dict[str, object], cni_args: str) -> None:
    refusal: AgentError | None = None
    try:
        read = read_config(config, cni_args)
    except AgentError as err:
        refusal = err
    if refusal is None:
        assert read.cni_version in VERSIONS
        assert all(isinstance(r, Route) for r in read.routes)
    else:
        assert len(str(refusal).split()) > 3
        assert wire(refusal)[0] in {1, 6, 7}


# --- what a runtime requests -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "cni_args", "address", "mac"),
    [
        ({}, "", "", ""),
        ({"runtimeConfig": {"ips": ["172.16.3.7"]}}, "IP=172.16.3.8", "172.16.3.7", ""),
        ({"runtimeConfig": {"Ips": ["172.16.3.7/24"], "Mac": "52:54:9E:01:02:03"}}, "", "172.16.3.7/24",
         "52:54:9e:01:02:03"),
        ({"args": {"cni": {"ips": ["172.16.3.9"]}}, "runtimeConfig": {"ips": []}}, "IP=172.16.3.8", "172.16.3.9", ""),
        ({"args": {"cni": {"ips": ["172.16.3.9"]}}, "runtimeConfig": {"ips": ["172.16.3.7"]}}, "", "172.16.3.7", ""),
        ({}, "IgnoreUnknown=1;IP=172.16.3.8;MAC=52:54:9e:01:02:04", "172.16.3.8", "52:54:9e:01:02:04"),
        ({"args": {"cni": {"mac": "52:54:9e:01:02:05"}}}, "MAC=52:54:9e:01:02:04", "", "52:54:9e:01:02:05"),
    ],
)  # fmt: skip
def test_the_capability_comes_before_args_and_args_before_cni_args(
    keys: dict[str, object], cni_args: str, address: str, mac: str
) -> None:
    request = read_config(conf(**keys), cni_args).request
    assert (request.address, request.mac) == (address, mac)
    assert bool(request) == bool(address or mac)


@pytest.mark.parametrize(
    ("address", "mac", "fits"),
    [
        ("", "", True),
        ("172.16.3.7", "", True),
        ("172.16.3.7/24", NIC.nic_id, True),
        ("172.16.3.7/16", "", False),
        ("172.16.3.8", "", False),
        ("172.16.3.7", "52:54:9e:01:02:04", False),
        ("", "52:54:9e:01:02:04", False),
    ],
)
def test_a_nic_fits_a_wish_by_address_and_mac(address: str, mac: str, fits: bool) -> None:
    assert AddressRequest(address, mac).fits(NIC) == fits


@pytest.mark.parametrize(
    ("keys", "cni_args", "says"),
    [
        ({"runtimeConfig": []}, "", "runtimeConfig [] is not an object"),
        ({"runtimeConfig": {"ips": "172.16.3.7"}}, "", "runtimeConfig.ips '172.16.3.7' is not a list of strings"),
        ({"runtimeConfig": {"ips": ["172.16.3.7", "172.16.3.8"]}}, "",
         "runtimeConfig.ips: 172.16.3.7, 172.16.3.8: a NIC has one address"),
        ({"runtimeConfig": {"ips": ["fd00::7"]}}, "", "runtimeConfig.ips: 'fd00::7' is not an IPv4"),
        ({"args": {"cni": {"ips": ["x"]}}}, "", "args.cni.ips: 'x' is not an IPv4 address"),
        ({}, "IP=172.16.3.7,172.16.3.8", "IP in CNI_ARGS: 172.16.3.7, 172.16.3.8: a NIC"),
        ({"runtimeConfig": {"mac": "52-54"}}, "", "runtimeConfig.mac: '52-54' is not a MAC"),
        ({}, "MAC=zz:54:9e:01:02:04", "MAC in CNI_ARGS: 'zz:54:9e:01:02:04' is not a MAC"),
        ({"runtimeConfig": {"dns": {"Servers": "1.1.1.1"}}}, "",
         "runtimeConfig.dns.servers '1.1.1.1' is not a list of strings"),
        ({"args": 5}, "", "args 5 is not an object"),
        ({"prevResult": []}, "", "prevResult [] is not an object"),
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_read_is_refused(keys: dict[str, object], cni_args: str, says: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        read_config(conf(**keys), cni_args)
    assert str(refusal.value).startswith(says)


def test_a_wish_says_who_asked() -> None:
    config = conf(runtimeConfig={"ips": ["172.16.3.7"]}, args={"cni": {"mac": NIC.nic_id}})
    asked = "address 172.16.3.7 with MAC 52:54:9e:01:02:03 (requested by runtimeConfig.ips and args.cni.mac)"
    assert str(read_config(config).request) == asked


@pytest.mark.parametrize("keys", [("servers", "searches", "options"), ("Servers", "Searches", "Options")])
def test_dns_of_the_runtime_replaces_the_configurations_list_by_list(keys: tuple[str, str, str]) -> None:
    servers, searches, options = keys
    given = {servers: ["10.96.0.10"], searches: ["cluster.local"], options: []}
    read = read_config(conf(dns=DNS, runtimeConfig={"dns": given})).dns
    assert read == Dns(("10.96.0.10",), "vpc.local", ("cluster.local",), ("ndots:2",))


@pytest.mark.parametrize(
    "runtime",
    [
        {"portMappings": [{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp"}]},
        {
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
            "bandwidth": {"IngressRate": 1},
        },
        {"aliases": {"network": ["a"]}, "cgroupPath": "/x", "io.kubernetes.cri.pod-annotations": {"a": "b"}},
        None,
    ],
)
def test_what_other_plugins_of_the_chain_are_told_is_no_matter_of_ours(runtime: object) -> None:
    assert read_config(conf(runtimeConfig=runtime)) == read_config(conf())


# --- the container -----------------------------------------------------------------------------------


def test_cni_args() -> None:
    assert read_cni_args("") == {}
    assert read_cni_args("IgnoreUnknown=1;K8S_POD_NAME=a=b;;x;=y;EMPTY=;") == {
        "IgnoreUnknown": "1", "K8S_POD_NAME": "a=b", "EMPTY": "",
    }  # fmt: skip


@given(st.dictionaries(st.from_regex(r"[A-Z0-9_]{1,8}", fullmatch=True), st.from_regex(r"[^;]{0,8}", fullmatch=True)))
def test_cni_args_come_in_any_order_and_are_read_back(pairs: dict[str, str]) -> None:
    assert read_cni_args(";".join(f"{key}={value}" for key, value in pairs.items())) == pairs


KUBELET = "IgnoreUnknown=1;K8S_POD_UID=uid;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;K8S_POD_INFRA_CONTAINER_ID=abc"


def test_pod_and_labels_are_kept() -> None:
    config = conf(
        args={
            "cni": {"labels": [{"key": "app", "value": "web"}, {"Key": "tier", "Value": "1"}, {"value": "x"}, 5]},
            "org.apache.mesos": {
                "network_info": {"name": "mynet", "labels": {"labels": [{"key": "m"}]}, "port_mappings": [{}]}
            },
        }
    )
    labels = (("app", "web"), ("tier", "1"), ("m", ""))
    assert read_config(config, KUBELET).workload == Workload("web", "shop", "uid", "abc", labels)


@pytest.mark.parametrize("args", [{}, {"cni": 5}, {"cni": {"labels": 7}}, {"org.apache.mesos": []}, {"x": None}])
def test_args_that_mean_nothing_here_are_passed_over(args: object) -> None:
    assert read_config(conf(args=args), "NOMAD_REGION=global;X") == read_config(conf())


# --- prevResult --------------------------------------------------------------------------------------


def test_no_prevresult_is_none_and_an_empty_one_is_empty() -> None:
    assert read_config(conf()).previous is None
    assert read_config(conf(prevResult=None)).previous is None
    assert read_config(conf(prevResult={})).previous == Result()
