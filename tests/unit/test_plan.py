"""The planner: tables for its edges, and laws for everything between them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.model import Nic, NicState
from qingcloud_cni.core.plan import (
    OVERDUE,
    Action,
    AttachNics,
    CreateNics,
    DeleteNics,
    DetachNics,
    PoolPolicy,
    PoolState,
    Rest,
    due_at,
    explain_wait,
    next_due,
    plan,
    room,
)

NOW = 1_700_000_000.0
POLICY = PoolPolicy()
S = NicState


def nic(number: int, state: NicState, *, age: float = 0.0, released_ago: float | None = None) -> Nic:
    released = 0.0 if released_ago is None else NOW - released_ago
    return Nic(
        f"52:54:00:00:00:{number:02x}", "n", "vxnet-1", "172.16.3.7/24", "172.16.3.1", state, NOW - age, released
    )


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
        pytest.param(PoolState(nics(S.IDLE), creating=1), (CreateNics(1),), id="asked for is on its way"),
        pytest.param(PoolState(nics(S.ATTACHING, S.ARRIVING, S.IDLE)), (), id="so is what attaches or arrives"),
        pytest.param(PoolState(nics(S.ASSIGNED, S.IDLE, S.IDLE)), (CreateNics(1),), id="an assigned NIC is not idle"),
        pytest.param(
            PoolState(nics(*[S.IDLE] * 3), waiting=3), (CreateNics(3),), id="idle ones go to those who wait"
        ),
        pytest.param(PoolState((), may_grow=False), (), id="nothing is created while growing backs off"),
        pytest.param(PoolState((), instance_room=2), (CreateNics(2),), id="not more than the instance can carry"),
        pytest.param(
            PoolState((), waiting=100, creating=58), (CreateNics(2),), id="max-nics counts what was asked for"
        ),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 60), waiting=5), (), id="at the limit nothing is created"),
        pytest.param(PoolState(nics(*[S.MISSING] * 60)), (), id="a missing NIC counts as held"),
    ],
)
def test_growing(state: PoolState, wanted: tuple[Action, ...]) -> None:
    assert plan(state, POLICY, NOW) == wanted


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
    assert plan(PoolState(nics(S.CREATING), may_grow=False), POLICY, NOW) == ()


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


def test_a_quarantined_nic_gives_way_where_there_is_no_room_for_another() -> None:
    """The longest quarantined first, as many as ADDs wait, and only as long as a NIC could be created instead.

    Not before a second probe has told the same: the next NIC may get the very same address.
    """
    held = (*nics(*[S.ASSIGNED] * 56), *quarantined(59, 61, 63, 62))
    waiting = PoolState(held, waiting=2)
    assert plan(waiting, POLICY, NOW) == (DetachNics((held[58].nic_id, held[59].nic_id)),)
    assert plan(replace(waiting, waiting=4), POLICY, NOW) == (
        DetachNics(tuple(held[n].nic_id for n in (58, 59, 57))),
    )
    assert next_due(replace(waiting, waiting=4), POLICY, NOW) == NOW + 1
    assert plan(replace(waiting, may_grow=False), POLICY, NOW) == ()
    assert plan(replace(waiting, waiting=0), POLICY, NOW) == ()
    leaving = (*held[:57], nic(80, S.DETACHING), *held[58:])
    assert plan(replace(waiting, nics=leaving, waiting=1), POLICY, NOW) == ()


# --- draining ----------------------------------------------------------------------------------------


def test_a_drain_gives_back_what_serves_nothing_and_leaves_the_rest() -> None:
    held = nics(*S)
    by_state = {n.state: n.nic_id for n in held}
    unused = tuple(by_state[s] for s in S if s in {S.IDLE, S.COOLING, S.MISSING, S.QUARANTINED, S.GATEWAY})
    nowhere = frozenset({by_state[S.MISSING]})
    assert plan(PoolState(held, is_draining=True, waiting=9, nowhere=nowhere), POLICY, NOW) == (
        DeleteNics((by_state[S.CREATING],)),
        DetachNics(unused),
    )


def test_a_drain_leaves_a_missing_nic_whose_link_somebody_has() -> None:
    held = nics(S.MISSING)
    assert plan(PoolState(held, is_draining=True), POLICY, NOW) == ()


def test_a_drain_leaves_nics_to_their_operations() -> None:
    held = nics(*S)
    assert plan(PoolState(held, is_draining=True, busy=frozenset(ids(*held))), POLICY, NOW) == ()


# --- why an ADD waits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "says"),
    [
        pytest.param(PoolState((), waiting=1), "", id="there is room"),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 60), waiting=1), "all 60 NICs are taken (max-nics 60)", id="max"),
        pytest.param(
            PoolState(nics(*[S.ASSIGNED] * 4), waiting=1, instance_room=4),
            "all 4 NICs are taken (4 left by the instance's own limit)",
            id="others hold the rest",
        ),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 59, S.ATTACHING), waiting=1), "", id="one is on its way"),
        pytest.param(PoolState(nics(*[S.ASSIGNED] * 59), creating=1, waiting=1), "", id="one was asked for"),
        pytest.param(
            PoolState(nics(*[S.ASSIGNED] * 59, S.CREATING), waiting=1, may_grow=False), "", id="attaching backs off"
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 59), nic(99, S.ARRIVING, released_ago=1.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60)",
            id="one comes back from a container",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 58), *cooling(10.0, 12.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60); the next one has rested in 18 s",
            id="the earliest rested is named",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 59), *cooling(27.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60); the next one has rested in 3 s",
            id="also one that is nearly rested",
        ),
        pytest.param(
            PoolState((*nics(*[S.ASSIGNED] * 58), *quarantined(1.0, 2.0)), waiting=1),
            "all 60 NICs are taken (max-nics 60), 2 of them quarantined, since somebody else uses their addresses",
            id="some are quarantined",
        ),
    ],
)
def test_why_an_add_waits(state: PoolState, says: str) -> None:
    assert explain_wait(state, POLICY, NOW) == says


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
    return PoolState(
        nics=tuple(held),
        creating=draw(st.sampled_from((0, 0, 0, 1, 3))),
        waiting=draw(st.sampled_from((0, 0, 0, 1, 2, 6))),
        instance_room=draw(st.integers(0, 14)),
        may_grow=draw(st.booleans()),
        is_draining=draw(st.sampled_from((False, False, False, True))),
        attach_seconds=draw(st.integers(0, 20).map(float)),
        busy=frozenset(draw(st.sets(st.sampled_from(ids(*held))))) if held else frozenset(),
    )


def carried_out(state: PoolState, actions: tuple[Action, ...], now: float) -> PoolState:
    """The facts once the agent has begun everything that *actions* say."""
    held = {n.nic_id: n for n in state.nics}
    creating, busy = state.creating, set(state.busy)

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
            case AttachNics(nic_ids):
                move(nic_ids, S.ATTACHING)
            case DetachNics(nic_ids):
                move(nic_ids, S.DETACHING)
            case DeleteNics(nic_ids):
                move(nic_ids, S.DELETING)
    return replace(state, nics=tuple(held.values()), creating=creating, busy=frozenset(busy))


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
        assert len(state.nics) + state.creating + created <= min(policy.max_nics, state.instance_room)
        assert state.may_grow
        assert not state.is_draining


@given(states(), policies())
def test_a_plan_touches_each_nic_once_and_only_from_the_states_it_may(state: PoolState, policy: PoolPolicy) -> None:
    held = {n.nic_id: n for n in state.nics}
    actions = plan(state, policy, NOW)
    rested = {a.nic_id for a in actions if isinstance(a, Rest)}
    assert all(held[n].state is S.COOLING for n in rested)
    allowed = {
        AttachNics: {S.CREATING},
        DeleteNics: {S.CREATING},
        DetachNics: {S.IDLE, S.COOLING, S.MISSING, S.QUARANTINED, S.GATEWAY}
        if state.is_draining
        else {S.IDLE, S.QUARANTINED},
    }
    touched: list[str] = []
    for action in actions:
        if isinstance(action, AttachNics | DeleteNics | DetachNics):
            touched += action.nic_ids
            assert action.nic_ids
            assert all(held[n].state in allowed[type(action)] or n in rested for n in action.nic_ids)
    assert len(set(touched)) == len(touched)
    assert not state.busy & set(touched)


@pytest.mark.defect("others-29")
@given(states(), policies())
def test_giving_back_leaves_max_idle_and_never_takes_what_somebody_waits_for(
    state: PoolState, policy: PoolPolicy
) -> None:
    actions = plan(state, policy, NOW)
    quarantined = {n.nic_id for n in state.nics if n.state is S.QUARANTINED}
    given_back = [n for a in actions if isinstance(a, DetachNics) for n in a.nic_ids if n not in quarantined]
    if given_back and not state.is_draining:
        rested = sum(isinstance(a, Rest) for a in actions)
        assert sum(n.state is S.IDLE for n in state.nics) + rested - len(given_back) >= policy.max_idle
        assert state.waiting == 0
        assert state.creating == 0
        assert not [a for a in actions if isinstance(a, AttachNics | CreateNics)]


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
    for now in (NOW, NOW + 1.0):  # when it is asked does not change the order
        assert plan(PoolState((rested, waiting)), policy, now) == (
            Rest(rested.nic_id),
            DetachNics(ids(waiting, rested)),
        )


def test_the_next_due_times() -> None:
    assert next_due(PoolState(idle(*[1] * 8)), POLICY, NOW) is None
    assert next_due(PoolState(idle(10, *[1] * 8)), POLICY, NOW) == NOW + 590
    assert next_due(PoolState(cooling(10.0)), POLICY, NOW) == NOW + 115
    assert next_due(PoolState(cooling(10.0), waiting=1), POLICY, NOW) == NOW + 15
