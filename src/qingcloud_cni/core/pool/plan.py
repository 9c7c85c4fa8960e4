"""The pool planner: what should happen to the pool now, and why? Pure functions on frozen data (design section 5)."""

from collections.abc import Iterable

from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool.pool_state import (
    Action,
    AttachNics,
    Balance,
    CreateNics,
    DeleteNics,
    DetachNics,
    Mode,
    PlannedAction,
    PoolPolicy,
    PoolState,
    Rest,
)

OVERDUE = 300.0  # seconds after which a NIC that is still being attached is not counted on any more; 180 s were seen


def plan(state: PoolState, policy: PoolPolicy, now: float) -> tuple[Action, ...]:
    """Decide what brings the pool back between its marks. Carrying it out leaves nothing to plan."""
    return tuple(step.action for step in steps(state, policy, now))


def steps(state: PoolState, policy: PoolPolicy, now: float) -> tuple[PlannedAction, ...]:
    """The plan with its reasons."""
    match state.mode:
        case Mode.STOPPING:
            return ()
        case Mode.DRAINING:
            return _drain(state, now)
        case _:
            have = balance(state, policy, now)
            return (
                *_rest(have, policy, now),
                *_grow(state, policy, now, have),
                *_delete(state, have),
                *_give_back(state, policy, now, have),
            )


def balance(state: PoolState, policy: PoolPolicy, now: float) -> Balance:
    rested = tuple(_rested(state, policy, now))
    idle = sum(n.state is NicState.IDLE for n in state.nics) + len(rested)
    coming = _coming(state, policy, now, rested)
    spare = tuple(n.nic_id for n in state.nics if n.state is NicState.CREATING and n.nic_id not in state.busy)
    return Balance(
        rested=rested,
        idle=idle,
        coming=coming,
        short=_short(state, policy, idle + coming, len(spare)),
        spare=spare,
        seats=max(state.instance_room - _seated(state), 0),
        room=room(state, policy),
    )


def held(state: PoolState) -> int:
    """NICs held or asked for, gateways included."""
    return len(state.nics) + state.creating + state.gateways


def limit(state: PoolState, policy: PoolPolicy) -> int:
    """NICs that may be held."""
    return min(policy.max_nics, state.instance_room)


def room(state: PoolState, policy: PoolPolicy) -> int:
    """NICs that may still be created; never below 0."""
    return max(limit(state, policy) - held(state), 0)


def due_at(nic: Nic, policy: PoolPolicy, is_awaited: bool) -> float:
    """When a cooling NIC's address has rested, in seconds since the epoch.

    A client's half-open conntrack entry lives 120 s (nf_conntrack_tcp_timeout_syn_sent). `cooldown` outlives it;
    `cooldown_min` does not, and is taken only while an ADD waits.
    """
    return nic.released + (min(policy.cooldown_min, policy.cooldown) if is_awaited else policy.cooldown)


def serving_order(idle: Iterable[Nic], policy: PoolPolicy) -> list[Nic]:
    """In which order idle NICs are handed out: the longest idle first, but those above `max-idle` last.

    The surplus are the longest idle of all. Were they handed out in turn, a host where containers come and go would
    never have one that is idle for `idle-ttl`, and never give any back.
    """
    ordered = sorted(idle, key=lambda n: (n.since, n.nic_id))
    surplus = max(len(ordered) - policy.max_idle, 0)
    return ordered[surplus:] + ordered[:surplus]


def next_due(state: PoolState, policy: PoolPolicy, now: float) -> float | None:
    """The next time at which the passing of time alone may change the plan; None if it cannot."""
    rests = [due_at(n, policy, is_awaited) for n in cooling(state) for is_awaited in (state.waiting > 0, False)]
    times = rests + [t - state.attach_seconds for t in rests]  # from then on it is on its way
    times += [n.since + OVERDUE for n in state.nics if n.state is NicState.ATTACHING]
    idle = [n for n in state.nics if n.state is NicState.IDLE]
    if len(idle) + len(_rested(state, policy, now)) > policy.max_idle:
        times += [n.since + policy.idle_ttl for n in idle]
    kept = (policy.quarantine, policy.quarantine_min)
    times += [n.since + seconds for n in state.nics if n.state is NicState.QUARANTINED for seconds in kept]
    times += [state.grows_at, state.shrinks_at]
    return min((t for t in times if t > now), default=None)


def cooling(state: PoolState) -> list[Nic]:
    """The longest rested first."""
    return sorted((n for n in state.nics if n.state is NicState.COOLING), key=lambda n: (n.released, n.nic_id))


def above_max_idle(have: Balance, policy: PoolPolicy) -> int:
    return max(have.idle - policy.max_idle, 0)


def above_limit(state: PoolState, policy: PoolPolicy, have: Balance) -> int:
    """NICs more than may be held; the limits are settings, and may have been lowered."""
    return max(held(state) - _leaving(state) - len(have.spare) - limit(state, policy), 0)


def is_growing(state: PoolState, now: float) -> bool:
    """Whether NICs are being created or attached."""
    return bool(state.creating) or any(
        _is_attaching(n, now) or (n.state is NicState.CREATING and n.nic_id in state.busy) for n in state.nics
    )


def explain_need(state: PoolState, policy: PoolPolicy, have: Balance) -> str:
    """What is wanted of the pool and what it has, in words."""
    adds = "1 ADD waits" if state.waiting == 1 else f"{state.waiting} ADDs wait"
    mark = f"min-idle {policy.min_idle}"
    if have.short and state.is_thrifty:
        mark = f"max-idle {policy.max_idle} wanted, as calls are scarce"
    return f"{adds}, {mark}; {have.idle} idle, {have.coming} on their way"


def explain_limit(state: PoolState, policy: PoolPolicy) -> str:
    """Which limit it is that is met first."""
    if state.instance_room < policy.max_nics:
        return f"{state.instance_room} left by the instance's own limit"
    return f"max-nics {policy.max_nics}"


# --- the steps ---------------------------------------------------------------------------------------


def _rest(have: Balance, policy: PoolPolicy, now: float) -> list[PlannedAction]:
    def why(nic: Nic) -> str:
        rested = f"its address has rested for {now - nic.released:.0f} s"
        if due_at(nic, policy, False) <= now:
            return f"{rested} (cooldown {policy.cooldown:g} s)"
        return f"{rested}, which is enough while an ADD waits (cooldown-min {policy.cooldown_min:g} s)"

    return [PlannedAction(Rest(nic.nic_id), why(nic)) for nic in have.rested]


def _grow(state: PoolState, policy: PoolPolicy, now: float, have: Balance) -> list[PlannedAction]:
    if state.mode is not Mode.SERVING or state.grows_at > now or not have.short:
        return []
    found: list[PlannedAction] = []
    wanted = f"{have.short} more wanted: {explain_need(state, policy, have)}"
    if attached := _wanted(have):
        found.append(PlannedAction(AttachNics(attached), f"{wanted}; these are attached nowhere"))
    count, bound = max(have.short - len(have.spare), 0), ""
    if have.room < count:
        count, bound = have.room, f"; there is room for {have.room} ({explain_limit(state, policy)})"
    if state.vxnet_room is not None and state.vxnet_room < count:
        count, bound = state.vxnet_room, f"; the vxnets take {state.vxnet_room}"
    if count:
        found.append(PlannedAction(CreateNics(count), wanted + bound))
    return found


def _wanted(have: Balance) -> tuple[str, ...]:
    """The NICs attached nowhere that are needed, and that the instance can carry."""
    return have.spare[: min(have.short, have.seats)]


def _delete(state: PoolState, have: Balance) -> list[PlannedAction]:
    """NICs attached nowhere that will not be used: those that stayed would be left over one day."""
    match state.mode:
        case Mode.SERVING:
            unwanted = have.spare[len(_wanted(have)) :]
            is_full = len(unwanted) > max(len(have.spare) - have.short, 0)
            why = "the instance can carry no more" if is_full else "nobody needs them"
        case Mode.LEAVING:
            unwanted, why = have.spare, "the instance is going away"
        case _:
            return []
    return [PlannedAction(DeleteNics(unwanted), f"attached nowhere, and {why}")] if unwanted else []


def _give_back(state: PoolState, policy: PoolPolicy, now: float, have: Balance) -> list[PlannedAction]:
    """Quarantined NICs whose address is not to be had, and idle ones that are too many, all in one detach."""
    if state.mode is not Mode.SERVING or state.shrinks_at > now:
        return []
    given_back, reasons = _hopeless(state, policy, now, have)
    surplus, why = _surplus(state, policy, now, have, len(given_back))
    given_back += surplus
    return [PlannedAction(DetachNics(given_back), "; ".join(filter(None, (*reasons, why))))] if given_back else []


def _hopeless(
    state: PoolState, policy: PoolPolicy, now: float, have: Balance
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Quarantined NICs to give back, the longest quarantined first: after a while, sooner to make room; and why."""
    quarantined = sorted(
        (n.since, n.nic_id) for n in state.nics if n.state is NicState.QUARANTINED and n.nic_id not in state.busy
    )
    may_create = state.grows_at <= now and state.vxnet_room != 0
    in_the_way = min(have.short, state.waiting) - len(have.spare) - have.room - _leaving(state) if may_create else 0
    old = tuple(nic_id for since, nic_id in quarantined if since + policy.quarantine <= now)
    next_ones = quarantined[len(old) : max(in_the_way, 0)]
    displaced = tuple(nic_id for since, nic_id in next_ones if since + policy.quarantine_min <= now)
    reasons = []
    if old:
        reasons.append(f"{len(old)} quarantined for {policy.quarantine:g} s: others still use their addresses")
    if displaced:
        reasons.append(f"{len(displaced)} quarantined, in whose place NICs can be created that ADDs wait for")
    return old + displaced, tuple(reasons)


def _surplus(
    state: PoolState, policy: PoolPolicy, now: float, have: Balance, given_back: int
) -> tuple[tuple[str, ...], str]:
    """Idle NICs to give back, the longest idle first, besides *given_back* others; and why.

    None while the pool grows or an ADD waits, lest it swing.
    """
    if is_growing(state, now) or have.short or state.waiting:
        return (), ""
    idle_since = sorted((n.since, n.nic_id) for n in state.nics if n.state is NicState.IDLE)
    idle_since += [(now, n.nic_id) for n in have.rested]
    free = [(since, nic_id) for since, nic_id in idle_since if nic_id not in state.busy]
    old = sum(since + policy.idle_ttl <= now for since, _ in free)
    unused, excess = min(old, above_max_idle(have, policy)), above_limit(state, policy, have) - given_back
    surplus = tuple(nic_id for _, nic_id in free[: max(unused, excess, 0)])
    if not surplus:
        return (), ""
    if excess > unused:
        return surplus, f"{held(state)} NICs are held, {excess} more than the limit ({explain_limit(state, policy)})"
    idle_for = f"these for {policy.idle_ttl:g} s or more (idle-ttl)"
    return surplus, f"{have.idle} are idle, max-idle {policy.max_idle}; {idle_for}"


def _drain(state: PoolState, now: float) -> tuple[PlannedAction, ...]:
    free = [n for n in state.nics if n.nic_id not in state.busy]
    spare = tuple(n.nic_id for n in free if n.state is NicState.CREATING)
    unused = (NicState.IDLE, NicState.COOLING, NicState.QUARANTINED, NicState.GATEWAY)
    given_back = tuple(
        n.nic_id for n in free if n.state in unused or (n.state is NicState.MISSING and n.nic_id in state.nowhere)
    )
    found: list[PlannedAction] = []
    if spare:
        found.append(PlannedAction(DeleteNics(spare), "this host is being drained; attached nowhere"))
    if given_back and state.shrinks_at <= now:
        found.append(PlannedAction(DetachNics(given_back), "this host is being drained; they serve nothing"))
    return tuple(found)


# --- counting ----------------------------------------------------------------------------------------


def _short(state: PoolState, policy: PoolPolicy, ready: int, spare: int) -> int:
    """NICs to be got, where *ready* are here or coming, and *spare* only have to be attached.

    A call takes few or many; but where none has to be created, none is created for thrift.
    """
    least = state.waiting + policy.min_idle - ready
    if least <= 0:
        return 0
    most = state.waiting + (policy.max_idle if state.is_thrifty else policy.min_idle) - ready
    return most if least > spare else min(most, spare)


def _leaving(state: PoolState) -> int:
    return sum(n.state in {NicState.DETACHING, NicState.DELETING} for n in state.nics)


def _seated(state: PoolState) -> int:
    """NICs that are on the instance, or about to be asked onto it, gateways included."""
    on_it = sum(
        n.nic_id in state.busy if n.state is NicState.CREATING else n.state is not NicState.DELETING
        for n in state.nics
    )
    return on_it + state.creating + state.gateways


def _rested(state: PoolState, policy: PoolPolicy, now: float) -> list[Nic]:
    """Cooling NICs that become idle now, the longest rested first."""
    resting = cooling(state)
    idle = sum(n.state is NicState.IDLE for n in state.nics)
    return resting[: _done_by(resting, state.waiting - idle, policy, now)]


def _done_by(resting: list[Nic], awaited: int, policy: PoolPolicy, then: float) -> int:
    """How many of *resting*, the longest rested first, will be idle at *then*.

    The shorter rest is for as many as ADDs wait for, those with the full one counted.
    """
    full = sum(due_at(n, policy, False) <= then for n in resting)
    short = sum(due_at(n, policy, True) <= then for n in resting)
    return max(full, min(short, awaited))


def _is_attaching(nic: Nic, now: float) -> bool:
    """Whether its link may be expected soon."""
    return nic.state is NicState.ATTACHING and now < nic.since + OVERDUE


def _coming(state: PoolState, policy: PoolPolicy, now: float, rested: tuple[Nic, ...]) -> int:
    """NICs on their way: sooner there than one that were created now."""
    count = state.creating
    for nic in state.nics:
        match nic.state:
            case NicState.ATTACHING:
                count += _is_attaching(nic, now)
            case NicState.ARRIVING:
                count += nic.released == 0.0  # one that comes back from a container has to rest first
            case NicState.CREATING:
                count += nic.nic_id in state.busy
            case _:
                pass
    idle = sum(n.state is NicState.IDLE for n in state.nics)
    soon = _done_by(cooling(state), state.waiting - idle, policy, now + state.attach_seconds)
    return count + max(soon - len(rested), 0)
