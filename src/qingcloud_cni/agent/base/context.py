"""What every part of the agent works with: the table and its journal, the seams, the signals."""

import random
import uuid
from dataclasses import dataclass, field, replace

from qingcloud_cni.agent.base.journal import Journal
from qingcloud_cni.agent.base.tasks import Signal, Tasks
from qingcloud_cni.agent.base.urgency import CallUrgency
from qingcloud_cni.core.gateway import free_index
from qingcloud_cni.core.nics.model import Event, Nic
from qingcloud_cni.core.nics.names import NicName, is_ours
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.pool.pool_state import PoolPolicy
from qingcloud_cni.core.seams.clock import HostClock
from qingcloud_cni.core.seams.cloud import Cloud
from qingcloud_cni.core.seams.kernel import Kernel


@dataclass(slots=True)
class Context:
    """Shared by the parts; made once by `agent.Agent`."""

    instance_id: str
    nic_name_prefix: str
    gateway_prefix: str  # of names of gateway NICs, and of their links
    policy: PoolPolicy
    table: Table
    journal: Journal
    cloud: Cloud
    kernel: Kernel
    clock: HostClock
    rng: random.Random
    tasks: Tasks
    urgency: CallUrgency
    leaving: str = ""  # why this instance is going away; then nothing is created or attached
    moving: set[str] = field(default_factory=set)  # NICs whose link a verb is moving at this moment
    plan_due: Signal = field(default_factory=Signal)  # something the planner looks at has changed
    path_due: Signal = field(default_factory=Signal)  # what the kernel has to do for Services may have changed
    arrivals: Signal = field(default_factory=Signal)  # NICs have left ATTACHING
    doubts: list[str] = field(default_factory=list)  # what has happened that nobody expected, since the last look
    doubt_due: Signal = field(default_factory=Signal)  # there is a new one

    def now(self) -> float:
        return self.clock.now()

    def look_again(self) -> None:
        """Something that held back everything does so no more."""
        self.plan_due.notify()
        self.path_due.notify()

    def doubt(self, cause: str) -> None:
        """Something ended otherwise than expected: table, kernel and cloud are to be compared soon."""
        if cause not in self.doubts:
            self.doubts.append(cause)
        self.doubt_due.notify()

    def new_operation(self) -> str:
        """An id that was never used before and sorts anywhere: 64 random bits."""
        return uuid.UUID(int=self.rng.getrandbits(128)).hex[:16]

    def nic_name(self, op_id: str, *, is_gateway: bool) -> str:
        prefix = self.gateway_prefix if is_gateway else self.nic_name_prefix
        return str(NicName(prefix, self.instance_id, op_id))

    def is_ours(self, name: str) -> bool:
        """Whether a NIC's name says that this agent made it, for the pool or as a gateway."""
        return any(is_ours(name, prefix, self.instance_id) for prefix in (self.nic_name_prefix, self.gateway_prefix))

    def names_gateway(self, name: str) -> bool:
        return is_ours(name, self.gateway_prefix, self.instance_id)

    def enter(self, nic: Nic, event: str, *, subject: str = "", detail: str = "") -> None:
        """A NIC of ours that the table does not know; one that is named as a gateway gets the lowest free index."""
        if self.names_gateway(nic.name) and not nic.is_gateway:
            nic = replace(nic, gateway_index=free_index(self.table.nics.values()))
        self.table.add(nic, event, subject=subject, detail=detail)

    def note(self, name: str, nic_id: str = "", subject: str = "", detail: str = "", *, pod: str = "") -> None:
        self.table.note(Event(self.now(), name, nic_id, subject, detail, pod=pod))
