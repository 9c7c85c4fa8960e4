"""Every key of a configuration that the specification and the conventions define is done, rejected or not ours."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.cni.config_keys import KEYS, Treatment, treatment_of
from qingcloud_cni.core.cni.network_config import NetworkConfig, is_gc_disabled, read_config, valid_attachments
from qingcloud_cni.core.errors import InvalidConfig, wire

ROUTE = {"dst": "10.96.0.0/12"}
PLAIN: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "qingcni", "ipam": {"routes": [ROUTE]}}
# Sections 1 and 5 of the specification, its versions before 1.1.0, and the conventions.
DEFINED = {
    "cniVersion", "cniVersions", "name", "type", "disableCheck", "disableGC", "loadOnlyInlinedPlugins",
    "plugins", "capabilities", "prevResult", "ipMasq", "ipam.type", "dns.nameservers", "dns.domain",
    "dns.search", "dns.options", "cni.dev/valid-attachments", "cni.dev/attachments", "ipam.routes",
    "ipam.routes[].dst", "ipam.routes[].gw", "ipam.routes[].mtu", "ipam.routes[].advmss",
    "ipam.routes[].priority", "ipam.routes[].table", "ipam.routes[].scope", "runtimeConfig.portMappings",
    "runtimeConfig.ipRanges", "runtimeConfig.bandwidth", "runtimeConfig.dns.servers",
    "runtimeConfig.dns.searches", "runtimeConfig.dns.options", "runtimeConfig.ips", "runtimeConfig.mac",
    "runtimeConfig.aliases", "runtimeConfig.infinibandGUID", "runtimeConfig.deviceID", "args.cni.ips",
    "args.cni.mac", "args.cni.labels",
}  # fmt: skip
SAMPLES: dict[str, Any] = {  # of keys that are done: a value that changes what is read
    "cniVersion": "1.0.0", "name": "other", "isGateway": False, "ipMasq": True,
    "prevResult": {"cniVersion": "1.1.0", "routes": [ROUTE]},
    "args.cni.ips": ["10.0.0.1"], "args.cni.mac": "52:54:00:00:00:01",
    "args.cni.labels": [{"key": "a", "value": "b"}],
    "args.org.apache.mesos": {"network_info": {"labels": {"labels": [{"key": "a", "value": "b"}]}}},
    "ipam.routes": [], "ipam.routes[].dst": "10.0.0.0/8", "ipam.routes[].gw": "172.16.3.9", "ipam.routes[].mtu": 1400,
    "ipam.routes[].advmss": 1300, "ipam.routes[].priority": 7, "ipam.routes[].table": 100, "ipam.routes[].scope": 253,
    "dns.nameservers": ["1.1.1.1"], "dns.domain": "x.y", "dns.search": ["x.y"], "dns.options": ["ndots:2"],
    "runtimeConfig.ips": ["10.0.0.1"], "runtimeConfig.mac": "52:54:00:00:00:01",
    "runtimeConfig.dns": {"servers": ["1.1.1.1"]}, "runtimeConfig.dns.servers": ["1.1.1.1"],
    "runtimeConfig.dns.searches": ["x.y"], "runtimeConfig.dns.options": ["ndots:2"],
}  # fmt: skip
OF_THE_PLUGIN = {  # which reads them itself; tests/wire/plugin
    "bindaddr", "args.BindAddr", "args.TokenFile", "args.SpoolDir", "args.InstanceID", "args.TimeoutSeconds",
}  # fmt: skip
OF_GC = {"cni.dev/valid-attachments", "cni.dev/attachments", "args.DisableGC"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
WORDS = st.text("abcxyz", min_size=1, max_size=6)


def with_key(name: str, value: object) -> dict[str, Any]:
    """PLAIN with this key."""
    if name.startswith("ipam.routes[]."):
        return PLAIN | {"ipam": {"routes": [ROUTE | {name.removeprefix("ipam.routes[]."): value}]}}
    sections: list[str] = []
    for section in ("args", "cni", "ipam", "dns", "runtimeConfig", "dns"):
        if name.startswith(f"{section}.") and not name.startswith("cni.dev"):
            sections.append(section)
            name = name.removeprefix(f"{section}.")
    for section in reversed(sections):
        name, value = section, PLAIN.get(section, {}) | {name: value}
    return PLAIN | {name: value}


def names(treatment: Treatment) -> list[str]:
    return [key.name.replace("*", "x-unknown") for key in KEYS if key.treatment is treatment]


def test_every_defined_key_has_a_row_of_its_own() -> None:
    assert {key.name for key in KEYS} >= DEFINED


@pytest.mark.parametrize("name", sorted(set(names(Treatment.DONE)) - OF_THE_PLUGIN - OF_GC))
def test_what_is_done_changes_what_is_read(name: str) -> None:
    assert read_config(with_key(name, SAMPLES[name])) != read_config(PLAIN)


def test_what_gc_reads() -> None:
    one = [{"containerID": "c", "ifname": "eth0"}]
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        assert valid_attachments(with_key(key, one), "net")
    assert is_gc_disabled(with_key("args.DisableGC", True))


@pytest.mark.cni(81)
@pytest.mark.parametrize("name", names(Treatment.REJECTED))
def test_what_cannot_be_done_is_rejected_by_key_and_value(name: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        read_config(with_key(name, ["wish"]))
    shown = name.replace("[]", "[0]")
    assert str(refusal.value).startswith(f"{shown} ['wish'] is not supported: ")
    assert wire(refusal.value) == (7, 400)


@pytest.mark.parametrize("name", names(Treatment.REJECTED))
@pytest.mark.parametrize("nothing", [None, "", [], {}, False, 0])
def test_a_rejected_key_without_a_value_is_no_obstacle(name: str, nothing: object) -> None:
    assert read_config(with_key(name, nothing)) == read_config(PLAIN)


@pytest.mark.parametrize("key", [key for key in KEYS if key.allowed], ids=lambda key: key.name)
def test_the_value_that_is_done_anyway_is_no_obstacle(key: Any) -> None:
    assert read_config(with_key(key.name, key.allowed)) == read_config(PLAIN)


@pytest.mark.parametrize("name", names(Treatment.NOT_OURS))
@given(value=JSON)
def test_what_is_not_ours_is_no_obstacle_whatever_it_holds(name: str, value: object) -> None:
    assert read_config(with_key(name, value)) == read_config(PLAIN)


@given(
    section=st.sampled_from(["ipam.", "ipam.routes[].", "dns.", "runtimeConfig.dns."]),
    key=WORDS.filter(lambda word: word not in {"dst", "gw", "mtu"}),
    value=JSON.filter(bool),
)
def test_no_wish_in_our_own_sections_is_dropped(section: str, key: str, value: object) -> None:
    """Any key there is read, which changes the result, or rejected."""
    before: NetworkConfig = read_config(PLAIN)
    if treatment_of(section + key).treatment is Treatment.REJECTED:
        with pytest.raises(InvalidConfig):
            read_config(with_key(section + key, value))
    else:
        assert read_config(with_key(section + key, SAMPLES[section + key])) != before
