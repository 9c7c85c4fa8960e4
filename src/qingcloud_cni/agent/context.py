"""What every part of the agent works with: the table and its journal, the seams, the signals."""

import asyncio
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from qingcloud_cni.agent.tasks import Signal, Tasks
from qingcloud_cni.core.model import Event
from qingcloud_cni.core.names import NicName
from qingcloud_cni.core.plan import PoolPolicy
from qingcloud_cni.core.seams import Clock, Cloud, Kernel, Store
from qingcloud_cni.core.table import Table

Listener = Callable[[Event], None]  # logs and metrics hear of every event


class Journal:
    """Brings what changed in the table to disk. A failed write ends the agent: memory must not run ahead of it."""

    def __init__(self, table: Table, store: Store, listeners: tuple[Listener, ...]) -> None:
        self._table = table
        self._store = store
        self._listeners = listeners
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # never has a result

    async def save(self) -> None:
        """When this returns, everything that had changed before the call is on disk."""
        changes = self._table.take_changes()
        for change in changes:
            if isinstance(change, Event):
                for listener in self._listeners:
                    listener(change)
        try:
            await self._store.save(changes)
        except Exception as err:
            if not self.failure.done():
                self.failure.set_exception(err)
            raise


@dataclass(slots=True)
class Context:
    """Shared by the parts; made once by `agent.Agent`."""

    instance_id: str
    nic_name_prefix: str
    policy: PoolPolicy
    table: Table
    journal: Journal
    cloud: Cloud
    kernel: Kernel
    clock: Clock
    rng: random.Random
    tasks: Tasks
    moving: set[str] = field(default_factory=set)  # NICs whose link a verb is moving at this moment
    plan_due: Signal = field(default_factory=Signal)  # something the planner looks at has changed
    arrivals: Signal = field(default_factory=Signal)  # NICs have left ATTACHING

    def now(self) -> float:
        return self.clock.now()

    def new_operation(self) -> str:
        """An id that was never used before and sorts anywhere: 64 random bits."""
        return uuid.UUID(int=self.rng.getrandbits(128)).hex[:16]

    def nic_name(self, op_id: str) -> str:
        return str(NicName(self.nic_name_prefix, self.instance_id, op_id))

    def note(self, name: str, nic_id: str = "", subject: str = "", detail: str = "") -> None:
        self.table.note(Event(self.now(), name, nic_id, subject, detail))
