"""Where the table and the world differ, and the cure for each difference. Pure; the agent carries the cures out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from qingcloud_cni.core.model import Nic, NicState, OpKind
from qingcloud_cni.core.seams import CloudNic, Survey
from qingcloud_cni.core.table import Table

ARRIVAL_SECONDS = 30.0  # a link that left a dead namespace is back well within this (design section 3)


# --- table and kernel --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """The link lies on the host, or parked without the table knowing: it wants a container or the parking place."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class Returned:
    """The link of an assigned NIC has left its container: the attachment is over."""

    nic_id: str
    is_parked: bool


@dataclass(frozen=True, slots=True)
class Lost:
    """The link is not where it should be, and nowhere else it may be."""

    nic_id: str
    detail: str


LinkCure = Arrived | Returned | Lost


def link_drift(nics: Iterable[Nic], survey: Survey, now: float) -> tuple[LinkCure, ...]:
    """Compare NICs that no verb is moving at this moment with the links of host and parking namespace."""
    on_host = {link.mac for link in survey.host}
    parked = {link.mac for link in survey.parked}
    cures: list[LinkCure] = []
    for nic in nics:
        is_parked = nic.nic_id in parked
        is_seen = is_parked or nic.nic_id in on_host
        match nic.state:
            case NicState.CREATING | NicState.ATTACHING | NicState.MISSING | NicState.ARRIVING if is_seen:
                cures.append(Arrived(nic.nic_id))
            case NicState.ARRIVING if now - nic.since > ARRIVAL_SECONDS:
                cures.append(Lost(nic.nic_id, f"its link has not come back within {ARRIVAL_SECONDS:.0f} s"))
            case NicState.IDLE | NicState.COOLING | NicState.QUARANTINED if not is_parked:
                lost = Lost(nic.nic_id, "its link is in the parking namespace no longer")
                cures.append(Arrived(nic.nic_id) if is_seen else lost)
            case NicState.GATEWAY if nic.nic_id not in on_host:
                lost = Lost(nic.nic_id, "its link is on the host no longer")
                cures.append(Arrived(nic.nic_id) if is_parked else lost)
            case NicState.ASSIGNED if is_seen:
                cures.append(Returned(nic.nic_id, is_parked))
            case _:
                pass
    return tuple(cures)


# --- table and cloud ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Adopt:
    """A NIC of ours that the table does not know."""

    nic: CloudNic
    is_attached: bool  # to this instance


@dataclass(frozen=True, slots=True)
class Forget:
    """The cloud does not know the NIC, nor is its link anywhere it could be seen."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class Unattached:
    """The cloud has the NIC attached nowhere, and its link is gone."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class Attached:
    """The cloud has the NIC attached to this instance though the table says it is attached nowhere."""

    nic_id: str


CloudCure = Adopt | Forget | Unattached | Attached

_PARKED = (NicState.IDLE, NicState.COOLING, NicState.QUARANTINED, NicState.ARRIVING, NicState.MISSING)


def cloud_drift(
    table: Table, cloud: Mapping[str, CloudNic], survey: Survey, instance_id: str, is_ours: Callable[[str], bool]
) -> tuple[CloudCure, ...]:
    """Compare the table with *cloud*, a complete list of the NICs that are free or attached to this instance.

    NICs of operations under way are left to those; assigned ones are never judged here.
    """
    links = {link.mac for link in (*survey.host, *survey.parked)}
    asked = {intent.name for intent in table.intents.values() if intent.kind is OpKind.CREATE}
    cures: list[CloudCure] = []
    for seen in cloud.values():
        is_here = seen.instance_id == instance_id
        is_wanted = seen.role == 0 and is_ours(seen.name) and (is_here or not seen.instance_id)
        if is_wanted and seen.name not in asked and seen.nic_id not in table.nics:
            cures.append(Adopt(seen, is_here))
    for nic in table.nics.values():
        if nic.nic_id in table.busy or nic.state is NicState.ASSIGNED or nic.nic_id in links:
            continue
        found = cloud.get(nic.nic_id)
        if found is None:
            cures.append(Forget(nic.nic_id))
        elif not found.instance_id and nic.state in _PARKED:
            cures.append(Unattached(nic.nic_id))
        elif found.instance_id == instance_id and nic.state is NicState.CREATING:
            cures.append(Attached(nic.nic_id))
    return tuple(cures)
