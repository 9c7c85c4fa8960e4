"""The table as its events describe it: states of NICs, their attachments and the operations under way."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from qingcloud_cni.core.nics.model import GONE, Attachment, Event, Intent, Nic, OpKind

_GIVEN = {"nic.assigned", "nic.found"}
_TAKEN = {"nic.released", "nic.returned"}
_BEGUN = {f"{kind}.intended" for kind in OpKind}
_OVER = {f"{kind}.finished" for kind in OpKind}


@dataclass
class Replayed:
    """The part of the rows that events describe."""

    states: dict[str, str] = field(default_factory=dict)  # by NIC
    holders: dict[str, str] = field(default_factory=dict)  # NIC by attachment
    operations: set[str] = field(default_factory=set)

    @classmethod
    def by_rows(cls, nics: Iterable[Nic], attachments: Iterable[Attachment], intents: Iterable[Intent]) -> "Replayed":
        return cls(
            {n.nic_id: n.state.value for n in nics},
            {str(a.key): a.nic_id for a in attachments},
            {i.op_id for i in intents},
        )

    def replay(self, events: Iterable[Event]) -> "Replayed":
        for event in events:
            if event.state == GONE:
                self.states.pop(event.nic_id, None)
                self.holders = {key: nic_id for key, nic_id in self.holders.items() if nic_id != event.nic_id}
            elif event.state:
                self.states[event.nic_id] = event.state
            if event.name in _GIVEN:
                self.holders[event.subject] = event.nic_id
            elif event.name in _TAKEN:
                self.holders.pop(event.subject, None)
            elif event.name == "attachment.named":
                self.holders.pop(event.detail, None)
                self.holders[event.subject] = event.nic_id
            elif event.name in _BEGUN:
                self.operations.add(event.subject)
            elif event.name in _OVER:
                self.operations.discard(event.subject)
        return self
