"""The table of this host's NICs: every transition, each recorded as changes for the store.

Transitions are plain functions without I/O, so no other task sees one half done. Their changes are collected until
`take_changes`; the agent saves them before it acts on them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from qingcloud_cni.core.nics.changes import BOOT, Drop, Put, Setting
from qingcloud_cni.core.nics.model import GONE, Attachment, AttachmentKey, Event, Intent, Nic, NicState, OpKind
from qingcloud_cni.core.nics.rows import Rows

_S = NicState
FOLLOWS: Mapping[NicState, frozenset[NicState]] = MappingProxyType(
    {
        _S.CREATING: frozenset({_S.ATTACHING, _S.ARRIVING, _S.DELETING, _S.MISSING}),
        _S.ATTACHING: frozenset({_S.ARRIVING, _S.CREATING, _S.MISSING}),
        _S.ARRIVING: frozenset(
            {_S.IDLE, _S.ASSIGNED, _S.COOLING, _S.MISSING, _S.CREATING, _S.GATEWAY, _S.QUARANTINED}
        ),
        _S.IDLE: frozenset({_S.ASSIGNED, _S.DETACHING, _S.MISSING, _S.ARRIVING, _S.CREATING, _S.QUARANTINED}),
        _S.ASSIGNED: frozenset({_S.IDLE, _S.COOLING, _S.ARRIVING, _S.QUARANTINED}),
        _S.COOLING: frozenset({_S.IDLE, _S.DETACHING, _S.MISSING, _S.ARRIVING, _S.CREATING, _S.QUARANTINED}),
        _S.DETACHING: frozenset({_S.DELETING, _S.IDLE, _S.COOLING, _S.MISSING, _S.CREATING, _S.QUARANTINED}),
        _S.DELETING: frozenset({_S.MISSING}),
        _S.MISSING: frozenset({_S.ARRIVING, _S.DETACHING, _S.CREATING, _S.ASSIGNED}),
        _S.QUARANTINED: frozenset({_S.IDLE, _S.DETACHING, _S.MISSING, _S.ARRIVING, _S.CREATING}),
        _S.GATEWAY: frozenset({_S.ARRIVING, _S.DETACHING, _S.MISSING}),
    }
)


class IllegalTransition(RuntimeError):
    """A bug: a state that does not follow the NIC's own, or something that begins twice."""


class Table(Rows):
    """All that the agent holds, in memory. Methods say what happened."""

    # --- the host ------------------------------------------------------------------------------------

    def note_boot(self, boot_id: str, now: float) -> None:
        """Record the host's boot. A new boot ends all containers and restores the kernel's sysctls.

        A survey decides later which links are back on the host.
        """
        if boot_id == self._boot_id:
            return
        if self._boot_id:
            for key in tuple(self._attachments):
                self.released(key, now, is_parked=False, cause="the host was booted since its ADD")
            self._changes += (Drop(Setting, name) for name in self._settings)
            self._settings.clear()
            for nic in [n for n in self._nics.values() if n.plugged]:
                self._put(replace(nic, plugged=""))
            self.note(Event(now, "host.booted", detail=boot_id))
        self._boot_id = boot_id
        self._changes.append(Put(Setting(BOOT, boot_id)))

    def keep_off(self, reserved: Collection[str], now: float) -> None:
        """NICs with these ids are the host's own: no row names one from now on, whatever the cloud says."""
        self._reserved = frozenset(reserved)
        for nic_id in self._reserved & self._nics.keys():
            self.drop(nic_id, "nic.reserved", now, "it is the host's own NIC")
        for intent in tuple(self._intents.values()):
            if not self._reserved.isdisjoint(intent.nic_ids):
                self._put(replace(intent, nic_ids=tuple(n for n in intent.nic_ids if n not in self._reserved)))

    # --- cloud operations ----------------------------------------------------------------------------

    def intend_create(self, op_id: str, vxnet_id: str, name: str, count: int, now: float) -> Intent:
        return self._intend(Intent(op_id, OpKind.CREATE, now, vxnet_id=vxnet_id, name=name, count=count))

    def intend_attach(self, op_id: str, nic_ids: Sequence[str], now: float) -> Intent:
        intent = Intent(op_id, OpKind.ATTACH, now, nic_ids=tuple(nic_ids))
        return self._intend_for(intent, NicState.ATTACHING, "nic.attaching")

    def intend_detach(self, op_id: str, nic_ids: Sequence[str], now: float, cause: str) -> Intent:
        intent = Intent(op_id, OpKind.DETACH, now, nic_ids=tuple(nic_ids))
        return self._intend_for(intent, NicState.DETACHING, "nic.detaching", cause)

    def intend_repair(self, op_id: str, nic_ids: Sequence[str], now: float, repairs: Mapping[str, int]) -> Intent:
        """As `intend_detach`, to attach them again; *repairs* counts the repairs in a row of each, with this one."""
        intent = Intent(op_id, OpKind.DETACH, now, nic_ids=tuple(nic_ids), is_repair=True)
        cause = "its link is nowhere; to attach it again"
        intent = self._intend_for(intent, NicState.DETACHING, "nic.detaching", cause)
        for nic_id in nic_ids:
            self._put(replace(self._nics[nic_id], repairs=repairs[nic_id], repaired=now))
        return intent

    def intend_delete(self, op_id: str, nic_ids: Sequence[str], now: float) -> Intent:
        intent = Intent(op_id, OpKind.DELETE, now, nic_ids=tuple(nic_ids))
        return self._intend_for(intent, NicState.DELETING, "nic.deleting")

    def job_started(self, op_id: str, job_id: str, event: str, now: float) -> None:
        """The cloud has queued the operation."""
        self._put(replace(self._intents[op_id], job_id=job_id))
        self.note(Event(now, event, subject=op_id, job_id=job_id))

    def restarted(self, op_id: str, now: float) -> None:
        """The operation starts only now, as its intent waited for the disk."""
        self._put(replace(self._intents[op_id], since=now))

    def finish(self, op_id: str, event: str, now: float, detail: str = "") -> None:
        """The operation is over, successful or not; the caller has moved its NICs on."""
        intent = self._intents[op_id]
        self._drop(Intent, op_id)
        self.note(Event(now, event, subject=op_id, detail=detail, job_id=intent.job_id))

    def reserve(self, op_id: str, nic_ids: Sequence[str]) -> None:
        """The NICs of a create belong to its operation until their attach."""
        self._put(replace(self._intents[op_id], count=0, nic_ids=tuple(nic_ids)))

    def _intend_for(self, intent: Intent, state: NicState, event: str, detail: str = "") -> Intent:
        """Start an operation on all its NICs or on none."""
        self._check_new(intent)
        if len(set(intent.nic_ids)) < len(intent.nic_ids):
            raise IllegalTransition(f"operation {intent.op_id}: a NIC is twice in {intent.nic_ids}")
        for nic_id in intent.nic_ids:
            self._check(nic_id, state, event)
        for nic_id in intent.nic_ids:
            self._move(nic_id, state, event, intent.since, subject=intent.op_id, detail=detail)
        return self._intend(intent)

    def _check_new(self, intent: Intent) -> None:
        if intent.op_id in self._intents:
            raise IllegalTransition(f"operation {intent.op_id} exists already: {self._intents[intent.op_id]}")

    def _intend(self, intent: Intent) -> Intent:
        self._check_new(intent)
        self._put(intent)
        self.note(Event(intent.since, f"{intent.kind}.intended", subject=intent.op_id, detail=intent.name))
        return intent

    # --- NICs ----------------------------------------------------------------------------------------

    def add(self, nic: Nic, event: str, *, subject: str = "", detail: str = "") -> bool:
        """A NIC of ours that was not in the table; False if it is the host's own, which the cloud calls ours."""
        if nic.nic_id in self._reserved:
            self.note(Event(nic.since, "nic.reserved", nic.nic_id, subject, f"the cloud says that it is {nic.name}"))
            return False
        if nic.nic_id in self._nics:
            raise IllegalTransition(f"{nic.nic_id} is in the table already: {self._nics[nic.nic_id]}")
        self._put(nic)
        self.note(Event(nic.since, event, nic.nic_id, subject, detail or nic.address, nic.state.value))
        return True

    def drop(self, nic_id: str, event: str, now: float, detail: str = "") -> None:
        """The NIC is gone, and its attachment with it."""
        attachment = self.attachment_of(nic_id)
        if attachment is not None:
            self._drop(Attachment, attachment.key)
        self._drop(Nic, nic_id)
        self._new_addresses.pop(nic_id, None)
        self.note(Event(now, event, nic_id, detail=detail, state=GONE))

    def not_attached(self, nic_id: str, now: float, detail: str) -> None:
        """The cloud has it attached nowhere: its next link gets a new description."""
        self._move(nic_id, NicState.CREATING, "nic.unattached", now, detail=detail, plugged="")

    def arrived(self, nic_id: str, now: float) -> None:
        """Its link is on the host. One that was missing may have served a container until now."""
        nic = self._nics[nic_id]
        released = now if nic.state is NicState.MISSING and nic.released > 0.0 else nic.released
        self._move(nic_id, NicState.ARRIVING, "nic.arrived", now, released=released)

    def identified(self, nic_id: str, fingerprint: str, plugged: str = "") -> None:
        """Its link was seen where no container can write. Another NIC that has this fingerprint had it before."""
        nic = self._nics[nic_id]
        for other in [
            n for n in self._nics.values() if fingerprint and n is not nic and n.fingerprint == fingerprint
        ]:
            self._put(replace(other, fingerprint=""))
        seen = replace(nic, fingerprint=fingerprint or nic.fingerprint, plugged=plugged or nic.plugged)
        if seen != nic:
            self._put(seen)

    def parked(self, nic_id: str, now: float) -> None:
        """Its link is in the parking namespace; an address that served a container cools down since it left."""
        self._move(nic_id, self._parked_state(nic_id), "nic.parked", now)

    def strayed(self, nic_id: str, now: float, detail: str) -> None:
        """Its link is in a container without an attachment, which may use its address; it should return."""
        self._move(nic_id, NicState.ARRIVING, "nic.strayed", now, detail=detail, released=now)

    def forget_new_addresses(self) -> None:
        """The cloud is about to be read again."""
        self._new_addresses.clear()

    def readdressed(self, nic_id: str, vxnet_id: str, address: str, gateway: str, now: float) -> None:
        """The cloud changed its address. A container keeps the old one, and so does the table meanwhile."""
        nic = replace(self._nics[nic_id], vxnet_id=vxnet_id, address=address, gateway=gateway)
        detail = f"{self._nics[nic_id].address} has become {address} in {vxnet_id}"
        if nic.state is NicState.ASSIGNED:
            self._new_addresses[nic_id] = nic
        else:
            self._put(nic)
            self.note(Event(now, "nic.readdressed", nic_id, detail=detail))

    def pinned(self, nic_id: str, now: float) -> None:
        """Its link is configured as a gateway, and stays on the host."""
        self._move(nic_id, NicState.GATEWAY, "nic.gateway", now)

    def quarantined(self, nic_id: str, now: float, claimant: str) -> None:
        """Another machine uses its address."""
        detail = f"{self._nics[nic_id].host_address} is used by {claimant}"
        self._move(nic_id, NicState.QUARANTINED, "nic.quarantined", now, detail=detail, claimant=claimant)

    def soiled(self, nic_id: str, now: float, soil: str) -> None:
        """No container may get it any more; one that has it keeps it."""
        nic = replace(self._nics[nic_id], soil=soil)
        state = ""
        if nic.state in (NicState.IDLE, NicState.COOLING):
            nic = replace(nic, state=NicState.QUARANTINED, since=now)
            state = nic.state.value
        self._put(nic)
        self.note(Event(now, "nic.soiled", nic_id, detail=soil, state=state))

    def cleared(self, nic_id: str, now: float, detail: str) -> None:
        """Its address may be used after all."""
        self._move(nic_id, NicState.IDLE, "nic.cleared", now, detail=detail)

    def cooled(self, nic_id: str, now: float) -> None:
        self._move(nic_id, NicState.IDLE, "nic.rested", now, released=0.0)

    def lost(self, nic_id: str, now: float, detail: str) -> None:
        """The cloud has it attached to this instance, and its link is nowhere."""
        self._move(nic_id, NicState.MISSING, "nic.missing", now, detail=detail)

    def reset_repairs(self, nic_id: str) -> None:
        if self._nics[nic_id].repairs:
            self._put(replace(self._nics[nic_id], repairs=0))

    def not_detached(self, nic_id: str, now: float, detail: str) -> None:
        """The cloud did not detach it. Its link is parked as before, but a gateway's may be anywhere."""
        state = NicState.MISSING if self._nics[nic_id].is_gateway else self._parked_state(nic_id)
        self._move(nic_id, state, "nic.kept", now, detail=detail)

    def _parked_state(self, nic_id: str) -> NicState:
        nic = self._nics[nic_id]
        if nic.soil:
            return NicState.QUARANTINED
        return NicState.COOLING if nic.released > 0.0 else NicState.IDLE

    def _check(self, nic_id: str, state: NicState, event: str) -> None:
        nic = self._nics[nic_id]
        if state not in FOLLOWS[nic.state]:
            raise IllegalTransition(f"nic {nic_id}: {nic.state} is not followed by {state} ({event})")
        if nic.soil and state in (NicState.IDLE, NicState.COOLING):
            raise IllegalTransition(f"nic {nic_id}: {state} though it is out of use: {nic.soil} ({event})")
        if nic.state is NicState.ASSIGNED and (attachment := self.attachment_of(nic_id)) is not None:
            raise IllegalTransition(f"nic {nic_id} still serves {attachment.key} ({event})")

    def _move(
        self,
        nic_id: str,
        state: NicState,
        event: str,
        now: float,
        *,
        subject: str = "",
        detail: str = "",
        released: float | None = None,
        pod: str = "",
        claimant: str = "",
        plugged: str | None = None,
    ) -> None:
        self._check(nic_id, state, event)
        nic = self._nics[nic_id]
        released = nic.released if released is None else released
        plugged = nic.plugged if plugged is None else plugged
        self._put(replace(nic, state=state, since=now, released=released, claimant=claimant, plugged=plugged))
        self.note(Event(now, event, nic_id, subject, detail, state.value, pod=pod))
        if new := self._new_addresses.pop(nic_id, None):
            self.readdressed(nic_id, new.vxnet_id, new.address, new.gateway, now)

    # --- attachments ---------------------------------------------------------------------------------

    def assign(self, attachment: Attachment) -> None:
        """The NIC serves this attachment, which is not ready yet."""
        key = attachment.key
        if key in self._attachments:
            raise IllegalTransition(f"attachment {key} exists already")
        if self._nics[attachment.nic_id].state is NicState.MISSING:
            raise IllegalTransition(f"nic {attachment.nic_id} is missing: it cannot serve {key}")
        self._move_for(attachment, NicState.ASSIGNED, "nic.assigned", attachment.since)
        self._put(attachment)

    def found(self, attachment: Attachment, now: float) -> None:
        """A missing NIC's link is in a container that the table does not know: *attachment* is unclaimed."""
        key = attachment.key
        if self._nics[attachment.nic_id].state is not NicState.MISSING or key in self._attachments:
            raise IllegalTransition(f"nic {attachment.nic_id} is found though it is not missing: {key}")
        self._move_for(attachment, NicState.ASSIGNED, "nic.found", now, detail=attachment.netns.path, released=0.0)
        self._put(attachment)

    def claimed(self, unclaimed: AttachmentKey, attachment: Attachment, now: float) -> None:
        """A request named the attachment of a NIC that was found."""
        known = self._attachments.get(unclaimed)
        if known is None or known.nic_id != attachment.nic_id or attachment.key in self._attachments:
            raise IllegalTransition(f"attachment {unclaimed} is to be {attachment.key}, but was {known}")
        self._drop(Attachment, unclaimed)
        self._put(attachment)
        self._note(attachment, "attachment.named", now, str(unclaimed))

    def routed(self, attachment: Attachment) -> None:
        """Its routes are decided; the link is about to be moved."""
        self._put(attachment)

    def configured(self, attachment: Attachment, now: float, detail: str = "") -> None:
        """The link is configured."""
        known = self._attachments.get(attachment.key)
        if known is None or known.nic_id != attachment.nic_id:
            raise IllegalTransition(f"attachment {attachment.key} with NIC {attachment.nic_id} is unknown: {known}")
        self._put(replace(attachment, is_ready=True))
        self._note(attachment, "attachment.ready", now, detail)

    def returned_unused(self, key: AttachmentKey, now: float, detail: str) -> None:
        """The ADD failed before the link left the parking namespace: the NIC is idle again."""
        attachment = self._attachments[key]
        self._drop(Attachment, key)
        state = NicState.QUARANTINED if self._nics[attachment.nic_id].soil else NicState.IDLE
        self._move_for(attachment, state, "nic.returned", now, detail=detail)

    def released(self, key: AttachmentKey, now: float, *, is_parked: bool, cause: str) -> None:
        """The attachment is over. Its address cools down; unless the link *is_parked* it should return."""
        attachment = self._attachments[key]
        self._drop(Attachment, key)
        state = NicState.ARRIVING
        if is_parked:
            state = NicState.QUARANTINED if self._nics[attachment.nic_id].soil else NicState.COOLING
        self._move_for(attachment, state, "nic.released", now, detail=cause, released=now)

    def _move_for(
        self, attachment: Attachment, state: NicState, event: str, now: float, *, detail: str = "",
        released: float | None = None,
    ) -> None:  # fmt: skip
        self._move(
            attachment.nic_id, state, event, now, subject=str(attachment.key), detail=detail, released=released,
            pod=attachment.workload.pod,
        )  # fmt: skip

    def _note(self, attachment: Attachment, event: str, now: float, detail: str) -> None:
        self.note(Event(now, event, attachment.nic_id, str(attachment.key), detail, pod=attachment.workload.pod))
