"""Rows on disk and their changes: plain data between the table and the store."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Event, Intent, Nic

EVENT_LIMIT = 10_000  # the latest events to retain, or somewhat more; about 3 MB


@dataclass(frozen=True, slots=True)
class PutNic:
    nic: Nic


@dataclass(frozen=True, slots=True)
class DropNic:
    nic_id: str


@dataclass(frozen=True, slots=True)
class PutAttachment:
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class DropAttachment:
    key: AttachmentKey


@dataclass(frozen=True, slots=True)
class PutIntent:
    intent: Intent


@dataclass(frozen=True, slots=True)
class DropIntent:
    op_id: str


@dataclass(frozen=True, slots=True)
class PutSetting:
    """A sysctl that the agent changed, and its value before."""

    name: str
    before: str


@dataclass(frozen=True, slots=True)
class DropSetting:
    name: str


@dataclass(frozen=True, slots=True)
class PutBoot:
    """The boot of the host in which the rows were written."""

    boot_id: str


Change = (
    PutNic
    | DropNic
    | PutAttachment
    | DropAttachment
    | PutIntent
    | DropIntent
    | PutSetting
    | DropSetting
    | PutBoot
    | Event
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows but the events."""

    nics: tuple[Nic, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    intents: tuple[Intent, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # sysctls: values before the first change
    boot_id: str = ""  # of the host at the last write; "" if unknown
    set_aside: str = ""  # why a damaged file could not be used, and its new path
