"""Results of ADD: the exact shape of each version, and laws of reading, converting and extending them."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.cni.protocol import VERSIONS, Shape
from qingcloud_cni.core.cni.results import (
    Interface,
    Ip,
    Result,
    ResultRoute,
    check_extensible,
    extended,
    family_of,
    read_result,
    render,
    result_of,
)
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Dns, Netns, NicState, Route

NIC = make_nic(state=NicState.ASSIGNED, nic_id="52:54:9e:01:02:03")
ATTACHMENT = Attachment(
    AttachmentKey("mynet", "pod", "eth0"),
    NIC.nic_id,
    Netns("/var/run/netns/cni-1", 4, 4026532000),
    1.0,
    routes=(Route("0.0.0.0/0", "172.16.3.1"), Route("10.96.0.0/12", "172.16.3.253")),
    dns=Dns(("172.16.0.2",), "vpc.local", ("svc.vpc.local",), ("ndots:2",)),
    ifindex=9,
    mtu=1500,
    is_ready=True,
)
OWN = result_of(ATTACHMENT, NIC)
DNS = {"nameservers": ["172.16.0.2"], "domain": "vpc.local", "search": ["svc.vpc.local"], "options": ["ndots:2"]}
ROUTES = [{"dst": "0.0.0.0/0", "gw": "172.16.3.1"}, {"dst": "10.96.0.0/12", "gw": "172.16.3.253"}]
INTERFACE: dict[str, Any] = {"name": "eth0", "mac": "52:54:9e:01:02:03", "sandbox": "/var/run/netns/cni-1"}
ADDRESS = {"interface": 0, "address": "172.16.3.7/24", "gateway": "172.16.3.1"}
LISTS = [version for version, known in VERSIONS.items() if known.shape is Shape.IPS]
HALVES = [version for version, known in VERSIONS.items() if known.shape is Shape.IP4]
NEWEST = "1.1.0"


# --- one attachment in every version -------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_results_up_to_0_2_0(version: str) -> None:
    assert render(OWN, version) == {
        "cniVersion": version,
        "ip4": {"ip": "172.16.3.7/24", "gateway": "172.16.3.1", "routes": ROUTES},
        "dns": DNS,
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0"])
def test_results_from_0_3_0_to_0_4_0_tell_the_family_as_a_string(version: str) -> None:
    assert render(OWN, version) == {
        "cniVersion": version,
        "interfaces": [INTERFACE],
        "ips": [ADDRESS | {"version": "4"}],
        "routes": ROUTES,
        "dns": DNS,
    }


def test_results_of_1_0_0_tell_no_family() -> None:
    assert render(OWN, "1.0.0") == {
        "cniVersion": "1.0.0",
        "interfaces": [INTERFACE],
        "ips": [ADDRESS],
        "routes": ROUTES,
        "dns": DNS,
    }


def test_results_of_1_1_0_tell_the_mtu() -> None:
    assert render(OWN, "1.1.0") == {
        "cniVersion": "1.1.0",
        "interfaces": [INTERFACE | {"mtu": 1500}],
        "ips": [ADDRESS],
        "routes": ROUTES,
        "dns": DNS,
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_dns_that_was_not_given_is_an_empty_object_and_never_null(version: str) -> None:
    bare = Attachment(ATTACHMENT.key, NIC.nic_id, ATTACHMENT.netns, 1.0)
    assert render(result_of(bare, NIC), version)["dns"] == {}


# --- any result --------------------------------------------------------------------------------------

words = st.text(min_size=1, max_size=6)
counts = st.integers(0, 2**32 - 1)
addresses = st.ip_addresses().map(str)


def cidrs() -> st.SearchStrategy[str]:
    return st.ip_addresses().flatmap(lambda ip: st.integers(0, ip.max_prefixlen).map(lambda n: f"{ip}/{n}"))


dns = st.builds(
    Dns,
    st.lists(words, max_size=2, unique=True).map(tuple),
    words | st.just(""),
    st.lists(words, max_size=2, unique=True).map(tuple),
    st.lists(words, max_size=2, unique=True).map(tuple),
)
interfaces = st.builds(
    Interface, words, words | st.just(""), words | st.just(""), st.none() | counts, words | st.just(""), words
)
details = st.dictionaries(st.sampled_from(["mtu", "advmss", "priority", "table", "scope"]), counts, max_size=5)
ORDER = ("mtu", "advmss", "priority", "table", "scope")
routes = st.builds(
    ResultRoute,
    cidrs(),
    addresses | st.just(""),
    details.map(lambda given: tuple((key, given[key]) for key in ORDER if key in given)),
)


@st.composite
def results(draw: st.DrawFn) -> Result:
    present = tuple(draw(st.lists(interfaces, max_size=3)))
    index = st.none() | st.integers(0, len(present) - 1) if present else st.none()
    ips = st.builds(Ip, cidrs(), addresses | st.just(""), index)
    return Result(
        present, tuple(draw(st.lists(ips, max_size=4))), tuple(draw(st.lists(routes, max_size=4))), draw(dns)
    )


versions = st.sampled_from(tuple(VERSIONS))
lists = st.sampled_from(LISTS)


def plain(result: Result) -> Result:
    """Without what only 1.1.0 can say."""
    return replace(
        result,
        interfaces=tuple(Interface(i.name, i.mac, i.sandbox) for i in result.interfaces),
        routes=tuple(ResultRoute(r.dst, r.gw) for r in result.routes),
    )


def keys_of(value: Any) -> set[str]:
    """All keys in a JSON document, those of `dns` apart."""
    if isinstance(value, dict):
        return set(value) | {key for name, part in value.items() if name != "dns" for key in keys_of(part)}
    return {key for part in value for key in keys_of(part)} if isinstance(value, list) else set()


@given(results())
def test_the_newest_version_loses_nothing(result: Result) -> None:
    assert read_result("r", json.loads(json.dumps(render(result, NEWEST))), "0.1.0") == result


@given(results(), lists)
def test_versions_with_lists_lose_only_what_they_cannot_say(result: Result, version: str) -> None:
    written = json.loads(json.dumps(render(result, version)))
    wanted = result if VERSIONS[version].has_details else plain(result)
    assert read_result("r", written, "0.1.0") == wanted
    assert written["cniVersion"] == version


@given(results(), versions)
def test_no_field_of_a_newer_version_is_in_an_older_result(result: Result, version: str) -> None:
    try:
        keys = keys_of(render(result, version))
    except InvalidConfig:
        return
    newer = set() if version == NEWEST else {"mtu", "socketPath", "pciID", "advmss", "priority", "table", "scope"}
    newer |= {"interfaces", "ips"} if version in HALVES else {"ip4", "ip6"}
    newer |= set() if VERSIONS[version].has_family else {"version"}
    assert not keys & newer


@given(results(), st.sampled_from(HALVES))
def test_versions_up_to_0_2_0_keep_the_first_address_of_each_family_and_its_routes(
    result: Result, version: str
) -> None:
    first = {family_of(ip.address): ip for ip in reversed(result.ips)}
    if not first:
        with pytest.raises(InvalidConfig, match="no address"):
            render(result, version)
        return
    written = render(result, version)
    read = read_result("r", written, "1.1.0")
    assert read == Result(
        (),
        tuple(Ip(first[family].address, first[family].gateway) for family in "46" if family in first),
        tuple(r for family in "46" if family in first for r in plain(result).routes if family_of(r.dst) == family),
        result.dns,
    )
    assert render(read, version) == written


@given(results(), versions, versions)
def test_what_was_converted_once_is_not_changed_by_the_same_conversion(result: Result, one: str, two: str) -> None:
    """A result of version *one*, read and written as *two*, reads and writes as *two* again unchanged."""
    try:
        written = render(read_result("r", render(result, one), one), two)
    except InvalidConfig:
        return
    assert render(read_result("r", written, two), two) == written


@given(results(), versions)
def test_a_result_without_version_is_read_in_the_configurations(result: Result, version: str) -> None:
    try:
        written = render(result, version)
    except InvalidConfig:
        return
    bare = {key: value for key, value in written.items() if key != "cniVersion"}
    assert read_result("r", bare, version) == read_result("r", written, NEWEST)
    assert read_result("r", bare | {"cniVersion": ""}, version) == read_result("r", written, NEWEST)


# --- chains ------------------------------------------------------------------------------------------


@given(results())
def test_a_chain_loses_nothing_and_every_index_points_where_it_did(previous: Result) -> None:
    chain = extended(previous, OWN)
    assert chain.interfaces == previous.interfaces + OWN.interfaces
    assert chain.ips[: len(previous.ips)] == previous.ips
    assert chain.routes == previous.routes + OWN.routes
    (own,) = chain.ips[len(previous.ips) :]
    assert own.interface is not None
    assert chain.interfaces[own.interface] is OWN.interfaces[0]
    for part in ("nameservers", "search", "options"):
        assert set(getattr(chain.dns, part)) == {*getattr(previous.dns, part), *getattr(OWN.dns, part)}
    assert chain.dns.domain == (previous.dns.domain or OWN.dns.domain)


def test_an_interface_of_our_name_means_that_we_are_no_chained_plugin() -> None:
    previous = Result((Interface("veth1"), Interface("eth0", sandbox="/x")), (Ip("10.0.0.2/24", "", 1),))
    check_extensible(previous, "eth1", "1.0.0")
    with pytest.raises(InvalidConfig, match="prevResult has an interface eth0 already"):
        check_extensible(previous, "eth0", "1.0.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_address_that_the_version_has_no_room_for_is_refused(version: str) -> None:
    ok, full = Result(ips=(Ip("fd00::2/64"),)), Result(ips=(Ip("10.0.0.2/24"),))
    check_extensible(ok, "eth0", version)
    check_extensible(Result(), "eth0", version)
    if version in HALVES:
        for previous in (full, Result(ips=(Ip("fd00::2/64"), Ip("fd00::3/64")))):
            with pytest.raises(InvalidConfig, match=f"cniVersion {version} holds one address of each family"):
                check_extensible(previous, "eth0", version)
    else:
        check_extensible(full, "eth0", version)


# --- what cannot be read -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (7, "prevResult 7 is not an object"),
        ({"cniVersion": "2.0.0"}, "prevResult.cniVersion '2.0.0' is not supported"),
        ({"cniVersion": 1}, "prevResult.cniVersion 1 is not a string"),
        ({"interfaces": {}}, "prevResult.interfaces {} is not a list"),
        ({"interfaces": ["eth0"]}, "prevResult.interfaces[0] 'eth0' is not an object"),
        ({"interfaces": [{"name": 1}]}, "prevResult.interfaces[0].name 1 is not a string"),
        ({"interfaces": [{"name": "a", "mtu": "1500"}]}, "prevResult.interfaces[0].mtu '1500' is not a whole number"),
        ({"interfaces": [{"name": "a", "mtu": True}]}, "prevResult.interfaces[0].mtu True is not a whole number"),
        ({"ips": [{}]}, "prevResult.ips[0].address None is not an address with a prefix length"),
        ({"ips": [{"address": "10.0.0.2"}]}, "prevResult.ips[0].address '10.0.0.2' is not an address with a prefix"),
        ({"ips": [{"address": "10.0.0.2/255.0.0.0"}]}, "prevResult.ips[0].address '10.0.0.2/255.0.0.0' is not"),
        ({"ips": [{"address": "10.0.0.2/8", "gateway": "x"}]}, "prevResult.ips[0].gateway 'x' is not an address"),
        ({"ips": [{"address": "10.0.0.2/8", "interface": 0}]}, "prevResult.ips[0].interface 0 is beyond the 0"),
        (
            {"ips": [{"address": "10.0.0.2/8", "interface": -1}]},
            "prevResult.ips[0].interface -1 is not a whole",
        ),
        ({"ips": [{"address": "10.0.0.2/8", "interface": "0"}]}, "prevResult.ips[0].interface '0' is not a whole"),
        ({"ips": [{"address": "10.0.0.2/8", "version": 4}]}, "prevResult.ips[0].version 4 is not a string"),
        ({"routes": [{"gw": "10.0.0.1"}]}, "prevResult.routes[0].dst None is not an address with a prefix length"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": 5}]}, "prevResult.routes[0].gw 5 is not an address"),
        ({"dns": []}, "prevResult.dns [] is not an object"),
        ({"cniVersion": "0.2.0", "ip4": {}}, "prevResult.ip4.ip None is not an address with a prefix length"),
        ({"cniVersion": "0.2.0", "ip6": []}, "prevResult.ip6 [] is not an object"),
    ],
)
def test_what_cannot_be_read_is_refused_by_key_and_value(result: object, says: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        read_result("prevResult", result, "1.0.0")
    assert str(refusal.value).startswith(says)


def test_null_is_absent() -> None:
    nothing = dict.fromkeys(("interfaces", "ips", "routes", "dns", "cniVersion"))
    assert read_result("r", nothing, "1.0.0") == Result()
    assert read_result("r", {"ip4": None, "ip6": None}, "0.2.0") == Result()
