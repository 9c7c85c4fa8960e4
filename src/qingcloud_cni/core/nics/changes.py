"""Rows on disk and their changes: plain data between the table and the store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Event, Intent, Nic

EVENT_LIMIT = 10_000  # the latest events to retain, or somewhat more; about 3 MB
BOOT = "boot-id"  # the setting for the boot of the host in which the rows were written; other names are paths


@dataclass(frozen=True, slots=True)
class Setting:
    """A sysctl that the agent changed, and its value before; or BOOT, and the boot's id."""

    name: str
    value: str


Row = Nic | Attachment | Intent | Setting
RowKey = str | AttachmentKey


@dataclass(frozen=True, slots=True)
class Put:
    row: Row


@dataclass(frozen=True, slots=True)
class Drop:
    kind: type[Row]
    key: RowKey


Change = Put | Drop | Event


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows but the events."""

    nics: tuple[Nic, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    intents: tuple[Intent, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # sysctls: values before the first change
    boot_id: str = ""  # of the host at the last write; "" if unknown
    set_aside: str = ""  # why a damaged file could not be used, and its new path


def key_of(row: Row) -> RowKey:
    match row:
        case Nic():
            return row.nic_id
        case Attachment():
            return row.key
        case Intent():
            return row.op_id
        case Setting():
            return row.name


def compacted(changes: Iterable[Change]) -> list[Change]:
    """Return the last change of every row and the latest events: the same in one transaction."""
    last: dict[tuple[type[Row], RowKey], Change] = {}
    events: list[Change] = []
    for change in changes:
        match change:
            case Put(row):
                last[type(row), key_of(row)] = change
            case Drop(kind, key):
                last[kind, key] = change
            case Event():
                events.append(change)
    return [*last.values(), *events[-EVENT_LIMIT:]]
