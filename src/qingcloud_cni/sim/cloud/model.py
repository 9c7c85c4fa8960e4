"""The simulated cloud as a plain object: calls in, answers out; jobs that end with time; effects for the hardware.

It has neither I/O nor a clock. Its owner supplies the time, calls `advance` at `next_due` and carries out the effects
of `take_effects`; `sim.memory.local.run_jobs` does all three.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from qingcloud_cni.sim.cloud import changes, describe, errors, faults
from qingcloud_cni.sim.cloud.errors import ApiError
from qingcloud_cni.sim.cloud.faults import Faults, Strike, error_of, job_fault
from qingcloud_cni.sim.cloud.jobs import Jobs
from qingcloud_cni.sim.cloud.params import Params
from qingcloud_cni.sim.cloud.records import Hour, Records, jobs_to_save, restore
from qingcloud_cni.sim.cloud.state import CloudState, build, plug_effect
from qingcloud_cni.sim.topology import Effect, FaultSpec, PlugNic, Topology

HOUR = 3600.0

DESCRIBES: dict[str, Callable[[CloudState, Params], dict[str, Any]]] = {
    "DescribeInstances": describe.describe_instances,
    "DescribeVxnets": describe.describe_vxnets,
    "DescribeNics": describe.describe_nics,
    "DescribeJobs": describe.describe_jobs,
}
REQUIRED_PARAMS: dict[str, tuple[str, ...]] = {  # of every action
    **dict.fromkeys(DESCRIBES, ()),
    "CreateNics": ("vxnet",),
    "AttachNics": ("nics", "instance"),
    "DetachNics": ("nics",),
    "DeleteNics": ("nics",),
    "ModifyNicAttributes": ("nic",),
    **dict.fromkeys(changes.INSTANCE_CHANGES, ("instances",)),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to a call, and the effect of the fault that changes or delays it ("": none)."""

    envelope: dict[str, Any]
    effect: str = ""
    seconds: float = 0.0  # delay, if that is the effect


class Model:
    """One cloud. Two models built from equal topologies, seeds and clocks answer alike."""

    def __init__(
        self, topology: Topology, *, rng: random.Random, now: Callable[[], float], saved: Records | None = None
    ) -> None:
        """Start with the hosts running, or as the *saved* cloud, which has the same routers, vxnets and hosts.

        Its faults continue unless its topology had others. ValueError if the topology contradicts itself.
        """
        self.topology = topology
        self.state = restore(topology, rng, now, saved) if saved else build(topology, rng, now)
        self.calls = Counter(saved.calls if saved else {})  # authenticated calls by action, rejected ones included
        self._jobs = Jobs(self.state)
        self._began = saved.began if saved else now()
        self._hours = dict(saved.hours) if saved else {}  # by access key
        self._listeners: list[Callable[[], None]] = []
        if saved and saved.topology.faults == topology.faults:
            self._faults = Faults(saved.faults, rng=rng, since=saved.faults_since, tallies=saved.tallies)
        else:
            self._faults = self._make_faults(topology.faults)
            self.state.replenish()

    def subscribe(self, on_work: Callable[[], None]) -> None:
        """Call *on_work* whenever a job is queued, an effect is waiting, or `next_due` may have changed."""
        self._listeners.append(on_work)

    def check(self, params: Mapping[str, str]) -> None:
        """Raise ApiError unless action, zone and the action's parameters are present."""
        reader = Params(params)
        action = reader.required("action")
        if action not in REQUIRED_PARAMS:
            raise errors.bad_value("action", action, "the documented actions")
        zone = reader.required("zone")
        if zone != self.topology.zone:
            raise errors.bad_value("zone", zone, self.topology.zone)
        for name in REQUIRED_PARAMS[action]:
            if not reader.has(name):
                raise errors.missing(name)

    def call(self, params: Mapping[str, str]) -> dict[str, Any]:
        """The envelope of `handle`."""
        return self.handle(params).envelope

    def handle(self, params: Mapping[str, str]) -> Outcome:
        """Carry out an authenticated call; *params* are flattened as on the wire."""
        try:
            self.check(params)
            action = params["action"].strip()
            self.calls[action] += 1
            self._spend_call(params.get("access_key_id", ""))
        except ApiError as error:
            return Outcome(error_envelope(error))
        struck = self._faults.strike(params, self.state.now())
        late = next((strike for strike in struck if strike.effect in faults.REPLY_FAULTS), None)
        reply_fault = (late.effect, late.seconds) if late else ("", 0.0)
        for strike in struck:
            if strike is late and strike.effect in faults.CARRIED_OUT:
                break  # faults after it in the list do not prevent the work
            if strike.effect in faults.NOT_CARRIED_OUT:
                return Outcome({}, strike.effect)
            said = error_of(strike.spec, params)
            if said:
                if strike.effect == faults.ADDRESS_QUOTA:
                    self.state.exhaust(params["vxnet"].strip(), self._faults.ends(strike.spec))
                return Outcome(error_envelope(said), *reply_fault)
        try:
            fields = self._act(action, Params(params), struck)
        except ApiError as error:
            return Outcome(error_envelope(error), *reply_fault)
        finally:
            if self.state.effects:
                self._notify()
        if "job_id" in fields:
            self._notify()
        return Outcome({"action": f"{action}Response", **fields, "ret_code": 0}, *reply_fault)

    @property
    def faults(self) -> Faults:
        return self._faults

    def set_faults(self, specs: Iterable[FaultSpec]) -> None:
        """Replace all faults; their time begins now. ValueError for one that could never strike."""
        self._faults = self._make_faults(specs)
        self.state.replenish()
        self._jobs.fail_endless()
        self._notify()

    def _notify(self) -> None:
        for on_work in self._listeners:
            on_work()

    def _make_faults(self, specs: Iterable[FaultSpec]) -> Faults:
        made = Faults(specs, rng=self.state.rng, since=self.state.now())
        for spec in made.specs:
            if spec.vxnet and spec.vxnet not in self.state.vxnets:
                raise ValueError(f"fault on {spec.action}: vxnet {spec.vxnet!r} does not exist")
        return made

    def next_due(self) -> float | None:
        """When to call `advance`; a time in the past means now, None that no job is open."""
        return self._jobs.next_due()

    def advance(self) -> None:
        """Take every due job one step further: first its effects are emitted, at the next call it ends.

        An owner that carries out the effects in between shows the links before the job's end.
        """
        self._jobs.advance()

    def take_effects(self) -> list[Effect]:
        """What the hardware has to do now, in order; each effect is returned once."""
        return self.state.take_effects()

    def plugged(self) -> tuple[PlugNic, ...]:
        """All NICs that have links, each host's primary first: what new hardware starts with."""
        attached = ((nic, host_id) for host_id in self.state.hosts for nic in self.state.nics_of(host_id))
        return (*(plug_effect(nic, host_id) for nic, host_id in attached if nic.is_plugged), *self.arriving())

    def arriving(self) -> tuple[PlugNic, ...]:
        """The NICs of open attach jobs that have links already."""
        return tuple(plug_effect(nic, host_id) for nic, host_id in self._jobs.arriving() if nic.is_plugged)

    def records(self) -> Records:
        """The cloud as it is, without effects not taken yet: they follow from the rest."""
        state = self.state
        return Records(
            topology=self.topology,
            began=self._began,
            nics=tuple(state.nics.values()),
            hosts={host.instance_id: (host.status, host.transition) for host in state.hosts.values()},
            jobs=tuple(jobs_to_save(state.jobs)),
            books={vxnet.vxnet_id: vxnet.book.record() for vxnet in state.vxnets.values() if vxnet.book},
            late_links=tuple(state.late_links),
            exhausted={vxnet_id: None if until == inf else until for vxnet_id, until in state.exhausted.items()},
            calls=dict(self.calls),
            hours=dict(self._hours),
            faults=self._faults.specs,
            faults_since=self._faults.since,
            tallies=tuple(self._faults.tallies),
        )

    def _spend_call(self, access_key_id: str) -> None:
        """Count a call against its key's quota; an hour begins with the first call after the last hour's end."""
        limit = self.topology.limits.calls_per_hour
        if not limit:
            return
        now = self.state.now()
        hour = self._hours.get(access_key_id)
        if hour is None or now - hour.began >= HOUR:
            hour = Hour(now, 0)
        if hour.calls >= limit:
            raise errors.quota(f"{limit} API calls per hour are used up")
        self._hours[access_key_id] = Hour(hour.began, hour.calls + 1)

    def _act(self, action: str, params: Params, struck: Sequence[Strike]) -> dict[str, Any]:
        """Carry out an action; raises ApiError."""
        state = self.state
        effects = [strike.effect for strike in struck]
        if action in DESCRIBES:
            return describe.apply_list_faults(DESCRIBES[action](state, params), params, effects)
        if action in changes.INSTANCE_CHANGES:
            return changes.change_instances(state, self._jobs, action, params)
        if faults.NIC_GONE in effects and action not in {"CreateNics", "AttachNics"}:
            changes.lose_nics(state, params.values("nics") or [params.text("nic")])
        match action:
            case "CreateNics":
                fields = changes.create_nics(state, params)
                if faults.NIC_GONE in effects:
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


def error_envelope(error: ApiError) -> dict[str, Any]:
    """The envelope of an error: a code and a message, no action."""
    return {"message": error.message, "ret_code": error.ret_code}
