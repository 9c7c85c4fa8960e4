"""The CNI protocol as data: verbs, versions of the specification and their differences, keys, errors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType

from qingcloud_cni.core.cni.reading import folded
from qingcloud_cni.core.errors import IncompatibleVersion, InvalidConfig, InvalidEnvironment, UndecodableRequest
from qingcloud_cni.core.nics.model import AttachmentKey
from qingcloud_cni.core.text import escaped

IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")  # container ids and network names, by the specification
IFNAME_FORBIDDEN = re.compile(r"[/:%\s]")  # the kernel expands "eth%d"
IFNAME_BYTES = 15  # IFNAMSIZ - 1
LARGEST_CONFIG = 8 * 1024 * 1024  # bytes on stdin; the plugin has the same limit
LARGEST_REQUEST = 2 * LARGEST_CONFIG  # bytes; with the CNI variables, which Linux limits to 128 KiB each


class Verb(StrEnum):
    """Verbs of the agent; the plugin answers VERSION."""

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
    """What differs between versions; see docs/reference/cni.md, "Versions"."""

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
DEFAULT_VERSION = "0.1.0"  # of a configuration without cniVersion
NEWEST_VERSION = "1.1.0"


def check_names(container_id: str, ifname: str) -> None:
    """InvalidEnvironment if one is malformed; both are empty in GC and STATUS."""
    if container_id and not IDENTIFIER.fullmatch(container_id):
        raise InvalidEnvironment(
            f"CNI_CONTAINERID {container_id!r}: invalid characters; wanted letters, digits, '_', '.', '-'"
        )
    if len(ifname.encode()) > IFNAME_BYTES:
        raise InvalidEnvironment(f"CNI_IFNAME {ifname!r} is longer than {IFNAME_BYTES} bytes")
    if ifname in {".", ".."} or IFNAME_FORBIDDEN.search(ifname):
        raise InvalidEnvironment(
            f"CNI_IFNAME {ifname!r} is not an interface name; it must not contain '/', ':', '%' or blanks"
        )


def check_key(network: str, container_id: str, ifname: str) -> AttachmentKey:
    """Return the attachment of a request; InvalidEnvironment if a part is missing or malformed."""
    missing = [n for n, v in (("CNI_CONTAINERID", container_id), ("CNI_IFNAME", ifname)) if not v]
    if missing:
        raise InvalidEnvironment(f"required environment variables {', '.join(missing)} are missing")
    check_names(container_id, ifname)
    return AttachmentKey(network, container_id, ifname)


def known_verb(command: str) -> Verb:
    try:
        return Verb(command)
    except ValueError:
        raise InvalidEnvironment(f"CNI_COMMAND {command!r} is unknown; supported are {', '.join(Verb)}") from None


def check_allowed(verb: Verb, version: str) -> None:
    """IncompatibleVersion if the configuration's version does not have the verb."""
    if verb not in VERSIONS[version].verbs:
        first = next(name for name, known in VERSIONS.items() if verb in known.verbs)
        raise IncompatibleVersion(f"cniVersion {version} does not allow {verb}; use {first} or newer")


def version_of(config: Mapping[str, object]) -> str:
    """Return the configuration's cniVersion, one of VERSIONS."""
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
        raise InvalidConfig('the network configuration has no name; add one: "name": "mynet"')
    if not IDENTIFIER.fullmatch(name):
        raise InvalidConfig(f"name {name!r}: invalid characters; wanted letters, digits, '_', '.', '-'")
    return name


def render_error(code: int, message: str, version: str = NEWEST_VERSION, details: str = "") -> dict[str, object]:
    """Return the CNI error object; *version* is the request's, if it could be read."""
    error: dict[str, object] = {"cniVersion": version, "code": code, "msg": harmless(message)}
    return error | {"details": harmless(details)} if details else error


_TAKEN_FOR_SUCCESS = re.compile(r"not found|no such file", re.IGNORECASE)


def harmless(message: str) -> str:
    """Escape control characters, and replace the words by which go-cni takes a failed DEL for a success."""
    return _TAKEN_FOR_SUCCESS.sub("missing", escaped(message))
