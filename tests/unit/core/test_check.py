"""CHECK and GC: mismatches of an attachment, and the attachments that a runtime does not list."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.cni.check import mismatches
from qingcloud_cni.core.cni.network_config import VALID_KEYS, is_gc_disabled, unlisted_attachments, valid_attachments
from qingcloud_cni.core.cni.results import Interface, Ip, Result, ResultRoute, extended, result_of
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Netns, Nic, NicState, Route
from qingcloud_cni.core.seams.kernel import Inspection, Link, Program

MAC, OTHER_MAC, PATH = "52:54:9e:01:02:03", "52:54:9e:ff:ff:ff", "/run/netns/cni-1"
NIC = make_nic(state=NicState.ASSIGNED, nic_id=MAC)
NETNS = Netns(PATH, 4, 7)
ROUTES = (Route("0.0.0.0/0", "172.16.3.1"), Route("10.96.0.0/12", "172.16.3.253"))
ATTACHMENT = Attachment(
    AttachmentKey("net", "c1", "eth0"),
    MAC,
    NETNS,
    1.0,
    routes=ROUTES,
    ifindex=9,
    mtu=1500,
    is_ready=True,
    uptime=100.0,
)
LINK = Link(MAC, "eth0", 9, is_up=True)
SEEN = Inspection(NETNS, LINK, (NIC.address,), (*ROUTES, Route("172.16.3.0/24", "")))
OWN = result_of(ATTACHMENT, NIC)


def found(
    seen: Inspection = SEEN,
    previous: Result = OWN,
    attachment: Attachment | None = ATTACHMENT,
    nic: Nic | None = NIC,
) -> tuple[str, ...]:
    return mismatches(attachment, nic, seen, previous, "eth0")


def test_an_attachment_as_add_left_it_has_no_fault() -> None:
    assert found() == ()


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"attachment": None, "nic": None}, "the agent has no such attachment"),
    "not ready": ({"attachment": replace(ATTACHMENT, is_ready=False)}, "the agent has not finished its ADD"),
    "another namespace": (
        {"seen": replace(SEEN, netns=Netns("/run/netns/b", 4, 8))},
        "CNI_NETNS /run/netns/b is not the namespace of its ADD (/run/netns/cni-1)",
    ),
    "no link": ({"seen": Inspection(NETNS)}, "interface eth0 is missing in /run/netns/cni-1"),
    "down": ({"seen": replace(SEEN, link=replace(LINK, is_up=False))}, "interface eth0 is down"),
    "mac": (
        {"seen": replace(SEEN, link=replace(LINK, mac=OTHER_MAC))},
        f"interface eth0 has MAC {OTHER_MAC} instead of {MAC}",
    ),
    "address": ({"seen": replace(SEEN, addresses=("10.0.0.1/8",))}, "address 172.16.3.7/24 is missing on eth0"),
    "prefix length": (
        {"seen": replace(SEEN, addresses=("172.16.3.7/16",))},
        "address 172.16.3.7/24 is missing on eth0",
    ),
    "NOARP": ({"seen": replace(SEEN, is_silent=True)}, "interface eth0 does not use ARP (NOARP)"),
    "a program from before an ADD that compared nothing": (
        {"seen": replace(SEEN, programs=(Program("XDP", 7, 99.0),))},
        "interface eth0 has XDP program 7, which is older than its ADD",
    ),
    "route": ({"seen": replace(SEEN, routes=ROUTES[:1])}, "route to 10.96.0.0/12 via 172.16.3.253 is missing"),
    "route elsewhere": (
        {"seen": replace(SEEN, routes=(ROUTES[0], Route("10.96.0.0/12", "172.16.3.1")))},
        "route to 10.96.0.0/12 via 172.16.3.253 is missing",
    ),
    "interface not listed": (
        {"previous": replace(OWN, interfaces=(Interface("eth0", MAC),))},  # one on the host
        "prevResult lists no interface eth0 in /run/netns/cni-1",
    ),
    "address not listed": (
        {"previous": replace(OWN, ips=(Ip("172.16.3.8/24", "", 0),))},
        "prevResult does not list address 172.16.3.7/24 of eth0",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_fault_is_told(change: str) -> None:
    changed, says = CHANGES[change]
    assert says in found(**changed)


def test_all_faults_are_told_at_once() -> None:
    all_of_them = found(replace(SEEN, link=replace(LINK, is_up=False, mac=OTHER_MAC), addresses=(), routes=()))
    assert len(all_of_them) == 5


TOLERATED: dict[str, dict[str, Any]] = {
    "what the container or a later plugin did to its NIC": {"seen": replace(SEEN, differences=("mtu 1400",))},
    "a program from after the ADD": {"seen": replace(SEEN, programs=(Program("TCX", 7, 101.0),))},
    "a program that was loaded before, of an ADD that compared the NIC": {
        "seen": replace(SEEN, programs=(Program("TCX", 7, 99.0),)),
        "attachment": replace(ATTACHMENT, is_compared=True),
    },
    "more addresses": {"seen": replace(SEEN, addresses=("10.0.0.1/8", NIC.address, "10.0.0.2/8"))},
    "more routes": {"seen": replace(SEEN, routes=(Route("10.5.0.0/16", "172.16.3.9"), *SEEN.routes))},
    "a route of ours that a later plugin took out of the result": {
        "seen": replace(SEEN, routes=ROUTES[:1]),
        "previous": replace(OWN, routes=OWN.routes[:1]),
    },
    "a listed route of another plugin": {"previous": replace(OWN, routes=(*OWN.routes, ResultRoute("10.8.0.0/16")))},
    "a mac that prevResult lists": {
        "seen": replace(SEEN, link=replace(LINK, mac=OTHER_MAC)),
        "previous": replace(OWN, interfaces=(replace(OWN.interfaces[0], mac=OTHER_MAC.upper()),)),
    },
    "another path to the same namespace": {
        "seen": replace(SEEN, netns=Netns("/proc/7/ns/net", 4, 7)),
        "previous": replace(OWN, interfaces=(replace(OWN.interfaces[0], sandbox="/proc/7/ns/net"),)),
    },
    "one that the agent recorded": {"seen": replace(SEEN, netns=Netns("/proc/7/ns/net", 4, 7))},
    "an address without an index": {"previous": replace(OWN, ips=(Ip(NIC.address),))},
}


@pytest.mark.parametrize("change", TOLERATED)
def test_what_others_did_is_no_fault(change: str) -> None:
    assert found(**TOLERATED[change]) == ()


def test_a_mac_that_prevresult_lists_for_another_interface_is_a_fault() -> None:
    previous = replace(OWN, interfaces=(*OWN.interfaces, Interface("eth1", OTHER_MAC, PATH)))
    assert found(replace(SEEN, link=replace(LINK, mac=OTHER_MAC)), previous)


names = st.text("abcdef", min_size=1, max_size=4)
added = st.builds(
    Result,
    st.lists(st.builds(Interface, names, names, names), max_size=3).map(tuple),
    st.lists(st.builds(Ip, st.just("10.7.0.1/16")), max_size=3).map(tuple),
    st.lists(st.builds(ResultRoute, st.just("10.9.0.0/16"), st.just("10.7.0.2")), max_size=3).map(tuple),
)


@given(added, added)
def test_a_chain_around_ours_makes_no_fault(before: Result, after: Result) -> None:
    chain = extended(before, OWN)
    previous = replace(
        chain,
        interfaces=chain.interfaces + after.interfaces,
        ips=chain.ips + after.ips,
        routes=chain.routes + after.routes,
    )
    assert found(previous=previous) == ()


# --- GC ----------------------------------------------------------------------------------------------


def listed(container_id: str, ifname: str = "eth0") -> dict[str, str]:
    return {"containerID": container_id, "ifname": ifname}


@pytest.mark.parametrize("key", VALID_KEYS)
@pytest.mark.parametrize("spell", [str, str.upper, str.title])
def test_both_keys_are_honoured_in_any_case(key: str, spell: Callable[[str], str]) -> None:
    config = {spell(key): [{spell(k): v for k, v in listed("a").items()}, listed("b", "net1")]}
    meant = {AttachmentKey("net", "a", "eth0"), AttachmentKey("net", "b", "net1")}
    assert valid_attachments(config, "net") == frozenset(meant)


@pytest.mark.parametrize("nothing", [None, []])
def test_null_and_an_empty_list_say_that_nothing_is_valid(nothing: object) -> None:
    assert valid_attachments({VALID_KEYS[0]: nothing}, "net") == frozenset()


def test_a_config_without_either_key_has_no_list() -> None:
    assert valid_attachments({}, "net") is None
    assert valid_attachments({"cni.dev/others": []}, "net") is None


def test_the_new_key_counts_where_both_are_there() -> None:
    assert valid_attachments({VALID_KEYS[1]: [listed("a")], VALID_KEYS[0]: []}, "net") == frozenset()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({VALID_KEYS[0]: {}}, "cni.dev/valid-attachments {} is not a list"),
        ({VALID_KEYS[0]: ["a"]}, "cni.dev/valid-attachments[0] 'a' is not an object"),
        (
            {VALID_KEYS[0]: [listed("a"), {"containerID": "b"}]},
            "cni.dev/valid-attachments[1]: containerID or ifname is missing",
        ),
        ({VALID_KEYS[0]: [listed("")]}, "cni.dev/valid-attachments[0]: containerID or ifname is missing"),
        (
            {VALID_KEYS[1]: [{"containerID": 7, "ifname": "eth0"}]},
            "cni.dev/attachments[0].containerID 7 is not a string",
        ),
    ],
)
def test_a_list_that_cannot_be_read_frees_nothing(config: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidConfig) as refusal:
        valid_attachments(config, "net")
    assert str(refusal.value).startswith(says)


@pytest.mark.parametrize(("value", "is_off"), [(True, True), ("true", True), (False, False), (None, False)])
def test_the_operators_own_switch(value: object, is_off: bool) -> None:
    assert is_gc_disabled({"Args": {"disablegc": value}}) == is_off
    assert not is_gc_disabled({})
    with pytest.raises(InvalidConfig, match=r"args\.DisableGC 1 is neither true nor false"):
        is_gc_disabled({"args": {"DisableGC": 1}})


keys = st.builds(AttachmentKey, st.sampled_from(["net", "other"]), names, st.sampled_from(["eth0", "eth1"]))


@given(st.sets(keys), st.frozensets(keys))
def test_unlisted_are_of_this_network_only(present: set[AttachmentKey], valid: frozenset[AttachmentKey]) -> None:
    attachments = [replace(ATTACHMENT, key=key) for key in present]
    assert {a.key for a in unlisted_attachments(attachments, "net", valid)} == {
        k for k in present - valid if k.network == "net"
    }
