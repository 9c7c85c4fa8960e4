"""The simulated cloud as a plain object: calls in, answers out; jobs that end with time; effects for the hardware.

No I/O, no clock of its own: whoever owns it gives the time, calls `advance` when `next_due` says so, and carries out
what `take_effects` hands out (sim.local.run_jobs does all three).
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from math import inf
from typing import Any

from qingcloud_cni.sim.cloud import changes, describe, refusals
from qingcloud_cni.sim.cloud.faults import (
    ADDRESS_QUOTA,
    AFTERWARDS,
    DONE,
    IN_STEAD,
    LISTS,
    LOSE_REPLY,
    NIC_GONE,
    Faults,
    Strike,
    job_fault,
    refusal_of,
)
from qingcloud_cni.sim.cloud.instances import CHANGES, change_instances
from qingcloud_cni.sim.cloud.jobs import Jobs
from qingcloud_cni.sim.cloud.params import Params
from qingcloud_cni.sim.cloud.records import Hour, Records, worth_keeping
from qingcloud_cni.sim.cloud.refusals import Refusal
from qingcloud_cni.sim.cloud.state import CloudState, build
from qingcloud_cni.sim.topology.effects import Effect, PlugNic
from qingcloud_cni.sim.topology.topology import FaultSpec, Topology

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
    **dict.fromkeys(CHANGES, ("instances",)),
}


DESCRIBES: dict[str, Callable[[CloudState, Params], dict[str, Any]]] = {
    "DescribeInstances": describe.describe_instances,
    "DescribeVxnets": describe.describe_vxnets,
    "DescribeNics": describe.describe_nics,
    "DescribeJobs": describe.describe_jobs,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a call, and the fault's effect that keeps it from arriving as it is ("": none), or now."""

    envelope: dict[str, Any]
    obstacle: str = ""
    seconds: float = 0.0  # how late it arrives, where that is the obstacle

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
        self._faults = self._begin_faults(topology.faults)
        self._began = now()
        self._hours: dict[str, Hour] = {}  # by access key

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
            self._spend_call(params.get("access_key_id", ""))
        except Refusal as refusal:
            return Outcome(refused(refusal))
        struck = self._faults.strike(params, self.state.now())
        late = next((strike for strike in struck if strike.effect in AFTERWARDS), None)
        obstacle = (late.effect, late.seconds) if late else ("", 0.0)
        for strike in struck:
            if strike is late and strike.effect in DONE:
                break  # what comes after it in the list does not keep the work from being done
            if strike.effect in IN_STEAD:
                return Outcome({}, strike.effect)
            said = refusal_of(strike.spec, params)
            if said:
                if strike.effect == ADDRESS_QUOTA:
                    self.state.exhausted[params["vxnet"].strip()] = self._faults.ends(strike.spec)
                return Outcome(refused(said), *obstacle)
        try:
            fields = self._act(action, Params(params), struck)
        except Refusal as refusal:
            return Outcome(refused(refusal), *obstacle)
        finally:
            if self.state.effects:
                self.on_work()
        if "job_id" in fields:
            self.on_work()
        return Outcome({"action": f"{action}Response", **fields, "ret_code": 0}, *obstacle)

    @property
    def faults(self) -> Faults:
        """The faults in force, and how far they have counted."""
        return self._faults

    def set_faults(self, specs: Iterable[FaultSpec]) -> None:
        """Replace all faults; their time begins now. ValueError for one that could never strike."""
        self._faults = self._begin_faults(specs)
        self.state.exhausted.clear()
        self._jobs.release_endless()
        self.on_work()  # not only those: a wait for what is due may have to end

    def _begin_faults(self, specs: Iterable[FaultSpec]) -> Faults:
        faults = Faults(specs, rng=self.state.rng, since=self.state.now())
        for spec in faults.specs:
            if spec.vxnet and spec.vxnet not in self.state.vxnets:
                raise ValueError(f"fault on {spec.action}: there is no vxnet {spec.vxnet!r}")
        return faults

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
            hosts={host.instance_id: (host.status, host.transition) for host in state.hosts.values()},
            jobs=tuple(worth_keeping(state.jobs)),
            books={vxnet.vxnet_id: vxnet.book.record() for vxnet in state.vxnets.values() if vxnet.book},
            late_links=tuple(state.late_links),
            exhausted={vxnet_id: None if until == inf else until for vxnet_id, until in state.exhausted.items()},
            calls=dict(self.calls),
            hours=dict(self._hours),
            faults=self._faults.specs,
            faults_since=self._faults.since,
            tallies=tuple(self._faults.tallies),
        )

    def restore(self, records: Records) -> None:
        """Become the cloud of *records*, whose routers, vxnets and hosts are this model's own.

        Its faults go on too, unless this model was given others than that cloud once was.
        """
        state = self.state
        state.nics = {nic.nic_id: nic for nic in records.nics}
        state.jobs = {job.job_id: job for job in records.jobs}
        state.effects = []
        state.late_links = list(records.late_links)
        for host in state.hosts.values():
            host.create_time = records.began
            host.status, host.transition = records.hosts[host.instance_id]
        for vxnet in state.vxnets.values():
            vxnet.create_time = records.began
            if vxnet.book:
                here = (nic for nic in records.nics if nic.vxnet_id == vxnet.vxnet_id and nic.private_ip)
                vxnet.book.restore(records.books[vxnet.vxnet_id], (IPv4Address(nic.private_ip) for nic in here))
        self._jobs.resume()
        self.calls = Counter(records.calls)
        self._began, self._hours = records.began, dict(records.hours)
        if records.topology.faults == self.topology.faults:
            self._faults = Faults(records.faults, rng=state.rng, since=records.faults_since, tallies=records.tallies)
            state.exhausted = {v: inf if until is None else until for v, until in records.exhausted.items()}
        self.on_work()

    def _spend_call(self, access_key_id: str) -> None:
        """Count a call against its key's quota; an hour begins with the first call after the end of the last one."""
        limit = self.topology.limits.calls_per_hour
        if not limit:
            return
        now = self.state.now()
        hour = self._hours.get(access_key_id)
        if hour is None or now - hour.began >= HOUR:
            hour = Hour(now, 0)
        if hour.calls >= limit:
            raise refusals.quota(f"{limit} API calls per hour are used up")
        self._hours[access_key_id] = Hour(hour.began, hour.calls + 1)

    def _act(self, action: str, params: Params, struck: Sequence[Strike]) -> dict[str, Any]:
        """Do what is asked; raises Refusal."""
        state = self.state
        effects = [strike.effect for strike in struck]
        if action in DESCRIBES:
            return describe.cut(DESCRIBES[action](state, params), params, [e for e in effects if e in LISTS])
        if action in CHANGES:
            return change_instances(state, self._jobs, action, params)
        if NIC_GONE in effects and action not in {"CreateNics", "AttachNics"}:
            changes.lose_nics(state, params.listed("nics") or [params.text("nic")])
        match action:
            case "CreateNics":
                fields = changes.create_nics(state, params)
                if NIC_GONE in effects:
                    changes.lose_nics(state, [nic["nic_id"] for nic in fields["nics"]])
                return fields
            case "AttachNics":
                return changes.attach_nics(state, self._jobs, params, job_fault(struck))
            case "DetachNics":
                return changes.detach_nics(state, self._jobs, params, job_fault(struck))
            case "DeleteNics":
                return changes.delete_nics(state, params)
            case "ModifyNicAttributes":
                return changes.modify_nic_attributes(state, params)
        raise AssertionError(f"no handler for {action}")


def refused(refusal: Refusal) -> dict[str, Any]:
    """The envelope of an error: a code and a message, no action."""
    return {"message": refusal.message, "ret_code": refusal.ret_code}


def _nothing() -> None:
    pass
