"""The pool: queues ADDs, assigns idle NICs to them, and carries out the planner's actions."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from qingcloud_cni.agent.base.attachment_lock import CniCall
from qingcloud_cni.agent.base.context import Context, Move
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.agent.base.urgency import Permits, explain_budget
from qingcloud_cni.agent.cloudops.provisioning import Provisioner
from qingcloud_cni.agent.cloudops.release import Releaser
from qingcloud_cni.agent.pool.comparisons import Comparisons
from qingcloud_cni.agent.pool.duplicates import Duplicates
from qingcloud_cni.agent.pool.flows import Flows
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.core.cni.network_config import AddressRequest
from qingcloud_cni.core.errors import Draining, InvalidConfig, PoolEmpty, Unavailable
from qingcloud_cni.core.gateway import unused
from qingcloud_cni.core.nics.model import Attachment, Nic, NicState
from qingcloud_cni.core.pool import pool_state
from qingcloud_cni.core.pool.explain import Causes, explain_wait
from qingcloud_cni.core.pool.plan import due_at, explain_outside, next_due, plan, room, serving_order, steps
from qingcloud_cni.core.pool.pool_state import Action, Mode, PoolState, Rest
from qingcloud_cni.core.pool.vxnets import explain_skipped

TICK = 1e-6  # seconds between NICs that become idle together, so that their order of release is remembered
PERIOD = 30.0  # seconds between plans at the most
SILENCE = 0.1  # a burst of ADDs is over after this many seconds without one …
PLUGIN_START = 0.01  # … or this for each that waits: as many plugins may be starting, and slow each other down …
GATHER = 1.0  # … and is not gathered for longer than this
COMPARED = "the requested NIC is being compared with its state as the cloud plugged it in"


@dataclass(slots=True)
class _Waiter:
    attachment: Attachment  # its NIC is filled in when it gets one
    move: "asyncio.Future[Move]"  # of the NIC, which is assigned then
    request: AddressRequest  # if not empty, for one that is only being compared


class Pool:
    """Assigns NICs to ADDs in their order, and keeps the number of idle NICs between its marks."""

    def __init__(self, context: Context, settings: Settings, provisioner: Provisioner, releaser: Releaser) -> None:
        self._context = context
        self.policy = settings.pool
        self.provisioner = provisioner
        self.releaser = releaser
        self.chooser = provisioner.chooser
        self.duplicates = Duplicates(context, self.policy.quarantine, is_on=settings.duplicate_probe)
        self.flows = Flows(context)
        self.comparisons = Comparisons(context)
        self._instance_nic_limit = settings.instance_nic_limit
        self._vxnets = frozenset(settings.vxnet)
        permits = partial(Permits, due=context.signals.plan_due, cloud=context.cloud, tasks=context.tasks)
        self._provisioning_permits = permits("provisioning", context.urgency.provisioning)
        self._release_permits = permits("release", context.urgency.release)
        self._waiters: deque[_Waiter] = deque()
        self._requests: list[_Waiter] = []
        self.others = 0  # secondary NICs of the instance that are not ours
        self._is_open = False
        self._is_stopping = False
        self.nowhere: frozenset[str] = frozenset()  # missing NICs whose link is in no reachable namespace
        self._refusal = ""  # why no ADD is served any more
        self.record = TaskRecord(PERIOD)
        self.cooldown = TaskRecord()

    @property
    def may_begin(self) -> bool:
        return self.mode in {Mode.SERVING, Mode.LEAVING, Mode.DRAINING}

    @property
    def is_draining(self) -> bool:
        return self._context.urgency.is_draining

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def mode(self) -> Mode:
        if self._is_stopping:
            return Mode.STOPPING
        if not self._is_open:
            return Mode.STARTING
        if self._context.journal.error:
            return Mode.UNRECORDED
        if self.is_draining:
            return Mode.DRAINING
        return Mode.LEAVING if self.provisioner.leaving else Mode.SERVING

    def state(self) -> PoolState:
        table, now = self._context.table, self._context.now()
        everything = tuple(table.nics.values())
        idle_gateways = {
            nic_id
            for nic_id in unused(everything, tuple(table.attachments.values()))
            if self.is_draining or self.is_outside(table.nics[nic_id])
        }
        nics = tuple(n for n in everything if not n.is_gateway or n.nic_id in idle_gateways)
        asked = table.creating_named(self._context.identity.gateway_prefix)
        return PoolState(
            nics=tuple(n for n in nics if not self.is_outside(n)),
            outside=tuple(n for n in nics if self.is_outside(n)),
            mode=self.mode,
            creating=table.creating - asked,
            gateways=asked + len(everything) - len(nics),
            waiting=self.waiting,
            instance_room=max(self._instance_nic_limit - self.others, 0),
            vxnet_room=self.chooser.room(now, table.creating_by_vxnet),
            grows_at=self.provisioner.backoff.until,
            shrinks_at=self.releaser.backoff.until,
            attach_seconds=self.provisioner.attach_time.seconds,
            is_thrifty=self._context.cloud.spending().is_scarce,
            busy=table.busy,
            nowhere=self.nowhere,
        )

    def plan(self) -> tuple[Action, ...]:
        return plan(self.state(), self.policy, self._context.now())

    def explain_full(self) -> str:
        """Why not one more NIC may be created; "" if one may."""
        state = self.state()
        if room(state, self.policy) > 0:
            return ""
        return explain_wait(state, self.policy, self._context.now()) or "max-nics is reached"

    def is_outside(self, nic: Nic) -> bool:
        """Whether its vxnet was removed from the configuration, so that the NIC serves nobody again."""
        return nic.vxnet_id not in self._vxnets

    # --- what others found out -----------------------------------------------------------------------

    def open(self) -> None:
        """Table and cloud have been compared: cloud writes may begin."""
        self._is_open = True
        table = self._context.table
        for nic in table.nics.values():
            if self.is_outside(nic) and not nic.is_gateway:
                attachment = table.attachment_of(nic.nic_id)
                when = "released after the DEL of its container" if attachment else "to be released"
                subject, pod = (str(attachment.key), attachment.workload.pod) if attachment else ("", "")
                self._context.note(
                    "nic.outside", nic.nic_id, subject, f"in {explain_outside([nic])}: {when}", pod=pod
                )

    def learn_others(self, count: int) -> None:
        self.others = count

    def learn_nowhere(self, nic_ids: frozenset[str]) -> None:
        if nic_ids != self.nowhere:
            self.nowhere = nic_ids
            self._context.signals.obstacle_gone()

    # --- assigning ----------------------------------------------------------------------------------

    async def take(self, attachment: Attachment, request: AddressRequest, call: CniCall) -> Move:
        """Assign a NIC to this attachment. The answer marks it as moving; the caller ends that.

        PoolEmpty with the cause once its time is up; InvalidConfig if no idle NIC is as requested; Unavailable if the
        call was cancelled.
        """
        if self._refusal:
            raise Draining(self._refusal)
        waiter = _Waiter(attachment, asyncio.get_running_loop().create_future(), request)
        (self._requests if request else self._waiters).append(waiter)
        self.assign_idle()
        self._context.signals.plan_due.notify()
        if waiter.move.done():  # return at once: the row goes to disk before the pool plans again
            return waiter.move.result()
        cause = partial(str, COMPARED) if request else self._cause
        self._context.note(
            "attachment.queued", subject=str(attachment.key), detail=cause(), pod=attachment.workload.pod
        )
        try:
            with self._context.urgency.waits(), call.waiting():
                await asyncio.wait({waiter.move}, timeout=call.left)
        except Unavailable:
            self._leave(waiter, call.cause)
            raise
        except asyncio.CancelledError:
            self._leave(waiter, "the agent is stopping")
            raise
        if not waiter.move.done():
            self._remove(waiter)
            raise PoolEmpty(f"no NIC became ready within {call.seconds:.0f} s: {cause()}")
        return waiter.move.result()

    def assign_idle(self) -> None:
        """Assign idle NICs to waiting ADDs, in their order; NICs being probed come last."""
        self._assign_requested()
        if not self._waiters:
            return
        ready = serving_order(self._ready(), self.policy)
        for nic in sorted(ready, key=lambda n: self.duplicates.is_probing(n.nic_id)):
            if not self._assign_next(nic):
                return

    def _ready(self) -> Iterator[Nic]:
        for nic in self._context.table.in_state(NicState.IDLE):
            is_free = nic.nic_id not in self._context.moves and not self.is_outside(nic) and nic.address
            if is_free and not self.duplicates.is_claimed(nic):
                yield nic

    def assign_arriving(self, nic_id: str) -> bool:
        """Assign an arriving NIC to a waiting ADD; False if none waits or its address may not be used yet."""
        nic = self._context.table.nics[nic_id]
        is_new = nic.released == 0.0 and not nic.soil and not self.is_outside(nic)
        return is_new and nic.address != "" and not self.duplicates.is_claimed(nic) and self._assign_next(nic)

    def _assign_next(self, nic: Nic) -> bool:
        if not self._waiters or self._context.journal.error:
            return False
        waiter = self._waiters.popleft()
        waiter.move.set_result(self._assign(waiter.attachment, nic))
        return True

    def _assign(self, attachment: Attachment, nic: Nic) -> Move:
        self._context.table.assign(replace(attachment, nic_id=nic.nic_id, since=self._context.now()))
        return self._context.moves.of(nic.nic_id)

    def _assign_requested(self) -> None:
        for waiter in tuple(self._requests):
            try:
                nic = self._requested(waiter.request)
            except InvalidConfig as err:
                waiter.move.set_exception(err)
            else:
                if nic.state is not NicState.IDLE:
                    continue
                waiter.move.set_result(self._assign(waiter.attachment, nic))
            self._requests.remove(waiter)

    def _requested(self, request: AddressRequest) -> Nic:
        """An idle NIC that is as requested, or one whose address has cooled down and which is being compared."""
        cooling, now = self._context.table.in_state(NicState.COOLING), self._context.now()
        compared = (n for n in cooling if due_at(n, self.policy, is_awaited=False) <= now and not self.is_outside(n))
        for nic in (*self._ready(), *compared):
            if request.fits(nic):
                return nic
        raise InvalidConfig(
            f"{request}: no idle NIC of this host has it, and a NIC keeps what the cloud gave it; leave it out, or"
            " ask for that of an idle one (qingagent nics)"
        )

    def _leave(self, waiter: _Waiter, cause: str) -> None:
        """The ADD wants no NIC any more; one that was assigned at this very moment becomes idle again."""
        if not waiter.move.done():
            self._remove(waiter)
        elif not waiter.move.exception():
            with waiter.move.result():
                self._context.table.returned_unused(waiter.attachment.key, self._context.now(), cause)
            self.assign_idle()
        self._context.signals.plan_due.notify()

    def _remove(self, waiter: _Waiter) -> None:
        (self._requests if waiter.request else self._waiters).remove(waiter)

    def quarantine(self, nic: Nic) -> None:
        """Take a NIC out of use for good, once it serves nobody; InvalidConfig if it is a gateway."""
        if nic.is_gateway:
            raise InvalidConfig(f"nic {nic.nic_id}: quarantine failed: it is a gateway, which containers use")
        self._context.table.soiled(nic.nic_id, self._context.now(), "an operator took it out of use")
        self._context.journal.push()
        self._context.signals.plan_due.notify()

    def close(self, refusal: str) -> None:
        """Fail the ADDs that wait, and all later ones, with *refusal*."""
        self._refusal = refusal
        for waiter in (*self._waiters, *self._requests):
            waiter.move.set_exception(Draining(refusal))
        self._waiters.clear()
        self._requests.clear()

    def stop(self) -> None:
        """As `close`; and nothing is begun any more. NICs stay as they are."""
        self.close("the agent is stopping; try again when it is back")
        self._is_stopping = True

    def drain(self) -> None:
        """As `close`; and all NICs that serve no container are released, and none is created."""
        self.close("this host is being drained: it accepts no new container")
        self._context.urgency.drain()
        self._context.signals.plan_due.notify()
        self._context.signals.doubt_due.notify()

    def causes(self) -> Causes:
        return Causes(
            self.provisioner.cause,
            self.releaser.cause,
            self.provisioner.leaving,
            self._context.journal.error,
            explain_budget(self._context.cloud, self._context.clock),
        )

    def _cause(self) -> str:
        state, now = self.state(), self._context.now()
        if error := self._context.journal.error:
            return error
        budget = explain_budget(self._context.cloud, self._context.clock)
        if state.mode is Mode.STARTING:
            return budget or "the cloud has not answered since the agent started"
        if state.mode is Mode.LEAVING:
            return f"{self.provisioner.leaving}: nothing is created or attached"
        if wait := explain_wait(state, self.policy, now):
            return wait
        skipped = explain_skipped(self.chooser.statuses(now), now) if state.vxnet_room == 0 else ""
        causes = (self.provisioner.cause, skipped, budget)
        return "; ".join(filter(None, causes)) or "the cloud has not attached one yet"

    # --- keeping the marks ---------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            with self.record.run(self._context.clock):
                await self._adjust()
            await self.record.pause(self._pause(), self._context.signals.plan_due, self._context.clock)

    async def _adjust(self) -> None:
        self._begin_due()
        if any(not isinstance(a, Rest) for a in self.plan()):
            await self._gather()
            self._begin_due()  # addresses that have cooled down meanwhile belong to the same plan
            self._carry_out()
        self._context.journal.push()

    def _begin_due(self) -> None:
        """Begin all that may be done without a plan; each part notifies the planner when it has made progress."""
        self.flows.begin_due()
        self.comparisons.begin_due()
        self._cool_down()
        self.assign_idle()
        self.duplicates.begin_due()

    async def _gather(self) -> None:
        """Wait for the end of a burst, so that it costs one create and one attach.

        The cloud carries out the attaches of one instance one after the other, so a second one would end later.
        """
        end = self._context.now() + GATHER
        while (left := end - self._context.now()) > 0:
            silence = max(SILENCE, self.waiting * PLUGIN_START)
            if not await self._context.signals.plan_due.wait(min(silence, left)):
                return
            self._begin_due()

    def _pause(self) -> float:
        """Seconds until time alone may change the plan."""
        now = self._context.now()
        times = [now + PERIOD, next_due(self.state(), self.policy, now), self.duplicates.next_due()]
        times += [self.chooser.next_change_at(now)]
        return min(t for t in times if t is not None and t > now) - now + 0.001

    def _cool_down(self) -> None:
        """Make cooled NICs idle, once the host has forgotten their flows and they are as plugged."""
        table, now = self._context.table, self._context.now()
        with self.cooldown.run(self._context.clock):
            cooled = [table.nics[action.nic_id] for action in self.plan() if isinstance(action, Rest)]
            for number, nic in enumerate(cooled):
                are_forgotten = self.flows.are_forgotten(nic, due_at(nic, self.policy, self.waiting > 0))
                if self.comparisons.is_over(nic) and are_forgotten:
                    table.cooled(nic.nic_id, now - (len(cooled) - number) * TICK)
        cooling = table.in_state(NicState.COOLING)
        self.cooldown.next_run = min((due_at(n, self.policy, self.waiting > 0) for n in cooling), default=0.0)

    def _carry_out(self) -> None:
        """Begin the planned actions, as far as calls are permitted; the others are planned again with their permits.

        Intents are in the table before this returns, so the next plan counts them.
        """
        for step in steps(self.state(), self.policy, self._context.now()):
            match step.action:
                case pool_state.CreateNics(count) if calls := self._provisioning_permits.take():
                    asked = self._context.table.creating_by_vxnet
                    self.provisioner.start_create(self.chooser.choose(count, self._context.now(), asked), calls)
                case pool_state.AttachNics(nic_ids) if calls := self._provisioning_permits.take():
                    self.provisioner.start_attach(nic_ids, calls)
                case pool_state.DetachNics(nic_ids) if calls := self._release_permits.take():
                    self.releaser.start_detach(nic_ids, step.why, calls)
                    self._context.signals.path_due.notify()  # gateways may be among them
                case pool_state.DeleteNics(nic_ids) if calls := self._release_permits.take():
                    self.releaser.start_delete(nic_ids, calls)
                case _:
                    pass
