"""Jobs of the simulated cloud: one at a time per instance, each with a latency; links change before the status."""

import json
from collections.abc import Iterable
from dataclasses import replace

from qingcloud_cni.sim.cloud.faults import JobFault
from qingcloud_cni.sim.cloud.state import CEASED, TERMINATED, CloudState, JobRecord, NicRecord

ATTACH = "AttachNics"
DETACH = "DetachNics"
BUSY = {ATTACH: "attaching", DETACH: "detaching"}
HALF_DONE = "done with failure"
STATUSES = ("pending", "working", "successful", "failed", HALF_DONE)


class Jobs:
    """The queue of open jobs."""

    def __init__(self, state: CloudState) -> None:
        """Continue with the open jobs of *state*."""
        self._state = state
        self._open = [job for job in state.jobs.values() if not job.end]

    def submit(
        self,
        action: str,
        nics: list[NicRecord],
        instance_ids: tuple[str, ...],
        fault: JobFault,
        becomes: str = "",
    ) -> JobRecord:
        """Queue a job behind all others of its instances that end; until its end the NICs are busy.

        *becomes* is the new status of its instances, if the job changes it.
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

    def count_attaching(self, instance_id: str) -> int:
        return sum(len(job.nic_ids) for job in self._open if job.action == ATTACH and instance_id in job.instance_ids)

    def arriving(self) -> list[tuple[NicRecord, str]]:
        """NICs of open attach jobs, with their instances."""
        return [
            (self._state.find_nic(nic_id), job.instance_ids[0])
            for job in self._open
            if job.action == ATTACH
            for nic_id in job.nic_ids
        ]

    def fail_endless(self) -> None:
        for job in self._open:
            if job.fault.is_endless:
                job.fault = replace(job.fault, is_endless=False, fails=True)
                job.due = job.ends = self._state.now()

    def next_due(self) -> float | None:
        """When the next step of any job is due; None if no step is."""
        links = (late.due for late in self._state.late_links)
        return min((*map(_next_step, self._moving()), *links), default=None)

    def advance(self) -> None:
        """Take each due job one step further: first its links appear or vanish, then it ends."""
        now = self._state.now()
        self._state.plug_due(now)
        for job in sorted((job for job in self._moving() if _next_step(job) <= now), key=_next_step):
            if not job.has_landed:
                job.has_landed = True
                self._land(job)
            else:
                self._open.remove(job)
                self._end(job)

    def _moving(self) -> Iterable[JobRecord]:
        return (job for job in self._open if not job.fault.is_endless)

    def _done(self, job: JobRecord) -> list[NicRecord]:
        """The NICs that a job changes; a terminated instance loses all but its primary."""
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
                    self._state.plug(nic, job.instance_ids[0])

    def _end(self, job: JobRecord) -> None:
        state, fault = self._state, job.fault
        job.end = "failed" if fault.fails else HALF_DONE if fault.is_half_done else "successful"
        job.end_time = state.now()
        job.error_codes = "5000" if job.end != "successful" else ""  # the real values are undocumented
        done = self._done(job)
        for nic in map(state.find_nic, job.nic_ids):
            nic.busy = ""
        if job.becomes:
            for host in map(state.find_host, job.instance_ids):
                host.status, host.transition = job.becomes, ""
        for nic in done:
            if job.action != ATTACH:
                state.detach(nic)
            else:
                state.attach(nic, job.instance_ids[0])
                if fault.links_late and not fault.loses_links:
                    state.plug_later(nic, job.instance_ids[0], job.end_time + fault.links_late)
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
    """When the job entered its status."""
    return job.end_time if job.end else min(max(job.begin, job.create_time), now)
