"""The three policies, rest for vxnets without addresses, and room where the cloud has told of it."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.vxnets import REST_FIRST, REST_LONGEST, VxnetChooser, VxnetPolicy

VXNETS = ("vxnet-a", "vxnet-b", "vxnet-c")
NOW = 1_700_000_000.0


def chooser(policy: VxnetPolicy, vxnets: tuple[str, ...] = VXNETS) -> VxnetChooser:
    return VxnetChooser(policy, vxnets, random.Random(7))


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


def test_round_rotate_does_not_mind_failures() -> None:
    vxnets = chooser(VxnetPolicy.ROUND_ROTATE)
    vxnets.choose(1, NOW)
    vxnets.failed("vxnet-a")
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
    vxnets.has_room("vxnet-a", 0, NOW)
    assert vxnets.resting(NOW) == ("vxnet-a",)
    assert order(vxnets.choose(4, NOW)) == expected


def test_random_skips_a_full_vxnet() -> None:
    vxnets = chooser(VxnetPolicy.RANDOM)
    vxnets.has_room("vxnet-b", 0, NOW)
    assert set(vxnets.choose(60, NOW)) == {"vxnet-a", "vxnet-c"}


@pytest.mark.parametrize("policy", VxnetPolicy)
def test_where_all_rest_none_is_chosen_until_the_shortest_rest_ends(policy: VxnetPolicy) -> None:
    vxnets = chooser(policy)
    for delay, vxnet_id in enumerate(VXNETS):
        vxnets.has_room(vxnet_id, 0, NOW + delay)
    assert vxnets.choose(2, NOW + 2) == ()
    assert vxnets.next_choice_at(NOW + 2) == NOW + REST_FIRST
    assert order(vxnets.choose(2, NOW + REST_FIRST)) == "aa"


def test_each_rest_is_longer_up_to_a_bound_until_a_create_works() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",))
    now, lengths = NOW, []
    for _ in range(8):
        vxnets.has_room("vxnet-a", 0, now)
        lengths.append(vxnets.next_choice_at(now) - now)
        now += lengths[-1]
    assert lengths == [60, 120, 240, 480, 960, 1800, 1800, REST_LONGEST]
    assert vxnets.next_choice_at(now) == now
    vxnets.worked("vxnet-a", 1)
    vxnets.has_room("vxnet-a", 0, now)
    assert vxnets.next_choice_at(now) == now + REST_FIRST


def test_no_more_nics_than_the_cloud_said_there_is_room_for() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE)
    vxnets.has_room("vxnet-a", 2, NOW)
    assert order(vxnets.choose(5, NOW)) == "aabbb"


def test_room_is_asked_anew_once_it_was_used_up() -> None:
    vxnets = chooser(VxnetPolicy.FAIL_ROTATE, ("vxnet-a",))
    vxnets.has_room("vxnet-a", 3, NOW)
    vxnets.worked("vxnet-a", 2)
    assert len(vxnets.choose(5, NOW)) == 1
    vxnets.worked("vxnet-a", 1)
    assert len(vxnets.choose(5, NOW)) == 5


def test_a_chooser_needs_a_vxnet_and_shows_itself() -> None:
    with pytest.raises(ValueError, match="at least one vxnet"):
        chooser(VxnetPolicy.RANDOM, ())
    assert repr(chooser(VxnetPolicy.RANDOM)) == "VxnetChooser(Random, next=vxnet-a, resting={})"


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
        vxnets.has_room(vxnet_id, addresses, now)
        room[vxnet_id] = addresses
        now += seconds
    chosen = Counter(vxnets.choose(count, now))
    assert not set(chosen) & set(vxnets.resting(now))
    assert all(n <= room[v] for v, n in chosen.items() if room.get(v))
    free = set(VXNETS) - set(vxnets.resting(now))
    if any(not room.get(v) for v in free):  # room of which nothing is known
        assert chosen.total() == count
    assert bool(free) == (vxnets.next_choice_at(now) == now)
