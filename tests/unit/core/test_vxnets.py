"""The three policies, skipped vxnets, and known room."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.pool.vxnets import (
    REST_FIRST,
    REST_LONGEST,
    ROOM_BELIEVED,
    VxnetChooser,
    VxnetPolicy,
    VxnetStatus,
    explain_skipped,
)

VXNETS = ("vxnet-a", "vxnet-b", "vxnet-c")
NOW = 1_700_000_000.0


class Unspread(random.Random):
    """Draws as ever, but spreads nothing."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def chooser(policy: VxnetPolicy, vxnets: tuple[str, ...] = VXNETS) -> VxnetChooser:
    return VxnetChooser(policy, vxnets, Unspread(7))


def resting(vxnets: VxnetChooser, now: float) -> set[str]:
    return {s.vxnet_id for s in vxnets.statuses(now) if s.rests_until}


def order(chosen: tuple[str, ...]) -> str:
    return "".join(v.removeprefix("vxnet-") for v in chosen)


def test_fail_rotate_stays_until_a_create_fails_then_moves_to_the_next() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE)
    seen = [order(vxnets.choose(3, NOW))]
    for failing in ("vxnet-a", "vxnet-b", "vxnet-c"):
        vxnets.failed(failing)
        seen.append(order(vxnets.choose(2, NOW)))
    assert seen == ["aaa", "bb", "cc", "aa"]


def test_fail_rotate_moves_once_for_several_creates_that_fail_together() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE)
    vxnets.choose(4, NOW)
    vxnets.failed("vxnet-a")
    vxnets.failed("vxnet-a")
    assert order(vxnets.choose(1, NOW)) == "b"


def test_round_rotate_moves_on_with_every_nic() -> None:
    vxnets = chooser(VxnetPolicy.ROUND_ROTATE)
    assert [order(vxnets.choose(n, NOW)) for n in (1, 4, 2)] == ["a", "bcab", "ca"]


@pytest.mark.parametrize("policy", [VxnetPolicy.FAIL_ROTATE, VxnetPolicy.ROUND_ROTATE])
def test_after_the_last_one_comes_the_first(policy: VxnetPolicy) -> None:
    vxnets = chooser(policy)
    for vxnet_id in ("vxnet-a", "vxnet-b"):
        vxnets.choose(1, NOW)
        vxnets.failed(vxnet_id)
    vxnets.set_room("vxnet-c", 0, NOW)
    assert order(vxnets.choose(1, NOW)) == "a"


def test_round_rotate_does_not_mind_failures() -> None:
    vxnets = chooser(VxnetPolicy.ROUND_ROTATE)
    vxnets.choose(1, NOW)
    for vxnet_id in VXNETS:
        vxnets.failed(vxnet_id)
    assert order(vxnets.choose(3, NOW)) == "bca"


def test_random_uses_all_about_equally_and_the_same_for_the_same_seed() -> None:
    chosen = chooser(VxnetPolicy.RANDOM).choose(300, NOW)
    counts = Counter(chosen)
    assert set(counts) == set(VXNETS)
    assert min(counts.values()) > 70
    assert chooser(VxnetPolicy.RANDOM).choose(300, NOW) == chosen


@pytest.mark.parametrize(
    ("policy", "expected"), [(VxnetPolicy.FAIL_ROTATE, "bbbb"), (VxnetPolicy.ROUND_ROTATE, "bcbc")]
)
def test_a_full_vxnet_is_skipped(policy: VxnetPolicy, expected: str) -> None:
    vxnets = chooser(policy)
    vxnets.set_room("vxnet-a", 0, NOW)
    assert resting(vxnets, NOW) == {"vxnet-a"}
    assert order(vxnets.choose(4, NOW)) == expected


def test_random_skips_a_full_vxnet() -> None:
    vxnets = chooser(VxnetPolicy.RANDOM)
    vxnets.set_room("vxnet-b", 0, NOW)
    assert set(vxnets.choose(60, NOW)) == {"vxnet-a", "vxnet-c"}


@pytest.mark.parametrize("policy", VxnetPolicy)
def test_where_all_rest_none_is_chosen_until_the_shortest_rest_ends(policy: VxnetPolicy) -> None:
    vxnets = chooser(policy)
    for delay, vxnet_id in enumerate(VXNETS):
        vxnets.set_room(vxnet_id, 0, NOW + delay)
    assert vxnets.choose(2, NOW + 2) == ()
    assert vxnets.next_choice_at(NOW + 2) == NOW + REST_FIRST
    assert order(vxnets.choose(2, NOW + REST_FIRST)) == "aa"


def test_each_rest_is_longer_up_to_a_bound_until_a_create_works() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",))
    now, lengths = NOW, []
    for _ in range(8):
        vxnets.set_room("vxnet-a", 0, now)
        lengths.append(vxnets.next_choice_at(now) - now)
        now += lengths[-1]
    assert lengths == [60, 120, 240, 480, 960, 1800, 1800, REST_LONGEST]
    assert vxnets.next_choice_at(now) == now
    vxnets.created("vxnet-a", 1, now)
    vxnets.set_room("vxnet-a", 0, now)
    assert vxnets.next_choice_at(now) == now + REST_FIRST


def test_no_more_nics_than_the_cloud_said_there_is_room_for() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE)
    vxnets.set_room("vxnet-a", 2, NOW)
    assert order(vxnets.choose(5, NOW)) == "aabbb"


def test_a_vxnet_whose_last_addresses_were_taken_rests_without_being_asked() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",))
    vxnets.set_room("vxnet-a", 3, NOW)
    vxnets.created("vxnet-a", 2, NOW)
    assert len(vxnets.choose(5, NOW)) == 1
    vxnets.created("vxnet-a", 1, NOW)
    assert vxnets.choose(5, NOW) == ()
    assert len(vxnets.choose(5, NOW + REST_FIRST)) == 5


def test_what_is_believed_no_more_is_not_counted_down() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",))
    vxnets.set_room("vxnet-a", 3, NOW)
    vxnets.created("vxnet-a", 3, NOW + ROOM_BELIEVED)
    assert len(vxnets.choose(5, NOW + ROOM_BELIEVED)) == 5


def test_a_chooser_needs_a_vxnet_and_shows_itself() -> None:
    with pytest.raises(ValueError, match="at least one vxnet"):
        chooser(VxnetPolicy.RANDOM, ())
    assert repr(chooser(VxnetPolicy.RANDOM)) == "VxnetChooser(Random, next=vxnet-a, skipped={})"


@given(
    st.sampled_from(VxnetPolicy),
    st.lists(st.tuples(st.sampled_from(VXNETS), st.integers(0, 5), st.floats(0, 200)), max_size=12),
    st.integers(0, 20),
)
def test_a_choice_never_names_a_resting_vxnet_nor_exceeds_its_room(
    policy: VxnetPolicy, told: list[tuple[str, int, float]], count: int
) -> None:
    vxnets, now, room = chooser(policy), NOW, dict[str, int]()
    for vxnet_id, addresses, seconds in told:
        vxnets.set_room(vxnet_id, addresses, now)
        room[vxnet_id] = addresses
        now += seconds
    chosen = Counter(vxnets.choose(count, now))
    assert not set(chosen) & resting(vxnets, now)
    rooms = {s.vxnet_id: s.room for s in vxnets.statuses(now)}
    assert all(n <= room_ for v, n in chosen.items() if (room_ := rooms[v]) is not None)
    assert {v: r for v, r in rooms.items() if r}.items() <= room.items()
    total = vxnets.room(now)
    assert chosen.total() == (count if total is None else min(count, total))
    assert (vxnets.next_choice_at(now) == now) == bool(set(VXNETS) - resting(vxnets, now))


def test_the_rest_is_spread_lest_all_hosts_ask_at_once() -> None:
    ends = set()
    for seed in range(20):
        vxnets = VxnetChooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",), random.Random(seed))
        vxnets.set_room("vxnet-a", 0, NOW)
        ends.add(vxnets.next_choice_at(NOW) - NOW)
    assert len(ends) == 20
    assert all(0.75 * REST_FIRST <= end <= 1.25 * REST_FIRST for end in ends)


def test_what_was_asked_for_and_is_not_answered_takes_room() -> None:
    vxnets = chooser(VxnetPolicy.ROUND_ROTATE, VXNETS[:2])
    vxnets.set_room("vxnet-a", 3, NOW)
    vxnets.set_room("vxnet-b", 1, NOW)
    assert vxnets.room(NOW, {"vxnet-a": 2}) == 2
    assert order(vxnets.choose(5, NOW, {"vxnet-a": 2})) == "ab"
    assert vxnets.room(NOW, {"vxnet-a": 3, "vxnet-b": 9}) == 0
    assert vxnets.choose(5, NOW, {"vxnet-a": 3, "vxnet-b": 9}) == ()


def test_what_the_cloud_said_of_room_is_believed_for_a_while() -> None:
    """Other hosts take addresses from the same vxnet, and give them back."""
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",))
    vxnets.set_room("vxnet-a", 2, NOW)
    assert vxnets.next_change_at(NOW) == NOW + ROOM_BELIEVED
    assert vxnets.room(NOW + ROOM_BELIEVED - 1) == 2
    assert vxnets.room(NOW + ROOM_BELIEVED) is None
    assert vxnets.next_change_at(NOW + ROOM_BELIEVED) is None


def test_a_vxnet_that_has_room_again_rests_no_longer() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE)
    vxnets.set_room("vxnet-a", 0, NOW)
    assert vxnets.next_change_at(NOW) == NOW + REST_FIRST
    vxnets.set_room("vxnet-a", 7, NOW + 1)
    assert vxnets.statuses(NOW + 1)[0] == VxnetStatus("vxnet-a", room=7, is_next=True)


def test_a_preview_changes_nothing_and_knows_no_chance() -> None:
    for policy in (VxnetPolicy.FAIL_ROTATE, VxnetPolicy.ROUND_ROTATE):
        vxnets = chooser(policy)
        vxnets.choose(1, NOW)
        vxnets.failed("vxnet-a")
        assert vxnets.preview(3, NOW) == vxnets.preview(3, NOW) == vxnets.choose(3, NOW)
    vxnets = chooser(VxnetPolicy.RANDOM)
    assert vxnets.preview(3, NOW) == ()
    assert not any(s.is_next for s in vxnets.statuses(NOW))


@pytest.mark.parametrize("policy", VxnetPolicy)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_policy_minds_how_many_vxnets_there_are_nor_that_all_of_them_rest(policy: VxnetPolicy, size: int) -> None:
    vxnets = chooser(policy, VXNETS[:size])
    for _ in range(3 * size):
        (vxnet_id,) = vxnets.choose(1, NOW)
        vxnets.failed(vxnet_id)
        assert f"VxnetChooser({policy}, next=vxnet-" in repr(vxnets)
    for vxnet_id in VXNETS[:size]:
        vxnets.set_room(vxnet_id, 0, NOW)
        vxnets.failed(vxnet_id)
    assert vxnets.choose(3, NOW) == vxnets.preview(3, NOW) == ()
    assert vxnets.room(NOW) == 0
    assert len(vxnets.choose(3, NOW + REST_FIRST)) == 3


def test_a_vxnet_that_is_not_configured_is_no_concern() -> None:
    """Of a gateway NIC from before the setting was changed."""
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",))
    before = vxnets.statuses(NOW)
    vxnets.created("vxnet-old", 1, NOW)
    vxnets.set_room("vxnet-old", 0, NOW)
    vxnets.failed("vxnet-old")
    assert vxnets.statuses(NOW) == before


def test_which_rest_and_for_how_long_is_told() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE)
    assert explain_skipped(vxnets.statuses(NOW), NOW) == ""
    vxnets.set_room("vxnet-a", 0, NOW)
    vxnets.set_room("vxnet-c", 0, NOW + 10)
    told = explain_skipped(vxnets.statuses(NOW + 15), NOW + 15)
    assert told == "no free addresses, so skipped: vxnet-a for 45 s more, vxnet-c for 55 s more"
