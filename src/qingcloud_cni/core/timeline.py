"""What became of a container or a NIC, told from the events: step by step, with the time each took. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qingcloud_cni.core.nics.model import Event, OpKind

BEGUN = "attachment.requested"
ENDS = frozenset({"attachment.refused", "nic.released", "nic.returned", "nic.deleted", "nic.gone"})
_KINDS = tuple(kind.value for kind in OpKind)


@dataclass(frozen=True, slots=True)
class StoryStep:
    at: float  # seconds since the epoch
    seconds: float  # since the step before; 0 for the first
    name: str
    detail: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A call of the cloud that concerned a NIC, from its record to its end."""

    op_id: str
    kind: str  # of OpKind
    at: float
    seconds: float  # until its end, or its last event while it has none
    is_over: bool
    job_id: str
    troubles: tuple[str, ...]  # what went wrong on the way


@dataclass(frozen=True, slots=True)
class Story:
    """Of one attachment from its ADD to its end, or of a NIC as far as the events reach back."""

    subject: str  # network/container/ifname, or the NIC's id
    pod: str
    nic_id: str  # "" while the attachment has none
    is_over: bool
    steps: tuple[StoryStep, ...]
    operations: tuple[Operation, ...]  # of an attachment: those that brought its NIC


def stories(events: Sequence[Event], wanted: str) -> tuple[Story, ...]:
    """Everything about *wanted*: a NIC, a container (its id may be cut off), a pod, an attachment or an operation.

    *events* are all there are, oldest first.
    """
    if not wanted:
        return ()
    about = [e for e in events if wanted in (e.nic_id, e.subject)]
    if about and "/" not in wanted:
        return (_of_nic(events, about, wanted),)
    subjects = dict.fromkeys(e.subject for e in events if _speaks_of(e, wanted))
    return tuple(story for subject in subjects for story in _of_attachment(events, subject))


def _speaks_of(event: Event, wanted: str) -> bool:
    """Whether it is an event of an attachment that may be meant."""
    _network, is_attachment, rest = event.subject.partition("/")
    names = {event.subject, event.pod, event.pod.rpartition("/")[2]}
    return bool(is_attachment) and (wanted in names or rest.startswith(wanted))


def _of_attachment(events: Sequence[Event], subject: str) -> Iterable[Story]:
    """One story for each ADD of this attachment: after a DEL the same container may ask again."""
    lives: list[list[Event]] = []
    for event in events:
        if event.subject == subject:
            if not lives or event.name == BEGUN:
                lives.append([])
            lives[-1].append(event)
    for life in lives:
        last = next((e for e in reversed(life) if e.nic_id), None)
        given = next((e for e in reversed(life) if e.name == "nic.assigned"), None)
        yield Story(
            subject=subject,
            pod=next((e.pod for e in life if e.pod), ""),
            nic_id=last.nic_id if last is not None else "",
            is_over=life[-1].name in ENDS,
            steps=_steps(life, with_subject=False),
            operations=_brought(events, given) if given is not None else (),
        )


def _of_nic(events: Sequence[Event], about: Sequence[Event], name: str) -> Story:
    op_ids = dict.fromkeys(e.subject for e in about if "/" not in e.subject)
    return Story(
        subject=name,
        pod="",
        nic_id=about[0].nic_id,
        is_over=about[-1].name in ENDS - {"nic.released", "nic.returned"},
        steps=_steps(about, with_subject=True),
        operations=tuple(op for op_id in op_ids for op in _operation(events, op_id)),
    )


def _steps(events: Iterable[Event], *, with_subject: bool) -> tuple[StoryStep, ...]:
    steps: list[StoryStep] = []
    for event in events:
        since = steps[-1].at if steps else event.at
        words = (event.subject if with_subject else "", event.detail)
        steps.append(
            StoryStep(event.at, max(event.at - since, 0.0), event.name, ": ".join(filter(None, words)), event.job_id)
        )
    return tuple(steps)


def _brought(events: Sequence[Event], given: Event) -> tuple[Operation, ...]:
    """The operations by which a NIC came to this host: the last create and attach before it was given away."""
    op_ids: dict[str, str] = {}
    for event in events:
        if event is given:
            break
        if event.nic_id == given.nic_id and event.name in {"nic.created", "nic.attaching"}:
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
