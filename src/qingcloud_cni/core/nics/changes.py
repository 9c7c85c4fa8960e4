"""What is on disk, and what may change of it: plain data between the table and the store."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Event, Intent, Nic

EVENTS_KEPT = 10_000  # the latest events, or somewhat more; about 3 MB


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
    """A kernel setting that was changed, and its value before."""

    name: str
    before: str


@dataclass(frozen=True, slots=True)
class DropSetting:
    name: str


@dataclass(frozen=True, slots=True)
class PutBoot:
    """The boot of the host in which everything on disk is as it is."""

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
    """Everything on disk but the events."""

    nics: tuple[Nic, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    intents: tuple[Intent, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # of the kernel: values before they were changed
    boot_id: str = ""  # of the host, when this was written; "" where nobody knows
    set_aside: str = ""  # what was wrong with a file that could not be used, and where it is kept
