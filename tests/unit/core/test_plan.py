"""The planner: tables for its edges, and laws for everything between them."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool.explain import Causes, explain_no_action, explain_wait, wait_reasons
from qingcloud_cni.core.pool.plan import (
    OVERDUE,
    above_limit,
    balance,
    due_at,
    held,
    is_growing,
    next_due,
    plan,
    room,
    serving_order,
    steps,
)
from qingcloud_cni.core.pool.pool_state import (
    Action,
    AttachNics,
    CreateNics,
    DeleteNics,
    DetachNics,
    Mode,
    PoolPolicy,
    PoolState,
    Rest,
)

NOW = 1_700_000_000.0
POLICY = PoolPolicy()
S = NicState
UNUSED = {S.IDLE, S.COOLING, S.QUARANTINED, S.GATEWAY, S.MISSING}


def nic(number: int, state: NicState, *, age: float = 0.0, released_ago: float | None = None) -> Nic:
    return make_nic(number, state, NOW - age, released=0.0 if released_ago is None else NOW - released_ago)


def nics(*states: NicState, age: float = 0.0) -> tuple[Nic, ...]:
    return tuple(nic(n, state, age=age) for n, state in enumerate(states))


def cooling(*released_ago: float) -> tuple[Nic, ...]:
    return tuple(nic(100 + n, S.COOLING, released_ago=ago) for n, ago in enumerate(released_ago))


def ids(*held: Nic) -> tuple[str, ...]:
    return tuple(n.nic_id for n in held)


# --- growing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        pytest.param(PoolState(()), (CreateNics(3),), id="an empty pool is filled to min-idle"),
        pytest.param(PoolState((), waiting=4), (CreateNics(7),), id="waiting ADDs come on top of min-idle"),
        pytest.param(PoolState(nics(S.IDLE), creating=1), (CreateNics(1),), id="a NIC being created is on its way"),
        pytest.param(PoolState(nics(S.ATTACHING, S.ARRIVING, S.IDLE)), (), id="so is what attaches or arrives"),
        pytest.param(PoolState(nics(S.ASSIGNED, S.IDLE, S.IDLE)), (CreateNics(1),), id="an assigned NIC is not idle"),
        pytest.param(
            PoolState(nics(*[S.IDLE] * 3), waiting=3), (CreateNics(3),), id="idle ones go to those who wait"
        ),
        pytest.param(PoolState((), grows_at=NOW + 1), (), id="nothing is created while growing backs off"),
        pytest.param(PoolState((), instance_room=2), (CreateNics(2),), id="not more than the instance can carry"),
        pytest.param(
            PoolState((), waiting=100, creating=58), (CreateNics(2),), id="max-nics counts NICs being created"
        ),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 60), waiting=5), (), id="at the limit nothing is created"),
        pytest.param(PoolState(nics(*[S.MISSING] * 60)), (), id="a missing NIC counts as held"),
        pytest.param(PoolState((), gateways=58), (CreateNics(2),), id="so does a gateway"),
        pytest.param(PoolState((), vxnet_room=2), (CreateNics(2),), id="not more than the vxnets take"),
        pytest.param(PoolState((), vxnet_room=0), (), id="nothing while all vxnets are skipped"),
    ],
)
def test_growing(state: PoolState, wanted: tuple[Action, ...]) -> None:
    assert plan(state, POLICY, NOW) == wanted


def test_while_calls_are_scarce_a_pool_that_must_be_filled_is_filled_to_the_brim() -> None:
    thrifty = PoolState(nics(*[S.IDLE] * 2), is_thrifty=True)
    assert plan(thrifty, POLICY, NOW) == (CreateNics(6),)
    assert plan(replace(thrifty, waiting=4), POLICY, NOW) == (CreateNics(10),)
    assert plan(replace(thrifty, nics=nics(*[S.IDLE] * 3)), POLICY, NOW) == ()
    attached_nowhere = nics(*[S.CREATING] * 4)
    assert plan(replace(thrifty, nics=attached_nowhere[:3]), POLICY, NOW) == (AttachNics(ids(*attached_nowhere[:3])),)
    assert plan(replace(thrifty, nics=attached_nowhere), POLICY, NOW) == (AttachNics(ids(*attached_nowhere)),)
    assert "max-idle 8 wanted, as calls are scarce" in steps(thrifty, POLICY, NOW)[0].why


def test_an_attach_that_does_not_end_is_not_counted_on_for_ever() -> None:
    young, old = (PoolState((nic(1, S.ATTACHING, age=age),)) for age in (OVERDUE - 1.0, OVERDUE))
    assert plan(young, POLICY, NOW) == (CreateNics(2),)
    assert plan(old, POLICY, NOW) == (CreateNics(3),)
    assert next_due(young, POLICY, NOW) == NOW + 1.0


def test_nics_attached_nowhere_are_attached_before_new_ones_are_made() -> None:
    spare = nics(S.CREATING, S.CREATING)
    assert plan(PoolState(spare), POLICY, NOW) == (AttachNics(ids(*spare)), CreateNics(1))


def test_nics_attached_nowhere_that_nobody_needs_are_deleted() -> None:
    held = nics(S.CREATING, S.CREATING, S.IDLE, S.IDLE)
    assert plan(PoolState(held), POLICY, NOW) == (AttachNics(ids(held[0])), DeleteNics(ids(held[1])))


def test_a_needed_nic_attached_nowhere_is_kept_while_growing_backs_off() -> None:
    assert plan(PoolState(nics(S.CREATING), grows_at=NOW + 1), POLICY, NOW) == ()


def test_nics_attached_nowhere_are_attached_though_all_vxnets_rest() -> None:
    (spare,) = nics(S.CREATING)
    assert plan(PoolState((spare,), vxnet_room=0), POLICY, NOW) == (AttachNics(ids(spare)),)


def test_nics_that_the_instance_cannot_carry_are_deleted() -> None:
    """Somebody has attached NICs to it meanwhile: two seats are left for three, and the limit is 5."""
    held = nics(S.ASSIGNED, S.ASSIGNED, S.ASSIGNED, S.CREATING, S.CREATING, S.CREATING)
    state = PoolState(held, waiting=1, instance_room=5)
    assert plan(state, POLICY, NOW) == (AttachNics(ids(*held[3:5])), DeleteNics(ids(held[5])))
    *_, deleted = steps(state, POLICY, NOW)
    assert deleted.why == "attached nowhere, and there is no room for more (5 left by the instance's own limit)"


def test_a_nic_of_an_operation_under_way_is_left_to_it() -> None:
    held = nics(S.CREATING, S.CREATING, S.CREATING)
    assert plan(PoolState(held, busy=frozenset(ids(*held))), POLICY, NOW) == ()


def test_a_nic_that_returns_from_a_container_is_not_on_its_way_to_another() -> None:
    returning = nic(1, S.ARRIVING, released_ago=1.0)
    assert plan(PoolState((returning,)), POLICY, NOW) == (CreateNics(3),)


# --- resting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ago", "waiting", "is_rested"),
    [(129.0, 0, False), (130.0, 0, True), (29.0, 1, False), (30.0, 1, True), (30.0, 0, False), (500.0, 1, True)],
)
def test_rest_of_an_address(ago: float, waiting: int, is_rested: bool) -> None:
    held = cooling(ago)
    rests = [a for a in plan(PoolState(held, waiting=waiting), POLICY, NOW) if isinstance(a, Rest)]
    assert rests == ([Rest(held[0].nic_id)] if is_rested else [])


def test_the_shorter_rest_is_taken_by_no_more_nics_than_adds_wait_the_longest_rested_first() -> None:
    held = (*nics(S.IDLE), *cooling(40.0, 60.0, 50.0))
    actions = plan(PoolState(held, waiting=3), POLICY, NOW)
    assert [a for a in actions if isinstance(a, Rest)] == [Rest(held[2].nic_id), Rest(held[3].nic_id)]


def test_a_cooldown_below_cooldown_min_is_the_rest_for_all() -> None:
    policy = replace(POLICY, cooldown=5.0)
    (held,) = cooling(5.0)
    assert due_at(held, policy, True) == due_at(held, policy, False) == NOW
    assert Rest(held.nic_id) in plan(PoolState((held,), waiting=1), policy, NOW)


def test_how_long_an_attach_takes_is_what_was_seen_lately() -> None:
    policy = replace(POLICY, min_idle=1)
    assert plan(PoolState(cooling(110.0), attach_seconds=20.0), policy, NOW) == ()
    assert plan(PoolState(cooling(110.0), attach_seconds=19.0), policy, NOW) == (CreateNics(1),)


def test_what_rests_for_one_add_is_counted_once() -> None:
    """`cooldown_min` is for the one ADD that waits; the others of the ten cool down for longer."""
    state = PoolState(cooling(*[28.0] * 10))
    assert plan(state, POLICY, NOW) == (CreateNics(3),)
    assert plan(replace(state, waiting=1), POLICY, NOW) == (CreateNics(3),)


@pytest.mark.defect("others-20")
def test_a_nic_that_rests_no_longer_than_an_attach_takes_is_not_replaced() -> None:
    policy = replace(POLICY, min_idle=1)
    assert plan(PoolState(cooling(125.0)), policy, NOW) == ()
    assert plan(PoolState(cooling(124.0)), policy, NOW) == (CreateNics(1),)


# --- giving back -------------------------------------------------------------------------------------


def idle(*ages: float) -> tuple[Nic, ...]:
    return tuple(nic(n, S.IDLE, age=age) for n, age in enumerate(ages))


def test_the_longest_idle_are_given_back_down_to_max_idle() -> None:
    held = idle(700, 900, 800, *[650] * 7)
    assert plan(PoolState(held), POLICY, NOW) == (DetachNics(ids(held[1], held[2])),)


def test_a_young_surplus_nic_is_kept() -> None:
    held = idle(599, 600, *[1] * 8)
    assert plan(PoolState(held), POLICY, NOW) == (DetachNics(ids(held[1])),)


@pytest.mark.defect("others-25")
def test_a_surplus_nic_that_an_operation_speaks_of_is_left_to_it() -> None:
    held = idle(900, 800, *[1] * 8)
    assert plan(PoolState(held, busy=frozenset(ids(held[0]))), POLICY, NOW) == (DetachNics(ids(held[1])),)


def test_up_to_max_idle_none_is_given_back_however_old() -> None:
    assert plan(PoolState(idle(*[9e6] * 8)), POLICY, NOW) == ()


def test_what_is_more_than_a_lowered_limit_is_given_back_at_once() -> None:
    policy = PoolPolicy(min_idle=3, max_idle=8, max_nics=6)
    held = (*nics(*[S.ASSIGNED] * 5), *(nic(20 + n, S.IDLE, age=n) for n in range(3)))
    assert plan(PoolState(held), policy, NOW) == (DetachNics(ids(held[7], held[6])),)
    assert plan(PoolState(held, gateways=1), policy, NOW) == (DetachNics(ids(held[7], held[6], held[5])),)
    assert plan(PoolState(held, waiting=1), policy, NOW) == ()
    spare = (nic(30, S.CREATING), nic(31, S.CREATING))  # without these the limit holds
    assert plan(PoolState((*held, *spare)), replace(policy, max_nics=8), NOW) == (DeleteNics(ids(*spare)),)
    gone = nic(40, S.QUARANTINED, age=4000)  # so does what was quarantined for long enough
    assert plan(PoolState((*held, gone)), replace(policy, max_nics=8), NOW) == (DetachNics(ids(gone)),)


def test_a_lowered_limit_wins_over_min_idle() -> None:
    held = (*nics(S.ASSIGNED, S.ASSIGNED), *idle(900))
    assert plan(PoolState(held), PoolPolicy(max_nics=2), NOW) == (DetachNics(ids(held[2])),)
    spare = nic(30, S.CREATING)
    assert plan(PoolState((*held[:2], spare)), PoolPolicy(max_nics=2), NOW) == (DeleteNics(ids(spare)),)


def test_above_a_lowered_limit_cooling_nics_go_after_the_idle_ones() -> None:
    held = (*nics(S.ASSIGNED, S.ASSIGNED), *idle(900), *cooling(50.0, 5.0))
    policy = PoolPolicy(max_nics=3)
    assert plan(PoolState(held), policy, NOW) == (DetachNics(ids(held[2], held[4])),)
    assert plan(PoolState(held, waiting=1), policy, NOW) == ()


def test_nothing_is_given_back_while_detaching_backs_off() -> None:
    state = PoolState(idle(*[900] * 9), shrinks_at=NOW + 5)
    assert plan(state, POLICY, NOW) == ()
    assert plan(replace(state, mode=Mode.DRAINING), POLICY, NOW) == ()
    assert next_due(state, POLICY, NOW) == NOW + 5


def test_the_surplus_is_handed_out_last_lest_it_never_grows_old() -> None:
    policy = PoolPolicy(min_idle=0, max_idle=2)
    held = idle(5, 9, 7, 8)
    assert serving_order(held, policy) == [held[2], held[0], held[1], held[3]]
    assert serving_order(held[:2], policy) == [held[1], held[0]]


@pytest.mark.parametrize(
    "growing",
    [
        pytest.param(PoolState((), waiting=1), id="an ADD waits"),
        pytest.param(PoolState((), creating=1), id="a create is unanswered"),
        pytest.param(PoolState((nic(50, S.ATTACHING),)), id="an attach is under way"),
        pytest.param(
            PoolState((nic(50, S.CREATING),), busy=frozenset(ids(nic(50, S.CREATING)))), id="one was created"
        ),
    ],
)
def test_none_is_given_back_while_the_pool_grows(growing: PoolState) -> None:
    state = replace(growing, nics=(*growing.nics, *idle(*[9000] * 20)))
    assert not [a for a in plan(state, POLICY, NOW) if isinstance(a, DetachNics)]


def test_a_nic_that_has_just_rested_is_surplus_at_once_where_idle_ttl_is_0() -> None:
    policy = PoolPolicy(min_idle=0, max_idle=0, idle_ttl=0.0)
    held = cooling(500.0)
    assert plan(PoolState(held), policy, NOW) == (Rest(held[0].nic_id), DetachNics(ids(*held)))


# --- removed vxnets ---------------------------------------------------------------------------------


def outside(*states: NicState, age: float = 0.0) -> tuple[Nic, ...]:
    return tuple(replace(nic(200 + n, state, age=age), vxnet_id="vxnet-old") for n, state in enumerate(states))


@pytest.mark.parametrize("busy", [PoolState(()), PoolState((), waiting=2), PoolState((), creating=1)])
def test_unused_nics_outside_are_released_at_once_and_count_as_nothing_else(busy: PoolState) -> None:
    held = outside(S.IDLE, S.COOLING, S.QUARANTINED, S.GATEWAY, S.ASSIGNED, S.ARRIVING, S.ATTACHING)
    *others, released = steps(replace(busy, outside=held), POLICY, NOW)
    assert [step.action for step in others] == [*plan(busy, POLICY, NOW)]
    assert released.action == DetachNics(ids(*held[:4]))
    assert released.why == "4 unused in vxnet-old, which is not in --vxnet"


def test_nics_outside_that_are_attached_nowhere_are_deleted() -> None:
    held = outside(S.CREATING, S.CREATING)
    (*_, deleted) = steps(PoolState((), outside=held, busy=frozenset(ids(held[1]))), POLICY, NOW)
    assert deleted.action == DeleteNics(ids(held[0]))
    assert deleted.why == "attached nowhere, and in vxnet-old, which is not in --vxnet"


def test_nics_outside_take_room_until_they_are_gone() -> None:
    policy = PoolPolicy(max_nics=4)
    held = outside(S.ASSIGNED, S.IDLE)
    assert plan(PoolState((), outside=held), policy, NOW) == (CreateNics(2), DetachNics(ids(held[1])))
    assert room(PoolState((), outside=held), policy) == 2


def test_a_missing_nic_outside_goes_once_it_is_nowhere() -> None:
    (lost,) = outside(S.MISSING)
    state = PoolState(idle(1, 1, 1), outside=(lost,))
    assert plan(state, POLICY, NOW) == ()
    assert plan(replace(state, nowhere=frozenset(ids(lost))), POLICY, NOW) == (DetachNics(ids(lost)),)


def test_a_detach_that_backs_off_holds_for_nics_outside() -> None:
    state = PoolState(idle(1, 1, 1), outside=outside(S.IDLE), shrinks_at=NOW + 5)
    assert plan(state, POLICY, NOW) == ()
    assert next_due(state, POLICY, NOW) == NOW + 5


# --- quarantine --------------------------------------------------------------------------------------


def quarantined(*ages: float) -> tuple[Nic, ...]:
    return tuple(nic(70 + number, S.QUARANTINED, age=age) for number, age in enumerate(ages))


def test_a_quarantined_nic_is_replaced_and_takes_room() -> None:
    held = (*idle(1, 1), *quarantined(1))
    assert plan(PoolState(held), POLICY, NOW) == (CreateNics(1),)
    full = (*nics(*[S.ASSIGNED] * 57), *idle(1, 1), *quarantined(1))
    assert room(PoolState(full), POLICY) == 0


def test_a_quarantined_nic_is_kept_for_a_while_and_then_given_back() -> None:
    held = (*idle(1, 1, 1), *quarantined(3599, 3600, 4000))
    assert plan(PoolState(held), POLICY, NOW) == (DetachNics((held[5].nic_id, held[4].nic_id)),)
    assert next_due(PoolState(held), POLICY, NOW) == NOW + 1


def test_a_soiled_nic_is_given_back_at_once_and_replaced() -> None:
    soiled = replace(nic(70, S.QUARANTINED, age=1), soil="XDP program 7")
    held = (*idle(1, 1, 1), *quarantined(5), soiled)
    (step,) = steps(PoolState(held), POLICY, NOW)
    assert step.action == DetachNics((soiled.nic_id,))
    assert step.why == "1 soiled: not as the cloud plugged them in"
    full = (*nics(*[S.ASSIGNED] * 58), *quarantined(70), soiled)
    assert plan(PoolState(full, waiting=1), POLICY, NOW) == (
        DetachNics((soiled.nic_id,)),
    )  # the room it leaves is enough


def test_a_quarantined_nic_gives_way_where_there_is_no_room_for_another() -> None:
    """The longest quarantined first, as many as ADDs wait, and only as long as a NIC could be created instead.

    Not before a second probe: the next NIC may get the same address.
    """
    held = (*nics(*[S.ASSIGNED] * 56), *quarantined(59, 61, 63, 62))
    waiting = PoolState(held, waiting=2)
    assert plan(waiting, POLICY, NOW) == (DetachNics((held[58].nic_id, held[59].nic_id)),)
    assert plan(replace(waiting, waiting=4), POLICY, NOW) == (
        DetachNics(tuple(held[n].nic_id for n in (58, 59, 57))),
    )
    assert next_due(replace(waiting, waiting=4), POLICY, NOW) == NOW + 1
    assert plan(replace(waiting, grows_at=NOW + 1), POLICY, NOW) == ()
    assert plan(replace(waiting, vxnet_room=0), POLICY, NOW) == ()
    assert plan(replace(waiting, shrinks_at=NOW + 1), POLICY, NOW) == ()
    assert plan(replace(waiting, mode=Mode.LEAVING), POLICY, NOW) == ()
    assert plan(replace(waiting, waiting=0), POLICY, NOW) == ()
    leaving = (*held[:57], nic(80, S.DETACHING), *held[58:])
    assert plan(replace(waiting, nics=leaving, waiting=1), POLICY, NOW) == ()


# --- what the agent is about ---------------------------------------------------------------------------

ALL_STATES = nics(*S, age=9000)


@pytest.mark.parametrize("mode", [Mode.STARTING, Mode.UNRECORDED])
def test_where_nothing_can_be_asked_of_the_cloud_nothing_but_resting_is_done(mode: Mode) -> None:
    """It was not compared with the table yet, or the disk takes no intents."""
    state = PoolState((*ALL_STATES, *cooling(200.0), *idle(*[9000] * 20)), mode=mode, waiting=5)
    rested = [n for n in state.nics if n.state is S.COOLING]
    assert {*plan(state, POLICY, NOW)} == {Rest(n.nic_id) for n in rested}


def test_an_instance_that_goes_away_gets_no_nics_and_leaves_none_behind() -> None:
    """What is attached goes with it; what is attached nowhere would stay in the cloud for ever."""
    state = PoolState(ALL_STATES, mode=Mode.LEAVING, waiting=5)
    (spare,) = (n for n in ALL_STATES if n.state is S.CREATING)
    (cools,) = (n for n in ALL_STATES if n.state is S.COOLING)
    assert plan(state, POLICY, NOW) == (Rest(cools.nic_id), DeleteNics(ids(spare)))


def test_a_stop_plans_nothing() -> None:
    state = PoolState((*ALL_STATES, *idle(*[9000] * 20)), mode=Mode.STOPPING, waiting=5)
    assert plan(state, POLICY, NOW) == ()


# --- draining ----------------------------------------------------------------------------------------


def test_a_drain_gives_back_what_serves_nothing_and_leaves_the_rest() -> None:
    held = nics(*S)
    by_state = {n.state: n.nic_id for n in held}
    unused = tuple(by_state[s] for s in S if s in {S.IDLE, S.COOLING, S.MISSING, S.QUARANTINED, S.GATEWAY})
    nowhere = frozenset({by_state[S.MISSING]})
    assert plan(PoolState(held, mode=Mode.DRAINING, waiting=9, nowhere=nowhere), POLICY, NOW) == (
        DeleteNics((by_state[S.CREATING],)),
        DetachNics(unused),
    )


def test_a_drain_leaves_a_missing_nic_whose_link_somebody_has() -> None:
    held = nics(S.MISSING)
    assert plan(PoolState(held, mode=Mode.DRAINING), POLICY, NOW) == ()


def test_a_drain_leaves_nics_to_their_operations() -> None:
    held = nics(*S)
    assert plan(PoolState(held, mode=Mode.DRAINING, busy=frozenset(ids(*held))), POLICY, NOW) == ()


# --- why an ADD waits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "says"),
    [
        pytest.param(PoolState((), waiting=1), "", id="there is room"),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 60), waiting=1), "all 60 NICs are taken (max-nics 60)", id="max"),
        pytest.param(
            PoolState(nics(*[S.ASSIGNED] * 4), waiting=1, instance_room=4),
            "all 4 NICs are taken (4 left by the instance's own limit)",
            id="others hold the others",
        ),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 59, S.ATTACHING), waiting=1), "", id="one is on its way"),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 59), creating=1, waiting=1), "", id="one is being created"),
        pytest.param(
            PoolState(nics(*[S.ASSIGNED] * 59, S.CREATING), waiting=1, grows_at=NOW + 1), "", id="attaching backs off"
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 59), nic(99, S.ARRIVING, released_ago=1.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60)",
            id="one comes back from a container",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 58), *cooling(10.0, 12.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60); the next one has cooled down in 18 s",
            id="the first to cool down is named",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 59), *cooling(27.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60); the next one has cooled down in 3 s",
            id="also one that is nearly cool",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 58), *quarantined(1.0, 2.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60), 2 of them quarantined, as others use their addresses",
            id="some are quarantined",
        ),
    ],
)
def test_why_an_add_waits(state: PoolState, says: str) -> None:
    assert explain_wait(state, POLICY, NOW) == says


# --- causes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "why"),
    [
        pytest.param(
            PoolState(idle(1), waiting=3, creating=1),
            "4 more wanted: 3 ADDs wait, min-idle 3; 1 idle, 1 on their way",
            id="wanted",
        ),
        pytest.param(
            PoolState((), waiting=1, instance_room=2),
            "4 more wanted: 1 ADD waits, min-idle 3; 0 idle, 0 on their way; there is room for 2"
            " (2 left by the instance's own limit)",
            id="limited",
        ),
        pytest.param(
            PoolState((), vxnet_room=1),
            "3 more wanted: 0 ADDs wait, min-idle 3; 0 idle, 0 on their way; the vxnets take 1",
            id="vxnets",
        ),
        pytest.param(
            PoolState(nics(*[S.CREATING] * 3)),
            "3 more wanted: 0 ADDs wait, min-idle 3; 0 idle, 0 on their way; these are attached nowhere",
            id="attached nowhere",
        ),
        pytest.param(
            PoolState(idle(*[900] * 10)),
            "10 are idle, max-idle 8; these for 600 s or more (idle-ttl)",
            id="unused",
        ),
        pytest.param(
            PoolState(idle(1, 1, 1), instance_room=2),
            "3 NICs are held, 1 more than the limit (2 left by the instance's own limit)",
            id="above the limit",
        ),
        pytest.param(
            PoolState((*idle(*[900] * 9), *quarantined(4000, 3600, 10))),
            "2 quarantined for 3600 s: others still use their addresses; 9 are idle, max-idle 8; these for 600 s"
            " or more (idle-ttl)",
            id="quarantined",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 59), *quarantined(70)), waiting=1),
            "1 quarantined, to make room for NICs that ADDs wait for",
            id="quarantined, and an ADD waits",
        ),
        pytest.param(
            PoolState((*idle(1, 1, 1), *nics(S.CREATING))), "attached nowhere, and not needed", id="spare"
        ),
        pytest.param(
            PoolState(cooling(140.0)), "its address has cooled down for 140 s (cooldown 130 s)", id="cooled"
        ),
        pytest.param(
            PoolState(cooling(31.0), waiting=1),
            "its address has cooled down for 31 s, which is enough while an ADD waits (cooldown-min 30 s)",
            id="cooled for an ADD",
        ),
        pytest.param(
            PoolState(nics(S.CREATING), mode=Mode.LEAVING),
            "attached nowhere, and the instance is going away",
            id="leaving",
        ),
        pytest.param(
            PoolState(idle(1), mode=Mode.DRAINING), "this host is being drained; they are unused", id="draining"
        ),
    ],
)  # fmt: skip
def test_why_a_step_is_planned(state: PoolState, why: str) -> None:
    assert steps(state, POLICY, NOW)[0].why == why


@pytest.mark.parametrize(
    ("state", "none", "waits"),
    [
        pytest.param(
            PoolState(idle(*[1] * 5)),
            "enough NICs: 0 ADDs wait, min-idle 3; 5 idle, 0 on their way, max-idle 8",
            [],
            id="all is well",
        ),
        pytest.param(
            PoolState(idle(*[1] * 2), creating=1, attach_seconds=3.4),
            "enough NICs: 0 ADDs wait, min-idle 3; 2 idle, 1 on their way, max-idle 8",
            [("1 NICs are on their way; an attach takes about 3 s", None)],
            id="coming",
        ),
        pytest.param(
            PoolState(idle(400, *[1] * 8)),
            "enough NICs, none to release yet: 0 ADDs wait, min-idle 3; 9 idle, 0 on their way, max-idle 8",
            [("1 idle NICs above max-idle stay for idle-ttl", NOW + 200)],
            id="surplus",
        ),
        pytest.param(
            PoolState((*idle(*[900] * 9), *nics(S.ATTACHING)), attach_seconds=3.0),
            "enough NICs, none to release yet: 0 ADDs wait, min-idle 3; 9 idle, 1 on their way, max-idle 8",
            [
                ("1 NICs are on their way; an attach takes about 3 s", None),
                ("1 idle NICs above max-idle stay while NICs are created or ADDs wait", None),
            ],
            id="surplus while growing",
        ),
        pytest.param(
            PoolState(idle(*[900] * 9), shrinks_at=NOW + 4),
            "enough NICs, none to release yet: 0 ADDs wait, min-idle 3; 9 idle, 0 on their way, max-idle 8",
            [
                ("1 idle NICs above max-idle stay for idle-ttl", NOW - 300),
                ("a detach failed and will be retried", NOW + 4),
            ],
            id="detaching failed",
        ),
        pytest.param(
            PoolState((), grows_at=NOW + 9),
            "3 more wanted, but not possible yet: 0 ADDs wait, min-idle 3; 0 idle, 0 on their way",
            [("a create or attach failed and will be retried", NOW + 9)],
            id="backing off",
        ),
        pytest.param(
            PoolState((), vxnet_room=0),
            "3 more wanted, but not possible yet: 0 ADDs wait, min-idle 3; 0 idle, 0 on their way",
            [("the vxnets have no room for more than 0", None)],
            id="vxnets full",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 58), *cooling(10.0, 12.0)), waiting=1),
            "4 more wanted, but not possible yet: 1 ADD waits, min-idle 3; 0 idle, 0 on their way",
            [
                ("60 NICs are held (max-nics 60): 0 more fit", None),
                ("2 addresses cool down; until the next NIC is idle", NOW + 18),
            ],
            id="full",
        ),
        pytest.param(
            PoolState((), mode=Mode.STARTING),
            "the agent has not compared its table with the cloud yet; it changes nothing there before",
            [("the agent has not compared its table with the cloud yet; it changes nothing there before", None)],
            id="starting",
        ),
        pytest.param(
            PoolState((*idle(1, 1, 1), *quarantined(100, 400))),
            "enough NICs: 0 ADDs wait, min-idle 3; 3 idle, 0 on their way, max-idle 8",
            [
                (
                    "2 NICs are quarantined, as others use their addresses; they are released after 3600 s",
                    NOW + 3200,
                )
            ],
            id="quarantined",
        ),
    ],
)
def test_what_is_waited_for(state: PoolState, none: str, waits: list[tuple[str, float | None]]) -> None:
    assert plan(state, POLICY, NOW) == ()
    assert explain_no_action(state, POLICY, NOW) == none
    assert [(wait.text, wait.until) for wait in wait_reasons(state, POLICY, NOW)] == waits


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (PoolState((), grows_at=NOW + 9), "a create or attach failed and will be retried (no money)"),
        (PoolState((), shrinks_at=NOW + 9), "a detach failed and will be retried (not now)"),
        (PoolState((), mode=Mode.LEAVING), "nothing is created, attached or detached (it is stopping)"),
        (PoolState((), mode=Mode.UNRECORDED), "no operation that needs a record is started (no space left)"),
    ],
)
def test_what_is_waited_for_is_told_with_its_cause(state: PoolState, says: str) -> None:
    troubles = Causes("no money", "not now", "it is stopping", "no space left")
    assert any(wait.text.endswith(says) for wait in wait_reasons(state, POLICY, NOW, troubles))


# --- laws --------------------------------------------------------------------------------------------

ages = st.integers(0, 30).map(float)  # dense, so that times often coincide


@st.composite
def policies(draw: st.DrawFn) -> PoolPolicy:
    min_idle = draw(st.integers(0, 3))
    return PoolPolicy(
        min_idle=min_idle,
        max_idle=min_idle + draw(st.integers(0, 5)),
        max_nics=max(min_idle, draw(st.integers(1, 12))),
        idle_ttl=draw(ages),
        cooldown=draw(ages),
        cooldown_min=draw(ages),
        quarantine=draw(ages),
        quarantine_min=draw(ages),
    )


@st.composite
def states(draw: st.DrawFn) -> PoolState:
    held = []
    for number in range(draw(st.integers(0, 14))):
        state = draw(st.sampled_from(S))
        has_served = state is S.COOLING or (state is S.ARRIVING and draw(st.booleans()))
        held.append(nic(number, state, age=draw(ages), released_ago=draw(ages) if has_served else None))
    outside = draw(st.integers(0, len(held)))
    return PoolState(
        nics=tuple(held[outside:]),
        outside=tuple(replace(n, vxnet_id="vxnet-old") for n in held[:outside]),
        creating=draw(st.sampled_from((0, 0, 0, 1, 3))),
        gateways=draw(st.sampled_from((0, 0, 1, 2))),
        waiting=draw(st.sampled_from((0, 0, 0, 1, 2, 6))),
        instance_room=draw(st.integers(0, 14)),
        vxnet_room=draw(st.sampled_from((None, None, 0, 1, 5))),
        shrinks_at=NOW + draw(st.sampled_from((-1.0, 0.0, 9.0))),
        grows_at=NOW + draw(st.sampled_from((-1.0, 0.0, 7.0))),
        mode=draw(st.sampled_from((*[Mode.SERVING] * 4, *Mode))),
        is_thrifty=draw(st.booleans()),
        attach_seconds=draw(st.integers(0, 20).map(float)),
        busy=frozenset(draw(st.sets(st.sampled_from(ids(*held))))) if held else frozenset(),
    )


def carried_out(state: PoolState, actions: tuple[Action, ...], now: float) -> PoolState:
    """The facts once the agent has begun everything that *actions* say."""
    held = {n.nic_id: n for n in (*state.nics, *state.outside)}
    creating, busy, vxnet_room = state.creating, set(state.busy), state.vxnet_room

    def move(nic_ids: tuple[str, ...], new: NicState) -> None:
        busy.update(nic_ids)
        for nic_id in nic_ids:
            held[nic_id] = replace(held[nic_id], state=new, since=now)

    for action in actions:
        match action:
            case Rest(nic_id):
                held[nic_id] = replace(held[nic_id], state=S.IDLE, since=now, released=0.0)
            case CreateNics(count):
                creating += count
                vxnet_room = None if vxnet_room is None else vxnet_room - count
            case AttachNics(nic_ids):
                move(nic_ids, S.ATTACHING)
            case DetachNics(nic_ids):
                move(nic_ids, S.DETACHING)
            case DeleteNics(nic_ids):
                move(nic_ids, S.DELETING)
    return replace(
        state, nics=tuple(held[n.nic_id] for n in state.nics), outside=tuple(held[n.nic_id] for n in state.outside),
        creating=creating, busy=frozenset(busy), vxnet_room=vxnet_room,
    )  # fmt: skip


@pytest.mark.defect("others-29")
@given(states(), policies())
def test_carrying_out_a_plan_leaves_nothing_to_plan(state: PoolState, policy: PoolPolicy) -> None:
    after = carried_out(state, plan(state, policy, NOW), NOW)
    assert plan(after, policy, NOW) == ()


@pytest.mark.defect("others-10")
@given(states(), policies())
def test_what_is_held_and_created_stays_within_the_limits(state: PoolState, policy: PoolPolicy) -> None:
    created = sum(a.count for a in plan(state, policy, NOW) if isinstance(a, CreateNics))
    assert created <= room(state, policy)
    if created:
        assert held(state) + created <= min(policy.max_nics, state.instance_room)
        assert created <= (created if state.vxnet_room is None else state.vxnet_room)
        assert state.grows_at <= NOW
        assert state.mode is Mode.SERVING


@given(states(), policies())
def test_no_more_is_attached_than_the_instance_can_carry(state: PoolState, policy: PoolPolicy) -> None:
    actions = plan(state, policy, NOW)
    attached = sum(len(a.nic_ids) for a in actions if isinstance(a, AttachNics))
    on_it = [n for n in (*state.nics, *state.outside) if n.state not in {S.CREATING, S.DELETING}]
    if attached:
        assert len(on_it) + state.gateways + attached <= state.instance_room


@given(states(), policies(), st.integers(1, 4))
@example(
    PoolState((nic(0, S.QUARANTINED),)),
    PoolPolicy(min_idle=0, max_idle=0, max_nics=1, quarantine=1.0, quarantine_min=0.0),
    1,
)
def test_the_more_adds_wait_the_more_is_created_and_the_less_that_could_serve_is_released(
    state: PoolState, policy: PoolPolicy, more: int
) -> None:
    """Quarantined NICs cannot serve: each waiting ADD may have one of them released, to make room for a new NIC."""
    quarantined = {n.nic_id for n in state.nics if n.state is S.QUARANTINED}

    def planned(state: PoolState) -> tuple[int, int, int]:
        """NICs created or attached; released that could serve; quarantined and released."""
        actions = plan(state, policy, NOW)
        created = sum(a.count for a in actions if isinstance(a, CreateNics))
        attached = sum(len(a.nic_ids) for a in actions if isinstance(a, AttachNics))
        released = {n for a in actions if isinstance(a, DetachNics | DeleteNics) for n in a.nic_ids}
        return created + attached, len(released - quarantined), len(released & quarantined)

    grown, released, displaced = planned(state)
    busier_grown, busier_released, busier_displaced = planned(replace(state, waiting=state.waiting + more))
    assert grown <= busier_grown
    assert released >= busier_released
    assert displaced <= busier_displaced <= displaced + more


@given(states(), policies())
def test_what_is_neither_there_nor_coming_is_asked_for_or_there_is_a_reason(
    state: PoolState, policy: PoolPolicy
) -> None:
    have = balance(state, policy, NOW)
    grown = sum(
        a.count if isinstance(a, CreateNics) else len(a.nic_ids)
        for a in plan(state, policy, NOW)
        if isinstance(a, CreateNics | AttachNics)
    )
    if grown < have.short:
        assert wait_reasons(state, policy, NOW)
    assert grown <= have.short


@given(states(), policies(), st.sampled_from(Mode))
def test_each_mode_has_its_bounds(state: PoolState, policy: PoolPolicy, mode: Mode) -> None:
    allowed: dict[Mode, tuple[type[Action], ...]] = {
        Mode.STARTING: (Rest,),
        Mode.UNRECORDED: (Rest,),
        Mode.SERVING: (Rest, CreateNics, AttachNics, DetachNics, DeleteNics),
        Mode.LEAVING: (Rest, DeleteNics),
        Mode.DRAINING: (DetachNics, DeleteNics),
        Mode.STOPPING: (),
    }
    for action in plan(replace(state, mode=mode), policy, NOW):
        assert isinstance(action, allowed[mode])


@given(states(), policies())
def test_every_step_and_every_wait_is_told_in_words(state: PoolState, policy: PoolPolicy) -> None:
    assert all(step.why for step in steps(state, policy, NOW))
    assert explain_no_action(state, policy, NOW)
    for wait in wait_reasons(state, policy, NOW):
        assert wait.text
        assert wait.until is None or wait.until > NOW - 40  # of the ages drawn here


@given(states(), policies())
def test_a_plan_touches_each_nic_once_and_only_from_the_states_it_may(state: PoolState, policy: PoolPolicy) -> None:
    held = {n.nic_id: n for n in (*state.nics, *state.outside)}
    outside = {n.nic_id for n in state.outside}
    actions = plan(state, policy, NOW)
    rested = {a.nic_id for a in actions if isinstance(a, Rest)}
    assert all(held[n].state is S.COOLING for n in rested)
    allowed = {
        AttachNics: {S.CREATING},
        DeleteNics: {S.CREATING},
        DetachNics: {S.IDLE, S.COOLING, S.MISSING, S.QUARANTINED, S.GATEWAY}
        if state.mode is Mode.DRAINING
        else {S.IDLE, S.QUARANTINED, S.COOLING},
    }
    touched: list[str] = []
    for action in actions:
        if isinstance(action, AttachNics | DeleteNics | DetachNics):
            touched += action.nic_ids
            assert action.nic_ids
            assert all(
                held[n].state in allowed[type(action)] or n in rested or (n in outside and held[n].state in UNUSED)
                for n in action.nic_ids
            )
    assert len(set(touched)) == len(touched)
    assert not state.busy & set(touched)


@pytest.mark.defect("others-29")
@given(states(), policies())
def test_giving_back_leaves_max_idle_and_never_takes_what_somebody_waits_for(
    state: PoolState, policy: PoolPolicy
) -> None:
    """Below max-idle only what is more than may be held at all."""
    actions = plan(state, policy, NOW)
    quarantined = {n.nic_id for n in state.nics if n.state is S.QUARANTINED}
    others = quarantined | {n.nic_id for n in state.outside}
    given_back = [n for a in actions if isinstance(a, DetachNics) for n in a.nic_ids if n not in others]
    if given_back and state.mode is not Mode.DRAINING:
        have = balance(state, policy, NOW)
        assert have.idle - len(given_back) >= policy.max_idle or len(given_back) <= above_limit(state, policy)
        assert state.waiting == 0
        assert state.creating == 0
        assert state.shrinks_at <= NOW
        assert not [a for a in actions if isinstance(a, AttachNics | CreateNics)]


@given(states(), policies())
def test_what_is_above_the_limit_goes_as_far_as_it_serves_nobody(state: PoolState, policy: PoolPolicy) -> None:
    may_shrink = state.mode is Mode.SERVING and state.shrinks_at <= NOW and not state.waiting
    if may_shrink and not is_growing(state, NOW):
        given_back = sum(len(a.nic_ids) for a in plan(state, policy, NOW) if isinstance(a, DetachNics))
        free = {n.nic_id for n in state.nics if n.state in {S.IDLE, S.COOLING}} - state.busy
        assert given_back >= min(above_limit(state, policy), len(free))


@given(states(), policies(), st.integers(1, 100), st.integers(1, 1000))
def test_time_alone_changes_the_plan_only_at_the_time_foretold(
    state: PoolState, policy: PoolPolicy, seconds: int, part: int
) -> None:
    due = next_due(state, policy, NOW)
    later = NOW + seconds if due is None else NOW + (due - NOW) * part / 1001
    assert due is None or NOW < later < due
    assert plan(state, policy, later) == plan(state, policy, NOW)


def test_of_nics_idle_for_equally_long_those_that_have_just_rested_go_last() -> None:
    rested, waiting = nic(0, S.COOLING, released_ago=0.0), nic(5, S.IDLE)
    policy = PoolPolicy(min_idle=0, max_idle=0, idle_ttl=0.0, cooldown=0.0, cooldown_min=0.0)
    for now in (NOW, NOW + 1.0):  # the time does not change the order
        assert plan(PoolState((rested, waiting)), policy, now) == (
            Rest(rested.nic_id),
            DetachNics(ids(waiting, rested)),
        )


def test_the_next_due_times() -> None:
    assert next_due(PoolState(idle(*[1] * 8)), POLICY, NOW) is None
    assert next_due(PoolState(idle(10, *[1] * 8)), POLICY, NOW) == NOW + 590
    assert next_due(PoolState(cooling(10.0)), POLICY, NOW) == NOW + 115
    assert next_due(PoolState(cooling(10.0), grows_at=NOW + 9), POLICY, NOW) == NOW + 9
    assert next_due(PoolState(cooling(10.0), waiting=1), POLICY, NOW) == NOW + 15


@given(states(), policies())
def test_of_nics_outside_none_is_used_and_each_unused_one_leaves(state: PoolState, policy: PoolPolicy) -> None:
    mine, actions = set(ids(*state.outside)), plan(state, policy, NOW)
    used = {a.nic_id for a in actions if isinstance(a, Rest)}
    used |= {n for a in actions if isinstance(a, AttachNics) for n in a.nic_ids}
    assert not used & mine
    if state.mode is Mode.SERVING:
        leaving = {n for a in actions if isinstance(a, DetachNics | DeleteNics) for n in a.nic_ids}
        may_detach = UNUSED - {S.MISSING} if state.shrinks_at <= NOW else set()
        unused = {n.nic_id for n in state.outside if n.state in may_detach | {S.CREATING}} - state.busy
        assert unused == leaving & mine
