"""GET /v1/plan: what the planner would do at this moment and why, and what it waits for."""

from collections import Counter
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from qingcloud_cni.agent.agent import Agent
from qingcloud_cni.agent.api.views import Count
from qingcloud_cni.core.pool.explain import explain_no_action, wait_reasons
from qingcloud_cni.core.pool.plan import balance, explain_limit, held, limit, steps
from qingcloud_cni.core.pool.pool_state import (
    Action,
    AttachNics,
    CreateNics,
    DeleteNics,
    DetachNics,
    Mode,
    PlannedAction,
    Rest,
)
from qingcloud_cni.core.pool.vxnets import VxnetPolicy


class ActionKind(StrEnum):
    REST = "rest"  # the address has rested: the NIC is idle
    CREATE = "create"
    ATTACH = "attach"
    DETACH = "detach"
    DELETE = "delete"


class ActionView(msgspec.Struct, frozen=True):
    """Something the planner wants done."""

    kind: ActionKind
    count: Annotated[int, Meta(gt=0, description="NICs")]
    nic_ids: Annotated[list[str], Meta(description="which NICs; empty for those to be created")]
    vxnets: Annotated[
        dict[str, Count], Meta(description="how many are created in which vxnet; empty where chance decides")
    ]
    why: str


class HoldView(msgspec.Struct, frozen=True):
    """Something that is waited for."""

    what: str
    until: Annotated[float | None, Meta(description="null where there is no telling")]


class VxnetView(msgspec.Struct, frozen=True):
    """How it stands with a vxnet that NICs are created in."""

    vxnet_id: str
    is_next: Annotated[bool, Meta(description="the policy would take it for the next NIC; of Random none is")]
    room: Annotated[Count | None, Meta(description="NICs that still fit; null where the cloud has not told lately")]
    rests_until: Annotated[float, Meta(description="no addresses were left: it is skipped until then; 0 if not")]


class PlanView(msgspec.Struct, frozen=True):
    """The pool as the planner sees it."""

    mode: Annotated[Mode, Meta(description="what the agent is about; it decides what may be planned")]
    actions: list[ActionView]
    reason: Annotated[str, Meta(description="why there is nothing to do; empty where there are actions")]
    holds: Annotated[list[HoldView], Meta(description="all that is waited for")]
    waiting: Annotated[Count, Meta(description="ADDs that wait for a NIC")]
    idle: Count
    coming: Annotated[Count, Meta(description="NICs on their way: sooner there than a new one")]
    short: Annotated[Count, Meta(description="NICs wanted beside these, whatever the limits")]
    min_idle: Count
    max_idle: Count
    held: Annotated[Count, Meta(description="NICs held or asked for, gateways included")]
    limit: Annotated[Count, Meta(description="NICs that may be held")]
    limited_by: str
    attach_seconds: Annotated[float, Meta(description="how long an attach takes, as seen lately")]
    policy: Annotated[VxnetPolicy, Meta(description="how vxnets are chosen")]
    vxnets: list[VxnetView]


def plan_view(agent: Agent) -> PlanView:
    pool, context = agent.pool, agent.context
    state, policy, now = pool.state(), agent.policy, context.now()
    have, planned, asked = balance(state, policy, now), steps(state, policy, now), context.table.creating_by_vxnet
    return PlanView(
        mode=state.mode,
        actions=[_action_view(s, pool.chooser.preview(_created(s.action), now, asked)) for s in planned],
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


def _created(action: Action) -> int:
    return action.count if isinstance(action, CreateNics) else 0


def _action_view(step: PlannedAction, vxnet_ids: tuple[str, ...]) -> ActionView:
    match step.action:
        case Rest(nic_id):
            return ActionView(ActionKind.REST, 1, [nic_id], {}, step.why)
        case CreateNics(count):
            return ActionView(ActionKind.CREATE, count, [], Counter(vxnet_ids), step.why)
        case AttachNics(nic_ids):
            return ActionView(ActionKind.ATTACH, len(nic_ids), list(nic_ids), {}, step.why)
        case DetachNics(nic_ids):
            return ActionView(ActionKind.DETACH, len(nic_ids), list(nic_ids), {}, step.why)
        case DeleteNics(nic_ids):
            return ActionView(ActionKind.DELETE, len(nic_ids), list(nic_ids), {}, step.why)
