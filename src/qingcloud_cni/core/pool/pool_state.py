"""The planner's data: policy, facts, actions."""

from dataclasses import dataclass
from enum import StrEnum

from qingcloud_cni.core.nics.model import Nic


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """The operator's settings; times in seconds."""

    min_idle: int = 3  # NICs to hold ready
    max_idle: int = 8  # idle NICs above which the longest idle are released; not below min_idle
    max_nics: int = 60  # NICs this instance may hold for containers, in all states together
    idle_ttl: float = 600.0  # time that a surplus NIC stays idle before its release
    cooldown: float = 130.0  # of an address: outlives a client's SYN_SENT conntrack entry of 120 s
    cooldown_min: float = 30.0  # enough while an ADD waits
    # Time until the release of a NIC whose address another machine uses. The address may become free, and a new NIC
    # would soon get the same one.
    quarantine: float = 3600.0
    quarantine_min: float = 60.0  # the same where an ADD waits for its room


class Mode(StrEnum):
    """What the agent is doing, which decides what may be planned."""

    STARTING = "starting"  # not compared with the cloud yet: no cloud changes
    UNRECORDED = "unrecorded"  # the state file cannot be written: no intents
    SERVING = "serving"
    LEAVING = "leaving"  # the instance is going away: nothing is created, attached or detached
    DRAINING = "draining"  # unused NICs are released
    STOPPING = "stopping"  # no operation is started


@dataclass(frozen=True, slots=True)
class PoolState:
    """The facts. While draining, *nics* includes unused gateways. Times are in seconds since the epoch."""

    nics: tuple[Nic, ...]  # of the configured vxnets
    outside: tuple[Nic, ...] = ()  # of vxnets removed from the configuration, with their unused gateways
    mode: Mode = Mode.SERVING
    creating: int = 0  # NICs requested from the cloud, without an answer yet
    gateways: int = 0  # NICs held or requested as gateways: they take room
    waiting: int = 0  # ADDs in the queue
    instance_room: int = 63  # NICs that fit on the instance beside those of others
    vxnet_room: int | None = None  # NICs that the vxnets have room for; None: unknown
    grows_at: float = 0.0  # creates and attaches back off until then
    shrinks_at: float = 0.0  # the same for detaches
    is_thrifty: bool = False  # calls are scarce: a create fills the pool to max_idle
    attach_seconds: float = 5.0  # recent duration of an attach
    busy: frozenset[str] = frozenset()  # NICs of an operation under way
    nowhere: frozenset[str] = frozenset()  # missing NICs without a link in any reachable namespace


@dataclass(frozen=True, slots=True)
class Rest:
    """The NIC has cooled down: it is idle."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class CreateNics:
    count: int


@dataclass(frozen=True, slots=True)
class AttachNics:
    """Attach NICs that exist and are attached nowhere."""

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
    """An action and its reason."""

    action: Action
    why: str


@dataclass(frozen=True, slots=True)
class Balance:
    """What the pool has and lacks."""

    cooled: tuple[Nic, ...]  # cooling NICs that become idle now, the longest released first
    idle: int  # including those
    coming: int  # NICs on their way, idle sooner than one created now
    short: int  # NICs wanted that are neither idle nor coming, without limits
    spare: tuple[str, ...]  # NICs attached nowhere, without an operation
    seats: int  # NICs attached nowhere that may still be attached
    room: int  # NICs that may still be created, without the bound of vxnets
