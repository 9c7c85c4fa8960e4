"""Names of NICs in the cloud: how the agent knows its own, and looks up an operation after a lost reply."""

import re
from dataclasses import dataclass

INSTANCE_ID = re.compile(r"i-[0-9a-z]+")  # qingcloud-api.md section 6
NIC_NAME_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")  # no "_": it separates the parts
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
OPERATION_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class NicName:
    """``<prefix>_<instance id>_<operation id>``; all NICs of one CreateNics call share it."""

    prefix: str
    instance_id: str
    op_id: str

    def __str__(self) -> str:
        return f"{self.prefix}_{self.instance_id}_{self.op_id}"


def parse_nic_name(name: str) -> NicName | None:
    """Split a NIC's name; None where it is not of the form this program gives."""
    parts = name.split("_")
    if len(parts) != 3:
        return None
    prefix, instance_id, op_id = parts
    well_formed = (
        NIC_NAME_PREFIX.fullmatch(prefix) and INSTANCE_ID.fullmatch(instance_id) and OPERATION_ID.fullmatch(op_id)
    )
    return NicName(prefix, instance_id, op_id) if well_formed else None


def is_ours(name: str, prefix: str, instance_id: str) -> bool:
    """Whether a NIC's name says that this host's agent made it; compared exactly, never by the cloud's filter."""
    parsed = parse_nic_name(name)
    return parsed is not None and parsed.prefix == prefix and parsed.instance_id == instance_id


def link_alias(instance_id: str, nic_id: str) -> str:
    """What is written on a NIC's link, so that it is known inside a container even if its MAC was changed there."""
    return f"qingcni/{instance_id}/{nic_id}"


def aliased_nic(alias: str, instance_id: str) -> str:
    """The NIC that `link_alias` speaks of; "" if none of this instance's. A container may write anything there."""
    nic_id = alias.removeprefix(link_alias(instance_id, ""))
    return nic_id if MAC.fullmatch(nic_id) and alias == link_alias(instance_id, nic_id) else ""
