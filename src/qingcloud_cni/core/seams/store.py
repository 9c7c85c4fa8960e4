"""The state file, and the data that crosses this seam."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.core.nics.model import Event


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; empty fields admit all."""

    limit: int  # the latest so many; with *after* the first so many
    after: int = 0  # only those behind the event of this number
    nic_id: str = ""
    container: str = ""  # of attachments of containers whose id begins so
    pod: str = ""  # "namespace/name", or the name alone
    subject: str = ""
    name: str = ""  # "nic.assigned", or all of a kind: "nic"


class Store(Protocol):
    """The truth on disk. Its text is what messages call it by."""

    async def load(self) -> Snapshot:
        """Everything there is. A file that is damaged is set aside, and the answer is empty but for that.

        StartRefused where the file is in use or of a newer version, StoreRefused where the disk allows no file.
        """

    async def save(self, changes: Sequence[Change]) -> None:
        """Write *changes* in one transaction; they are durable when it returns.

        StoreRefused if the disk does not take them: to be repeated with the same changes first, for they may be there
        all the same. StoreDamaged if `begin_anew` has to come first.
        """

    async def begin_anew(self, changes: Sequence[Change]) -> str:
        """Set aside a file that is damaged, and write a new one that holds *changes*; where the old one is now.

        StoreRefused as `save`; to be repeated then. "" if there was none any more.
        """

    async def tidy(self) -> None:
        """What has to be done now and then. StoreRefused where the disk allows nothing, StoreDamaged as `save`."""

    async def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        """Those on disk that fit, oldest first."""

    async def close(self) -> None: ...
