"""Differences between table and kernel: every state in every place, and the remedy for it."""

from dataclasses import replace

import pytest

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
LINK = Link(MAC, "eth1", 7, is_up=False, fingerprint="veth 5/17")
MARKED = replace(LINK, alias=ALIAS)
FAKE = Link(MAC, "veth9", 12, is_up=True, alias=ALIAS)
NIC = make_nic(since=NOW, fingerprint=LINK.fingerprint)
AGAIN = replace(LINK, ifindex=8, fingerprint="veth 5/18")  # its namespace died, and the simulator plugged it in again
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
    "theirs": wide(home=(), theirs=(LINK,)),
    "faked": wide(host=(FAKE,), parked=(FAKE,), home=(FAKE,), theirs=(FAKE,)),
}
WORDS: dict[str, tuple[LinkRemedy, ...]] = {
    "": (),
    "arrived": (Arrived(MAC),),
    "returned": (Returned(MAC, is_parked=False),),
    "returned parked": (Returned(MAC, is_parked=True),),
    "lost": (Lost(MAC, "its link has left the parking namespace"),),
    "lost gateway": (Lost(MAC, "its link has left the host"),),
    "moved": (Lost(MAC, f"somebody moved its link to {THEIRS.path}"),),
    "moved home": (Lost(MAC, f"somebody moved its link to {HOME.path}"),),
    "strayed": (Strayed(MAC, THEIRS.path),),
    "strayed home": (Strayed(MAC, HOME.path),),
}
CURES: dict[NicState, tuple[str, str, str, str, str, str]] = {  # by place, in the order of PLACES
    S.CREATING: ("", "arrived", "arrived", "", "", ""),
    S.ATTACHING: ("", "arrived", "arrived", "", "", ""),
    S.ARRIVING: ("", "arrived", "arrived", "", "", ""),
    S.IDLE: ("lost", "arrived", "", "strayed home", "strayed", "lost"),
    S.ASSIGNED: ("", "returned", "returned parked", "", "", ""),
    S.COOLING: ("lost", "arrived", "", "strayed home", "strayed", "lost"),
    S.DETACHING: ("", "", "", "", "", ""),
    S.DELETING: ("", "", "", "", "", ""),
    S.MISSING: ("", "arrived", "arrived", "", "", ""),
    S.QUARANTINED: ("lost", "arrived", "", "strayed home", "strayed", "lost"),
    S.GATEWAY: ("lost gateway", "", "arrived", "moved home", "moved", "lost gateway"),
}
CASES = [(state, place, CURES[state][n]) for state in S for n, place in enumerate(PLACES)]


def drift(nic: Nic, survey: Survey, now: float = NOW, attachment: Attachment | None = ATTACHMENT) -> LinkDrift:
    held = {MAC: attachment} if attachment is not None and nic.state is S.ASSIGNED else {}
    return link_drift([nic], held, survey, locate({MAC: nic}, survey), now)


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
    survey = wide(host=(AGAIN,), parked=(), theirs=(LINK,))
    remedies = drift(replace(NIC, state=state), survey).remedies
    assert not remedies
    narrow = Survey((AGAIN,), (LINK,))
    assert drift(replace(NIC, state=state), narrow) == LinkDrift((), is_unsure=True)


def test_a_link_that_returns_is_awaited_for_a_while() -> None:
    nic = replace(NIC, state=S.ARRIVING, since=NOW - ARRIVAL_SECONDS)
    late = (Lost(MAC, "its link did not return within 30 s"),)
    assert drift(nic, PLACES["nowhere"]).remedies == ()
    assert drift(nic, PLACES["nowhere"], NOW + 0.5).remedies == late
    assert drift(nic, PLACES["host"], NOW + 0.5).remedies == (Arrived(MAC),)
    assert drift(nic, PLACES["theirs"], NOW + 0.5).remedies == ()  # it is fetched from there
    assert drift(nic, PLACES["faked"], NOW + 0.5).remedies == late


def test_links_of_others_are_nobodys_business() -> None:
    foreign = wide(host=(replace(LINK, mac="52:54:00:00:00:99"),), parked=(replace(LINK, mac="52:54:00:00:00:98"),))
    assert drift(replace(NIC, state=S.ASSIGNED), foreign).remedies == ()


def test_a_link_that_was_plugged_in_again_is_recorded_where_no_container_can_write() -> None:
    arrived = {MAC: AGAIN.fingerprint}
    for nic in (NIC, replace(NIC, fingerprint="")):
        assert drift(nic, wide(parked=(AGAIN,))) == LinkDrift(arrived=arrived)
        assert drift(nic, Survey((), (AGAIN,))) == LinkDrift(arrived=arrived)
        assert drift(nic, wide(host=(AGAIN,))) == LinkDrift((Arrived(MAC),), arrived=arrived)
        assert drift(nic, wide(home=(AGAIN,))).arrived == {}
    assert drift(ASSIGNED, wide(host=(AGAIN,))) == LinkDrift((Returned(MAC, is_parked=False),), arrived=arrived)
    assert drift(ASSIGNED, Survey((AGAIN,), ())) == LinkDrift(is_unsure=True)
    assert drift(ASSIGNED, wide(host=(AGAIN,), theirs=(LINK,))) == LinkDrift()


ASSIGNED = replace(NIC, state=S.ASSIGNED)


# --- odd places ----------------------------------------------------------------------------------------------


def oddity(nic: Nic, survey: Survey) -> tuple[DifferenceKind, Remedy | None] | None:
    held = {MAC: ATTACHMENT} if nic.state is S.ASSIGNED else {}
    found = misplaced_links([nic], held, survey, locate({MAC: nic}, survey), lambda nic_id: link_alias(HERE, nic_id))
    assert len(found) <= 1
    return (found[0].kind, found[0].remedy) if found else None


HIDDEN = replace(LINK, mac="02:00:00:00:00:01", ifindex=3)
UNRECORDED = replace(NIC, fingerprint="")
SPOOFED, TWICE = (DifferenceKind.SPOOFED, None), (DifferenceKind.TWICE, None)
ODD = {
    "at home": (ASSIGNED, wide(home=(MARKED,)), None),
    "at home, renamed": (ASSIGNED, wide(home=(replace(MARKED, name="net9"),)), None),
    "at home, no sign left": (ASSIGNED, wide(home=(HIDDEN,)), None),
    "at home, with a copy": (ASSIGNED, wide(home=(MARKED, FAKE)), None),
    "moved on, its container lives": (ASSIGNED, wide(home=(), theirs=(MARKED,)), (DifferenceKind.MOVED, None)),
    "moved on, its container is gone": (ASSIGNED, wide(theirs=(HIDDEN,)), (DifferenceKind.LEFT, Release(MAC))),
    "moved on, not all was seen": (ASSIGNED, wide(theirs=(MARKED,), unseen=True), (DifferenceKind.MOVED, None)),
    "nowhere, its container lives": (ASSIGNED, wide(home=()), (DifferenceKind.STRIPPED, None)),
    "nowhere, a copy at home": (ASSIGNED, wide(home=(replace(FAKE, ifindex=7),)), (DifferenceKind.STRIPPED, None)),
    "nowhere, nor its container": (ASSIGNED, wide(theirs=(FAKE,)), (DifferenceKind.LEFT, Release(MAC))),
    "nowhere, not all was seen": (ASSIGNED, wide(unseen=True), None),
    "back on the host": (ASSIGNED, wide(host=(LINK,)), None),  # `link_drift` handles it
    "twice": (ASSIGNED, wide(host=(AGAIN,), home=(MARKED,)), TWICE),
    "idle twice": (NIC, wide(host=(AGAIN,), parked=(LINK,)), TWICE),
    "idle, parked": (NIC, wide(parked=(LINK,)), None),
    "its MAC elsewhere": (ASSIGNED, wide(home=(MARKED,), theirs=(replace(FAKE, alias=""),)), SPOOFED),
    "its alias elsewhere": (ASSIGNED, wide(home=(MARKED,), theirs=(replace(FAKE, mac=OTHER),)), SPOOFED),
    "its MAC on another NIC": (ASSIGNED, wide(home=(MARKED,), theirs=(replace(AGAIN, mac=MAC),)), SPOOFED),
    "idle, its MAC in a container": (NIC, wide(parked=(LINK,), theirs=(FAKE,)), SPOOFED),
    "arriving, in a container": (
        replace(NIC, state=S.ARRIVING), wide(theirs=(LINK,)), (DifferenceKind.STRAY, Fetch(MAC, THEIRS, 7))
    ),
    "arriving, a copy in a container": (replace(NIC, state=S.ARRIVING), wide(theirs=(FAKE,)), None),
    "missing": (replace(NIC, state=S.MISSING), wide(), None),
    "missing, somebody has it": (replace(NIC, state=S.MISSING), wide(theirs=(LINK,)), (DifferenceKind.HELD, None)),
    "missing, a copy in a container": (replace(UNRECORDED, state=S.MISSING), wide(theirs=(FAKE,)), None),
    "missing, no record": (
        replace(UNRECORDED, state=S.MISSING), wide(theirs=(LINK,)), (DifferenceKind.HELD, None)
    ),
    "missing, no record, two claim to be it": (
        replace(UNRECORDED, state=S.MISSING), wide(theirs=(LINK,), home=(AGAIN,)), TWICE
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_a_look_into_every_namespace_shows(case: str) -> None:
    nic, survey, expected = ODD[case]
    assert oddity(nic, survey) == expected
