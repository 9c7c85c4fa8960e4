"""What the parts of the agent share: whose NICs are ours, the table with its journal, the seams and the tasks."""

import random
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from qingcloud_cni.agent.base.journal import Journal
from qingcloud_cni.agent.base.reserved import Reserved
from qingcloud_cni.agent.base.signals import Signal, Signals
from qingcloud_cni.agent.base.tasks import Tasks
from qingcloud_cni.agent.base.urgency import CallUrgency
from qingcloud_cni.core.gateway import free_index
from qingcloud_cni.core.nics.model import Event, Nic
from qingcloud_cni.core.nics.names import NicName, is_ours, link_alias, parse_nic_name
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.clock import HostClock
from qingcloud_cni.core.seams.cloud import Cloud
from qingcloud_cni.core.seams.kernel import Kernel, NicRecord

Move = AbstractContextManager[str]  # its block, which gets the NIC's id, ends the move


@dataclass(frozen=True, slots=True)
class Identity:
    """Names of NICs and links that belong to the agent of this instance."""

    instance_id: str
    nic_name_prefix: str
    gateway_prefix: str  # of names of gateway NICs, and of their links

    def nic_name(self, op_id: str, *, is_gateway: bool) -> str:
        prefix = self.gateway_prefix if is_gateway else self.nic_name_prefix
        return str(NicName(prefix, self.instance_id, op_id))

    def is_ours(self, name: str) -> bool:
        return any(is_ours(name, prefix, self.instance_id) for prefix in (self.nic_name_prefix, self.gateway_prefix))

    def names_gateway(self, name: str) -> bool:
        return is_ours(name, self.gateway_prefix, self.instance_id)

    def indexed(self, nic: Nic, others: Iterable[Nic]) -> Nic:
        """A NIC that is named as a gateway gets the lowest index that is free among *others*."""
        if self.names_gateway(nic.name) and not nic.is_gateway:
            return replace(nic, gateway_index=free_index(others))
        return nic

    def alias(self, nic_id: str) -> str:
        """The alias of a NIC's link while it belongs to a container or is parked."""
        return link_alias(self.instance_id, nic_id)

    def record_of(self, nic: Nic) -> NicRecord:
        return NicRecord(nic.nic_id, self.alias(nic.nic_id), nic.fingerprint, nic.plugged)


class Moves(Collection[str]):
    """NICs whose links are being moved: comparisons with the kernel, probes and the pool leave these alone."""

    def __init__(self, links_due: Signal) -> None:
        self._counts: Counter[str] = Counter()
        self._skipped: set[str] = set()
        self._links_due = links_due

    def of(self, nic_id: str) -> Move:
        """Mark the NIC now; the mark ends with the block that enters the result.

        A task that shall carry out the move gets the result as an argument: the NIC is marked before the task runs.
        """
        self._counts[nic_id] += 1
        return self._until_end(nic_id)

    @contextmanager
    def _until_end(self, nic_id: str) -> Iterator[str]:
        try:
            yield nic_id
        finally:
            self._counts -= Counter((nic_id,))
            self._compare_skipped()

    def skip(self, nic_ids: Iterable[str]) -> None:
        """A comparison has skipped these NICs: another one is due as soon as one of them is not being moved."""
        self._skipped.update(nic_ids)
        self._compare_skipped()

    def leave(self, nic_id: str) -> None:
        """Its move has failed and is repeated later: no comparison is due for it."""
        self._skipped.discard(nic_id)

    def _compare_skipped(self) -> None:
        if self._skipped - self._counts.keys():
            self._skipped &= self._counts.keys()
            self._links_due.notify()

    def __contains__(self, nic_id: object) -> bool:
        return nic_id in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


@dataclass(frozen=True, slots=True)
class Context:
    identity: Identity
    signals: Signals
    table: Table
    journal: Journal
    cloud: Cloud
    urgency: CallUrgency
    kernel: Kernel
    clock: HostClock
    rng: random.Random
    tasks: Tasks
    reserved: Reserved
    moves: Moves

    def now(self) -> float:
        return self.clock.now()

    def is_ours(self, name: str) -> bool:
        """Whether the agent of this instance named a NIC so; a NIC of the table may have earlier prefixes."""
        if self.identity.is_ours(name):
            return True
        parsed = parse_nic_name(name)
        is_here = parsed is not None and parsed.instance_id == self.identity.instance_id
        return is_here and any(n.name == name for n in self.table.nics.values())

    def new_operation(self) -> str:
        """An unused operation id: 64 random bits."""
        return uuid.UUID(int=self.rng.getrandbits(128)).hex[:16]

    def note(self, name: str, nic_id: str = "", subject: str = "", detail: str = "", *, pod: str = "") -> None:
        self.table.note(Event(self.now(), name, nic_id, subject, detail, pod=pod))

    def note_and_push(
        self, name: str, nic_id: str = "", subject: str = "", detail: str = "", *, pod: str = ""
    ) -> None:
        self.note(name, nic_id, subject, detail, pod=pod)
        self.journal.push()
