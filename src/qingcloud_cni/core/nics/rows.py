"""The rows of the table, and their changes since the last save."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any

from qingcloud_cni.core.events import EVENTS
from qingcloud_cni.core.metrics import gauge
from qingcloud_cni.core.nics.changes import BOOT, Change, Drop, Put, Row, RowKey, Setting, Snapshot, key_of
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Event, Intent, Nic, NicState, OpKind
from qingcloud_cni.core.nics.names import parse_nic_name


@dataclass(frozen=True, slots=True)
class TableStatistics:
    nics: Annotated[Mapping[str, int], gauge("qingagent_nics", "NICs of this host.", "state")]
    creating: Annotated[int, gauge("qingagent_nics_asked", "NICs asked of the cloud, without an answer yet.")]
    attachments: Annotated[int, gauge("qingagent_attachments", "Containers that have a NIC.")]


class Rows:
    """NICs, attachments, intents and sysctls; the disk lags behind by `take_changes`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._nics = {n.nic_id: n for n in snapshot.nics}
        self._attachments = {a.key: a for a in snapshot.attachments}
        self._intents = {i.op_id: i for i in snapshot.intents}
        self._rows: dict[type[Row], dict[Any, Any]] = {
            Nic: self._nics, Attachment: self._attachments, Intent: self._intents,
        }  # fmt: skip
        self._settings = dict(snapshot.settings)
        self._boot_id = snapshot.boot_id
        self._new_addresses: dict[str, Nic] = {}  # of NICs whose container still uses the old address
        self._changes: list[Change] = []
        self._reserved: frozenset[str] = frozenset()  # MACs of the host's own NICs: no row ever names one

    def __repr__(self) -> str:
        states = ", ".join(f"{n.nic_id} {n.state}" for n in self._nics.values())
        return f"Table({states}; attachments={sorted(map(str, self._attachments))}; intents={sorted(self._intents)})"

    @property
    def nics(self) -> Mapping[str, Nic]:
        return MappingProxyType(self._nics)

    @property
    def attachments(self) -> Mapping[AttachmentKey, Attachment]:
        return MappingProxyType(self._attachments)

    @property
    def intents(self) -> Mapping[str, Intent]:
        return MappingProxyType(self._intents)

    def statistics(self) -> TableStatistics:
        states = [nic.state for nic in self._nics.values()]
        by_state = {state.value: states.count(state) for state in NicState}
        return TableStatistics(by_state, self.creating, len(self._attachments))

    @property
    def creating(self) -> int:
        """NICs requested from the cloud, without an answer yet."""
        return sum(i.count for i in self._intents.values() if i.kind is OpKind.CREATE)

    @property
    def creating_by_vxnet(self) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for intent in self._intents.values():
            if intent.kind is OpKind.CREATE:
                counts[intent.vxnet_id] = counts.get(intent.vxnet_id, 0) + intent.count
        return counts

    def creating_named(self, prefix: str) -> int:
        """Count the NICs of `creating` whose names begin with *prefix*."""
        names = {i.op_id: parse_nic_name(i.name) for i in self._intents.values() if i.kind is OpKind.CREATE}
        return sum(self._intents[op_id].count for op_id, name in names.items() if name and name.prefix == prefix)

    @property
    def settings(self) -> Mapping[str, str]:
        """Sysctls that the agent changed, with their values before the first change."""
        return MappingProxyType(self._settings)

    def record_settings(self, settings: Mapping[str, str]) -> None:
        """Record sysctls before a change, unless an earlier value is recorded."""
        for name, value in settings.items():
            if name not in self._settings:
                self._settings[name] = value
                self._changes.append(Put(Setting(name, value)))

    @property
    def busy(self) -> frozenset[str]:
        """NICs of cloud operations under way."""
        return frozenset(nic_id for i in self._intents.values() for nic_id in i.nic_ids)

    def attachment_of(self, nic_id: str) -> Attachment | None:
        return next((a for a in self._attachments.values() if a.nic_id == nic_id), None)

    def in_state(self, *states: NicState) -> tuple[Nic, ...]:
        return tuple(n for n in self._nics.values() if n.state in states)

    def take_changes(self) -> tuple[Change, ...]:
        changes, self._changes = tuple(self._changes), []
        return changes

    def rows(self) -> tuple[Change, ...]:
        """Return all rows, as changes of an empty store."""
        settings = (*self._settings.items(), (BOOT, self._boot_id))
        rows = (row for rows in self._rows.values() for row in rows.values())
        return (*map(Put, rows), *(Put(Setting(name, value)) for name, value in settings))

    def note(self, event: Event) -> None:
        """Record an event without a change of state."""
        assert event.name in EVENTS, event.name
        self._changes.append(event)

    def reset_clock(self, forward: float, now: float) -> None:
        """Shift persisted times *forward* after a clock step, so that durations stay the same.

        Times that then lie ahead become *now*: the cooldown of an address restarts.
        """

        def moved(at: float) -> float:
            return min(at + forward, now) if at > 0.0 else at

        before = len(self._changes)
        for nic in tuple(self._nics.values()):
            since, released, repaired = moved(nic.since), moved(nic.released), moved(nic.repaired)
            if (changed := replace(nic, since=since, released=released, repaired=repaired)) != nic:
                self._put(changed)
        others: list[Attachment | Intent] = [*self._attachments.values(), *self._intents.values()]
        for row in others:
            if (since := moved(row.since)) != row.since:
                self._put(replace(row, since=since))
        if len(self._changes) > before:
            detail = f"forward by {forward:.0f} s" if forward else "back"
            self.note(Event(now, "clock.set", detail=detail))

    # --- changes -------------------------------------------------------------------------------------

    def _put(self, row: Row) -> None:
        if not self._reserved.isdisjoint(_nics_of(row)):
            raise RuntimeError(f"{row} names a NIC of the host's own")
        self._rows[type(row)][key_of(row)] = row
        self._changes.append(Put(row))

    def _drop(self, kind: type[Row], key: RowKey) -> None:
        del self._rows[kind][key]
        self._changes.append(Drop(kind, key))


def _nics_of(row: Row) -> tuple[str, ...]:
    match row:
        case Nic() | Attachment():
            return (row.nic_id,)
        case Intent():
            return row.nic_ids
        case Setting():
            return ()


def violations(nics: Iterable[Nic], attachments: Iterable[Attachment]) -> tuple[str, ...]:
    """Describe where attachments and assigned NICs do not match one to one."""
    by_id = {n.nic_id: n for n in nics}
    found: list[str] = []
    serving: dict[str, AttachmentKey] = {}
    for attachment in attachments:
        nic = by_id.get(attachment.nic_id)
        if nic is None:
            found.append(f"attachment {attachment.key} has NIC {attachment.nic_id}, which is not in the table")
        elif nic.state is not NicState.ASSIGNED:
            found.append(f"attachment {attachment.key} has NIC {nic.nic_id}, which is {nic.state}")
        if attachment.nic_id in serving:
            found.append(f"NIC {attachment.nic_id} serves {serving[attachment.nic_id]} and {attachment.key}")
        serving[attachment.nic_id] = attachment.key
    found += [
        f"NIC {n.nic_id} is assigned to nothing"
        for n in by_id.values()
        if n.state is NicState.ASSIGNED and n.nic_id not in serving
    ]
    return tuple(found)
