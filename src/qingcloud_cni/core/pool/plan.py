"""The pool planner: what should happen to the pool now, and why? Pure functions on frozen data."""

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

OVERDUE = 300.0  # seconds from which on an attaching NIC no longer counts as coming; the cloud has taken 180
FIRST_PAUSE = 60.0  # seconds from the quarantine to the next probe; pauses double …
LONGEST_PAUSE = 1800.0  # … up to this
PROXY_CLAIMS = 3  # addresses claimed by one MAC from which on it is a proxy


def plan(state: PoolState, policy: PoolPolicy, now: float) -> tuple[Action, ...]:
    """Decide what brings the pool back between its marks; carrying it out leaves nothing to plan."""
    return tuple(step.action for step in steps(state, policy, now))


def steps(state: PoolState, policy: PoolPolicy, now: float) -> tuple[PlannedAction, ...]:
    """Return the plan with its reasons."""
    match state.mode:
        case Mode.STOPPING:
            return ()
        case Mode.DRAINING:
            return _drain(state, now)
        case _:
            have = balance(state, policy, now)
            return (
                *_end_cooldown(have, policy, now),
                *_grow(state, policy, now, have),
                *_delete(state, policy, have),
                *_release(state, policy, now, have),
            )


def balance(state: PoolState, policy: PoolPolicy, now: float) -> Balance:
    cooled = tuple(_cooled(state, policy, now))
    idle = sum(n.state is NicState.IDLE for n in state.nics) + len(cooled)
    coming = _coming(state, policy, now, cooled)
    spare = tuple(n.nic_id for n in _unattached(state.nics, state) if n.address)
    return Balance(
        cooled=cooled,
        idle=idle,
        coming=coming,
        short=_short(state, policy, idle + coming, len(spare)),
        spare=spare,
        seats=max(min(state.instance_room - _seated(state), limit(state, policy) - _lasting(state)), 0),
        room=room(state, policy),
    )


def held(state: PoolState) -> int:
    """Count the NICs that exist or are being created, gateways included."""
    return len(_all(state)) + state.creating + state.gateways


def limit(state: PoolState, policy: PoolPolicy) -> int:
    """Return how many NICs may be held."""
    return min(policy.max_nics, state.instance_room)


def room(state: PoolState, policy: PoolPolicy) -> int:
    """Return how many NICs may still be created."""
    return max(limit(state, policy) - held(state), 0)


def due_at(nic: Nic, policy: PoolPolicy, is_awaited: bool) -> float:
    """Return when a cooling NIC's address has cooled down, in seconds since the epoch.

    A client's half-open conntrack entry lives 120 s (nf_conntrack_tcp_timeout_syn_sent). `cooldown` outlives it.
    `cooldown_min` does not, so it counts only while an ADD waits.
    """
    return nic.released + (min(policy.cooldown_min, policy.cooldown) if is_awaited else policy.cooldown)


def serving_order(idle: Iterable[Nic], policy: PoolPolicy) -> list[Nic]:
    """Sort idle NICs as ADDs get them: the longest idle first, but those above `max-idle` last.

    The surplus are the longest idle of all. If ADDs got them first, no NIC of a busy host would be idle for
    `idle-ttl`, and the surplus would never be released.
    """
    ordered = sorted(idle, key=lambda n: (n.since, n.nic_id))
    surplus = max(len(ordered) - policy.max_idle, 0)
    return ordered[surplus:] + ordered[:surplus]


def next_due(state: PoolState, policy: PoolPolicy, now: float) -> float | None:
    """Return the next time at which time alone may change the plan; None if it cannot."""
    ends = [due_at(n, policy, is_awaited) for n in cooling(state) for is_awaited in (state.waiting > 0, False)]
    times = ends + [t - state.attach_seconds for t in ends]  # from then on it counts as coming
    times += [n.since + OVERDUE for n in state.nics if n.state is NicState.ATTACHING]
    idle = [n for n in state.nics if n.state is NicState.IDLE]
    if len(idle) + len(_cooled(state, policy, now)) > policy.max_idle:
        times += [n.since + policy.idle_ttl for n in idle]
    waits = (policy.quarantine, policy.quarantine_min)
    times += [n.since + seconds for n in state.nics if n.state is NicState.QUARANTINED for seconds in waits]
    times += [state.grows_at, state.shrinks_at]
    return min((t for t in times if t > now), default=None)


def cooling(state: PoolState) -> list[Nic]:
    """Return the cooling NICs, the longest released first."""
    return sorted((n for n in state.nics if n.state is NicState.COOLING), key=lambda n: (n.released, n.nic_id))


def probe_due(nic: Nic, probed: float) -> float:
    """Return when to probe a quarantined NIC again after the probe at *probed*, in seconds since the epoch."""
    return probed + min(max(probed - nic.since, FIRST_PAUSE), LONGEST_PAUSE)


def is_proxy(nics: Iterable[Nic], claimant: str) -> bool:
    """Whether *claimant*, which has just answered again, is a proxy of the vxnet.

    A proxy that answers for every address would otherwise empty the pool.
    """
    claims = sum(n.state is NicState.QUARANTINED and n.claimant == claimant for n in nics)
    return claims + 1 >= PROXY_CLAIMS


def above_max_idle(have: Balance, policy: PoolPolicy) -> int:
    return max(have.idle - policy.max_idle, 0)


def above_limit(state: PoolState, policy: PoolPolicy) -> int:
    """Return how many NICs are held above the limit, which may have been lowered."""
    return max(_lasting(state) - limit(state, policy), 0)


def explain_outside(nics: Iterable[Nic]) -> str:
    """Name the vxnets of *nics*, which were removed from the configuration."""
    vxnets = sorted({n.vxnet_id for n in nics})
    return f"{', '.join(vxnets)}, which {'is' if len(vxnets) == 1 else 'are'} not in --vxnet"


def is_growing(state: PoolState, now: float) -> bool:
    """Whether NICs are being created or attached."""
    return bool(state.creating) or any(
        _is_attaching(n, now) or (n.state is NicState.CREATING and n.nic_id in state.busy) for n in state.nics
    )


def explain_need(state: PoolState, policy: PoolPolicy, have: Balance) -> str:
    """Describe what the pool needs and has."""
    adds = "1 ADD waits" if state.waiting == 1 else f"{state.waiting} ADDs wait"
    mark = f"min-idle {policy.min_idle}"
    if have.short and state.is_thrifty:
        mark = f"max-idle {policy.max_idle} wanted, as calls are scarce"
    return f"{adds}, {mark}; {have.idle} idle, {have.coming} on their way"


def explain_limit(state: PoolState, policy: PoolPolicy) -> str:
    """Describe the lowest limit."""
    if state.instance_room < policy.max_nics:
        return f"{state.instance_room} left by the instance's own limit"
    return f"max-nics {policy.max_nics}"


# --- the steps ---------------------------------------------------------------------------------------


def _end_cooldown(have: Balance, policy: PoolPolicy, now: float) -> list[PlannedAction]:
    def why(nic: Nic) -> str:
        cooled = f"its address has cooled down for {now - nic.released:.0f} s"
        if due_at(nic, policy, False) <= now:
            return f"{cooled} (cooldown {policy.cooldown:g} s)"
        return f"{cooled}, which is enough while an ADD waits (cooldown-min {policy.cooldown_min:g} s)"

    return [PlannedAction(Rest(nic.nic_id), why(nic)) for nic in have.cooled]


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
    """Return the unattached NICs that are needed and fit on the instance."""
    return have.spare[: min(have.short, have.seats)]


def _delete(state: PoolState, policy: PoolPolicy, have: Balance) -> list[PlannedAction]:
    """Delete unattached NICs that are not needed, as they would become orphans."""
    match state.mode:
        case Mode.SERVING:
            unwanted = have.spare[len(_wanted(have)) :]
            is_full = len(unwanted) > max(len(have.spare) - have.short, 0)
            why = f"there is no room for more ({explain_limit(state, policy)})" if is_full else "not needed"
        case Mode.LEAVING:
            unwanted, why = have.spare, "the instance is going away"
        case _:
            return []
    useless = tuple(n.nic_id for n in _unattached(state.nics, state) if not n.address)
    outside = _unattached(state.outside, state)
    reasons = (
        (unwanted, why),
        (useless, "without a usable address"),
        (tuple(n.nic_id for n in outside), f"in {explain_outside(outside)}"),
    )
    return [PlannedAction(DeleteNics(nic_ids), f"attached nowhere, and {why}") for nic_ids, why in reasons if nic_ids]


def _release(state: PoolState, policy: PoolPolicy, now: float, have: Balance) -> list[PlannedAction]:
    """Release quarantined and surplus NICs, all in one detach."""
    if state.mode is not Mode.SERVING or state.shrinks_at > now:
        return []
    outside = _unused(state.outside, state)
    released, reasons = _quarantined(state, policy, now, have)
    released += tuple(n.nic_id for n in outside)
    if outside:
        reasons += (f"{len(outside)} unused in {explain_outside(outside)}",)
    surplus, why = _surplus(state, policy, now, have, len(released))
    released += surplus
    return [PlannedAction(DetachNics(released), "; ".join(filter(None, (*reasons, why))))] if released else []


def _quarantined(
    state: PoolState, policy: PoolPolicy, now: float, have: Balance
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Choose quarantined NICs to release: soiled ones, the others after a time or to make room, the longest first."""
    out = [n for n in state.nics if n.state is NicState.QUARANTINED and n.nic_id not in state.busy]
    soiled = tuple(n.nic_id for n in out if n.soil)
    quarantined = sorted((n.since, n.nic_id) for n in out if not n.soil)
    may_create = state.grows_at <= now and state.vxnet_room != 0
    leaving = _leaving(state) + len(soiled)
    in_the_way = min(have.short, state.waiting) - len(have.spare) - have.room - leaving if may_create else 0
    old = tuple(nic_id for since, nic_id in quarantined if since + policy.quarantine <= now)
    next_ones = quarantined[len(old) : max(in_the_way, 0)]
    displaced = tuple(nic_id for since, nic_id in next_ones if since + policy.quarantine_min <= now)
    reasons = []
    if soiled:
        reasons.append(f"{len(soiled)} soiled: not as the cloud plugged them in")
    if old:
        reasons.append(f"{len(old)} quarantined for {policy.quarantine:g} s: others still use their addresses")
    if displaced:
        reasons.append(f"{len(displaced)} quarantined, to make room for NICs that ADDs wait for")
    return soiled + old + displaced, tuple(reasons)


def _surplus(
    state: PoolState, policy: PoolPolicy, now: float, have: Balance, released: int
) -> tuple[tuple[str, ...], str]:
    """Choose idle NICs to release, the longest idle first, besides *released* others.

    While the pool grows or an ADD waits it releases none: otherwise it would swing. What is above a lowered limit is
    released whatever `min_idle` wants; then cooling NICs too, the latest released first.
    """
    if is_growing(state, now) or state.waiting:
        return (), ""
    idle_since = sorted((n.since, n.nic_id) for n in state.nics if n.state is NicState.IDLE)
    idle_since += [(now, n.nic_id) for n in have.cooled]
    free = [(since, nic_id) for since, nic_id in idle_since if nic_id not in state.busy]
    old = sum(since + policy.idle_ttl <= now for since, _ in free)
    unused = 0 if have.short else min(old, above_max_idle(have, policy))
    excess = above_limit(state, policy) - released
    resting = [n.nic_id for n in reversed(cooling(state)) if n not in have.cooled and n.nic_id not in state.busy]
    surplus = tuple([*(nic_id for _, nic_id in free), *resting][: max(unused, excess, 0)])
    if not surplus:
        return (), ""
    if excess > unused:
        return surplus, f"{held(state)} NICs are held, {excess} more than the limit ({explain_limit(state, policy)})"
    idle_for = f"these for {policy.idle_ttl:g} s or more (idle-ttl)"
    return surplus, f"{have.idle} are idle, max-idle {policy.max_idle}; {idle_for}"


def _drain(state: PoolState, now: float) -> tuple[PlannedAction, ...]:
    spare = tuple(n.nic_id for n in _unattached(_all(state), state))
    released = tuple(n.nic_id for n in _unused(_all(state), state))
    found: list[PlannedAction] = []
    if spare:
        found.append(PlannedAction(DeleteNics(spare), "this host is being drained; attached nowhere"))
    if released and state.shrinks_at <= now:
        found.append(PlannedAction(DetachNics(released), "this host is being drained; they are unused"))
    return tuple(found)


def _unused(nics: Iterable[Nic], state: PoolState) -> list[Nic]:
    """Return those of *nics* that can be detached, for they serve nobody and belong to no operation."""
    unused = {NicState.IDLE, NicState.COOLING, NicState.QUARANTINED, NicState.GATEWAY}
    return [
        n
        for n in nics
        if n.nic_id not in state.busy
        and (n.state in unused or (n.state is NicState.MISSING and n.nic_id in state.nowhere))
    ]


def _unattached(nics: Iterable[Nic], state: PoolState) -> list[Nic]:
    """Return those of *nics* that are attached nowhere, without an operation."""
    return [n for n in nics if n.state is NicState.CREATING and n.nic_id not in state.busy]


# --- counting ----------------------------------------------------------------------------------------


def _all(state: PoolState) -> tuple[Nic, ...]:
    return state.nics + state.outside


def _short(state: PoolState, policy: PoolPolicy, ready: int, spare: int) -> int:
    """Return how many NICs are missing, with *ready* ones idle or coming and *spare* ones to attach.

    A create takes one call for any number. So while calls are scarce, a pool that needs one is filled to max-idle.
    """
    least = state.waiting + policy.min_idle - ready
    if least <= 0:
        return 0
    most = state.waiting + (policy.max_idle if state.is_thrifty else policy.min_idle) - ready
    return most if least > spare else min(most, spare)


def _leaving(state: PoolState) -> int:
    return sum(n.state in {NicState.DETACHING, NicState.DELETING} for n in _all(state))


def _lasting(state: PoolState) -> int:
    """Count the NICs held that are not leaving, without those attached nowhere."""
    return held(state) - _leaving(state) - len(_unattached(_all(state), state))


def _seated(state: PoolState) -> int:
    """Count the NICs that are on the instance, or about to be, gateways included."""
    on_it = sum(
        n.nic_id in state.busy if n.state is NicState.CREATING else n.state is not NicState.DELETING
        for n in _all(state)
    )
    return on_it + state.creating + state.gateways


def _cooled(state: PoolState, policy: PoolPolicy, now: float) -> list[Nic]:
    """Return the cooling NICs that become idle now, the longest released first."""
    cooling_nics = cooling(state)
    idle = sum(n.state is NicState.IDLE for n in state.nics)
    return cooling_nics[: _done_by(cooling_nics, state.waiting - idle, policy, now)]


def _done_by(cooling_nics: list[Nic], awaited: int, policy: PoolPolicy, then: float) -> int:
    """Count those of *cooling_nics*, the longest released first, that will be idle at *then*.

    *awaited* of them need `cooldown_min` only, including those that have the full `cooldown` behind them.
    """
    full = sum(due_at(n, policy, False) <= then for n in cooling_nics)
    short = sum(due_at(n, policy, True) <= then for n in cooling_nics)
    return max(full, min(short, awaited))


def _is_attaching(nic: Nic, now: float) -> bool:
    """Whether its link is expected soon."""
    return nic.state is NicState.ATTACHING and now < nic.since + OVERDUE


def _coming(state: PoolState, policy: PoolPolicy, now: float, cooled: tuple[Nic, ...]) -> int:
    """Count NICs on their way, which will be idle sooner than one created now."""
    count = state.creating
    for nic in state.nics:
        match nic.state:
            case NicState.ATTACHING:
                count += _is_attaching(nic, now)
            case NicState.ARRIVING:
                count += nic.released == 0.0  # one that returns from a container has to cool down first
            case NicState.CREATING:
                count += nic.nic_id in state.busy
            case _:
                pass
    idle = sum(n.state is NicState.IDLE for n in state.nics)
    soon = _done_by(cooling(state), state.waiting - idle, policy, now + state.attach_seconds)
    return count + max(soon - len(cooled), 0)
