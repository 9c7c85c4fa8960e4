"""Differences between table and cloud: every state, whatever the cloud says and wherever the link is."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.drift import schedule
from qingcloud_cni.core.drift.cloud_drift import (
    GROWN_UP,
    SETTLED,
    Adopt,
    Await,
    CloudFacts,
    Forget,
    Readdress,
    Renew,
    Replug,
    TableFacts,
    Unattach,
    cloud_drift,
    unlisted,
)
from qingcloud_cni.core.drift.differences import Difference, DifferenceKind, Remedy
from qingcloud_cni.core.drift.link_locations import LinkLocations, locate
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Netns, Nic, NicState
from qingcloud_cni.core.nics.table import FOLLOWS
from qingcloud_cni.core.seams.cloud import CloudNic, Vxnet
from qingcloud_cni.core.seams.kernel import Link, Survey

S = NicState
NOW = 1_700_000_000.0
HERE = "i-here"
MAC = "52:54:00:00:00:01"
LINK = Link(MAC, "eth1", 7, is_up=False, fingerprint="veth 5/17")
VXNET = Vxnet("vxnet-1", "pods", 1, "rtr-1", "172.16.3.0/24", "172.16.3.1", None)
NEW = Vxnet("vxnet-2", "more", 1, "rtr-1", "172.17.0.0/16", "172.17.0.1", None)
NIC = make_nic(since=NOW - 2 * SETTLED, name="ours")
ATTACHMENT = Attachment(AttachmentKey("net", "pod", "eth0"), MAC, Netns("/x", 1, 2), NOW, ifindex=7)
FREE = CloudNic(MAC, "ours", "available", "", "vxnet-1", "172.16.3.7", 0, created=NOW - GROWN_UP)
ATTACHED = replace(FREE, status="in-use", instance_id=HERE)
ELSEWHERE = replace(ATTACHED, instance_id="i-elsewhere")
NOBODY = TableFacts((), {}.keys(), {}, ())


def held(nic: Nic, *, is_serving: bool | None = None) -> TableFacts:
    serving = nic.state is S.ASSIGNED if is_serving is None else is_serving
    return TableFacts((nic,), {MAC}, {MAC: ATTACHMENT} if serving else {}, ())


def view(*said: CloudNic, is_whole: bool = True, link: Link | None = None) -> CloudFacts:
    vxnets = {v.vxnet_id: v for v in (VXNET, NEW)}
    return CloudFacts(
        {n.nic_id: n for n in said}, vxnets, {MAC: link} if link else {}, is_whole=is_whole, wall=NOW,
        instance_id=HERE, is_ours=lambda name: name == "ours",
    )  # fmt: skip


def seen(place: str) -> LinkLocations:
    surveys = {"nowhere": Survey((), ()), "host": Survey((LINK,), ()), "parked": Survey((), (LINK,))}
    return locate({MAC: NIC}, surveys[place])


def drift(what: TableFacts, said: CloudFacts, place: str = "nowhere") -> list[tuple[DifferenceKind, Remedy | None]]:
    return [(d.kind, d.remedy) for d in cloud_drift(what, said, seen(place), NOW)]


# --- what the table does not know ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "found"),
    [
        pytest.param(FREE, [(DifferenceKind.UNKNOWN, Adopt(MAC, FREE, None))], id="free"),
        pytest.param(
            replace(FREE, created=0.0),
            [(DifferenceKind.UNKNOWN, Adopt(MAC, replace(FREE, created=0.0), None))],
            id="no age",
        ),
        pytest.param(replace(FREE, created=NOW - GROWN_UP + 1), [(DifferenceKind.YOUNG, None)], id="free and young"),
        pytest.param(replace(FREE, created=NOW + 60), [(DifferenceKind.YOUNG, None)], id="made in the future"),
        pytest.param(ATTACHED, [(DifferenceKind.UNKNOWN, Adopt(MAC, ATTACHED, None))], id="attached here"),
        pytest.param(
            replace(ATTACHED, created=NOW),
            [(DifferenceKind.UNKNOWN, Adopt(MAC, replace(ATTACHED, created=NOW), None))],
            id="attached here and young",
        ),
        pytest.param(ELSEWHERE, [], id="attached to another instance"),
        pytest.param(replace(ATTACHED, role=1), [], id="the primary, whatever its name"),
        pytest.param(replace(ATTACHED, name="theirs"), [], id="another name"),
        pytest.param(replace(FREE, name=""), [], id="no name"),
        pytest.param(replace(FREE, private_ip=""), [(DifferenceKind.UNUSABLE, None)], id="no address"),
        pytest.param(replace(FREE, vxnet_id="vxnet-9"), [(DifferenceKind.UNUSABLE, None)], id="no usable vxnet"),
    ],
)  # fmt: skip
def test_what_the_table_does_not_know(said: CloudNic, found: list[tuple[DifferenceKind, Remedy | None]]) -> None:
    assert drift(NOBODY, view(said)) == found


def test_unknown_nics_of_one_address_are_not_adopted() -> None:
    assert (
        drift(NOBODY, view(FREE, replace(FREE, nic_id="52:54:9e:00:00:99"))) == [(DifferenceKind.UNUSABLE, None)] * 2
    )
    elsewhere = replace(FREE, nic_id="52:54:9e:00:00:99", vxnet_id="vxnet-9", name="theirs")
    assert drift(NOBODY, view(FREE, elsewhere)) == [(DifferenceKind.UNKNOWN, Adopt(MAC, FREE, None))]


def test_a_nic_is_adopted_with_its_link_on_the_host() -> None:
    assert drift(NOBODY, view(ATTACHED, link=LINK)) == [(DifferenceKind.UNKNOWN, Adopt(MAC, ATTACHED, LINK))]


def test_nics_of_creates_under_way_and_those_the_table_had_meanwhile_are_left_alone() -> None:
    assert drift(replace(NOBODY, creating=("ours",)), view(FREE)) == []
    assert drift(replace(NOBODY, known={MAC}), view(FREE)) == []


# --- what the table knows --------------------------------------------------------------------------------

GONE, NOWHERE = Forget(MAC, "the cloud no longer has it, and its link is nowhere"), "nowhere"
AWAY = Forget(MAC, "the cloud has it attached to i-elsewhere")
POOL = (S.IDLE, S.COOLING, S.QUARANTINED, S.ARRIVING, S.MISSING)
OTHERS = [s for s in S if s is not S.ASSIGNED]


@pytest.mark.parametrize("state", OTHERS)
def test_a_nic_that_neither_cloud_nor_kernel_knows_is_forgotten(state: NicState) -> None:
    nic = held(replace(NIC, state=state))
    assert drift(nic, view()) == [(DifferenceKind.VANISHED, GONE)]
    assert drift(nic, view(is_whole=False)) == [(DifferenceKind.VANISHED, None)]
    assert drift(nic, view(), "parked") == [(DifferenceKind.VANISHED, None)]  # a link speaks against a list


@pytest.mark.parametrize("state", OTHERS)
def test_a_nic_that_is_attached_to_another_instance_is_forgotten(state: NicState) -> None:
    nic = held(replace(NIC, state=state))
    assert drift(nic, view(ELSEWHERE)) == [(DifferenceKind.ELSEWHERE, AWAY)]
    assert drift(nic, view(ELSEWHERE), "host") == [(DifferenceKind.ELSEWHERE, None)]


@pytest.mark.parametrize("state", OTHERS)
def test_a_nic_that_is_attached_here(state: NicState) -> None:
    expected = {
        S.CREATING: [(DifferenceKind.ATTACHED, Await(MAC))],
        S.MISSING: [(DifferenceKind.NO_LINK, Replug(MAC))],
    }
    nic = held(replace(NIC, state=state))
    assert drift(nic, view(ATTACHED)) == expected.get(state, [])
    assert drift(nic, view(ATTACHED, is_whole=False)) == []
    assert drift(nic, view(ATTACHED), "parked") == []


def test_a_nic_that_was_attached_again_too_often_is_told_and_left() -> None:
    missing = replace(NIC, state=S.MISSING, repairs=schedule.REPAIRS_PER_NIC, repaired=NOW - 60.0)
    assert drift(held(missing), view(ATTACHED)) == [(DifferenceKind.GIVEN_UP, None)]
    later = replace(missing, repaired=NOW - schedule.REPAIR_MEMORY)
    assert drift(held(later), view(ATTACHED)) == [(DifferenceKind.NO_LINK, Replug(MAC))]


@pytest.mark.parametrize("state", OTHERS)
def test_a_nic_that_is_attached_nowhere(state: NicState) -> None:
    nic = held(replace(NIC, state=state))
    assert drift(nic, view(FREE)) == ([(DifferenceKind.UNATTACHED, Unattach(MAC))] if state in POOL else [])
    assert drift(nic, view(FREE, is_whole=False)) == []
    ghost = [(DifferenceKind.GHOST, Renew(MAC))] if state in (*POOL, S.GATEWAY) else []
    assert drift(nic, view(FREE), "parked") == ghost
    young = held(replace(NIC, state=state, since=NOW - SETTLED + 1.0))
    assert drift(young, view(FREE), "parked") == []  # its link may be there before its job has ended


@pytest.mark.parametrize("said", [(), (FREE,), (ELSEWHERE,)])
@pytest.mark.parametrize("place", ["nowhere", "host"])
def test_what_the_cloud_says_of_a_containers_nic_is_told_and_nothing_is_done(
    said: tuple[CloudNic, ...], place: str
) -> None:
    serving = replace(NIC, state=S.ASSIGNED)
    (difference,) = cloud_drift(held(serving), view(*said), seen(place), NOW)
    assert (difference.kind, difference.remedy, difference.subject) == (DifferenceKind.CUT_OFF, None, "net/pod/eth0")
    words = {(): "no longer has it", (FREE,): "attached nowhere", (ELSEWHERE,): "attached to i-elsewhere"}
    assert words[said] in difference.detail
    assert drift(held(replace(serving, since=NOW)), view(*said), place) == []


@pytest.mark.parametrize("state", [S.IDLE, S.MISSING, S.GATEWAY, S.ASSIGNED])
@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (ATTACHED, None),
        (replace(ATTACHED, private_ip="172.16.3.8"), Readdress(MAC, "vxnet-1", "172.16.3.8/24", "172.16.3.1")),
        (
            replace(ATTACHED, vxnet_id="vxnet-2", private_ip="172.17.0.5"),
            Readdress(MAC, "vxnet-2", "172.17.0.5/16", "172.17.0.1"),
        ),
        (replace(ATTACHED, private_ip=""), None),
        (replace(ATTACHED, vxnet_id="vxnet-9"), None),
    ],
)
def test_a_new_address(state: NicState, said: CloudNic, remedy: Remedy | None) -> None:
    found = cloud_drift(held(replace(NIC, state=state)), view(said), seen("host"), NOW)
    assert [(d.kind, d.remedy) for d in found] == ([(DifferenceKind.READDRESSED, remedy)] if remedy else [])
    assert all(d.is_harmless and d.is_settled == (state is not S.ASSIGNED) for d in found)
    assert all(("its container" in d.detail) == (state is S.ASSIGNED) for d in found)


def test_a_nic_whose_name_is_not_ours_any_more_is_let_go_but_not_from_a_container() -> None:
    renamed = view(replace(ATTACHED, name="mine"))
    assert drift(held(NIC), renamed, "parked") == [
        (DifferenceKind.RENAMED, Forget(MAC, "somebody renamed it to 'mine'"))
    ]
    assert drift(held(replace(NIC, state=S.ASSIGNED)), renamed) == [(DifferenceKind.RENAMED, None)]


def test_a_new_address_is_learned_before_the_nic_is_attached_again() -> None:
    """It can be changed only while the NIC is attached nowhere: the next container gets what it is by then."""
    changed = replace(FREE, private_ip="172.16.3.8")
    readdress = (DifferenceKind.READDRESSED, Readdress(MAC, "vxnet-1", "172.16.3.8/24", "172.16.3.1"))
    for state in (S.MISSING, S.CREATING):
        assert readdress in drift(held(replace(NIC, state=state)), view(changed))
    away = view(replace(ELSEWHERE, private_ip="172.16.3.8"))
    assert drift(held(NIC), away) == [(DifferenceKind.ELSEWHERE, AWAY)]


def test_what_neither_list_shows_is_asked_for_by_its_id() -> None:
    assert unlisted([NIC], {}) == (MAC,)
    assert unlisted([NIC], {MAC: FREE}) == ()


said_of = st.builds(
    lambda said, **changes: tuple(replace(nic, **changes) for nic in said),
    st.sampled_from(((), (FREE,), (ATTACHED,), (ELSEWHERE,))),
    name=st.sampled_from(("ours", "mine")),
    private_ip=st.sampled_from((FREE.private_ip, "172.16.3.8")),
)


@given(
    state=st.sampled_from(list(S)), said=said_of, place=st.sampled_from(("nowhere", "host", "parked")),
    is_whole=st.booleans(), age=st.sampled_from((0.0, 1e4)),
)  # fmt: skip
def test_every_cure_fits_the_state_and_nothing_is_done_to_a_containers_nic(
    state: NicState, said: tuple[CloudNic, ...], place: str, *, is_whole: bool, age: float
) -> None:
    found = cloud_drift(
        held(replace(NIC, state=state, since=NOW - age)), view(*said, is_whole=is_whole), seen(place), NOW
    )
    for difference in found:
        _fits(difference, state)
    remedies = [difference.remedy for difference in found if difference.remedy is not None]
    assert len(remedies) == 1 or not any(
        isinstance(remedy, Forget) for remedy in remedies
    )  # nothing is left to be cured


def _fits(difference: Difference, state: NicState) -> None:
    match difference.remedy:
        case Unattach():
            assert S.CREATING in FOLLOWS[state]
        case Await():
            assert S.MISSING in FOLLOWS[state]
        case Replug():
            assert S.DETACHING in FOLLOWS[state]
            assert not difference.is_harmless
        case Renew():
            assert S.CREATING in FOLLOWS[state] or (S.MISSING in FOLLOWS[state] and S.CREATING in FOLLOWS[S.MISSING])
            assert not difference.is_harmless
        case Forget():
            assert state is not S.ASSIGNED
            assert not difference.is_harmless
        case Readdress() | None:
            pass
        case other:
            raise AssertionError(other)
