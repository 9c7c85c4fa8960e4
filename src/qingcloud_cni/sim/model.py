"""The simulated cloud as a plain object: calls in, answers out; jobs that end with time; effects for the hardware.

No I/O, no clock of its own: whoever owns it gives the time, calls `advance` when `next_due` says so, and carries out
what `take_effects` hands out (sim.local.run_jobs does all three).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from qingcloud_cni.sim import changes, describe, refusals
from qingcloud_cni.sim.effects import Effect, PlugNic
from qingcloud_cni.sim.faults import ADDRESS_QUOTA, AFTERWARDS, IN_STEAD, LOSE_REPLY, Faults, refusal_of
from qingcloud_cni.sim.jobs import Jobs
from qingcloud_cni.sim.params import Params
from qingcloud_cni.sim.records import Records, worth_keeping
from qingcloud_cni.sim.refusals import Refusal
from qingcloud_cni.sim.state import build
from qingcloud_cni.sim.topology import FaultSpec, Topology

HOUR = 3600.0

NEEDS: dict[str, tuple[str, ...]] = {  # every action there is, and the parameters it cannot do without
    "DescribeInstances": (),
    "DescribeVxnets": (),
    "DescribeNics": (),
    "DescribeJobs": (),
    "CreateNics": ("vxnet",),
    "AttachNics": ("nics", "instance"),
    "DetachNics": ("nics",),
    "DeleteNics": ("nics",),
    "ModifyNicAttributes": ("nic",),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a call, and the fault's effect that keeps it from arriving as it is ("": none)."""

    envelope: dict[str, Any]
    obstacle: str = ""

    @property
    def is_reply_lost(self) -> bool:
        return self.obstacle == LOSE_REPLY


class Model:
    """One cloud. Two models built from equal topologies, seeds and clocks answer alike."""

    def __init__(self, topology: Topology, *, rng: random.Random, now: Callable[[], float]) -> None:
        """Start with the hosts running; ValueError where the topology contradicts itself."""
        self.topology = topology
        self.state = build(topology, rng, now)
        self.calls: Counter[str] = Counter()  # authenticated calls per action, refused ones included
        self.on_work: Callable[[], None] = _nothing  # told when a job was queued or an effect is waiting
        self._jobs = Jobs(self.state)
        self._faults = Faults(topology.faults)
        self._began = now()
        self._hour_began: float | None = None
        self._calls_this_hour = 0

    def check(self, params: Mapping[str, str]) -> None:
        """Raise Refusal unless action, zone and the action's parameters are there."""
        reader = Params(params)
        action = reader.needed("action")
        if action not in NEEDS:
            raise refusals.bad_value("action", action, "the documented actions")
        zone = reader.needed("zone")
        if zone != self.topology.zone:
            raise refusals.bad_value("zone", zone, self.topology.zone)
        for name in NEEDS[action]:
            if not reader.has(name):
                raise refusals.missing(name)

    def call(self, params: Mapping[str, str]) -> dict[str, Any]:
        """Answer an authenticated call as `handle` does, where the reply always arrives."""
        return self.handle(params).envelope

    def handle(self, params: Mapping[str, str]) -> Outcome:
        """Carry out an authenticated call; *params* are flattened as on the wire."""
        try:
            self.check(params)
        except Refusal as refusal:
            return Outcome(refused(refusal))
        action = params["action"].strip()
        self.calls[action] += 1
        try:
            self._spend_call()
        except Refusal as refusal:
            return Outcome(refused(refusal))
        struck = self._faults.strike(action)
        obstacle = _first(struck, AFTERWARDS)
        for spec in struck:
            if spec.effect in IN_STEAD:
                return Outcome({}, spec.effect)
            said = refusal_of(spec, params)
            if said:
                if spec.effect == ADDRESS_QUOTA:
                    self.state.exhausted.add(params["vxnet"].strip())
                return Outcome(refused(said), obstacle)
        try:
            fields = self._act(action, Params(params), frozenset(spec.effect for spec in struck))
        except Refusal as refusal:
            return Outcome(refused(refusal), obstacle)
        if self.state.effects or "job_id" in fields:
            self.on_work()
        return Outcome({"action": f"{action}Response", **fields, "ret_code": 0}, obstacle)

    @property
    def faults(self) -> Faults:
        """The faults in force, and how far they have counted."""
        return self._faults

    def set_faults(self, specs: Iterable[FaultSpec]) -> None:
        """Replace all faults; calls are counted anew. ValueError for one that could never strike."""
        self._faults = Faults(specs)
        self.state.exhausted.clear()

    def next_due(self) -> float | None:
        """When `advance` has something to do; a time that has passed means now, None that nothing is under way."""
        return self._jobs.next_due()

    def advance(self) -> None:
        """Take every job that is due one step further: first its effects are handed out, at the next call it ends.

        So whoever carries out the effects between the calls shows the links before the job's end.
        """
        self._jobs.advance()

    def take_effects(self) -> list[Effect]:
        """What the hardware has to do now, in order; each effect is handed out once."""
        effects, self.state.effects = self.state.effects, []
        return effects

    def plugged(self) -> tuple[PlugNic, ...]:
        """The NICs whose links are on hosts, each host's primary first: how hardware is built up from nothing."""
        there = tuple(
            self.state.plug(nic, host_id)
            for host_id in self.state.hosts
            for nic in self.state.nics_of(host_id)
            if nic.is_plugged
        )
        return there + self.arriving()

    def arriving(self) -> tuple[PlugNic, ...]:
        """The NICs whose links appear before the attach job that brings them shows its end."""
        return tuple(self.state.plug(nic, host_id) for nic, host_id in self._jobs.arriving() if nic.is_plugged)

    def records(self) -> Records:
        """The cloud as it is; effects not taken yet are left out, since they follow from the rest."""
        state = self.state
        return Records(
            topology=self.topology,
            began=self._began,
            nics=tuple(state.nics.values()),
            jobs=tuple(worth_keeping(state.jobs)),
            books={vxnet.vxnet_id: vxnet.book.record() for vxnet in state.vxnets.values() if vxnet.book},
            exhausted=tuple(sorted(state.exhausted)),
            calls=dict(self.calls),
            hour_began=self._hour_began,
            calls_this_hour=self._calls_this_hour,
            faults=self._faults.specs,
            fault_calls=dict(self._faults.calls),
        )

    def restore(self, records: Records) -> None:
        """Become the cloud of *records*, whose routers, vxnets and hosts are this model's own.

        Its faults go on too, unless this model was given others than that cloud once was.
        """
        state = self.state
        state.nics = {nic.nic_id: nic for nic in records.nics}
        state.jobs = {job.job_id: job for job in records.jobs}
        state.effects = []
        for host in state.hosts.values():
            host.create_time = records.began
        for vxnet in state.vxnets.values():
            vxnet.create_time = records.began
            if vxnet.book:
                here = (nic for nic in records.nics if nic.vxnet_id == vxnet.vxnet_id and nic.private_ip)
                vxnet.book.restore(records.books[vxnet.vxnet_id], (IPv4Address(nic.private_ip) for nic in here))
        self._jobs.resume()
        self.calls = Counter(records.calls)
        self._began, self._hour_began = records.began, records.hour_began
        self._calls_this_hour = records.calls_this_hour
        if records.topology.faults == self.topology.faults:
            self._faults = Faults(records.faults, records.fault_calls)
            state.exhausted = set(records.exhausted)
        self.on_work()

    def _spend_call(self) -> None:
        """Count a call against the quota of the hour, which begins with the first call after the last hour's end."""
        limit = self.topology.limits.calls_per_hour
        if not limit:
            return
        now = self.state.now()
        if self._hour_began is None or now - self._hour_began >= HOUR:
            self._hour_began, self._calls_this_hour = now, 0
        if self._calls_this_hour >= limit:
            raise refusals.quota(f"{limit} API calls per hour are used up")
        self._calls_this_hour += 1

    def _act(self, action: str, params: Params, faults: frozenset[str]) -> dict[str, Any]:
        state = self.state
        match action:
            case "DescribeInstances":
                return describe.describe_instances(state, params)
            case "DescribeVxnets":
                return describe.describe_vxnets(state, params)
            case "DescribeNics":
                return describe.describe_nics(state, params)
            case "DescribeJobs":
                return describe.describe_jobs(state, params)
            case "CreateNics":
                return changes.create_nics(state, params)
            case "AttachNics":
                return changes.attach_nics(state, self._jobs, params, faults)
            case "DetachNics":
                return changes.detach_nics(state, self._jobs, params, faults)
            case "DeleteNics":
                return changes.delete_nics(state, params)
            case "ModifyNicAttributes":
                return changes.modify_nic_attributes(state, params)
        raise AssertionError(f"no handler for {action}")


def refused(refusal: Refusal) -> dict[str, Any]:
    """The envelope of an error: a code and a message, no action."""
    return {"message": refusal.message, "ret_code": refusal.ret_code}


def _first(struck: Iterable[FaultSpec], effects: frozenset[str]) -> str:
    return next((spec.effect for spec in struck if spec.effect in effects), "")


def _nothing() -> None:
    pass
