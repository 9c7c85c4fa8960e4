"""Jobs of the simulated cloud: one at a time per instance, each with a latency; links first, then the new status."""

import json
from collections.abc import Iterable
from dataclasses import replace

from qingcloud_cni.sim.cloud.faults import JobFault
from qingcloud_cni.sim.cloud.state import CEASED, TERMINATED, CloudState, JobRecord, LateLink, NicRecord

ATTACH = "AttachNics"
DETACH = "DetachNics"
BUSY = {ATTACH: "attaching", DETACH: "detaching"}
HALF_DONE = "done with failure"
STATUSES = ("pending", "working", "successful", "failed", HALF_DONE)


class Jobs:
    """The queue of jobs that are not over."""

    def __init__(self, state: CloudState) -> None:
        self._state = state
        self._open: list[JobRecord] = []

    def submit(
        self,
        action: str,
        nics: list[NicRecord],
        instance_ids: tuple[str, ...],
        fault: JobFault,
        becomes: str = "",
    ) -> JobRecord:
        """Queue a job behind all others of its instances; until its end the NICs are busy and keep their status.

        None waits for one that does not end. *becomes* is the status its instances will have, where it changes that.
        """
        state = self._state
        low, high = state.topology.latencies.attach if action == ATTACH else state.topology.latencies.detach
        now = state.now()
        before = (job.ends for job in self._moving() if not set(job.instance_ids).isdisjoint(instance_ids))
        begin = max([now, *before])
        due = begin + state.rng.uniform(low, high) + fault.slower
        nic_ids = tuple(nic.nic_id for nic in nics)
        directive: dict[str, object] = {"action": action, "zone": state.topology.zone}
        directive |= {"instances": instance_ids} if becomes else {"nics": nic_ids}
        if action == ATTACH:
            directive["instance"] = instance_ids[0]
        job = JobRecord(
            job_id=state.new_job_id(),
            action=action,
            nic_ids=nic_ids,
            instance_ids=instance_ids,
            directive=json.dumps(directive),
            create_time=now,
            begin=begin,
            due=due,
            ends=due + fault.links_early,
            fault=fault,
            becomes=becomes,
        )
        for nic in nics:
            nic.busy = BUSY[action]
        state.jobs[job.job_id] = job
        self._open.append(job)
        return job

    def resume(self) -> None:
        """Go on with the jobs of the state that are not over."""
        self._open = [job for job in self._state.jobs.values() if not job.end]

    def coming(self, instance_id: str) -> int:
        """NICs on their way to an instance."""
        return sum(len(job.nic_ids) for job in self._open if job.action == ATTACH and instance_id in job.instance_ids)

    def arriving(self) -> list[tuple[NicRecord, str]]:
        """NICs of attach jobs that are not over, with their instances."""
        return [
            (self._state.find_nic(nic_id), job.instance_ids[0])
            for job in self._open
            if job.action == ATTACH
            for nic_id in job.nic_ids
        ]

    def release_endless(self) -> None:
        """Have the jobs that would never end fail now."""
        for job in self._open:
            if job.fault.is_endless:
                job.fault = replace(job.fault, is_endless=False, fails=True)
                job.due = job.ends = self._state.now()

    def next_due(self) -> float | None:
        """When the next step of any job is due; None if there is nothing to wait for."""
        links = (late.due for late in self._state.late_links)
        return min((*map(_next_step, self._moving()), *links), default=None)

    def advance(self) -> None:
        """Take each job that is due one step further: first its links appear or vanish, then it ends."""
        now = self._state.now()
        self._plug_late(now)
        for job in sorted((job for job in self._moving() if _next_step(job) <= now), key=_next_step):
            if not job.has_landed:
                job.has_landed = True
                self._land(job)
            else:
                self._open.remove(job)
                self._end(job)

    def _moving(self) -> Iterable[JobRecord]:
        return (job for job in self._open if not job.fault.is_endless)

    def _plug_late(self, now: float) -> None:
        state = self._state
        for late in [late for late in state.late_links if late.due <= now]:
            state.late_links.remove(late)
            state.effects.append(state.plug(state.nics[late.nic_id], late.instance_id))

    def _done(self, job: JobRecord) -> list[NicRecord]:
        """The NICs with which a job does what was asked; an instance that ends loses all but its primary."""
        if job.becomes:
            ends = job.instance_ids if job.becomes in {TERMINATED, CEASED} else ()
            return [nic for instance_id in ends for nic in self._state.nics_of(instance_id) if nic.role != 1]
        nics = [self._state.find_nic(nic_id) for nic_id in job.nic_ids]
        if job.fault.fails:
            return []
        return nics[: len(nics) // 2] if job.fault.is_half_done else nics

    def _land(self, job: JobRecord) -> None:
        for nic in self._done(job):
            if job.action != ATTACH:
                self._state.unplug(nic)
            else:
                nic.link_name = job.fault.link_name
                if not (job.fault.loses_links or job.fault.links_late):
                    self._state.effects.append(self._state.plug(nic, job.instance_ids[0]))

    def _end(self, job: JobRecord) -> None:
        state, fault = self._state, job.fault
        job.end = "failed" if fault.fails else HALF_DONE if fault.is_half_done else "successful"
        job.end_time = state.now()
        job.error_codes = "5000" if job.end != "successful" else ""  # the real values are not known
        done = self._done(job)
        for nic in map(state.find_nic, job.nic_ids):
            nic.busy = ""
        if job.becomes:
            for host in map(state.find_host, job.instance_ids):
                host.status, host.transition = job.becomes, ""
        for nic in done:
            if job.action != ATTACH:
                state.take_off(nic)
            else:
                state.put_on(nic, job.instance_ids[0])
                if fault.links_late and not fault.loses_links:
                    late = LateLink(nic.nic_id, job.instance_ids[0], job.end_time + fault.links_late)
                    state.late_links.append(late)
            if fault.loses_nics:
                state.remove(nic)


def _next_step(job: JobRecord) -> float:
    return job.ends if job.has_landed else job.due


def status(job: JobRecord, now: float) -> str:
    """The status of a job as DescribeJobs shows it."""
    if job.end:
        return job.end
    return "pending" if now < job.begin else "working"


def status_time(job: JobRecord, now: float) -> float:
    """When the job entered that status."""
    return job.end_time if job.end else min(max(job.begin, job.create_time), now)
