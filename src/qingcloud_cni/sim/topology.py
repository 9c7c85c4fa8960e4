"""The hardware of a simulated cloud as data: routers, vxnets, hosts, limits, latencies, faults, and its changes."""

import re
from dataclasses import dataclass, field

import msgspec

Range = tuple[float, float]  # seconds from which the seeded generator draws


class RouterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    router_id: str
    vpc_network: str  # CIDR that holds the networks of its vxnets


class VxnetSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vxnet_id: str
    name: str = ""
    network: str = ""  # CIDR; "" for one that is joined to no router
    router_id: str = ""
    vxnet_type: int = 1  # 0 unmanaged, 1 managed, 2 base network
    manager_ip: str = ""  # the router's address in it; default: the first host address


class HostSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str  # its network namespace is "<sim name>-<name>"
    vxnet_id: str  # of its primary NIC
    instance_id: str = ""  # "" in a topology file only: made from the names
    is_cluster_node: bool = False  # DescribeInstances returns it only when asked with is_cluster_node=1
    access_key_id: str = ""  # in its client.yaml; "": the topology's own


@dataclass(frozen=True, slots=True)
class KeySpec:
    access_key_id: str
    secret_access_key: str = field(repr=False)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quotas: docs/reference/qingcloud-api.md, "Limits"."""

    nics_per_instance: int = 64  # the primary included
    nics_per_vxnet: int = 252
    nics_per_create: int = 252
    nics_per_account: int = 0  # beside primary ones; 0: unlimited
    calls_per_hour: int = 0  # of each access key; 0: unlimited


@dataclass(frozen=True, slots=True)
class Latencies:
    """Ranges in seconds from which the seeded generator draws."""

    attach: Range = (2.0, 4.0)
    detach: Range = (2.0, 4.0)
    call: Range = (0.0, 0.0)  # before an answer
    replug: Range = (0.2, 0.5)  # from the death of a NIC's namespace to its return
    dhcp: Range = (0.0, 0.5)  # from a link's appearance on a host to its lease, with --guest-dhcp


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """A fault of calls of *action* ("*": of every action); the effects are those of sim.cloud.faults.

    Its time begins *after* seconds from when the list came in force and *lasts* so many (None: for ever). In that
    time it strikes each call from the *nth* on, counted from 1, with probability *chance*, until it has struck
    *times* of them.
    """

    action: str
    effect: str
    nth: int = 1
    times: int | None = None  # None: once, or without limit if `lasts` or `chance` is given
    after: float = 0.0
    lasts: float | None = None
    chance: float = 1.0
    vxnet: str = ""  # strikes only creates in this one
    by: Range | None = None  # seconds, for the effects that delay something
    code: int = 5100  # this and the next for "refuse"
    message: str = "ServerBusy"
    name: str = "ens"  # for "odd-name": the prefix

    @property
    def most(self) -> int | None:
        """How many calls it may strike; None without limit."""
        is_open = self.times is None and (self.lasts is not None or self.chance < 1.0)
        return None if is_open else self.times or 1


@dataclass(frozen=True, slots=True)
class Topology:
    routers: tuple[RouterSpec, ...]
    vxnets: tuple[VxnetSpec, ...]
    hosts: tuple[HostSpec, ...]
    zone: str = "pek3a"
    access_key_id: str = "SIMULATEDACCESSKEYID"
    secret_access_key: str = field(default="simulated-secret-access-key", repr=False)
    more_keys: tuple[KeySpec, ...] = ()  # each has its own quota of calls
    limits: Limits = field(default_factory=Limits)
    latencies: Latencies = field(default_factory=Latencies)
    faults: tuple[FaultSpec, ...] = ()

    @property
    def keys(self) -> dict[str, str]:
        """The secret of every access key."""
        own = {self.access_key_id: self.secret_access_key}
        return own | {key.access_key_id: key.secret_access_key for key in self.more_keys}


def default_topology(name: str, hosts: int = 2) -> Topology:
    """One VPC with a vxnet for the hosts' primary NICs and three for pods; *name* makes the instance ids unique."""
    tag = "".join(c for c in name.lower() if c.isascii() and c.isalnum())
    router = RouterSpec("rtr-sim00001", "172.20.0.0/16")
    vxnets = (
        VxnetSpec("vxnet-hosts001", "hosts", "172.20.0.0/24", router.router_id),
        *(VxnetSpec(f"vxnet-pods00{n}", f"pods-{n}", f"172.20.{n}.0/24", router.router_id) for n in (1, 2, 3)),
    )
    return Topology(
        routers=(router,),
        vxnets=vxnets,
        hosts=tuple(HostSpec(f"host{n}", vxnets[0].vxnet_id, f"i-{tag}host{n}") for n in range(1, hosts + 1)),
    )


# --- changes of the hardware, carried out by the fabric or by a fake kernel ---------------------------


@dataclass(frozen=True, slots=True)
class PlugNic:
    """A NIC's link appears in the namespace of its host, up."""

    nic_id: str
    instance_id: str
    vxnet_id: str
    private_ip: str
    enable_aspoof: bool
    link_name: str = ""  # prefix of its name, now and whenever it comes back; "": the usual one


@dataclass(frozen=True, slots=True)
class UnplugNic:
    """A NIC's link vanishes from any namespace."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class FilterNic:
    """The address or the anti-spoofing of a plugged NIC has changed."""

    nic_id: str
    private_ip: str
    enable_aspoof: bool


Effect = PlugNic | UnplugNic | FilterNic


# --- durations ---------------------------------------------------------------------------------------

_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")


def parse_range(text: str | float) -> Range:
    """Read `2s..4s`, `200ms..1.5s`, `3s` or plain seconds; ValueError names the mistake."""
    parts = str(text).strip().split("..")
    matches = [_DURATION.fullmatch(part.strip()) for part in parts]
    if len(parts) > 2 or not all(matches):
        raise ValueError(f"{text!r} is not a duration; write 3s, 500ms or a range such as 2s..4s")
    seconds = [float(match[1]) * _UNIT[match[2]] for match in matches if match]
    low, high = seconds[0], seconds[-1]
    if low > high:
        raise ValueError(f"{text!r} ends before it begins")
    return low, high


def parse_duration(text: str | float) -> float:
    """Read `5m`, `500ms` or plain seconds; ValueError for anything else, ranges included."""
    low, high = parse_range(text)
    if low != high:
        raise ValueError(f"{text!r} is a range; write one duration, such as 5m")
    return low
