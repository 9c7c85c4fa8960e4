"""Which link is which NIC: a burnt-in MAC before a MAC, a MAC before an alias, and of several the surest or none."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.drift.link_locations import LinkLocation, Sign, Where, locate, surest
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.core.seams.kernel import Link, OtherNamespace, Survey

HERE = "i-here"
A, B, STRANGER = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "02:00:00:00:00:01"
POD = Netns("/run/netns/pod", 4, 100)
LINK = Link(A, "eth1", 7, is_up=True)


def alias(nic_id: str) -> str:
    return link_alias(HERE, nic_id)


def seen(*links: Link) -> dict[str, list[Sign]]:
    found = locate({A, B}, Survey(links, ()), HERE)
    return {nic_id: [s.sign for s in locations] for nic_id, locations in found.items()}


@pytest.mark.parametrize(
    ("link", "found"),
    [
        (LINK, {A: [Sign.MAC]}),
        (replace(LINK, alias=alias(A)), {A: [Sign.MAC_AND_ALIAS]}),
        (replace(LINK, alias=alias(B)), {A: [Sign.MAC]}),  # a container can write any alias on its own NIC
        (replace(LINK, mac=STRANGER, alias=alias(A)), {A: [Sign.ALIAS]}),
        (replace(LINK, mac=STRANGER, alias=link_alias("i-other", A)), {}),
        (replace(LINK, mac=STRANGER, alias="qingcni-gateway"), {}),
        (replace(LINK, mac=STRANGER), {}),
        (replace(LINK, permanent_mac=A), {A: [Sign.BURNT_IN]}),
        (replace(LINK, mac=STRANGER, permanent_mac=A), {A: [Sign.BURNT_IN]}),
        (replace(LINK, mac=B, alias=alias(B), permanent_mac=A), {A: [Sign.BURNT_IN]}),
        (replace(LINK, permanent_mac=STRANGER), {}),  # hardware that claims to be ours
        (replace(LINK, alias=alias(A), permanent_mac=STRANGER), {}),
    ],
)
def test_what_a_link_is(link: Link, found: dict[str, list[Sign]]) -> None:
    assert seen(link) == found


def test_where_it_is() -> None:
    survey = Survey(
        (LINK,), (replace(LINK, mac=B),), (OtherNamespace(POD, (replace(LINK, alias=alias(A)),)),), is_wide=True
    )
    found = locate({A, B}, survey, HERE)
    assert [(s.where, s.netns, s.is_marked) for s in found[A]] == [
        (Where.HOST, None, False),
        (Where.ELSEWHERE, POD, True),
    ]
    assert [s.where for s in found[B]] == [Where.PARKED]
    assert [s.path for s in (*found[A], *found[B])] == [
        "the host's namespace", POD.path, "the parking namespace",
    ]  # fmt: skip
    assert found[A][1].is_in(replace(POD, path="/proc/1/ns/net"))
    assert not found[A][0].is_in(POD)


def location(sign: Sign, where: Where = Where.HOST, netns: Netns | None = None, ifindex: int = 7) -> LinkLocation:
    return LinkLocation(where, replace(LINK, ifindex=ifindex), sign, netns, sign in (Sign.ALIAS, Sign.MAC_AND_ALIAS))


def test_the_surest_of_several() -> None:
    by_mac, at_home = location(Sign.MAC), location(Sign.ALIAS, Where.ELSEWHERE, POD)
    burnt_in = location(Sign.BURNT_IN, Where.PARKED)
    assert surest([], None) is None
    assert surest([by_mac], None) == by_mac
    assert surest([by_mac, at_home], POD, 7) == at_home
    assert surest([by_mac, burnt_in, at_home], POD, 7) == burnt_in
    assert surest([by_mac, location(Sign.MAC, Where.PARKED)], None) is None
    assert surest([location(Sign.MAC, Where.ELSEWHERE, POD, ifindex=9), by_mac], POD, 7) is None


@given(
    st.lists(
        st.builds(
            Link,
            mac=st.sampled_from((A, B, STRANGER)),
            name=st.just("eth0"),
            ifindex=st.integers(1, 3),
            is_up=st.booleans(),
            alias=st.sampled_from(("", alias(A), alias(B), "mine")),
            permanent_mac=st.sampled_from(("", A, B, STRANGER)),
        ),
        max_size=6,
    )
)
def test_a_link_is_one_nic_at_most_and_a_burnt_in_mac_is_never_outdone(links: list[Link]) -> None:
    found = locate({A, B}, Survey(tuple(links), ()), HERE)
    assert sum(map(len, found.values())) <= len(links)
    for nic_id, locations in found.items():
        burnt_in = [s for s in locations if s.link.permanent_mac == nic_id]
        chosen = surest(locations, POD, 7)
        if len(burnt_in) == 1:
            assert chosen == burnt_in[0]
        for s in locations:
            assert s.link.permanent_mac in ("", nic_id)
