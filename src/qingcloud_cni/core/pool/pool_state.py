"""What the planner knows of the pool, what is wanted of it, and what may be done: plain data."""

from dataclasses import dataclass
from enum import StrEnum

from qingcloud_cni.core.nics.model import Nic


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """The operator's wishes; times in seconds."""

    min_idle: int = 3  # NICs to hold ready
    max_idle: int = 8  # idle NICs above which the longest idle are given back; not below min_idle
    max_nics: int = 60  # NICs this instance may hold for containers, in all states together
    idle_ttl: float = 600.0  # a surplus NIC that has been idle for less is kept
    cooldown: float = 130.0  # rest of an address: outlives a client's SYN_SENT conntrack entry of 120 s
    cooldown_min: float = 30.0  # rest that is enough while an ADD waits
    # Time that a NIC whose address somebody else uses is kept. It may become free again, and a NIC that were created
    # in its place would soon get the same address.
    quarantine: float = 3600.0
    quarantine_min: float = 60.0  # the same where it takes the room of one that an ADD waits for


class Mode(StrEnum):
    """What the agent is about: it decides what may be planned at all."""

    STARTING = "starting"  # not compared with the cloud yet: nothing is asked of it
    UNRECORDED = "unrecorded"  # the disk takes no intents: nothing that needs one is begun
    SERVING = "serving"
    LEAVING = "leaving"  # the instance is going away: nothing is created, attached or detached
    DRAINING = "draining"  # all that serves nothing is given back
    STOPPING = "stopping"  # nothing is begun


@dataclass(frozen=True, slots=True)
class PoolState:
    """The facts. *creating* are NICs asked of the cloud and not answered yet; *busy* NICs belong to an operation.

    While draining *nics* holds the gateways that nobody uses as well. Times are in seconds since the epoch.
    """

    nics: tuple[Nic, ...]
    mode: Mode = Mode.SERVING
    creating: int = 0
    gateways: int = 0  # NICs held or asked for as gateways: they take room, and are none of the pool's
    waiting: int = 0  # ADDs in the queue
    instance_room: int = 63  # NICs the instance can carry beside those of others
    vxnet_room: int | None = None  # NICs that vxnets still take, besides those asked for; None: no bound is known
    grows_at: float = 0.0  # creating and attaching back off until then
    shrinks_at: float = 0.0  # the same for detaching
    is_thrifty: bool = False  # calls are scarce: a pool that must be filled is filled to the brim
    attach_seconds: float = 5.0  # how long an attach takes, as seen lately
    busy: frozenset[str] = frozenset()
    nowhere: frozenset[str] = frozenset()  # missing NICs whose link no reachable namespace holds


@dataclass(frozen=True, slots=True)
class Rest:
    """The NIC has rested: it is idle again."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class CreateNics:
    count: int


@dataclass(frozen=True, slots=True)
class AttachNics:
    """NICs of ours that exist and are attached nowhere."""

    nic_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DetachNics:
    nic_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteNics:
    nic_ids: tuple[str, ...]


Action = Rest | CreateNics | AttachNics | DetachNics | DeleteNics


@dataclass(frozen=True, slots=True)
class PlannedAction:
    """An action, and why it is planned, in words."""

    action: Action
    why: str


@dataclass(frozen=True, slots=True)
class Balance:
    """What the pool has and what it lacks."""

    rested: tuple[Nic, ...]  # cooling NICs that become idle now, the longest rested first
    idle: int  # with those
    coming: int  # NICs on their way: sooner there than one that were created now
    short: int  # NICs wanted that are neither there nor coming, whatever the limits
    spare: tuple[str, ...]  # NICs that exist, are attached nowhere and belong to no operation
    seats: int  # NICs that the instance can still carry
    room: int  # NICs that may still be created, whatever vxnets take
