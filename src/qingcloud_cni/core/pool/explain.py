"""Explanations of the pool: what it waits for, why there is no action, why an ADD waits. Pure."""

from dataclasses import dataclass

from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool import plan
from qingcloud_cni.core.pool.pool_state import Balance, Mode, PoolPolicy, PoolState

_MODES = {
    Mode.STARTING: "the agent has not compared its table with the cloud yet; it changes nothing there before",
    Mode.UNRECORDED: "the state file cannot be written: no operation that needs a record is started",
    Mode.LEAVING: "the instance is going away: nothing is created, attached or detached",
    Mode.DRAINING: "this host is being drained: no NIC is created, and unused ones are released",
    Mode.STOPPING: "the agent is stopping: no operation is started",
}


@dataclass(frozen=True, slots=True)
class WaitReason:
    text: str
    until: float | None = None  # seconds since the epoch; None if unknown


@dataclass(frozen=True, slots=True)
class Causes:
    """Causes that the agent knows, "" if none; of failures the last one, in the cloud's words."""

    provisioning: str = ""
    release: str = ""
    leaving: str = ""  # why the instance is going away
    disk: str = ""  # why the state file cannot be written
    calls: str = ""  # why cloud calls wait


NO_CAUSES = Causes()


def explain_no_action(state: PoolState, policy: PoolPolicy, now: float) -> str:
    """Explain why nothing is planned."""
    have = plan.balance(state, policy, now)
    need = plan.explain_need(state, policy, have)
    if state.mode is not Mode.SERVING:
        return _MODES[state.mode]
    if have.short:
        return f"{have.short} more wanted, but not possible yet: {need}"
    if plan.above_max_idle(have, policy):
        return f"enough NICs, none to release yet: {need}, max-idle {policy.max_idle}"
    return f"enough NICs: {need}, max-idle {policy.max_idle}"


def wait_reasons(
    state: PoolState, policy: PoolPolicy, now: float, causes: Causes = NO_CAUSES
) -> tuple[WaitReason, ...]:
    """Return all that the pool waits for, with or without a plan."""
    have = plan.balance(state, policy, now)
    if state.mode is Mode.SERVING:
        found = _of_growth(state, policy, now, have, causes.provisioning)
    else:
        by_mode = {Mode.LEAVING: causes.leaving, Mode.UNRECORDED: causes.disk}
        found = [WaitReason(_and(_MODES[state.mode], by_mode.get(state.mode, "")))]
    if causes.calls:
        found.append(WaitReason(causes.calls))
    if have.coming:
        text = f"{have.coming} NICs are on their way; an attach takes about {state.attach_seconds:.0f} s"
        found.append(WaitReason(text))
    cooled = {n.nic_id for n in have.cooled}
    if cooling_nics := [n for n in plan.cooling(state) if n.nic_id not in cooled]:
        text = f"{len(cooling_nics)} addresses cool down; until the next NIC is idle"
        found.append(WaitReason(text, plan.due_at(cooling_nics[0], policy, state.waiting > have.idle)))
    if quarantined := [n.since for n in state.nics if n.state is NicState.QUARANTINED and not n.soil]:
        text = f"{len(quarantined)} NICs are quarantined, as others use their addresses; they are released after"
        found.append(WaitReason(f"{text} {policy.quarantine:g} s", min(quarantined) + policy.quarantine))
    if staying := [n for n in state.outside if n.state is NicState.ASSIGNED]:
        text = (
            f"{len(staying)} NICs in {plan.explain_outside(staying)}, are released after the DEL of their containers"
        )
        found.append(WaitReason(text))
    if above := plan.above_max_idle(have, policy):
        found.append(_of_surplus(state, policy, now, above))
    if state.shrinks_at > now:
        found.append(WaitReason(_and("a detach failed and will be retried", causes.release), state.shrinks_at))
    return tuple(found)


def _and(text: str, cause: str) -> str:
    return f"{text} ({cause})" if cause else text


def _of_growth(state: PoolState, policy: PoolPolicy, now: float, have: Balance, cause: str) -> list[WaitReason]:
    """Return what blocks the creates and attaches that are wanted."""
    if not have.short:
        return []
    found = []
    if state.grows_at > now:
        found.append(WaitReason(_and("a create or attach failed and will be retried", cause), state.grows_at))
    missing = max(have.short - len(have.spare), 0)
    if have.room < missing or have.seats < have.short - missing:
        fit = min(have.room, have.seats)
        text = f"{plan.held(state)} NICs are held ({plan.explain_limit(state, policy)})"
        found.append(WaitReason(f"{text}: {fit} more fit"))
    if state.vxnet_room is not None and state.vxnet_room < min(missing, have.room):
        found.append(WaitReason(f"the vxnets have no room for more than {state.vxnet_room}"))
    return found


def _of_surplus(state: PoolState, policy: PoolPolicy, now: float, above: int) -> WaitReason:
    text = f"{above} idle NICs above max-idle stay"
    if plan.is_growing(state, now) or state.waiting:
        return WaitReason(f"{text} while NICs are created or ADDs wait")
    idle = sorted(n.since for n in state.nics if n.state is NicState.IDLE and n.nic_id not in state.busy)
    return WaitReason(f"{text} for idle-ttl", idle[0] + policy.idle_ttl if idle else None)


def explain_wait(state: PoolState, policy: PoolPolicy, now: float) -> str:
    """Explain why an ADD waits; "" if it only waits for the cloud."""
    if state.creating or any(_comes_from_cloud(n) for n in state.nics) or plan.room(state, policy) > 0:
        return ""
    text = f"all {plan.held(state)} NICs are taken ({plan.explain_limit(state, policy)})"
    if quarantined := sum(n.state is NicState.QUARANTINED and not n.soil for n in state.nics):
        text += f", {quarantined} of them quarantined, as others use their addresses"
    if cooling_nics := plan.cooling(state):
        pause = max(plan.due_at(cooling_nics[0], policy, True) - now, 0.0)
        text += f"; the next one has cooled down in {pause:.0f} s"
    return text


def _comes_from_cloud(nic: Nic) -> bool:
    """Whether it is on its way and has not served; one from a container has to cool down first."""
    return nic.state in {NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING} and nic.released == 0.0
