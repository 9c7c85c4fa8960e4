"""Invariants of every simulated life, during it and after all faults have ended."""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from inprocess.agent import SimulatedHost, key_of, netns_of
from lives.call_invariants import Calls
from qingcloud_cni.core.drift.differences import CONFIRM_SECONDS, DifferenceKind
from qingcloud_cni.core.nics.model import Event, Intent, Nic, NicState, OpKind
from qingcloud_cni.core.nics.names import is_ours
from qingcloud_cni.sim.cloud.model import Outcome
from qingcloud_cni.sim.cloud.state import NicRecord
from qingcloud_cni.sim.memory.machine import HOST_PATH, FakeLink, Space

WRITES = {
    "CreateNics": OpKind.CREATE,
    "AttachNics": OpKind.ATTACH,
    "DetachNics": OpKind.DETACH,
    "DeleteNics": OpKind.DELETE,
}
ANNOUNCED: ContextVar[tuple[Intent, ...]] = ContextVar("ANNOUNCED")  # on disk when the call was sent
TAKING = ("DetachNics", "DeleteNics")


class InvariantBroken(AssertionError):
    """A life has broken an invariant."""


class Witness:
    """Observes calls, events and links, checks them, and writes the story of a life."""

    def __init__(self, host: SimulatedHost) -> None:
        self.host = host
        self.promised: dict[str, str] = {}  # container: the NIC that its ADD returned, until somebody interferes
        self.ended: set[str] = set()  # containers whose DEL was sent or spooled
        self.foreign: set[str] = set()  # NICs of others that are attached here
        self.strangers = 0  # NICs with our name that the agent did not make
        self.broken = ""  # the first broken invariant that no caller could get
        self.story: list[str] = []  # lines, each with its time
        self._seen: dict[str, float] = {}  # NIC: when the agent missed its link
        self._ends: dict[str, tuple[float, int]] = {}  # NIC: when it left a container last, and the inode
        host.model.before_call, host.model.after_call = self._call, self._carried_out
        host.cable.on_send = self._sent
        host.kernel.on_move = self._moved
        host.listeners = (self._event,)
        self.calls = Calls(host.settings.api_budget, self.breaks)
        host.on_permit, host.on_call = self.calls.permit, self.calls.seen

    def begins(self) -> None:
        """Reset for another agent."""
        self._seen.clear()
        self.calls.begins()

    def note(self, *words: object) -> None:
        told = " ".join(map(str, words)).replace(str(self.host.settings.database.parent), "…")
        self.story.append(f"{asyncio.get_running_loop().time():.6f} {told}")

    def breaks(self, law: str) -> None:
        self.broken = self.broken or f"{law} (after {asyncio.get_running_loop().time():.3f} s)"

    # --- what goes out -------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        self.note(event.name, event.nic_id, event.subject, event.detail)
        now, nic_id = asyncio.get_running_loop().time(), event.nic_id
        if event.name == "drift.seen" and event.detail.startswith(f"{DifferenceKind.NO_LINK}:"):
            self._seen[nic_id] = now
        elif event.name == "nic.detaching" and "to attach it again" in event.detail:
            if now - self._seen.get(nic_id, now) < CONFIRM_SECONDS:
                self.breaks(f"{nic_id} was detached after one comparison")
        elif event.name == "nic.assigned" and self._is_outside(nic_id):
            self.breaks(f"{nic_id} serves again, though its vxnet was removed from the configuration")
        elif event.name == "nic.gone" and self._is_here(nic_id):
            self.breaks(f"{nic_id} was dropped, though it is attached and its link is here")
        elif event.name == "nic.gone" and nic_id in self.host.model.state.nics:
            self.strangers += 1  # the cloud has denied it again and again, and its link is nowhere

    def _is_outside(self, nic_id: str) -> bool:
        record = self.host.model.state.nics.get(nic_id)
        return record is not None and record.vxnet_id not in self.host.settings.vxnet

    def _is_here(self, nic_id: str) -> bool:
        """Whether cloud and kernel have agreed on this NIC of ours for two minutes."""
        record, place = self.host.model.state.nics.get(nic_id), self.host.kernel.locations().get(nic_id)
        return (
            record is not None
            and self._is_ours(record.name)
            and record.instance_id == self.host.instance_id
            and self.host.model.state.now() - record.status_time > 120.0
            and place in {HOST_PATH, self.host.kernel.parking_path}
        )

    def _sent(self, target: str) -> None:
        self.calls.sent(dict(parse_qsl(urlsplit(target).query))["action"])
        ANNOUNCED.set(self.host.store.on_disk().intents)

    def _call(self, params: Mapping[str, str]) -> None:
        announced = ANNOUNCED.get(None)
        if announced is None:
            return  # the console calls
        action, nic_ids = params["action"], _nic_ids(params)
        if action in WRITES:
            intents = [i for i in announced if i.kind is WRITES[action]]
            if not any(_announces(intent, params, nic_ids) for intent in intents):
                self.breaks(f"{action} of {sorted(nic_ids)} was not announced on disk")
        if action in TAKING:
            self.excuse()
            for nic_id in sorted(nic_ids & set(self.promised.values())):
                self.breaks(f"{action} of {nic_id}, which serves a container")
            for nic_id in sorted(nic_ids):
                record = self.host.model.state.nics.get(nic_id)
                if record is not None and (record.name == "foreign" or record.role):
                    self.breaks(f"{action} of {nic_id}, which is not ours: {record.name!r}")

    def _carried_out(self, params: Mapping[str, str], outcome: Outcome) -> None:
        if ANNOUNCED.get(None) is not None:
            self.note(params["action"], sorted(_nic_ids(params)), outcome.envelope.get("ret_code"), outcome.effect)

    def _moved(self, link: FakeLink, source: Space, target: Space | None) -> None:
        """See a link that the kernel moves, or whose namespace dies: then *target* is None."""
        if target is not None and not link.nic_id:
            self.breaks(f"the agent took {link.name} from {source.path}, which is not a NIC")
        outside, now = {HOST_PATH, self.host.kernel.parking_path}, asyncio.get_running_loop().time()
        if source.path not in outside:
            self._ends[link.nic_id] = (now, source.inode)
        if target is None or target.path in outside:
            return
        ended, inode = self._ends.get(link.nic_id, (-1e9, 0))
        settings = self.host.settings
        rest = min(settings.pool.cooldown, settings.pool.cooldown_min)
        rested = now - ended  # by the loop's time: the host's clock may be set
        if link.soil and source.path in outside:
            self.breaks(f"{link.nic_id} is not as plugged: {link.soil}")
        if inode != target.inode and rested < rest:
            self.breaks(f"{link.nic_id} rested {rested:.3f} s of {rest:g}")
        self.note("placed", link.nic_id, target.path)

    def _is_ours(self, name: str) -> bool:
        prefixes = (self.host.settings.nic_name_prefix, self.host.settings.gatewayns)
        return any(is_ours(name, prefix, self.host.instance_id) for prefix in prefixes)

    # --- at every moment -----------------------------------------------------------------------------

    def check(self) -> None:
        """Check after each step; without a running agent, only what holds then."""
        if self.broken:
            raise InvariantBroken(self.broken)
        self._check_containers()
        self._check_others()
        if self.host.is_running:
            self.host.check_invariants(strangers=self.strangers)

    def excuse(self) -> None:
        """Forget promises that the cloud or an operator has made void."""
        for name, nic_id in tuple(self.promised.items()):
            record = self.host.model.state.nics.get(nic_id)
            if record is None or not self._is_plugged_here(record):
                del self.promised[name]
                self.note("void", name)

    def _is_plugged_here(self, record: NicRecord) -> bool:
        return record.instance_id == self.host.instance_id and record.is_plugged and self._is_ours(record.name)

    def _check_containers(self) -> None:
        self.excuse()
        places = self.host.kernel.locations()
        addresses: dict[str, str] = {}
        for name, nic_id in self.promised.items():
            if places.get(nic_id) != netns_of(name):
                raise InvariantBroken(f"{name} lost its NIC {nic_id}: it is in {places.get(nic_id)}")
        for path in self.host.kernel.containers():
            for address, _ in self.host.kernel.addresses_in(path).values():
                if addresses.setdefault(address, path) != path:
                    raise InvariantBroken(f"{address} is in {addresses[address]} and {path}")

    def _check_others(self) -> None:
        for record in self.host.model.state.nics.values():
            if record.name == "foreign" and record.instance_id:
                self.foreign.add(record.nic_id)
            is_changed = record.nic_id in self.foreign and record.instance_id != self.host.instance_id
            if is_changed or (record.role == 1 and not record.is_plugged):
                raise InvariantBroken(f"{record.nic_id} is not ours and was touched: {record}")

    # --- at the end ----------------------------------------------------------------------------------

    def differences(self) -> list[str]:
        """Return where cloud, table and kernel disagree after all faults have ended."""
        table = self.host.table
        nics, places = table.nics, self.host.kernel.locations()
        parking = self.host.kernel.parking_path
        told = [f"under way: {intent.kind} {intent.op_id}" for intent in table.intents.values()]
        cloud = self.ours_in_cloud()
        moving = _MOVING - {NicState.CREATING} if self._has_no_room() else _MOVING
        told += [f"in the cloud only: {nic_id}" for nic_id in sorted(cloud - nics.keys())]
        told += [f"in the table only: {nic}" for nic_id, nic in nics.items() if nic_id not in cloud and _is_free(nic)]
        told += [f"not at rest: {nic}" for nic in nics.values() if nic.state in moving]
        outside = (n for n in nics.values() if n.vxnet_id not in self.host.settings.vxnet and not n.is_gateway)
        told += [f"of a removed vxnet: {nic}" for nic in outside if _is_free(nic)]
        for nic in nics.values():
            if nic.state in _PARKED and places.get(nic.nic_id) != parking:
                told.append(f"not parked: {nic}; it is in {places.get(nic.nic_id)}")
        for nic_id, path in sorted(places.items()):
            record = self.host.model.state.nics.get(nic_id)
            is_theirs = record is not None and not self._is_ours(record.name)  # an operator renamed it: it stays
            if path == parking and not is_theirs and (nic_id not in nics or nics[nic_id].state not in _PARKED):
                told.append(f"parked, and not known so: {nic_id} {nics.get(nic_id)}")
        held = {a.nic_id: a.key for a in table.attachments.values()}
        told += [f"forgotten: {name} has {nic_id}" for name, nic_id in self.promised.items() if nic_id not in held]
        for nic_id, key in held.items():
            path = netns_of(key.container_id)
            if key.container_id in self.ended or not (key.is_unclaimed or path in self.host.paths()):
                told.append(f"not released: {key} has {nic_id}")
        return told

    def _has_no_room(self) -> bool:
        """Whether NICs of others leave too little room for all of ours."""
        state = self.host.model.state
        here = [n for n in state.nics.values() if n.instance_id == self.host.instance_id]
        free = [n for n in self.ours_in_cloud() if not state.nics[n].instance_id]
        return len(here) + len(free) > self.host.topology.limits.nics_per_instance

    def remains(self) -> list[str]:
        """Return what a drain has left behind."""
        table = self.host.table
        told = [f"in the table: {nic}" for nic in table.nics.values()]
        told += [f"in the table: {key}" for key in table.attachments]
        told += [f"in the cloud: {nic_id}" for nic_id in sorted(self.ours_in_cloud())]
        told += [f"under way: {intent}" for intent in table.intents.values()]
        for nic_id, path in sorted(self.host.kernel.locations().items()):
            record = self.host.model.state.nics.get(nic_id)
            if record is None or self._is_ours(record.name):
                told.append(f"in the kernel: {nic_id} in {path}")
        return told

    def ours_in_cloud(self) -> set[str]:
        """Return NICs of pool and gateways that have our name and are not attached elsewhere."""
        records = self.host.model.state.nics.values()
        return {r.nic_id for r in records if self._is_ours(r.name) and r.instance_id in ("", self.host.instance_id)}


_PARKED = {NicState.IDLE, NicState.COOLING, NicState.QUARANTINED}
_MOVING = {
    NicState.CREATING, NicState.ATTACHING, NicState.ARRIVING, NicState.DETACHING, NicState.DELETING,
    NicState.MISSING,
}  # fmt: skip


def _is_free(nic: Nic) -> bool:
    """A container's NIC stays with it until its end, whatever the cloud says."""
    return nic.state is not NicState.ASSIGNED


def _nic_ids(params: Mapping[str, str]) -> set[str]:
    return {value for name, value in params.items() if name.startswith("nics.")}


def _announces(intent: Intent, params: Mapping[str, Any], nic_ids: set[str]) -> bool:
    if intent.kind is OpKind.CREATE:
        return (intent.name, intent.count) == (params["nic_name"], int(params["count"]))
    return nic_ids <= set(intent.nic_ids)


def is_recorded(host: SimulatedHost, name: str) -> bool:
    return any(a.key == key_of(name) for a in host.store.on_disk().attachments)
