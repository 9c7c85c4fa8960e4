"""The pool planner: what should happen to the pool now? A pure function on frozen data (design section 5)."""

from dataclasses import dataclass

from qingcloud_cni.core.model import Nic, NicState

OVERDUE = 300.0  # seconds after which a NIC that is still being attached is not counted on any more; 180 s were seen


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """The operator's wishes; times in seconds."""

    min_idle: int = 3  # NICs to hold ready
    max_idle: int = 8  # idle NICs above which the longest idle are given back; not below min_idle
    max_nics: int = 60  # NICs this instance may hold for containers, in all states together
    idle_ttl: float = 600.0  # a surplus NIC that has been idle for less is kept
    cooldown: float = 130.0  # rest of an address: outlives a client's SYN_SENT conntrack entry of 120 s
    cooldown_min: float = 30.0  # rest that is enough while an ADD waits
    # Time that a NIC whose address somebody else uses is kept. It may become free again, and a NIC that were created
    # in its place would soon get the same address.
    quarantine: float = 3600.0
    quarantine_min: float = 60.0  # the same where it takes the room of one that an ADD waits for


@dataclass(frozen=True, slots=True)
class PoolState:
    """The facts. *creating* are NICs asked of the cloud and not answered yet; *busy* NICs belong to an operation.

    While draining *nics* holds the gateways that nobody uses as well.
    """

    nics: tuple[Nic, ...]
    creating: int = 0
    gateways: int = 0  # NICs held or asked for as gateways: they take room, and are none of the pool's
    waiting: int = 0  # ADDs in the queue
    instance_room: int = 63  # NICs the instance can carry beside those of others
    may_grow: bool = True  # False while creating or attaching backs off
    is_draining: bool = False
    attach_seconds: float = 5.0  # how long an attach takes, as seen lately
    busy: frozenset[str] = frozenset()
    nowhere: frozenset[str] = frozenset()  # missing NICs whose link no reachable namespace holds


@dataclass(frozen=True, slots=True)
class Rest:
    """The NIC has rested: it is idle again."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class CreateNics:
    count: int


@dataclass(frozen=True, slots=True)
class AttachNics:
    """NICs of ours that exist and are attached nowhere."""

    nic_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DetachNics:
    nic_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteNics:
    nic_ids: tuple[str, ...]


Action = Rest | CreateNics | AttachNics | DetachNics | DeleteNics


def plan(state: PoolState, policy: PoolPolicy, now: float) -> tuple[Action, ...]:
    """Decide what brings the pool back between its marks. Carrying it out leaves nothing to plan."""
    if state.is_draining:
        return _plan_drain(state)
    rested = _rested(state, policy, now)
    idle = sum(n.state is NicState.IDLE for n in state.nics) + len(rested)
    actions: list[Action] = [Rest(n.nic_id) for n in rested]
    spare = tuple(n.nic_id for n in state.nics if n.state is NicState.CREATING and n.nic_id not in state.busy)
    short = max(state.waiting + policy.min_idle - idle - _coming(state, policy, now, rested), 0)
    if state.may_grow and spare[:short]:
        actions.append(AttachNics(spare[:short]))
    if state.may_grow and (missing := min(max(short - len(spare), 0), room(state, policy))):
        actions.append(CreateNics(missing))
    if spare[short:]:
        actions.append(DeleteNics(spare[short:]))
    is_growing = bool(state.creating) or any(
        _is_attaching(n, now) or (n.state is NicState.CREATING and n.nic_id in state.busy) for n in state.nics
    )
    given_back = _hopeless(state, policy, now, min(short, state.waiting) - len(spare))
    if not (is_growing or short or state.waiting):
        given_back += _surplus(state, policy, now, rested)
    if given_back:
        actions.append(DetachNics(given_back))
    return tuple(actions)


def held(state: PoolState) -> int:
    """NICs held or asked for, gateways included."""
    return len(state.nics) + state.creating + state.gateways


def room(state: PoolState, policy: PoolPolicy) -> int:
    """NICs that may still be created; never below 0."""
    return max(min(policy.max_nics, state.instance_room) - held(state), 0)


def due_at(nic: Nic, policy: PoolPolicy, is_awaited: bool) -> float:
    """When a cooling NIC's address has rested, in seconds since the epoch.

    A client's half-open conntrack entry lives 120 s (nf_conntrack_tcp_timeout_syn_sent). `cooldown` outlives it;
    `cooldown_min` does not, and is taken only while an ADD waits.
    """
    return nic.released + (min(policy.cooldown_min, policy.cooldown) if is_awaited else policy.cooldown)


def next_due(state: PoolState, policy: PoolPolicy, now: float) -> float | None:
    """The next time at which the passing of time alone may change the plan; None if it cannot."""
    rests = [due_at(n, policy, is_awaited) for n in _cooling(state) for is_awaited in (state.waiting > 0, False)]
    times = rests + [t - state.attach_seconds for t in rests]  # from then on it is on its way
    times += [n.since + OVERDUE for n in state.nics if n.state is NicState.ATTACHING]
    idle = [n for n in state.nics if n.state is NicState.IDLE]
    if len(idle) + len(_rested(state, policy, now)) > policy.max_idle:
        times += [n.since + policy.idle_ttl for n in idle]
    kept = (policy.quarantine, policy.quarantine_min)
    times += [n.since + seconds for n in state.nics if n.state is NicState.QUARANTINED for seconds in kept]
    return min((t for t in times if t > now), default=None)


def explain_wait(state: PoolState, policy: PoolPolicy, now: float) -> str:
    """Why an ADD waits, for its error message; "" where nothing is amiss but the cloud's own pace."""
    if state.creating or any(_comes_from_cloud(n) for n in state.nics) or room(state, policy) > 0:
        return ""
    limit = f"max-nics {policy.max_nics}"
    if state.instance_room < policy.max_nics:
        limit = f"{state.instance_room} left by the instance's own limit"
    text = f"all {held(state)} NICs are taken ({limit})"
    if quarantined := sum(n.state is NicState.QUARANTINED for n in state.nics):
        text += f", {quarantined} of them quarantined, since somebody else uses their addresses"
    cooling = _cooling(state)
    if cooling:
        text += f"; the next one has rested in {max(due_at(cooling[0], policy, True) - now, 0.0):.0f} s"
    return text


def _comes_from_cloud(nic: Nic) -> bool:
    """Whether it has never served; one that comes back from a container has to rest first."""
    return nic.state in {NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING} and nic.released == 0.0


def _cooling(state: PoolState) -> list[Nic]:
    return sorted((n for n in state.nics if n.state is NicState.COOLING), key=lambda n: (n.released, n.nic_id))


def _rested(state: PoolState, policy: PoolPolicy, now: float) -> list[Nic]:
    """Cooling NICs that become idle now, the longest rested first."""
    cooling = _cooling(state)
    rested = [n for n in cooling if due_at(n, policy, False) <= now]
    idle = sum(n.state is NicState.IDLE for n in state.nics) + len(rested)
    for nic in cooling[len(rested) :]:
        if idle >= state.waiting or due_at(nic, policy, True) > now:
            break
        rested.append(nic)
        idle += 1
    return rested


def _is_attaching(nic: Nic, now: float) -> bool:
    """Whether its link may be expected soon."""
    return nic.state is NicState.ATTACHING and now < nic.since + OVERDUE


def _coming(state: PoolState, policy: PoolPolicy, now: float, rested: list[Nic]) -> int:
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
            case NicState.COOLING if nic not in rested:
                count += due_at(nic, policy, state.waiting > 0) - state.attach_seconds <= now
            case _:
                pass
    return count


def _hopeless(state: PoolState, policy: PoolPolicy, now: float, awaited: int) -> tuple[str, ...]:
    """Quarantined NICs to give back, the longest quarantined first: after a while, sooner to make room."""
    quarantined = sorted(
        (n.since, n.nic_id) for n in state.nics if n.state is NicState.QUARANTINED and n.nic_id not in state.busy
    )
    leaving = sum(n.state in {NicState.DETACHING, NicState.DELETING} for n in state.nics)
    in_the_way = awaited - room(state, policy) - leaving if state.may_grow else 0
    return tuple(
        nic_id
        for number, (since, nic_id) in enumerate(quarantined)
        if since + policy.quarantine <= now or (number < in_the_way and since + policy.quarantine_min <= now)
    )


def _surplus(state: PoolState, policy: PoolPolicy, now: float, rested: list[Nic]) -> tuple[str, ...]:
    """Idle NICs to give back, the longest idle first; not asked for while the pool grows, lest it swing."""
    idle_since = sorted((n.since, n.nic_id) for n in state.nics if n.state is NicState.IDLE)
    idle_since += [(now, n.nic_id) for n in rested]
    old = [i for since, i in idle_since if since + policy.idle_ttl <= now and i not in state.busy]
    return tuple(old[: max(len(idle_since) - policy.max_idle, 0)])


def _plan_drain(state: PoolState) -> tuple[Action, ...]:
    free = [n for n in state.nics if n.nic_id not in state.busy]
    spare = tuple(n.nic_id for n in free if n.state is NicState.CREATING)
    unused = (NicState.IDLE, NicState.COOLING, NicState.QUARANTINED, NicState.GATEWAY)
    given_back = tuple(
        n.nic_id for n in free if n.state in unused or (n.state is NicState.MISSING and n.nic_id in state.nowhere)
    )
    actions: list[Action] = []
    if spare:
        actions.append(DeleteNics(spare))
    if given_back:
        actions.append(DetachNics(given_back))
    return tuple(actions)
