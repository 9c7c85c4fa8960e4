"""The actions that stop, start, terminate and cease instances, each by a job.

The guest does not notice: its namespace and processes continue, with the NICs it still has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qingcloud_cni.sim.cloud import errors
from qingcloud_cni.sim.cloud.faults import JobFault
from qingcloud_cni.sim.cloud.jobs import Jobs
from qingcloud_cni.sim.cloud.params import Params
from qingcloud_cni.sim.cloud.state import CEASED, RUNNING, STOPPED, TERMINATED, CloudState


@dataclass(frozen=True, slots=True)
class Change:
    allowed: tuple[str, ...]  # status before it
    transition: str
    becomes: str


CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        "StopInstances": Change((RUNNING,), "stopping", STOPPED),
        "StartInstances": Change((STOPPED,), "starting", RUNNING),
        "TerminateInstances": Change((RUNNING, STOPPED), "terminating", TERMINATED),
        "CeaseInstances": Change((TERMINATED,), "ceasing", CEASED),
    }
)


def change_instances(state: CloudState, jobs: Jobs, action: str, params: Params) -> dict[str, Any]:
    """Queue one job for all instances, or none if one of them is in the wrong state."""
    change = CHANGES[action]
    hosts = [state.find_host(instance_id) for instance_id in params.required_list("instances")]
    for host in hosts:
        if host.transition:
            raise errors.denied(f"resource [{host.instance_id}] is [{host.transition}], please try later")
        if host.status not in change.allowed:
            raise errors.denied(f"instance [{host.instance_id}] is [{host.status}], so {action} is not allowed")
    is_final = action == "TerminateInstances" and params.number("direct_cease", 0) == 1
    for host in hosts:
        host.transition = change.transition
    instance_ids = tuple(host.instance_id for host in hosts)
    becomes = CEASED if is_final else change.becomes
    return {"job_id": jobs.submit(action, [], instance_ids, JobFault(), becomes).job_id}
