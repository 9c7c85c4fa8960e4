"""Changes that could not be written yet, in bounded space. Pure."""

from collections.abc import Iterable

from qingcloud_cni.core.nics.changes import (
    EVENT_LIMIT,
    Change,
    DropAttachment,
    DropIntent,
    DropNic,
    DropSetting,
    PutAttachment,
    PutBoot,
    PutIntent,
    PutNic,
    PutSetting,
)
from qingcloud_cni.core.nics.model import Event


def compacted(changes: Iterable[Change]) -> list[Change]:
    """Return the last change of every row and the latest events: the same in one transaction."""
    last: dict[tuple[str, object], Change] = {}
    events: list[Change] = []
    for change in changes:
        if isinstance(change, Event):
            events.append(change)
        else:
            last[_row(change)] = change
    return [*last.values(), *events[-EVENT_LIMIT:]]


def _row(change: Change) -> tuple[str, object]:
    match change:
        case PutNic(nic):
            return "nic", nic.nic_id
        case DropNic(nic_id):
            return "nic", nic_id
        case PutAttachment(attachment):
            return "attachment", attachment.key
        case DropAttachment(key):
            return "attachment", key
        case PutIntent(intent):
            return "intent", intent.op_id
        case DropIntent(op_id):
            return "intent", op_id
        case PutSetting(name) | DropSetting(name):
            return "setting", name
        case PutBoot():
            return "boot", ""
        case Event():
            return "event", change
