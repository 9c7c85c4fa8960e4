"""Differences between table and kernel: every state in every place, and the remedy for it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.drift.differences import DifferenceKind, Remedy
from qingcloud_cni.core.drift.link_drift import (
    ARRIVAL_SECONDS,
    Arrived,
    Fetch,
    LinkDrift,
    LinkRemedy,
    Lost,
    Release,
    Returned,
    Strayed,
    link_drift,
    misplaced_links,
)
from qingcloud_cni.core.drift.link_locations import locate
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Netns, Nic, NicState
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.core.nics.table import FOLLOWS
from qingcloud_cni.core.seams.kernel import Link, OtherNamespace, Survey

S = NicState
NOW = 1_700_000_000.0
HERE = "i-here"
MAC = "52:54:00:00:00:01"
OTHER = "52:54:00:00:00:02"
ALIAS = link_alias(HERE, MAC)
LINK = Link(MAC, "eth1", 7, is_up=False)
MARKED = replace(LINK, alias=ALIAS)
NIC = make_nic(since=NOW)
HOME, THEIRS = Netns("/run/netns/pod", 4, 100), Netns("/run/netns/theirs", 4, 200)
ATTACHMENT = Attachment(AttachmentKey("net", "pod", "eth0"), MAC, HOME, NOW, ifindex=7)


def wide(
    *, host: tuple[Link, ...] = (), parked: tuple[Link, ...] = (), unseen: bool = False, **places: tuple[Link, ...]
) -> Survey:
    """*home* and *theirs* are the links there; one that is left out is gone."""
    elsewhere = {"home": HOME, "theirs": THEIRS}
    found = [OtherNamespace(elsewhere[name], links) for name, links in places.items()]
    return Survey(host, parked, tuple(found), is_wide=True, unseen=("/x",) if unseen else ())


PLACES = {
    "nowhere": wide(home=(), theirs=()),
    "host": wide(host=(LINK,), home=(), theirs=()),
    "parked": wide(parked=(LINK,), home=(), theirs=()),
    "home": wide(home=(MARKED,), theirs=()),
    "theirs, marked": wide(home=(), theirs=(MARKED,)),
    "theirs": wide(home=(), theirs=(LINK,)),
}
MOVED = f"somebody moved its link to {THEIRS.path}"
WORDS: dict[str, tuple[LinkRemedy, ...]] = {
    "": (),
    "arrived": (Arrived(MAC),),
    "returned": (Returned(MAC, is_parked=False),),
    "returned parked": (Returned(MAC, is_parked=True),),
    "lost": (Lost(MAC, "its link is no longer in the parking namespace"),),
    "lost gateway": (Lost(MAC, "its link is no longer on the host"),),
    "moved": (Lost(MAC, MOVED),),
    "moved home": (Lost(MAC, f"somebody moved its link to {HOME.path}"),),
    "strayed": (Strayed(MAC, THEIRS.path),),
    "strayed home": (Strayed(MAC, HOME.path),),
}
CURES: dict[NicState, tuple[str, str, str, str, str, str]] = {  # by place, in the order of PLACES
    S.CREATING: ("", "arrived", "arrived", "", "", ""),
    S.ATTACHING: ("", "arrived", "arrived", "", "", ""),
    S.ARRIVING: ("", "arrived", "arrived", "", "", ""),
    S.IDLE: ("lost", "arrived", "", "strayed home", "strayed", "moved"),
    S.ASSIGNED: ("", "returned", "returned parked", "", "", ""),
    S.COOLING: ("lost", "arrived", "", "strayed home", "strayed", "moved"),
    S.DETACHING: ("", "", "", "", "", ""),
    S.DELETING: ("", "", "", "", "", ""),
    S.MISSING: ("", "arrived", "arrived", "", "", ""),
    S.QUARANTINED: ("lost", "arrived", "", "strayed home", "strayed", "moved"),
    S.GATEWAY: ("lost gateway", "", "arrived", "moved home", "moved", "moved"),
}
CASES = [(state, place, CURES[state][n]) for state in S for n, place in enumerate(PLACES)]


def drift(nic: Nic, survey: Survey, now: float = NOW, attachment: Attachment | None = ATTACHMENT) -> LinkDrift:
    held = {MAC: attachment} if attachment is not None and nic.state is S.ASSIGNED else {}
    return link_drift([nic], held, survey, locate({MAC, OTHER}, survey, HERE), now)


@pytest.mark.parametrize(("state", "place", "remedy"), CASES)
def test_every_state_in_every_place(state: NicState, place: str, remedy: str) -> None:
    assert drift(replace(NIC, state=state), PLACES[place]) == LinkDrift(WORDS[remedy])


@pytest.mark.parametrize(("state", "remedy"), sorted({(state, remedy) for state, _, remedy in CASES}))
def test_the_table_lets_every_cure_through(state: NicState, remedy: str) -> None:
    if remedy.startswith(("arrived", "strayed")) and state is not S.ARRIVING:
        assert S.ARRIVING in FOLLOWS[state]
    elif remedy.startswith(("lost", "moved")):
        assert S.MISSING in FOLLOWS[state]
    elif remedy.startswith("returned"):
        assert {S.ARRIVING, S.COOLING} <= FOLLOWS[state]
    else:
        assert remedy in ("", "arrived")


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("place", ["nowhere", "host", "parked"])
def test_a_look_at_two_namespaces_concludes_nothing_from_what_may_be_in_others(state: NicState, place: str) -> None:
    """A remedy that takes a NIC from a container or the pool needs a survey of every namespace."""
    survey = replace(PLACES[place], elsewhere=(), is_wide=False)
    remedies = WORDS[CURES[state][list(PLACES).index(place)]]
    gives = all(isinstance(remedy, Arrived) for remedy in remedies)
    assert drift(replace(NIC, state=state), survey) == LinkDrift(remedies if gives else (), is_unsure=not gives)


@pytest.mark.parametrize("state", S)
def test_of_several_links_that_claim_to_be_a_nic_none_is_touched(state: NicState) -> None:
    survey = wide(host=(LINK,), parked=(), theirs=(LINK,))
    remedies = drift(replace(NIC, state=state), survey).remedies
    assert not remedies
    narrow = Survey((LINK,), (LINK,))
    assert drift(replace(NIC, state=state), narrow) == LinkDrift((), is_unsure=True)


def test_a_link_that_returns_is_awaited_for_a_while() -> None:
    nic = replace(NIC, state=S.ARRIVING, since=NOW - ARRIVAL_SECONDS)
    late = (Lost(MAC, "its link did not return within 30 s"),)
    assert drift(nic, PLACES["nowhere"]).remedies == ()
    assert drift(nic, PLACES["nowhere"], NOW + 0.5).remedies == late
    assert drift(nic, PLACES["host"], NOW + 0.5).remedies == (Arrived(MAC),)
    assert drift(nic, PLACES["theirs, marked"], NOW + 0.5).remedies == ()  # it is fetched from there
    assert drift(nic, PLACES["theirs"], NOW + 0.5).remedies == (Lost(MAC, MOVED),)


def test_links_of_others_are_nobodys_business() -> None:
    foreign = wide(host=(replace(LINK, mac="52:54:00:00:00:99"),), parked=(replace(LINK, mac="52:54:00:00:00:98"),))
    assert drift(replace(NIC, state=S.ASSIGNED), foreign).remedies == ()


@pytest.mark.parametrize("mac", ["02:00:00:00:00:01", MAC])
def test_a_link_with_our_alias_has_returned_whatever_its_mac(mac: str) -> None:
    survey = wide(host=(replace(LINK, name="dev7", mac=mac, alias=ALIAS),))
    assert drift(replace(NIC, state=S.ASSIGNED), survey).remedies == (Returned(MAC, is_parked=False),)


def test_what_claims_to_be_a_containers_nic_is_not_believed_while_the_real_one_may_be_home() -> None:
    """It has changed MAC and alias of its link, as it may; somebody else's link has both."""
    hidden = Link("02:00:00:00:00:01", "eth0", 7, is_up=True)
    claims = replace(MARKED, name="veth9", ifindex=12)
    assigned = replace(NIC, state=S.ASSIGNED)
    assert drift(assigned, wide(host=(claims,), home=(hidden,))).remedies == ()
    returned = (Returned(MAC, is_parked=False),)
    assert drift(assigned, wide(host=(claims,), home=())).remedies == returned
    assert drift(assigned, wide(host=(claims,), home=(replace(hidden, ifindex=3),))).remedies == returned
    burnt_in = replace(hidden, permanent_mac=OTHER)
    assert drift(assigned, wide(host=(claims,), home=(burnt_in,))).remedies == returned


links = st.builds(
    Link,
    mac=st.sampled_from((MAC, OTHER, "02:00:00:00:00:01")),
    name=st.just("eth0"),
    ifindex=st.integers(1, 3),
    is_up=st.booleans(),
    alias=st.sampled_from(("", ALIAS, link_alias(HERE, OTHER), link_alias("i-other", MAC))),
    permanent_mac=st.sampled_from(("", MAC, OTHER, "02:00:00:00:00:01")),
)
places = st.lists(links, max_size=3).map(tuple)


@given(host=places, parked=places, home=places, is_wide=st.booleans(), is_hardware=st.booleans())
def test_whatever_links_elsewhere_claim_a_container_keeps_the_nic_that_is_home(
    host: tuple[Link, ...], parked: tuple[Link, ...], home: tuple[Link, ...], *, is_wide: bool, is_hardware: bool
) -> None:
    """Hardware by its burnt-in MAC, which is on one link only; a veth by the index at which we left it."""
    if is_hardware:
        real = Link("02:00:00:00:00:09", "net9", 8, is_up=True, permanent_mac=MAC)
        host, parked, home = (tuple(n for n in p if n.permanent_mac != MAC) for p in (host, parked, home))
    else:
        real = Link(MAC, "eth0", 7, is_up=True, alias=ALIAS)
        host, parked, home = (tuple(replace(n, permanent_mac="") for n in p) for p in (host, parked, home))
    survey = wide(host=host, parked=parked, home=(*home, real)) if is_wide else Survey(host, parked)
    assert drift(ASSIGNED, survey).remedies == ()


ASSIGNED = replace(NIC, state=S.ASSIGNED)


# --- odd places ----------------------------------------------------------------------------------------------


def oddity(nic: Nic, survey: Survey) -> tuple[DifferenceKind, Remedy | None] | None:
    held = {MAC: ATTACHMENT} if nic.state is S.ASSIGNED else {}
    found = misplaced_links([nic], held, survey, locate({MAC}, survey, HERE))
    assert len(found) <= 1
    return (found[0].kind, found[0].remedy) if found else None


HIDDEN = Link("02:00:00:00:00:01", "eth0", 7, is_up=True)
ODD = {
    "at home": (ASSIGNED, wide(home=(MARKED,)), None),
    "at home, renamed": (ASSIGNED, wide(home=(replace(MARKED, name="net9"),)), None),
    "at home, its MAC changed": (ASSIGNED, wide(home=(replace(MARKED, mac="02:00:00:00:00:01"),)), None),
    "at home, no sign left": (ASSIGNED, wide(home=(HIDDEN,)), None),
    "moved on, its container lives": (ASSIGNED, wide(home=(), theirs=(MARKED,)), (DifferenceKind.MOVED, None)),
    "moved on, its container is gone": (ASSIGNED, wide(theirs=(MARKED,)), (DifferenceKind.LEFT, Release(MAC))),
    "moved on, no alias": (ASSIGNED, wide(theirs=(LINK,)), (DifferenceKind.MOVED, None)),
    "moved on, not all was seen": (ASSIGNED, wide(theirs=(MARKED,), unseen=True), (DifferenceKind.MOVED, None)),
    "nowhere, its container lives": (ASSIGNED, wide(home=()), (DifferenceKind.STRIPPED, None)),
    "nowhere, another link at its place": (
        ASSIGNED, wide(home=(replace(HIDDEN, ifindex=9),)), (DifferenceKind.STRIPPED, None)
    ),
    "nowhere, nor its container": (ASSIGNED, wide(), (DifferenceKind.LEFT, Release(MAC))),
    "nowhere, not all was seen": (ASSIGNED, wide(unseen=True), None),
    "back on the host": (ASSIGNED, wide(host=(LINK,)), None),  # `link_drift` handles it
    "twice": (ASSIGNED, wide(host=(LINK,), home=(MARKED,)), (DifferenceKind.TWICE, None)),
    "idle twice": (NIC, wide(host=(LINK,), parked=(LINK,)), (DifferenceKind.TWICE, None)),
    "idle, parked": (NIC, wide(parked=(LINK,)), None),
    "arriving, in a container": (
        replace(NIC, state=S.ARRIVING), wide(theirs=(MARKED,)), (DifferenceKind.STRAY, Fetch(MAC, THEIRS, 7))
    ),
    "arriving, somebody has it": (replace(NIC, state=S.ARRIVING), wide(theirs=(LINK,)), None),
    "missing": (replace(NIC, state=S.MISSING), wide(), None),
    "missing, somebody has it": (replace(NIC, state=S.MISSING), wide(theirs=(LINK,)), (DifferenceKind.HELD, None)),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_a_look_into_every_namespace_shows(case: str) -> None:
    nic, survey, expected = ODD[case]
    assert oddity(nic, survey) == expected
