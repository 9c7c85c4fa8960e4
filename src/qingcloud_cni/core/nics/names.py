"""Names of NICs in the cloud, by which the agent knows its own and finds a create after a lost reply."""

import re
from dataclasses import dataclass

INSTANCE_ID = re.compile(r"i-[0-9a-z]+")  # as the cloud makes them
NIC_NAME_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")  # no "_": it separates the parts
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
OPERATION_ID = re.compile(r"[0-9a-f]{16}")
_NIC_NAME = re.compile(f"({NIC_NAME_PREFIX.pattern})_({INSTANCE_ID.pattern})_({OPERATION_ID.pattern})")


@dataclass(frozen=True, slots=True)
class NicName:
    """``<prefix>_<instance id>_<operation id>``; all NICs of one CreateNics call share it."""

    prefix: str
    instance_id: str
    op_id: str

    def __str__(self) -> str:
        return f"{self.prefix}_{self.instance_id}_{self.op_id}"


def is_nic_id(text: str) -> bool:
    """Whether this is the MAC of one NIC, in lower case: neither zero nor a group's."""
    return bool(MAC.fullmatch(text)) and not int(text[:2], 16) & 1 and text != "00:00:00:00:00:00"


def parse_nic_name(name: str) -> NicName | None:
    """Split a NIC's name; None if the agent cannot have made it."""
    parts = _NIC_NAME.fullmatch(name)
    return NicName(*parts.groups()) if parts else None


def is_ours(name: str, prefix: str, instance_id: str) -> bool:
    """Whether this host's agent named the NIC; compared exactly, as the cloud's filter is loose."""
    parsed = parse_nic_name(name)
    return parsed is not None and parsed.prefix == prefix and parsed.instance_id == instance_id


def link_alias(instance_id: str, nic_id: str) -> str:
    """Return the alias of a NIC's link in a container. People read it; the agent does not believe it."""
    return f"qingcni/{instance_id}/{nic_id}"
