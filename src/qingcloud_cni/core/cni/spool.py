"""Spool files: a DEL that the plugin writes while it cannot reach the agent, and which agent it is for."""

import json
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from math import isfinite
from typing import NoReturn

from qingcloud_cni.core.cni.protocol import check_key, network_name
from qingcloud_cni.core.errors import AgentError, UndecodableRequest
from qingcloud_cni.core.nics.model import AttachmentKey

UNIX = "unix://"
_THIS_HOST = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "[::]": "::1"}  # noqa: S104 - as the plugin reads them


@dataclass(frozen=True, slots=True)
class SpooledDel:
    key: AttachmentKey
    boot: str  # the kernel's boot id at the DEL
    uptime: float  # seconds from the boot to the DEL
    address: str  # the agent's, in the plugin's configuration
    instance_id: str  # of the agent's host; "" if the plugin does not know

    def is_after(self, boot: str, uptime: float) -> bool:
        """Whether the DEL came at that moment or later; independent of wall clocks."""
        return self.boot == boot and self.uptime >= uptime


def file_name(key: AttachmentKey) -> str:
    """Return the name of the attachment's file, which a later DEL replaces."""
    return sha256("\0".join((key.network, key.container_id, key.ifname)).encode()).hexdigest() + ".json"


def read_spooled(content: bytes) -> SpooledDel:
    """Read a file's content; UndecodableRequest if it is malformed."""
    try:
        said = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as err:
        raise UndecodableRequest(f"it is not JSON: {err}") from None
    if not isinstance(said, dict):
        raise UndecodableRequest("it is not an object")
    names = ("network", "containerID", "ifname", "address", "instanceID", "bootID")
    network, container_id, ifname, address, instance_id, boot = (_text(name, said.get(name)) for name in names)
    uptime = said.get("uptime")
    if not isinstance(uptime, int | float) or isinstance(uptime, bool) or not isfinite(uptime):
        raise UndecodableRequest(f"uptime {uptime!r} is not a number of seconds")
    try:
        key = check_key(network_name({"name": network}), container_id, ifname)
    except AgentError as err:
        raise UndecodableRequest(f"it does not name an attachment: {err}") from None
    return SpooledDel(key, boot, float(uptime), address, instance_id)


def reaches(address: str, host: str, port: int) -> bool:
    """Whether *address*, of a network configuration, is that of an agent listening at *host* and *port*."""
    there, _, number = address.rpartition(":")
    there = _THIS_HOST.get(there, there.strip("[]"))
    try:
        wanted, bound = ip_address(there), ip_address(host)
    except ValueError:
        return False
    is_covered = bound.is_unspecified and wanted.version == bound.version
    return number.isdecimal() and int(number) == port and (is_covered or wanted == bound)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UndecodableRequest(f"{name} {value!r} is not a string")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
