"""Jobs of the simulated cloud: one at a time per instance, each with a latency; links first, then the new status."""

import json

from qingcloud_cni.sim.effects import UnplugNic
from qingcloud_cni.sim.state import CloudState, JobRecord, NicRecord

ATTACH = "AttachNics"
DETACH = "DetachNics"
BUSY = {ATTACH: "attaching", DETACH: "detaching"}
STATUSES = ("pending", "working", "successful", "failed")


class Jobs:
    """The queue of jobs that are not over."""

    def __init__(self, state: CloudState) -> None:
        self._state = state
        self._open: list[JobRecord] = []

    def submit(
        self, action: str, nics: list[NicRecord], instance_ids: tuple[str, ...], *, fails: bool, loses_links: bool
    ) -> JobRecord:
        """Queue a job behind all others of its instances; until its end the NICs are busy and keep their status."""
        state = self._state
        low, high = state.topology.latencies.attach if action == ATTACH else state.topology.latencies.detach
        now = state.now()
        begin = max([now, *(job.due for job in self._open if not set(job.instance_ids).isdisjoint(instance_ids))])
        nic_ids = tuple(nic.nic_id for nic in nics)
        directive: dict[str, object] = {"action": action, "nics": nic_ids, "zone": state.topology.zone}
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
            due=begin + state.rng.uniform(low, high),
            fails=fails,
            loses_links=loses_links,
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

    def next_due(self) -> float | None:
        """When the next step of any job is due; None if no job is open."""
        return min((job.due for job in self._open), default=None)

    def advance(self) -> None:
        """Take each job that is due one step further: first its links appear or vanish, then it ends."""
        now = self._state.now()
        for job in sorted((job for job in self._open if job.due <= now), key=lambda job: job.due):
            if not job.has_landed:
                job.has_landed = True
                self._land(job)
            else:
                self._open.remove(job)
                self._end(job)

    def _land(self, job: JobRecord) -> None:
        if job.fails:
            return
        for nic in map(self._state.find_nic, job.nic_ids):
            if job.action == DETACH:
                nic.is_plugged = False
                self._state.effects.append(UnplugNic(nic.nic_id))
            elif not job.loses_links:
                self._state.effects.append(self._state.plug(nic, job.instance_ids[0]))

    def _end(self, job: JobRecord) -> None:
        job.end = "failed" if job.fails else "successful"
        job.end_time = self._state.now()
        job.error_codes = "5000" if job.fails else ""  # the real values are not known
        for nic in map(self._state.find_nic, job.nic_ids):
            nic.busy = ""
            if job.fails:
                continue
            if job.action == ATTACH:
                self._state.put_on(nic, job.instance_ids[0])
            else:
                self._state.take_off(nic)


def status(job: JobRecord, now: float) -> str:
    """The status of a job as DescribeJobs shows it."""
    if job.end:
        return job.end
    return "pending" if now < job.begin else "working"


def status_time(job: JobRecord, now: float) -> float:
    """When the job entered that status."""
    return job.end_time if job.end else min(max(job.begin, job.create_time), now)
