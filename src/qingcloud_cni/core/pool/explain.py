"""What the pool waits for, in words: beside a plan, in place of one, and for an ADD that waited in vain. Pure."""

from dataclasses import dataclass

from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool.plan import (
    above_max_idle,
    balance,
    cooling,
    due_at,
    explain_limit,
    explain_need,
    held,
    is_growing,
    room,
)
from qingcloud_cni.core.pool.pool_state import Balance, Mode, PoolPolicy, PoolState

_MODES = {
    Mode.STARTING: "the agent has not been compared with the cloud yet: nothing is asked of it before",
    Mode.UNRECORDED: "the disk takes no intents: nothing that needs one is begun",
    Mode.LEAVING: "the instance is going away: nothing is created, attached or detached",
    Mode.DRAINING: "this host is being drained: nothing is created, and all that serves nothing is given back",
    Mode.STOPPING: "the agent is stopping: nothing is begun",
}


@dataclass(frozen=True, slots=True)
class Hold:
    """Something that is waited for."""

    what: str
    until: float | None = None  # seconds since the epoch; None where there is no telling


@dataclass(frozen=True, slots=True)
class Troubles:
    """What stands in the way, of the failures the last one, in the cloud's words; each empty where nothing does."""

    provisioning: str = ""
    release: str = ""
    leaving: str = ""  # why the instance is going away
    disk: str = ""  # why it takes nothing
    calls: str = ""  # why calls of the cloud wait


NO_TROUBLES = Troubles()


def explain_none(state: PoolState, policy: PoolPolicy, now: float) -> str:
    """Why there is nothing to be done."""
    have = balance(state, policy, now)
    need = explain_need(state, policy, have)
    if state.mode is not Mode.SERVING:
        return _MODES[state.mode]
    if have.short:
        return f"{have.short} more wanted, and they have to wait: {need}"
    if above_max_idle(have, policy):
        return f"enough is there, and nothing is given back yet: {need}, max-idle {policy.max_idle}"
    return f"enough is there: {need}, max-idle {policy.max_idle}"


def holds(state: PoolState, policy: PoolPolicy, now: float, troubles: Troubles = NO_TROUBLES) -> tuple[Hold, ...]:
    """All that the pool waits for, whether or not something is planned besides."""
    have = balance(state, policy, now)
    if state.mode is Mode.SERVING:
        found = _of_growth(state, policy, now, have, troubles.provisioning)
    else:
        causes = {Mode.LEAVING: troubles.leaving, Mode.UNRECORDED: troubles.disk}
        found = [Hold(_and(_MODES[state.mode], causes.get(state.mode, "")))]
    if troubles.calls:
        found.append(Hold(troubles.calls))
    if have.coming:
        found.append(Hold(f"{have.coming} NICs are on their way; an attach takes about {state.attach_seconds:.0f} s"))
    rested = {n.nic_id for n in have.rested}
    if resting := [n for n in cooling(state) if n.nic_id not in rested]:
        text = f"{len(resting)} addresses rest; until the next one is idle"
        found.append(Hold(text, due_at(resting[0], policy, state.waiting > have.idle)))
    if quarantined := [n.since for n in state.nics if n.state is NicState.QUARANTINED]:
        text = f"{len(quarantined)} NICs are quarantined, since others use their addresses; they are given back after"
        found.append(Hold(f"{text} {policy.quarantine:g} s", min(quarantined) + policy.quarantine))
    if above := above_max_idle(have, policy):
        found.append(_of_surplus(state, policy, now, above))
    if state.shrinks_at > now:
        found.append(Hold(_and("detaching has failed, and is tried again", troubles.release), state.shrinks_at))
    return tuple(found)


def _and(text: str, cause: str) -> str:
    return f"{text} ({cause})" if cause else text


def _of_growth(state: PoolState, policy: PoolPolicy, now: float, have: Balance, trouble: str) -> list[Hold]:
    """What keeps wanted NICs from being created or attached."""
    if not have.short:
        return []
    found = []
    if state.grows_at > now:
        found.append(Hold(_and("creating or attaching has failed, and is tried again", trouble), state.grows_at))
    missing = max(have.short - len(have.spare), 0)
    if have.room < missing or have.seats < have.short - missing:
        fit = min(have.room, have.seats)
        found.append(Hold(f"{held(state)} NICs are held ({explain_limit(state, policy)}): {fit} more fit"))
    if state.vxnet_room is not None and state.vxnet_room < min(missing, have.room):
        found.append(Hold(f"the vxnets have no room for more than {state.vxnet_room}"))
    return found


def _of_surplus(state: PoolState, policy: PoolPolicy, now: float, above: int) -> Hold:
    text = f"{above} idle NICs above max-idle are kept"
    if is_growing(state, now) or state.waiting:
        return Hold(f"{text} while NICs are created or ADDs wait")
    idle = sorted(n.since for n in state.nics if n.state is NicState.IDLE and n.nic_id not in state.busy)
    return Hold(f"{text} for idle-ttl", idle[0] + policy.idle_ttl if idle else None)


def explain_wait(state: PoolState, policy: PoolPolicy, now: float) -> str:
    """Why an ADD waits, for its error message; "" where nothing is amiss but the cloud's own schedule."""
    if state.creating or any(_comes_from_cloud(n) for n in state.nics) or room(state, policy) > 0:
        return ""
    text = f"all {held(state)} NICs are taken ({explain_limit(state, policy)})"
    if quarantined := sum(n.state is NicState.QUARANTINED for n in state.nics):
        text += f", {quarantined} of them quarantined, since somebody else uses their addresses"
    if resting := cooling(state):
        text += f"; the next one has rested in {max(due_at(resting[0], policy, True) - now, 0.0):.0f} s"
    return text


def _comes_from_cloud(nic: Nic) -> bool:
    """Whether it has never served; one that comes back from a container has to rest first."""
    return nic.state in {NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING} and nic.released == 0.0
