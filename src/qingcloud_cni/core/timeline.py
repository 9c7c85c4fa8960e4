"""Timelines of a container or a NIC, made from the events: each step with the time it took."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qingcloud_cni.core.nics.model import Event, OpKind

BEGUN = "attachment.requested"
ENDS = frozenset({"attachment.refused", "nic.released", "nic.returned", "nic.deleted", "nic.gone"})
_KINDS = tuple(kind.value for kind in OpKind)


@dataclass(frozen=True, slots=True)
class TimelineStep:
    at: float  # seconds since the epoch
    seconds: float  # since the step before; 0 for the first
    name: str
    detail: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A cloud write that concerned a NIC, from its intent to its end."""

    op_id: str
    kind: str  # of OpKind
    at: float
    seconds: float  # to its last event
    is_over: bool
    job_id: str
    troubles: tuple[str, ...]  # why calls failed


@dataclass(frozen=True, slots=True)
class Timeline:
    """Of one attachment from its ADD to its end, or of a NIC since the oldest event."""

    subject: str  # network/container/ifname, or the NIC's id
    pod: str
    nic_id: str  # "" while the attachment has none
    is_over: bool
    steps: tuple[TimelineStep, ...]
    operations: tuple[Operation, ...]  # of an attachment: those that brought its NIC


def timelines(events: Sequence[Event], wanted: str) -> tuple[Timeline, ...]:
    """Return those of *wanted*: a NIC, a container (or the start of its id), a pod, an attachment or an operation.

    *events* are all that are stored, oldest first.
    """
    if not wanted:
        return ()
    about = [e for e in events if wanted in (e.nic_id, e.subject)]
    if about and "/" not in wanted:
        return (_of_nic(events, about, wanted),)
    subjects = dict.fromkeys(e.subject for e in events if _matches(e, wanted))
    return tuple(timeline for subject in subjects for timeline in _of_attachment(events, subject))


def _matches(event: Event, wanted: str) -> bool:
    _network, is_attachment, rest = event.subject.partition("/")
    names = {event.subject, event.pod, event.pod.rpartition("/")[2]}
    return bool(is_attachment) and (wanted in names or rest.startswith(wanted))


def _of_attachment(events: Sequence[Event], subject: str) -> Iterable[Timeline]:
    """One for each ADD: after a DEL the same container may be added again."""
    spans: list[list[Event]] = []
    for event in events:
        if event.subject == subject:
            if not spans or event.name == BEGUN:
                spans.append([])
            spans[-1].append(event)
    for span in spans:
        last = next((e for e in reversed(span) if e.nic_id), None)
        assigned = next((e for e in reversed(span) if e.name == "nic.assigned"), None)
        yield Timeline(
            subject=subject,
            pod=next((e.pod for e in span if e.pod), ""),
            nic_id=last.nic_id if last is not None else "",
            is_over=span[-1].name in ENDS,
            steps=_steps(span, with_subject=False),
            operations=_brought(events, assigned) if assigned is not None else (),
        )


def _of_nic(events: Sequence[Event], about: Sequence[Event], name: str) -> Timeline:
    op_ids = dict.fromkeys(e.subject for e in about if "/" not in e.subject)
    return Timeline(
        subject=name,
        pod="",
        nic_id=about[0].nic_id,
        is_over=about[-1].name in ENDS - {"nic.released", "nic.returned"},
        steps=_steps(about, with_subject=True),
        operations=tuple(op for op_id in op_ids for op in _operation(events, op_id)),
    )


def _steps(events: Iterable[Event], *, with_subject: bool) -> tuple[TimelineStep, ...]:
    steps: list[TimelineStep] = []
    for event in events:
        seconds = max(event.at - steps[-1].at, 0.0) if steps else 0.0
        detail = ": ".join(filter(None, (event.subject if with_subject else "", event.detail)))
        steps.append(TimelineStep(event.at, seconds, event.name, detail, event.job_id))
    return tuple(steps)


def _brought(events: Sequence[Event], assigned: Event) -> tuple[Operation, ...]:
    """The operations that brought a NIC to this host: the last create and attach before *assigned*."""
    op_ids: dict[str, str] = {}
    for event in events:
        if event is assigned:
            break
        if event.nic_id == assigned.nic_id and event.name in {"nic.created", "nic.attaching"}:
            op_ids[event.name] = event.subject
    return tuple(op for op_id in op_ids.values() if op_id for op in _operation(events, op_id))


def _operation(events: Sequence[Event], op_id: str) -> Iterable[Operation]:
    own = [e for e in events if e.subject == op_id and not e.nic_id]
    kind = next((kind for e in own for kind in _KINDS if e.name.startswith(f"{kind}.")), "")
    if kind:
        yield Operation(
            op_id=op_id,
            kind=kind,
            at=own[0].at,
            seconds=max(own[-1].at - own[0].at, 0.0),
            is_over=own[-1].name in {f"{kind}.finished", f"{kind}.refused"},
            job_id=next((e.job_id for e in own if e.job_id), ""),
            troubles=tuple(e.detail for e in own if e.detail and not e.name.endswith((".intended", ".accepted"))),
        )
