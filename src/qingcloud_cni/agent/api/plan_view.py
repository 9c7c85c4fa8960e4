"""GET /v1/plan: what the pool would do now and why, and what it waits for."""

from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.agent.api.views import Count
from qingcloud_cni.core.pool import pool_state
from qingcloud_cni.core.pool.explain import explain_no_action, wait_reasons
from qingcloud_cni.core.pool.plan import balance, explain_limit, held, limit, steps
from qingcloud_cni.core.pool.vxnets import VxnetPolicy


class ActionKind(StrEnum):
    REST = "rest"  # the address has rested: the NIC is idle
    CREATE = "create"
    ATTACH = "attach"
    DETACH = "detach"
    DELETE = "delete"


class ActionView(msgspec.Struct, frozen=True):
    """An action of the plan."""

    kind: ActionKind
    count: Annotated[int, Meta(gt=0, description="NICs")]
    nic_ids: Annotated[list[str], Meta(description="empty for NICs to be created")]
    vxnets: Annotated[dict[str, Count], Meta(description="NICs to create by vxnet; empty if the policy is Random")]
    why: str


class HoldView(msgspec.Struct, frozen=True):
    """Something the pool waits for."""

    what: str
    until: Annotated[float | None, Meta(description="null if unknown")]


class VxnetView(msgspec.Struct, frozen=True):
    """A vxnet in which the pool creates NICs."""

    vxnet_id: str
    is_next: Annotated[bool, Meta(description="the policy chooses it for the next NIC; false for Random")]
    room: Annotated[Count | None, Meta(description="free addresses; null if the cloud has not said recently")]
    rests_until: Annotated[float, Meta(description="it had no addresses: skipped until then; 0 if not")]


class PlanView(msgspec.Struct, frozen=True):
    """The pool as the planner sees it."""

    mode: Annotated[pool_state.Mode, Meta(description="mode of the agent, which decides what the pool may plan")]
    actions: list[ActionView]
    reason: Annotated[str, Meta(description="why there is nothing to do; empty if there are actions")]
    holds: Annotated[list[HoldView], Meta(description="everything the pool waits for")]
    waiting: Annotated[Count, Meta(description="ADDs that wait for a NIC")]
    idle: Count
    coming: Annotated[Count, Meta(description="NICs that come sooner than a new one would")]
    short: Annotated[Count, Meta(description="further NICs required, regardless of limits")]
    min_idle: Count
    max_idle: Count
    held: Annotated[Count, Meta(description="NICs held or asked of the cloud, gateways included")]
    limit: Annotated[Count, Meta(description="maximum of NICs")]
    limited_by: str
    attach_seconds: Annotated[float, Meta(description="recent duration of an attach")]
    policy: Annotated[VxnetPolicy, Meta(description="how the pool chooses vxnets")]
    vxnets: list[VxnetView]


def plan_view(agent: Agent) -> PlanView:
    pool, context = agent.pool, agent.context
    state, policy, now = pool.state(), agent.pool.policy, context.now()
    have, planned, asked = balance(state, policy, now), steps(state, policy, now), context.table.creating_by_vxnet
    return PlanView(
        mode=state.mode,
        actions=[_action_view(s, lambda count: pool.chooser.preview(count, now, asked)) for s in planned],
        reason="" if planned else explain_no_action(state, policy, now),
        holds=[HoldView(wait.text, wait.until) for wait in wait_reasons(state, policy, now, pool.causes())],
        waiting=state.waiting,
        idle=have.idle,
        coming=have.coming,
        short=have.short,
        min_idle=policy.min_idle,
        max_idle=policy.max_idle,
        held=held(state),
        limit=limit(state, policy),
        limited_by=explain_limit(state, policy),
        attach_seconds=round(state.attach_seconds, 1),
        policy=pool.chooser.policy,
        vxnets=[VxnetView(s.vxnet_id, s.is_next, s.room, s.rests_until) for s in pool.chooser.statuses(now, asked)],
    )


def _action_view(step: pool_state.PlannedAction, preview: Callable[[int], Sequence[str]]) -> ActionView:
    match step.action:
        case pool_state.Rest(nic_id):
            return ActionView(ActionKind.REST, 1, [nic_id], {}, step.why)
        case pool_state.CreateNics(count):
            return ActionView(ActionKind.CREATE, count, [], Counter(preview(count)), step.why)
        case pool_state.AttachNics(nic_ids):
            return ActionView(ActionKind.ATTACH, len(nic_ids), list(nic_ids), {}, step.why)
        case pool_state.DetachNics(nic_ids):
            return ActionView(ActionKind.DETACH, len(nic_ids), list(nic_ids), {}, step.why)
        case pool_state.DeleteNics(nic_ids):
            return ActionView(ActionKind.DELETE, len(nic_ids), list(nic_ids), {}, step.why)
