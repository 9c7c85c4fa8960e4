"""The state file, and the data that crosses this seam."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.core.nics.model import Event


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events to read; empty fields match all."""

    limit: int  # the latest so many; with *after* the first so many
    after: int = 0  # only events with a higher seq
    nic_id: str = ""
    container: str = ""  # of attachments whose container id begins so
    pod: str = ""  # "namespace/name", or the name alone
    subject: str = ""
    name: str = ""  # "nic.assigned", or all of a kind: "nic"


class Store(Protocol):
    """The state file. `str()` gives its name in messages."""

    async def load(self) -> Snapshot:
        """Return all rows. A damaged file is set aside: the snapshot is then empty but for `set_aside`.

        StartRefused if the file is in use or of a newer version, StoreRefused if the disk allows no file.
        """

    async def save(self, changes: Sequence[Change]) -> None:
        """Write *changes* in one transaction; they are durable on return.

        StoreRefused if the disk refuses them: repeat the same changes first, as they may be on disk all the same.
        StoreDamaged if `replace_file` must come first.
        """

    async def replace_file(self, changes: Sequence[Change]) -> str:
        """Replace a damaged file; return the path it was set aside to, "" if it is gone. StoreRefused as `save`."""

    async def check_files(self) -> str | None:
        """Restore what lies beside the file, and then return its name. StoreDamaged if the file itself is gone."""

    async def tidy(self) -> None:
        """Checkpoint and check the file. StoreRefused if the disk refuses, StoreDamaged as `save`."""

    async def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        """Return the events that match, oldest first."""

    async def close(self) -> None: ...
