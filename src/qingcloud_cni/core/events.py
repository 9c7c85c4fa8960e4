"""Every event the agent records: its log level, and its meaning for the page of operations."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from types import MappingProxyType


class Level(StrEnum):
    """As in --loglevel."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"  # somebody may have to act, or an action failed and is retried
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class EventKind:
    level: Level
    meaning: str  # Markdown


_info, _warn = partial(EventKind, Level.INFO), partial(EventKind, Level.WARN)

EVENTS: Mapping[str, EventKind] = MappingProxyType(
    {
        "agent.ready": _info("The agent has compared its table with the cloud. Cloud writes begin."),
        "host.booted": _info("The host was booted since the agent last ran, so its containers are gone."),
        "clock.set": _info("The host's clock was set while no agent ran. The agent has moved persisted times along."),
        # ADD, DEL and GC
        "attachment.requested": _info("An ADD has begun. `detail` is CNI_NETNS."),
        "attachment.queued": _info("The ADD waits: no NIC is idle. `detail` is the cause."),
        "attachment.routed": _info("The ADD's gateway 0.0.0.0 was replaced by `detail`."),
        "attachment.ready": _info("A container's interface is configured."),
        "attachment.refused": _warn("The ADD failed. `detail` is the error that the runtime got."),
        "attachment.not-undone": _warn("The kernel rejected undoing an ADD that was cut off. The agent retries."),
        "attachment.named": _info("A request has named the container of a NIC that the agent had found."),
        "attachment.kept": _warn("A GC did not list the attachment, but its namespace exists, so it stays."),
        "gc.without-list": _warn("A GC has no `cni.dev/valid-attachments`, so nothing is freed. `subject`: network."),
        # the life of a NIC
        "nic.created": _info("The cloud made a NIC. `detail` is its address, `subject` the operation."),
        "nic.unaddressed": _warn("The cloud gave a new NIC no usable address. The agent deletes the NIC."),
        "nic.reserved": _warn(
            "The cloud or the state file calls the host's own NIC ours. The agent leaves it alone."
        ),
        "nic.adopted": _info("The agent found a NIC with this host's name in the cloud."),
        "nic.attaching": _info("The agent has asked the cloud to attach the NIC."),
        "nic.arrived": _info("The NIC's link is on the host."),
        "nic.parked": _info("The NIC's link is in the parking namespace."),
        "nic.park-failed": _warn("The kernel rejected parking the link. The agent retries."),
        "nic.assigned": _info("An ADD has the NIC."),
        "nic.returned": _info("The ADD failed before the container used the NIC, so the NIC is idle again."),
        "nic.released": _info("The container no longer uses the NIC. `detail` is the cause."),
        "nic.rested": _info("The NIC's address has cooled down."),
        "nic.quarantined": _warn("Another machine uses the NIC's address. `detail` has the MAC."),
        "nic.soiled": _warn(
            "The NIC is not as the cloud plugged it in and cannot be restored, or a person took it out of use."
            " `detail` has the difference. The agent detaches and deletes it once it serves no container."
        ),
        "nic.compare-failed": _warn("The kernel rejected comparing NICs with their first state. Logged once."),
        "nic.duplicate": _warn("The same, but a container had the NIC already. It continues to use it."),
        "nic.cleared": _info("The NIC is usable again. `detail` is the cause."),
        "nic.probe-failed": _warn("The kernel rejected a duplicate probe; NICs are used without. Logged once."),
        "probe.distrusted": _warn("A MAC answers for every address, so the agent ignores its answers."),
        "nic.gateway": _info("A gateway NIC is configured. Its link stays on the host."),
        "nic.detaching": _info("The agent has asked the cloud to detach the NIC. `detail` is `unused` or `drain`."),
        "nic.outside": _info("At the start: the NIC's vxnet is not in `--vxnet`. `detail` says when it is released."),
        "nic.kept": _warn("The cloud did not detach the NIC. It is parked as before."),
        "nic.unattached": _warn("The cloud says that the NIC is attached to no instance."),
        "nic.deleting": _info("The agent has asked the cloud to delete the NIC."),
        "nic.deleted": _info("The NIC is deleted."),
        "nic.missing": _warn("The cloud says that the NIC is attached, but its link is in no reachable namespace."),
        "nic.found": _info("The link of a missing NIC is in an unknown container. `detail` is the namespace."),
        "nic.fetched": _info("A DEL came before the table knew the NIC. The agent brings it back now."),
        "nic.spoofed": _warn(
            "A link looks like the NIC and is another one. The agent leaves it alone. `detail` names it."
        ),
        "nic.strayed": _warn("A NIC without attachment is in a container. Once confirmed, the agent brings it back."),
        "nic.readdressed": _warn("The cloud has changed the NIC's address."),
        "nic.gone": _warn("The NIC is no longer ours. `detail` is the cause."),
        # connection tracking
        "flows.forgotten": _info("The kernel has deleted tracked flows of released addresses. `detail`: number."),
        "flows.kept": _warn("The kernel rejected that. Logged once until it works again."),
        # gateways
        "gateway.refused": _warn("The cloud or the kernel rejected a step towards a gateway NIC. The agent retries."),
        "gateway.unknown": _warn("The cloud has not listed a host NIC that containers use as gateway. It stays."),
        "gateway.restored": _warn("Somebody had changed the host's path to Services. `detail`: what was put back."),
        "gateway.impaired": _warn("Services may not work. `detail` is what the agent leaves to an operator."),
        "gateway.sound": _info("The faults of `gateway.impaired` are over."),
        "gateway.unsure": _warn("The cloud does not report whether the anti-spoofing of the host's NIC is off."),
        # the spool
        "spool.done": _info("The agent has carried out a DEL that the plugin had spooled. `detail` is the outcome."),
        "spool.failed": _warn("A spooled DEL, or reading or removing its file, failed. The agent retries."),
        "spool.left": _info("A spooled file belongs to another agent."),
        "spool.unreadable": _warn("A spooled file is not the plugin's, or not root's alone. `detail`: new name."),
        "spool.unusable": _warn("The spool directory is unreadable, or not root's alone. Its DELs wait."),
        # operations of the cloud
        "create.intended": _info("The intent is on disk, the call follows. `detail` is the name of the NICs."),
        "attach.intended": _info("The intent is on disk, the call follows."),
        "detach.intended": _info("The intent is on disk, the call follows."),
        "delete.intended": _info("The intent is on disk, the call follows."),
        "attach.accepted": _info("The cloud has begun the job `job_id`."),
        "detach.accepted": _info("The cloud has begun the job `job_id`."),
        "create.finished": _info("The operation is over, with or without NICs."),
        "attach.finished": _info("The operation is over. `detail` is the cause if it failed."),
        "detach.finished": _info("The operation is over."),
        "delete.finished": _info("The operation is over."),
        "create.refused": _warn("The cloud rejected the call, or was unreachable."),
        "attach.refused": _warn("The cloud rejected the call, or was unreachable."),
        "create.unanswered": _warn("The reply was lost. The agent looks up NICs of that name."),
        "attach.unanswered": _warn("The reply was lost. The agent waits for the links, then asks for the NICs."),
        "detach.unanswered": _warn("The call failed or its reply was lost. The agent asks for the NICs."),
        "delete.unanswered": _warn("The call or its reply was lost. The agent asks for the NICs, then retries."),
        "jobs.unanswered": _warn("The cloud did not answer a question about jobs. The agent retries."),
        "nics.unanswered": _warn("The cloud did not answer a question about NICs or their vxnet. The agent retries."),
        # comparisons
        "cloud.unanswered": _warn("A comparison of table, kernel and cloud failed. The agent retries."),
        "cloud.set-aside": _warn(
            "A field of a reply is unusable, so it counts as absent. Once an hour for each field."
        ),
        "reconcile.doubted": _info("An operation ended unexpectedly. A comparison follows; `detail` is the cause."),
        "drift.seen": _warn("Table, kernel and cloud [differ](#status-shows-drift). `detail` begins with the kind."),
        "drift.over": _info("The difference is gone: the agent fixed it, or it ended by itself."),
        "links.unseen": _warn("The kernel rejected listing the links. The agent retries."),
        "vxnets.unfit": _warn("A configured vxnet has become unusable. The agent continues, but a start would fail."),
        "instance.leaving": _warn("This instance stops or is gone. The agent creates and attaches nothing more."),
        "instance.staying": _info("The instance runs after all. The agent maintains the pool again."),
        "instance.unanswered": _warn("The cloud did not answer whether the instance runs. The agent retries."),
        # files and mounts of the agent
        "file.restored": _warn(
            "Somebody removed a file, directory or mount of the agent. The agent put `detail` back."
        ),
        "file.obstructed": _warn("It cannot be put back. `detail` says what is in its place. The agent retries."),
        # the state file
        "store.refused": _warn("The disk rejects writes. The agent rejects ADDs until it recovers."),
        "store.recovered": _info("The disk accepts writes again, and every waiting change is written."),
        "store.damaged": _warn("The state file contradicts itself. The agent writes a new one at once."),
        "store.set-aside": _warn("The state file was damaged or gone. `detail` has the cause and its new name."),
    }
)
