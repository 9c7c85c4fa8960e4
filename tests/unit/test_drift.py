"""Differences between table, kernel and cloud: every state in every place, and the cure for it."""

from dataclasses import replace

import pytest

from qingcloud_cni.core.drift import (
    ARRIVAL_SECONDS,
    Adopt,
    Arrived,
    Attached,
    CloudCure,
    Forget,
    LinkCure,
    Lost,
    Returned,
    Unattached,
    cloud_drift,
    link_drift,
)
from qingcloud_cni.core.model import Attachment, AttachmentKey, Intent, Netns, Nic, NicState, OpKind
from qingcloud_cni.core.seams import CloudNic, Link, Snapshot, Survey
from qingcloud_cni.core.table import FOLLOWS, Table

S = NicState
NOW = 1_700_000_000.0
HERE = "i-here"
MAC = "52:54:00:00:00:01"
LINK = Link(MAC, "eth1", 7, is_up=False)
NIC = Nic(MAC, "ours", "vxnet-1", "172.16.3.7/24", "172.16.3.1", S.IDLE, NOW)
PLACES = {"nowhere": Survey((), ()), "host": Survey((LINK,), ()), "parked": Survey((), (LINK,))}
NOT_PARKED = "its link is in the parking namespace no longer"
LATE = "its link has not come back within 30 s"

CURES: dict[NicState, tuple[str, str, str]] = {  # cure where the link is nowhere, on the host, parked
    S.CREATING: ("", "arrived", "arrived"),
    S.ATTACHING: ("", "arrived", "arrived"),
    S.ARRIVING: ("", "arrived", "arrived"),
    S.IDLE: ("lost", "arrived", ""),
    S.ASSIGNED: ("", "returned", "returned parked"),
    S.COOLING: ("lost", "arrived", ""),
    S.DETACHING: ("", "", ""),
    S.DELETING: ("", "", ""),
    S.MISSING: ("", "arrived", "arrived"),
    S.QUARANTINED: ("lost", "arrived", ""),
    S.GATEWAY: ("lost gateway", "", "arrived"),
}
WORDS: dict[str, tuple[LinkCure, ...]] = {
    "": (),
    "arrived": (Arrived(MAC),),
    "returned": (Returned(MAC, is_parked=False),),
    "returned parked": (Returned(MAC, is_parked=True),),
    "lost": (Lost(MAC, NOT_PARKED),),
    "lost gateway": (Lost(MAC, "its link is on the host no longer"),),
}
CASES = [(state, place, CURES[state][n]) for state in S for n, place in enumerate(PLACES)]


@pytest.mark.parametrize(("state", "place", "cure"), CASES)
def test_every_state_in_every_place(state: NicState, place: str, cure: str) -> None:
    assert link_drift([replace(NIC, state=state)], PLACES[place], NOW) == WORDS[cure]


@pytest.mark.parametrize(("state", "cure"), sorted({(state, cure) for state, _, cure in CASES}))
def test_the_table_lets_every_cure_through(state: NicState, cure: str) -> None:
    if "arrived" in cure and state is not S.ARRIVING:
        assert S.ARRIVING in FOLLOWS[state]
    elif cure.startswith("lost"):
        assert S.MISSING in FOLLOWS[state]
    elif cure.startswith("returned"):
        assert {S.ARRIVING, S.COOLING} <= FOLLOWS[state]
    else:
        assert cure in ("", "arrived")


def test_a_link_that_returns_is_awaited_for_a_while() -> None:
    nic = replace(NIC, state=S.ARRIVING, since=NOW - ARRIVAL_SECONDS)
    assert link_drift([nic], PLACES["nowhere"], NOW) == ()
    assert link_drift([nic], PLACES["nowhere"], NOW + 0.5) == (Lost(MAC, LATE),)
    assert link_drift([nic], PLACES["host"], NOW + 0.5) == (Arrived(MAC),)


def test_links_of_others_are_nobodys_business() -> None:
    foreign = Survey((replace(LINK, mac="52:54:00:00:00:99"),), (replace(LINK, mac="52:54:00:00:00:98"),))
    assert link_drift([replace(NIC, state=S.ASSIGNED)], foreign, NOW) == ()


# --- table and cloud ---------------------------------------------------------------------------------

FREE = CloudNic(MAC, "ours", "available", "", "vxnet-1", "172.16.3.7", 0)
ATTACHED = replace(FREE, status="in-use", instance_id=HERE)
ELSEWHERE = replace(ATTACHED, instance_id="i-elsewhere")


def table_with(state: NicState | None, *intents: Intent) -> Table:
    if state is None:
        return Table(Snapshot(intents=intents))
    attachment = Attachment(AttachmentKey("net", "pod", "eth0"), MAC, Netns("/x", 1, 2), NOW)
    held = (attachment,) if state is S.ASSIGNED else ()
    return Table(Snapshot((replace(NIC, state=state),), held, intents))


def drift(table: Table, *cloud: CloudNic, place: str = "nowhere") -> tuple[CloudCure, ...]:
    return cloud_drift(table, {n.nic_id: n for n in cloud}, PLACES[place], HERE, lambda name: name == "ours")


@pytest.mark.parametrize(
    ("seen", "cures"),
    [
        pytest.param(FREE, (Adopt(FREE, is_attached=False),), id="free"),
        pytest.param(ATTACHED, (Adopt(ATTACHED, is_attached=True),), id="attached here"),
        pytest.param(ELSEWHERE, (), id="attached to another instance"),
        pytest.param(replace(ATTACHED, role=1), (), id="the primary, whatever its name"),
        pytest.param(replace(ATTACHED, name="theirs"), (), id="another name"),
        pytest.param(replace(FREE, name=""), (), id="no name"),
    ],
)
def test_what_the_table_does_not_know(seen: CloudNic, cures: tuple[CloudCure, ...]) -> None:
    assert drift(table_with(None), seen) == cures
    assert drift(table_with(None), seen, place="host") == cures


def test_a_nic_of_a_create_under_way_is_left_to_it() -> None:
    asked = table_with(None, Intent("op", OpKind.CREATE, NOW, vxnet_id="vxnet-1", name="ours", count=1))
    assert drift(asked, FREE) == ()


UNKNOWN_STATES = [s for s in S if s is not S.ASSIGNED]


@pytest.mark.parametrize("state", UNKNOWN_STATES)
def test_a_nic_that_neither_cloud_nor_kernel_knows_is_forgotten(state: NicState) -> None:
    assert drift(table_with(state)) == (Forget(MAC),)


@pytest.mark.parametrize("state", S)
def test_a_nic_whose_link_is_seen_is_not_judged_by_the_cloud(state: NicState) -> None:
    for place in ("host", "parked"):
        assert drift(table_with(state), place=place) == drift(table_with(state), FREE, place=place) == ()


@pytest.mark.parametrize("state", S)
def test_a_nic_of_an_operation_under_way_is_left_to_it(state: NicState) -> None:
    table = table_with(state, Intent("op", OpKind.DETACH, NOW, nic_ids=(MAC,)))
    assert drift(table) == drift(table, FREE) == drift(table, ATTACHED) == ()


@pytest.mark.parametrize("seen", [(), (FREE,), (ATTACHED,), (ELSEWHERE,)])
def test_an_assigned_nic_is_never_judged(seen: tuple[CloudNic, ...]) -> None:
    assert drift(table_with(S.ASSIGNED), *seen) == ()


@pytest.mark.parametrize("state", UNKNOWN_STATES)
def test_a_parked_nic_that_the_cloud_has_unattached(state: NicState) -> None:
    is_parked = state in {S.IDLE, S.COOLING, S.QUARANTINED, S.ARRIVING, S.MISSING}
    assert drift(table_with(state), FREE) == ((Unattached(MAC),) if is_parked else ())
    if is_parked:
        assert S.CREATING in FOLLOWS[state]


@pytest.mark.parametrize("state", UNKNOWN_STATES)
def test_a_nic_that_was_attached_unknown_to_the_table(state: NicState) -> None:
    assert drift(table_with(state), ATTACHED) == ((Attached(MAC),) if state is S.CREATING else ())
    assert S.MISSING in FOLLOWS[S.CREATING]
