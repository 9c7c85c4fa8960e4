"""The pool: ADDs wait here in a queue, idle NICs are handed to them, and the planner's actions are carried out."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.agent.base.urgency import Permits, explain_budget
from qingcloud_cni.agent.cloudops.operations import Operations
from qingcloud_cni.agent.pool.duplicates import Duplicates
from qingcloud_cni.agent.pool.flows import Flows
from qingcloud_cni.core.cni.network_config import Wish
from qingcloud_cni.core.errors import Draining, InvalidConfig, PoolEmpty, Unavailable
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.metrics import gauge
from qingcloud_cni.core.nics.model import Attachment, Nic, NicState
from qingcloud_cni.core.pool.explain import Causes, explain_wait
from qingcloud_cni.core.pool.plan import due_at, next_due, plan, serving_order, steps
from qingcloud_cni.core.pool.pool_state import (
    Action,
    AttachNics,
    CreateNics,
    DeleteNics,
    DetachNics,
    Mode,
    PoolState,
    Rest,
)
from qingcloud_cni.core.pool.vxnets import VxnetChooser, explain_skipped

TICK = 1e-6  # seconds between NICs that become idle together, lest it be forgotten which has rested longest
PERIOD = 30.0  # seconds between plans at the most
SILENCE = 0.1  # a burst of ADDs is over after this many seconds without one …
PLUGIN_START = 0.01  # … or this for each that waits: as many may be starting, and hold each other up …
GATHER = 1.0  # … and is not gathered for longer than this


@dataclass(slots=True)
class _Waiter:
    attachment: Attachment  # its NIC is filled in when it gets one
    nic: "asyncio.Future[Nic]"


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    waiting: Annotated[int, gauge("qingagent_adds_waiting", "ADDs that wait for a NIC.")]


class Pool:
    """Hands out NICs, fairly, and keeps the pool between its marks."""

    def __init__(
        self,
        context: Context,
        operations: Operations,
        chooser: VxnetChooser,
        duplicates: Duplicates,
        instance_nic_limit: int,
    ) -> None:
        self._context = context
        self._provisioner, self._releaser = operations.provisioner, operations.releaser
        self.chooser = chooser
        self.duplicates = duplicates
        self.flows = Flows(context)
        self._instance_nic_limit = instance_nic_limit
        permits = partial(Permits, due=context.plan_due, cloud=context.cloud, tasks=context.tasks)
        self._provisioning_permits = permits("growth", context.urgency.provisioning)
        self._release_permits = permits("release", context.urgency.release)
        self._waiters: deque[_Waiter] = deque()
        self.others = 0  # secondary NICs of the instance that are not ours
        self.is_open = False  # cloud writes wait for the comparison with the cloud
        self._is_stopping = False
        self.nowhere: set[str] = set()  # missing NICs whose link was in no reachable namespace at the last look
        self._refusal = ""  # why no ADD is served any more
        self.record = TaskRecord(PERIOD)
        self.cooldown = TaskRecord()  # the part of it that lets addresses rest

    @property
    def may_begin(self) -> bool:
        """Whether anything may be asked of the cloud at all."""
        return self.mode in {Mode.SERVING, Mode.LEAVING, Mode.DRAINING}

    @property
    def is_draining(self) -> bool:
        return self._context.urgency.is_draining

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(self.waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def mode(self) -> Mode:
        if self._is_stopping:
            return Mode.STOPPING
        if not self.is_open:
            return Mode.STARTING
        if self._context.journal.trouble:
            return Mode.UNRECORDED
        if self.is_draining:
            return Mode.DRAINING
        return Mode.LEAVING if self._context.leaving else Mode.SERVING

    def state(self) -> PoolState:
        """The facts for the planner, as they are now."""
        table, now = self._context.table, self._context.now()
        nics = tuple(table.nics.values())
        idle_gateways = unused(nics, tuple(table.attachments.values())) if self.is_draining else frozenset()
        asked = table.asked(self._context.gateway_prefix)
        return PoolState(
            nics=tuple(n for n in nics if not n.is_gateway or n.nic_id in idle_gateways),
            mode=self.mode,
            creating=table.creating - asked,
            gateways=asked + sum(n.is_gateway and n.nic_id not in idle_gateways for n in nics),
            waiting=self.waiting,
            instance_room=max(self._instance_nic_limit - self.others, 0),
            vxnet_room=self.chooser.room(now, table.asked_in),
            grows_at=self._provisioner.backoff.until,
            shrinks_at=self._releaser.backoff.until,
            attach_seconds=self._provisioner.attaching.seconds,
            is_thrifty=self._context.cloud.spending().is_scarce,
            busy=table.busy,
            nowhere=frozenset(self.nowhere),
        )

    def plan(self) -> tuple[Action, ...]:
        return plan(self.state(), self._context.policy, self._context.now())

    # --- handing out ---------------------------------------------------------------------------------

    async def take(self, attachment: Attachment, wish: Wish, call: CniCall) -> Nic:
        """A NIC for this attachment, assigned to it in the table.

        PoolEmpty with the true cause once its time is up; InvalidConfig if no idle NIC is as wished; Unavailable
        where the call is off.
        """
        if self._refusal:
            raise Draining(self._refusal)
        if wish:
            return self._assign(attachment, self._wished(wish))
        waiter = _Waiter(attachment, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self.hand_out()
        self._context.plan_due.notify()
        if waiter.nic.done():  # at once: the row goes to disk before the pool plans anew
            return waiter.nic.result()
        self._context.note(
            "attachment.queued", subject=str(attachment.key), detail=self._cause(), pod=attachment.workload.pod
        )
        try:
            with self._context.urgency.waits(), call.waiting():
                await asyncio.wait({waiter.nic}, timeout=call.left)
        except Unavailable:
            self._leave(waiter, call.cause)
            raise
        except asyncio.CancelledError:
            self._leave(waiter, "the agent is stopping")
            raise
        if not waiter.nic.done():
            self._waiters.remove(waiter)
            raise PoolEmpty(f"no NIC became ready within {call.seconds:.0f} s: {self._cause()}")
        return waiter.nic.result()

    def hand_out(self) -> None:
        """Idle NICs to waiting ADDs, the first come first; those being probed come last."""
        if not self._waiters:
            return
        ready = serving_order(self._ready(), self._context.policy)
        for nic in sorted(ready, key=lambda n: self.duplicates.is_probing(n.nic_id)):
            if not self._give(nic):
                return

    def _ready(self) -> Iterator[Nic]:
        """Idle NICs that can be handed out at this moment."""
        for nic in self._context.table.in_state(NicState.IDLE):
            if nic.nic_id not in self._context.moving and not self.duplicates.is_claimed(nic):
                yield nic

    def hand_over(self, nic_id: str) -> bool:
        """An arriving NIC straight to a waiting ADD, if there is one, and nothing speaks against its address."""
        nic = self._context.table.nics[nic_id]
        return nic.released == 0.0 and not self.duplicates.is_claimed(nic) and self._give(nic)

    def _give(self, nic: Nic) -> bool:
        if not self._waiters or self._context.journal.trouble:
            return False
        waiter = self._waiters.popleft()
        waiter.nic.set_result(self._assign(waiter.attachment, nic))
        return True

    def _assign(self, attachment: Attachment, nic: Nic) -> Nic:
        self._context.table.assign(replace(attachment, nic_id=nic.nic_id, since=self._context.now()))
        self._context.moving.add(nic.nic_id)
        return self._context.table.nics[nic.nic_id]

    def _wished(self, wish: Wish) -> Nic:
        for nic in self._ready():
            if wish.fits(nic):
                return nic
        raise InvalidConfig(
            f"{wish}: no idle NIC of this host has it, and a NIC keeps what the cloud gave it; leave it out, or ask"
            " for that of an idle one (qingagent nics)"
        )

    def _leave(self, waiter: _Waiter, cause: str) -> None:
        """The one who asked wants no NIC any more; one that came at this very moment is given back."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif not waiter.nic.exception():
            self._context.moving.discard(waiter.nic.result().nic_id)
            self._context.table.returned_unused(waiter.attachment.key, self._context.now(), cause)
            self.hand_out()
        self._context.plan_due.notify()

    def close(self, refusal: str) -> None:
        """No ADD gets a NIC from now on; those that wait are told so."""
        self._refusal = refusal
        while self._waiters:
            self._waiters.popleft().nic.set_exception(Draining(refusal))

    def stop(self) -> None:
        """As `close`; besides, nothing is begun any more. NICs stay as they are."""
        self.close("the agent is stopping; try again when it is back")
        self._is_stopping = True

    def drain(self) -> None:
        """As `close`; besides, whatever is free is given back and nothing is created any more."""
        self.close("this host is being drained: it accepts no new container")
        self._context.urgency.is_draining = True
        self._context.cloud.reconsider()
        self._context.plan_due.notify()
        self._context.doubt_due.notify()

    def troubles(self) -> Causes:
        provisioning, release = self._provisioner.backoff, self._releaser.backoff
        calls = explain_budget(self._context.cloud, self._context.clock)
        return Causes(provisioning.cause, release.cause, self._context.leaving, self._context.journal.trouble, calls)

    def _cause(self) -> str:
        """What an ADD waits for."""
        state, now = self.state(), self._context.now()
        if trouble := self._context.journal.trouble:
            return trouble
        budget = explain_budget(self._context.cloud, self._context.clock)
        if state.mode is Mode.STARTING:
            return budget or "the cloud has not answered since the agent started"
        if state.mode is Mode.LEAVING:
            return f"{self._context.leaving}: nothing is created or attached"
        if wait := explain_wait(state, self._context.policy, now):
            return wait
        rest = explain_skipped(self.chooser.statuses(now), now) if state.vxnet_room == 0 else ""
        causes = (self._provisioner.backoff.cause, rest, budget)
        return "; ".join(filter(None, causes)) or "the cloud has not attached one yet"

    # --- keeping the marks ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan on every change, and every 30 s, until cancelled."""
        while True:
            with self.record.run(self._context.clock):
                await self._keep()
            await self.record.pause(self._pause(), self._context.plan_due, self._context.clock)

    async def _keep(self) -> None:
        self._look()
        if any(not isinstance(a, Rest) for a in self.plan()):
            await self._gather()
            self._look()  # addresses that rested meanwhile belong to the same plan
            self._carry_out()
        self._context.journal.push()

    def _look(self) -> None:
        """All that may be done at any moment; each of them asks to be looked at again when it has got further."""
        self.flows.look()
        self._rest()
        self.hand_out()
        self.duplicates.look()

    async def _gather(self) -> None:
        """Let a burst come together, so that it costs one create and one attach.

        The cloud attaches to one instance in turn: those of a second attach wait for the first as well.
        """
        end = self._context.now() + GATHER
        while (left := end - self._context.now()) > 0:
            silence = max(SILENCE, self.waiting * PLUGIN_START)
            if not await self._context.plan_due.wait(min(silence, left)):
                return
            self._look()

    def _pause(self) -> float:
        """Seconds until time alone may change the plan."""
        now = self._context.now()
        times = [now + PERIOD, next_due(self.state(), self._context.policy, now), self.duplicates.next_due()]
        times += [self.chooser.next_change_at(now)]
        return min(t for t in times if t is not None and t > now) - now + 0.001

    def _rest(self) -> None:
        """What has rested is idle once the host has forgotten its flows, those since its release included."""
        table, policy, now = self._context.table, self._context.policy, self._context.now()
        with self.cooldown.run(self._context.clock):
            rested = [table.nics[action.nic_id] for action in self.plan() if isinstance(action, Rest)]
            for number, nic in enumerate(rested):
                if self.flows.are_forgotten(nic, due_at(nic, policy, self.waiting > 0)):
                    table.rested(nic.nic_id, now - (len(rested) - number) * TICK)
        cooling = table.in_state(NicState.COOLING)
        self.cooldown.next_run = min((due_at(n, policy, self.waiting > 0) for n in cooling), default=0.0)

    def _carry_out(self) -> None:
        """Begin what the plan says, as far as calls are permitted; the rest is planned anew when their permits come.

        Intents are in the table before this returns, so the next plan counts them.
        """
        spawn = self._context.tasks.spawn
        for step in steps(self.state(), self._context.policy, self._context.now()):
            match step.action:
                case CreateNics(count) if calls := self._provisioning_permits.take():
                    asked = self._context.table.asked_in
                    intents = self._provisioner.begin_create(self.chooser.choose(count, self._context.now(), asked))
                    spawn(f"create {intents[0].op_id}", self._provisioner.grow(intents, calls))
                case AttachNics(nic_ids) if calls := self._provisioning_permits.take():
                    attach = self._provisioner.begin_attach(nic_ids)
                    spawn(f"attach {attach.op_id}", self._provisioner.attach(attach, calls))
                case DetachNics(nic_ids) if calls := self._release_permits.take():
                    detach = self._releaser.begin_detach(nic_ids, step.why)
                    spawn(f"detach {detach.op_id}", self._releaser.detach(detach, calls))
                    self._context.path_due.notify()  # gateways may be among them
                case DeleteNics(nic_ids) if calls := self._release_permits.take():
                    delete = self._releaser.begin_delete(nic_ids)
                    spawn(f"delete {delete.op_id}", self._releaser.delete(delete, calls))
                case _:
                    pass
