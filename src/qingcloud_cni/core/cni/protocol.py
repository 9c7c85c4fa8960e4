"""The CNI protocol as data: verbs, the versions of the specification and what differs between them, keys, errors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType

from qingcloud_cni.core.cni.reading import folded
from qingcloud_cni.core.errors import (
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    UndecodableRequest,
)
from qingcloud_cni.core.nics.model import AttachmentKey

IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")  # container ids and network names (cni.md section 1.2)
IFNAME_FORBIDDEN = re.compile(r"[/:%\s]")  # "%" because the kernel expands eth%d
IFNAME_BYTES = 15  # IFNAMSIZ - 1
LARGEST_CONFIG = 8 * 1024 * 1024  # bytes on stdin; the plugin has the same limit
LARGEST_REQUEST = 2 * LARGEST_CONFIG  # bytes; with the CNI variables, which Linux limits to 128 KiB each


class Verb(StrEnum):
    """What is asked of the agent; the plugin answers VERSION by itself."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


class Shape(Enum):
    """The families of results."""

    IP4 = auto()  # ip4, ip6, dns
    IPS = auto()  # interfaces, ips, routes, dns


@dataclass(frozen=True, slots=True)
class Version:
    """What differs between versions of the specification (cni.md, first table and section 2.2)."""

    verbs: frozenset[Verb]
    shape: Shape
    has_family: bool = False  # ips[].version
    has_details: bool = False  # mtu and more of interfaces, five more keys of routes


_OLD = frozenset({Verb.ADD, Verb.DEL})
VERSIONS: Mapping[str, Version] = MappingProxyType(
    {
        "0.1.0": Version(_OLD, Shape.IP4),
        "0.2.0": Version(_OLD, Shape.IP4),
        "0.3.0": Version(_OLD, Shape.IPS, has_family=True),
        "0.3.1": Version(_OLD, Shape.IPS, has_family=True),
        "0.4.0": Version(_OLD | {Verb.CHECK}, Shape.IPS, has_family=True),
        "1.0.0": Version(_OLD | {Verb.CHECK}, Shape.IPS),
        "1.1.0": Version(frozenset(Verb), Shape.IPS, has_details=True),
    }
)
DEFAULT_VERSION = "0.1.0"  # where a configuration names none (cni.md section 1.4)
NEWEST_VERSION = "1.1.0"


def check_names(container_id: str, ifname: str) -> None:
    """InvalidEnvironment where one of them is malformed; GC and STATUS have neither."""
    if container_id and not IDENTIFIER.fullmatch(container_id):
        raise InvalidEnvironment(
            f"CNI_CONTAINERID {container_id!r}: invalid characters; wanted letters, digits, '_', '.', '-'"
        )
    if len(ifname.encode()) > IFNAME_BYTES:
        raise InvalidEnvironment(f"CNI_IFNAME {ifname!r} is longer than {IFNAME_BYTES} bytes")
    if ifname in {".", ".."} or IFNAME_FORBIDDEN.search(ifname):
        raise InvalidEnvironment(
            f"CNI_IFNAME {ifname!r} is no interface name; it must not hold '/', ':', '%' or blanks"
        )


def check_key(network: str, container_id: str, ifname: str) -> AttachmentKey:
    """The attachment a request speaks of; InvalidEnvironment where a part of it is missing or malformed."""
    missing = [n for n, v in (("CNI_CONTAINERID", container_id), ("CNI_IFNAME", ifname)) if not v]
    if missing:
        raise InvalidEnvironment(f"required environment variables {', '.join(missing)} are missing")
    check_names(container_id, ifname)
    return AttachmentKey(network, container_id, ifname)


def known_verb(command: str) -> Verb:
    try:
        return Verb(command)
    except ValueError:
        raise InvalidEnvironment(f"CNI_COMMAND {command!r} is unknown; served are {', '.join(Verb)}") from None


def check_allowed(verb: Verb, version: str) -> None:
    """IncompatibleVersion where the configuration's version has no such verb."""
    if verb not in VERSIONS[version].verbs:
        first = next(name for name, known in VERSIONS.items() if verb in known.verbs)
        raise IncompatibleVersion(f"cniVersion {version} does not allow {verb}: it came with {first}")


def version_of(config: Mapping[str, object]) -> str:
    """The configuration's cniVersion, one of VERSIONS."""
    version = folded(config).get("cniversion")
    if version is None or version == "":
        return DEFAULT_VERSION
    if not isinstance(version, str):
        raise UndecodableRequest(f"cniVersion {version!r} is not a string")
    if version not in VERSIONS:
        raise IncompatibleVersion(f"cniVersion {version!r} is not supported; supported are {', '.join(VERSIONS)}")
    return version


def network_name(config: Mapping[str, object]) -> str:
    name = folded(config).get("name")
    if not isinstance(name, str) or not name:
        raise InvalidConfig('the network configuration has no name; give it one: "name": "mynet"')
    if not IDENTIFIER.fullmatch(name):
        raise InvalidConfig(f"name {name!r}: invalid characters; wanted letters, digits, '_', '.', '-'")
    return name


def render_error(code: int, message: str, version: str = NEWEST_VERSION, details: str = "") -> dict[str, object]:
    """The CNI error object; *version* is the request's where it could be read."""
    error: dict[str, object] = {"cniVersion": version, "code": code, "msg": harmless(message)}
    return error | {"details": harmless(details)} if details else error


_TAKEN_FOR_SUCCESS = re.compile(r"not found|no such file", re.IGNORECASE)


def harmless(message: str) -> str:
    """*message* without the words by which containerd and Nomad take a failed DEL for a success (go-cni)."""
    return _TAKEN_FOR_SUCCESS.sub("missing", message)
