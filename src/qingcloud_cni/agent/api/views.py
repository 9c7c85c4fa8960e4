"""Types of the API's answers, and the functions that make them; `openapi` describes them.

Times are in seconds since the epoch, durations in seconds. A NIC's id is its MAC address.
"""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import msgspec
from msgspec import Meta

from qingcloud_cni.agent.agent import TASKS, Agent
from qingcloud_cni.agent.base.urgency import explain_budget
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.drift.differences import DifferenceKind
from qingcloud_cni.core.nics.model import Attachment, Nic, NicState
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import Cloud
from qingcloud_cni.core.seams.store import EventFilter

Count = Annotated[int, Meta(ge=0)]
SettingValue = str | bool | int | float | list[str]


class RouteView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A route installed in a container; fields from `priority` on are absent unless the configuration has them."""

    dst: Annotated[str, Meta(description="a network", examples=["10.96.0.0/12"])]
    gw: Annotated[str, Meta(description="empty if its destinations are neighbours (scope 253)")]
    priority: Annotated[int | None, Meta(description="the metric")] = None
    table: int | None = None
    mtu: int | None = None
    advmss: int | None = None
    scope: int | None = None


class NicView(msgspec.Struct, frozen=True):
    """A NIC of this host's agent."""

    nic_id: Annotated[str, Meta(examples=["52:54:9f:01:02:03"])]
    name: Annotated[str, Meta(description="unique name in the cloud")]
    vxnet_id: str
    address: Annotated[str, Meta(description="with the prefix length", examples=["172.16.3.7/24"])]
    gateway: Annotated[str, Meta(description="the vxnet's router")]
    state: NicState
    since: Annotated[float, Meta(description="when it entered this state")]
    released: Annotated[float, Meta(description="when it last left a container; 0 if its address has cooled down")]
    gateway_index: Annotated[int, Meta(ge=-1, description="number of a gateway NIC; -1 for other NICs")]
    repairs: Annotated[Count, Meta(description="consecutive repairs, because its link was missing")]
    attachment: Annotated[str, Meta(description="network/container/ifname that it serves; empty if none")]
    claimant: Annotated[str, Meta(description="if quarantined the MAC that uses its address, else empty")]
    soil: Annotated[str, Meta(description="why no container may get it any more; empty if one may")]


class LabelView(msgspec.Struct, frozen=True):
    key: str
    value: str


class PodView(msgspec.Struct, frozen=True):
    """The pod according to CNI_ARGS (K8S_POD_…); empty fields were not given."""

    namespace: str
    name: Annotated[str, Meta(description="with podman the container's name")]
    uid: str
    infra_container_id: str


class AttachmentView(msgspec.Struct, frozen=True):
    """A container's use of a NIC."""

    network: Annotated[str, Meta(description="empty for a found NIC until a request claims it")]
    container_id: Annotated[str, Meta(description="empty if network is")]
    ifname: str
    netns: Annotated[str, Meta(description="CNI_NETNS, unchanged")]
    nic_id: str
    address: Annotated[str, Meta(description="with the prefix length")]
    vxnet_id: str
    routes: list[RouteView]
    pod: PodView
    labels: Annotated[list[LabelView], Meta(description="from args.cni or Mesos")]
    since: float
    is_ready: Annotated[bool, Meta(description="false until the link is configured")]


class CallsView(msgspec.Struct, frozen=True):
    """The call budget."""

    per_hour: Annotated[int, Meta(gt=0, description="the setting api-budget")]
    rate: Annotated[float, Meta(description="calls per hour that may go now: less while the cloud rejects calls")]
    tokens: Annotated[float, Meta(description="calls that may go at once")]
    waiting: Annotated[dict[str, Count], Meta(description="calls that wait, by urgency; zeros are omitted")]
    obstacle: Annotated[str, Meta(description="why containers or the pool wait for the budget; empty if they do not")]


class DifferenceView(msgspec.Struct, frozen=True):
    """A difference between table, kernel and cloud."""

    kind: DifferenceKind
    nic_id: str
    attachment: Annotated[str, Meta(description="network/container/ifname concerned; empty if none")]
    detail: str
    since: Annotated[float, Meta(description="when it was first observed")]
    looks: Annotated[int, Meta(gt=0, description="observations, some time apart")]
    is_cured: Annotated[bool, Meta(description="the agent fixes it once it is certain; else it only reports it")]


class TaskView(msgspec.Struct, frozen=True):
    """The last run of a periodic task."""

    name: str
    period: Annotated[float, Meta(ge=0, description="maximum seconds between runs; 0: on change only")]
    last_success: Annotated[float, Meta(description="0: never")]
    duration: Annotated[float, Meta(ge=0, description="of the last run")]
    failures: Annotated[Count, Meta(description="consecutive")]
    all_failures: Annotated[Count, Meta(description="since the start")]
    last_error: Annotated[str, Meta(description="cause of the last run's failure; empty if it succeeded")]
    next_run: Annotated[float, Meta(description="0: on change")]


class ReconcileView(msgspec.Struct, frozen=True):
    """The outcome of a comparison of table, kernel and cloud."""

    compared: Annotated[bool, Meta(description="false: it failed, or was not finished in time")]
    error: Annotated[str, Meta(description="cause of the failure; empty if it succeeded")]
    differences: list[DifferenceView]


class StatusView(msgspec.Struct, frozen=True):
    """Whether the agent is ready, and what it holds."""

    version: str
    instance_id: str
    pid: Annotated[int, Meta(gt=0)]
    ready: Annotated[bool, Meta(description="ADDs are served")]
    cloud_compared: Annotated[bool, Meta(description="the table was compared with the cloud since the start")]
    cloud_error: Annotated[str, Meta(description="the current fault of the cloud; empty if none")]
    set_aside: Annotated[list[str], Meta(description="unusable fields of the cloud's replies, of the last hour")]
    gateway_error: Annotated[str, Meta(description="what is wrong with the path to Services; empty if nothing is")]
    store_error: Annotated[str, Meta(description="why the disk rejects writes; empty if it accepts them")]
    unsaved: Annotated[Count, Meta(description="changes that are not on disk")]
    port_error: Annotated[str, Meta(description="why the agent does not listen on TCP; empty if it does")]
    draining: bool
    drained: Annotated[bool, Meta(description="only serving NICs are left; false before cloud_compared")]
    nics: Annotated[dict[NicState, Count], Meta(description="number by state; zeros are omitted")]
    outside: Annotated[
        dict[str, Count],
        Meta(description="NICs to be released, after the DEL of their container, by vxnet: it is not in --vxnet"),
    ]
    asked: Annotated[Count, Meta(description="NICs asked of the cloud, without an answer yet")]
    attachments: Count
    waiting: Annotated[Count, Meta(description="ADDs that wait for a NIC")]
    operations: Annotated[list[str], Meta(description="cloud writes under way: kind and id")]
    differences: Annotated[list[DifferenceView], Meta(description="oldest first")]
    calls: CallsView
    lacks: Annotated[list[str], Meta(description="abilities that the kernel or the service's rights lack")]


Word = Annotated[str, Meta(pattern="^[!-~]*$", max_length=300)]  # ASCII without blanks
MOST_EVENTS = 20_000  # more than are stored


class EventQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Filters for events; an absent one admits all."""

    limit: Annotated[int, Meta(ge=1, le=MOST_EVENTS, description="the latest; with `after` the first")] = 100
    after: Annotated[int, Meta(ge=0, le=2**53, description="only those after the event of this number")] = 0
    nic: Annotated[Word, Meta(description="of this NIC")] = ""
    container: Annotated[Word, Meta(description="of containers whose id begins with this")] = ""
    pod: Annotated[Word, Meta(description="of this pod: namespace/name, or the name alone")] = ""
    subject: Annotated[Word, Meta(description="of this attachment (network/container/ifname) or operation")] = ""
    name: Annotated[Word, Meta(description="of this name, or of a kind: `nic` matches `nic.assigned`")] = ""


class NicQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The NIC that a request is about."""

    nic: Annotated[Word, Meta(min_length=1, description="its id")]


class NicStateView(msgspec.Struct, frozen=True):
    """How a NIC differs from the state in which the cloud plugged it in."""

    nic_id: str
    attachment: Annotated[str, Meta(description="network/container/ifname that it serves; empty if none")]
    differences: Annotated[
        list[str],
        Meta(description="set by its container or a later plugin; before it serves again the agent undoes them"),
    ]


class EventView(msgspec.Struct, frozen=True):
    """An event of this host."""

    seq: Annotated[int, Meta(gt=0, description="its number; numbers grow, with gaps")]
    at: Annotated[float, Meta(description="when")]
    name: Annotated[str, Meta(examples=["nic.assigned"])]
    nic_id: str
    subject: Annotated[str, Meta(description="an attachment (network/container/ifname), or an operation")]
    detail: str
    state: Annotated[str, Meta(description="new state of the NIC, or `gone`; empty if unchanged")]
    job_id: Annotated[str, Meta(description="the cloud's job, of an operation")]
    pod: Annotated[str, Meta(description="of an attachment, if the runtime gave it")]


class SettingView(msgspec.Struct, frozen=True):
    """A setting with its source."""

    name: str
    value: SettingValue
    source: Annotated[str, Meta(description="a flag, a variable, a file, or the default")]


class CloudView(msgspec.Struct, frozen=True):
    """The access file, without keys."""

    endpoint: str
    proxy: Annotated[str, Meta(description="proxy of the environment, without its password; empty if there is none")]
    ca_file: str
    uri: str
    connection_retries: Count
    connection_timeout: float
    unknown: Annotated[list[str], Meta(description="keys of the access file that the agent ignores")] = msgspec.field(
        name="unknown_keys"
    )


class ConfigView(msgspec.Struct, frozen=True):
    """The agent's configuration."""

    file: Annotated[str, Meta(description="the config file; empty if there is none")]
    settings: list[SettingView]
    cloud: CloudView


def status_view(agent: Agent, version: str, pid: int, port_error: str = "") -> StatusView:
    table = agent.context.table
    states = [n.state for n in table.nics.values()]
    return StatusView(
        version=version,
        instance_id=agent.context.identity.instance_id,
        pid=pid,
        ready=not agent.obstacle,
        cloud_compared=agent.is_cloud_compared,
        cloud_error=agent.last_cloud_error
        or agent.instance_status.leaving
        or agent.provisioner.cause
        or agent.releaser.cause,
        set_aside=list(agent.context.cloud.set_aside()),
        gateway_error=agent.gateways.fault,
        store_error=agent.context.journal.error,
        unsaved=agent.context.journal.unsaved,
        port_error=port_error,
        draining=agent.pool.is_draining,
        drained=agent.is_drained(),
        nics={state: states.count(state) for state in NicState if state in states},
        outside=Counter(n.vxnet_id for n in table.nics.values() if agent.pool.is_outside(n)),
        asked=table.creating,
        attachments=len(table.attachments),
        waiting=agent.pool.waiting,
        operations=[f"{i.kind} {i.op_id}" for i in table.intents.values()],
        differences=differences(agent),
        calls=calls_view(agent.context.cloud, agent.context.clock),
        lacks=list(agent.context.kernel.lacks),
    )


def calls_view(cloud: Cloud, clock: Clock) -> CallsView:
    spending = cloud.spending()
    return CallsView(
        per_hour=spending.per_hour,
        rate=round(spending.rate, 1),
        tokens=round(spending.tokens, 1),
        waiting={u.word: spending.queued.count(u) for u in Urgency if u in spending.queued},
        obstacle=explain_budget(cloud, clock),
    )


def event_filter(query: EventQuery) -> EventFilter:
    return EventFilter(
        query.limit, query.after, nic_id=query.nic.lower(), container=query.container, pod=query.pod,
        subject=query.subject, name=query.name,
    )  # fmt: skip


def differences(agent: Agent) -> list[DifferenceView]:
    return [
        DifferenceView(
            kind=seen.difference.kind,
            nic_id=seen.difference.nic_id,
            attachment=seen.difference.subject,
            detail=seen.difference.detail,
            since=seen.since,
            looks=seen.comparisons,
            is_cured=seen.difference.remedy is not None,
        )
        for seen in agent.reconciler.open
    ]


def tasks(agent: Agent) -> list[TaskView]:
    return [TaskView(task.name, **asdict(task.record(agent))) for task in TASKS]


def nics(agent: Agent) -> list[NicView]:
    table = agent.context.table
    served = {a.nic_id: str(a.key) for a in table.attachments.values()}
    rows = [asdict(nic) | {"attachment": served.get(nic.nic_id, "")} for nic in table.nics.values()]
    return msgspec.convert(rows, list[NicView])


def attachments(agent: Agent) -> list[AttachmentView]:
    table = agent.context.table
    return [_attachment_view(a, table.nics[a.nic_id]) for a in table.attachments.values()]


def _attachment_view(attachment: Attachment, nic: Nic) -> AttachmentView:
    workload = attachment.workload
    return AttachmentView(
        network=attachment.key.network,
        container_id="" if attachment.key.is_unclaimed else attachment.key.container_id,
        ifname=attachment.key.ifname,
        netns=attachment.netns.path,
        nic_id=nic.nic_id,
        address=nic.address,
        vxnet_id=nic.vxnet_id,
        routes=[RouteView(**asdict(r)) for r in attachment.routes],
        pod=PodView(workload.pod_namespace, workload.pod_name, workload.pod_uid, workload.infra_container_id),
        labels=[LabelView(key, value) for key, value in workload.labels],
        since=attachment.since,
        is_ready=attachment.is_ready,
    )
