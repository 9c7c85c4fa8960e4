"""NICs that nobody looks after any more: ours by their names, of instances that are gone. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qingcloud_cni.core.drift.instances import is_gone
from qingcloud_cni.core.nics.names import parse_nic_name
from qingcloud_cni.core.seams.cloud import CloudNic, Instance

UNKNOWN = "unknown"  # what is told of an instance that the cloud does not list


@dataclass(frozen=True, slots=True)
class Suspect:
    """A NIC that an agent made for an instance, and that is attached to none."""

    nic: CloudNic
    instance_id: str  # for which it was made, as its name says


@dataclass(frozen=True, slots=True)
class Orphan(Suspect):
    instance_is: str  # "unknown", "terminated" or "ceased"


@dataclass(frozen=True, slots=True)
class Spared(Suspect):
    """Of an instance that is gone, and not called an orphan all the same."""

    why: str


def suspects(nics: Iterable[CloudNic], prefixes: Iterable[str], own_instance: str) -> tuple[Suspect, ...]:
    """Free NICs that bear one of our prefixes and the id of another instance than ours.

    Those of our own are our own agent's: it adopts or deletes them.
    """
    wanted = frozenset(prefixes)
    found = []
    for nic in nics:
        name = parse_nic_name(nic.name)
        is_free = nic.status == "available" and not nic.instance_id and nic.role == 0
        if name is not None and name.prefix in wanted and is_free and name.instance_id != own_instance:
            found.append(Suspect(nic, name.instance_id))
    return tuple(sorted(found, key=lambda s: (s.instance_id, s.nic.nic_id)))


def fates(instance_ids: Iterable[str], looks: Iterable[Mapping[str, Instance]]) -> dict[str, str]:
    """What became of those that are gone: unknown, terminated or ceased, by id; the others are left out.

    *looks* are several lists that the cloud has given. Who is in one of them and is not gone, lives.
    """
    lists = tuple(looks)
    found = {}
    for instance_id in instance_ids:
        seen = [instance for each in lists if (instance := each.get(instance_id)) is not None]
        if all(map(is_gone, seen)):
            found[instance_id] = seen[-1].status if seen else UNKNOWN
    return found


def judge(
    suspected: Iterable[Suspect], gone: Mapping[str, str], now: float, older_than: float
) -> tuple[tuple[Orphan, ...], tuple[Spared, ...]]:
    """Which are orphans, and which are spared though their instance is gone, being free for less than *older_than*.

    A young NIC may be one whose instance is just being created, or one that somebody has just detached.
    """
    orphans: list[Orphan] = []
    spared: list[Spared] = []
    for suspect in suspected:
        fate = gone.get(suspect.instance_id)
        if fate is None:
            continue
        since = free_since(suspect.nic)
        if not older_than or (since and now - since >= older_than):
            orphans.append(Orphan(suspect.nic, suspect.instance_id, fate))
        elif since:
            why = f"free for {max(now - since, 0.0):.0f} s only"
            spared.append(Spared(suspect.nic, suspect.instance_id, why))
        else:
            why = "the cloud does not tell since when it is free"
            spared.append(Spared(suspect.nic, suspect.instance_id, why))
    return tuple(orphans), tuple(spared)


def free_since(nic: CloudNic) -> float:
    """When a free NIC became free, in seconds since the epoch; 0 where the cloud does not tell."""
    return max(nic.created, nic.since)
