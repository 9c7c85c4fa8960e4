"""Names of the fabric's namespaces, ports and bridges, and the mark that identifies its namespaces."""

import re
from dataclasses import dataclass
from pathlib import Path

SIM_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,11}")
HOST_NAME = re.compile(r"(?!router)[a-z0-9][a-z0-9-]{0,11}")  # `<name>-router` is the router's namespace
PORT_GROUP = 1  # link group of all bridge ports: they can be listed and deleted together
LEAVING_GROUP = 2  # ports about to be deleted

_MARK = "qingcloud-sim"


def parking_namespace(instance_id: str) -> str:
    """The namespace in which this instance's agent parks idle NICs."""
    return f"qingcni-{instance_id}"


def port_name(nic_id: str) -> str:
    """13 bytes, so that any NIC's fits the kernel's 15."""
    return "p" + nic_id.replace(":", "")


def port_mac(nic_id: str) -> str:
    """A bridge port's own address: with the NIC's address the bridge would take its frames."""
    return "02" + nic_id[2:]


@dataclass(frozen=True, slots=True)
class Mark:
    """The owner of a namespace: the alias of the loopback link in every namespace that a simulator makes."""

    sim: str
    instance_id: str  # "" in a router's namespace
    state_dir: Path

    def __str__(self) -> str:
        return f"{_MARK} {self.sim} {self.instance_id or '-'} {self.state_dir}"


def parse_mark(alias: str) -> Mark | None:
    parts = alias.split(" ", 3)
    if len(parts) != 4 or parts[0] != _MARK:
        return None
    return Mark(parts[1], "" if parts[2] == "-" else parts[2], Path(parts[3]))
