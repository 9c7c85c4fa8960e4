"""Orphans: NICs with our names, of instances that are gone. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qingcloud_cni.core.nics.names import parse_nic_name
from qingcloud_cni.core.seams.cloud import CloudNic, Instance

UNKNOWN = "unknown"  # `instance_is` where the cloud does not list the instance


@dataclass(frozen=True, slots=True)
class Candidate:
    """A NIC that an agent created for an instance, and that is attached to none."""

    nic: CloudNic
    instance_id: str  # from its name


@dataclass(frozen=True, slots=True)
class Orphan(Candidate):
    instance_is: str  # "unknown", "terminated" or "ceased"


@dataclass(frozen=True, slots=True)
class LeftAlone(Candidate):
    """A NIC of an instance that is gone, but not an orphan."""

    why: str


def candidates(nics: Iterable[CloudNic], prefixes: Iterable[str], own_instance: str) -> tuple[Candidate, ...]:
    """Return the free NICs named by one of our prefixes and an instance other than *own_instance*."""
    wanted = frozenset(prefixes)
    found = []
    for nic in nics:
        name = parse_nic_name(nic.name)
        is_free = nic.status == "available" and not nic.instance_id and nic.role == 0
        if name is not None and name.prefix in wanted and is_free and name.instance_id != own_instance:
            found.append(Candidate(nic, name.instance_id))
    return tuple(sorted(found, key=lambda c: (c.instance_id, c.nic.nic_id)))


def gone_instances(instance_ids: Iterable[str], lists: Sequence[Mapping[str, Instance]]) -> dict[str, str]:
    """Return unknown, terminated or ceased for each instance that is gone, by id.

    *lists* are several answers of the cloud. An instance that is in one of them, and not gone there, lives.
    """
    found = {}
    for instance_id in instance_ids:
        seen = [instance for each in lists if (instance := each.get(instance_id)) is not None]
        if all(instance.is_gone for instance in seen):
            found[instance_id] = seen[-1].status if seen else UNKNOWN
    return found


def classify(
    found: Iterable[Candidate], gone: Mapping[str, str], now: float, older_than: float
) -> tuple[tuple[Orphan, ...], tuple[LeftAlone, ...]]:
    """Divide the NICs of instances that are *gone* into orphans and those free for less than *older_than* seconds.

    A young NIC may be of an instance that is just being created, or one that somebody has just detached.
    """
    orphans: list[Orphan] = []
    left_alone: list[LeftAlone] = []
    for candidate in found:
        fate = gone.get(candidate.instance_id)
        if fate is None:
            continue
        since = free_since(candidate.nic)
        if not older_than or (since and now - since >= older_than):
            orphans.append(Orphan(candidate.nic, candidate.instance_id, fate))
        else:
            age = f"free for {max(now - since, 0.0):.0f} s only"
            why = age if since else "the cloud does not say since when it is free"
            left_alone.append(LeftAlone(candidate.nic, candidate.instance_id, why))
    return tuple(orphans), tuple(left_alone)


def free_since(nic: CloudNic) -> float:
    """Return since when a free NIC is free, in seconds since the epoch; 0 if the cloud does not say."""
    return max(nic.created, nic.since)
