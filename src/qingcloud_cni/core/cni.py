"""The CNI protocol as data: what a request may say, and results in the shape of each version of the specification."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from types import MappingProxyType

from qingcloud_cni.core.errors import (
    IncompatibleVersion,
    InvalidConfig,
    InvalidEnvironment,
    UndecodableRequest,
)
from qingcloud_cni.core.model import Attachment, AttachmentKey, Dns, Nic, Route

CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")  # cni.md section 1.2
IFNAME_FORBIDDEN = re.compile(r"[/:%\s]")  # "%" because the kernel expands eth%d
IFNAME_BYTES = 15  # IFNAMSIZ - 1
UNSPECIFIED = "0.0.0.0"  # noqa: S104 - a gateway the agent is asked to fill in, not an address to listen on


class Verb(StrEnum):
    ADD = "ADD"
    DEL = "DEL"


class Shape(Enum):
    """The families of results."""

    IP4 = auto()  # ip4, dns
    IPS = auto()  # interfaces, ips with a version, routes, dns


VERSIONS: Mapping[str, Shape] = MappingProxyType(
    {
        "0.1.0": Shape.IP4,
        "0.2.0": Shape.IP4,
        "0.3.0": Shape.IPS,
        "0.3.1": Shape.IPS,
    }
)
DEFAULT_VERSION = "0.1.0"  # where a configuration names none (cni.md section 1.4)
NEWEST_VERSION = "0.3.1"


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network configuration, checked."""

    cni_version: str
    name: str
    routes: tuple[Route, ...]  # a gateway of "" is the vxnet's own router, one of 0.0.0.0 this host's gateway
    dns: Dns
    is_gateway: bool
    ip_masq: bool

    @property
    def services(self) -> tuple[str, ...]:
        """What is to be reached through this host's gateway: the routes via 0.0.0.0."""
        return tuple(r.dst for r in self.routes if r.gw == UNSPECIFIED)


def check_key(network: str, container_id: str, ifname: str) -> AttachmentKey:
    """The attachment a request speaks of; InvalidEnvironment where a part of it is missing or malformed."""
    missing = [n for n, v in (("CNI_CONTAINERID", container_id), ("CNI_IFNAME", ifname)) if not v]
    if missing:
        raise InvalidEnvironment(f"required environment variables {', '.join(missing)} are missing")
    if not CONTAINER_ID.fullmatch(container_id):
        raise InvalidEnvironment(
            f"CNI_CONTAINERID {container_id!r}: invalid characters; wanted letters, digits, '_', '.', '-'"
        )
    if len(ifname.encode()) > IFNAME_BYTES:
        raise InvalidEnvironment(f"CNI_IFNAME {ifname!r} is longer than {IFNAME_BYTES} bytes")
    if ifname in {".", ".."} or IFNAME_FORBIDDEN.search(ifname):
        raise InvalidEnvironment(
            f"CNI_IFNAME {ifname!r} is no interface name; it must not hold '/', ':', '%' or blanks"
        )
    return AttachmentKey(network, container_id, ifname)


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
    if not CONTAINER_ID.fullmatch(name):
        raise InvalidConfig(f"name {name!r}: invalid characters; wanted letters, digits, '_', '.', '-'")
    return name


def read_config(config: Mapping[str, object]) -> NetworkConfig:
    """Check all of a network configuration that matters to ADD; keys match without regard to case."""
    keys = folded(config)
    is_gateway = _flag(keys, "isGateway", default=True)
    return NetworkConfig(
        cni_version=version_of(config),
        name=network_name(config),
        routes=_routes(keys.get("ipam")),
        dns=_dns(keys.get("dns")),
        is_gateway=is_gateway,
        ip_masq=_flag(keys, "ipMasq", default=False),
    )


def folded(mapping: Mapping[str, object]) -> dict[str, object]:
    """The same mapping with lower-case keys; Go runtimes match keys without regard to case."""
    return {k.lower(): v for k, v in mapping.items()}


def _flag(keys: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = keys.get(key.lower())
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):  # 0.4.0 typed booleans as strings
        return value == "true"
    raise InvalidConfig(f"{key} {value!r} is neither true nor false")


def _routes(ipam: object) -> tuple[Route, ...]:
    if ipam is None:
        return ()
    if not isinstance(ipam, dict):
        raise InvalidConfig(f"ipam {ipam!r} is not an object")
    routes = folded(ipam).get("routes")
    if routes is None:
        return ()
    if not isinstance(routes, list):
        raise InvalidConfig(f"ipam.routes {routes!r} is not a list")
    return tuple(_route(f"ipam.routes[{n}]", entry) for n, entry in enumerate(routes))


def _route(where: str, entry: object) -> Route:
    if not isinstance(entry, dict):
        raise InvalidConfig(f'{where} {entry!r} is not an object like {{"dst": "10.96.0.0/12", "gw": "…"}}')
    keys = folded(entry)
    dst, gw = keys.get("dst"), keys.get("gw")
    gw = "" if gw is None else gw
    try:
        network = ipaddress.IPv4Network(dst) if isinstance(dst, str) and "/" in dst else None
    except ValueError as err:
        raise InvalidConfig(f"{where}.dst {dst!r} is not an IPv4 network ({err})") from None
    if network is None:
        raise InvalidConfig(f"{where}.dst {dst!r} is not an IPv4 network; put one there, such as 10.96.0.0/12")
    if not isinstance(gw, str):
        raise InvalidConfig(f"{where}.gw {gw!r} is not an IPv4 address")
    try:
        return Route(str(network), str(ipaddress.IPv4Address(gw)) if gw else "")
    except ValueError:
        raise InvalidConfig(
            f"{where}.gw {gw!r} is not an IPv4 address; give that of a gateway in the pod's vxnet"
        ) from None


def _dns(dns: object) -> Dns:
    if dns is None:
        return Dns()
    if not isinstance(dns, dict):
        raise InvalidConfig(f"dns {dns!r} is not an object")
    keys = folded(dns)
    domain = keys.get("domain") or ""
    if not isinstance(domain, str):
        raise InvalidConfig(f"dns.domain {domain!r} is not a string")
    nameservers, search, options = (_strings(f"dns.{k}", keys.get(k)) for k in ("nameservers", "search", "options"))
    return Dns(nameservers, domain, search, options)


def _strings(where: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidConfig(f"{where} {value!r} is not a list of strings")
    return tuple(value)


def routes_for(nic: Nic, config: NetworkConfig, host_gateway: str = "") -> tuple[Route, ...]:
    """The routes to install with this NIC: the default one unless it is given, then those asked for.

    *host_gateway* replaces 0.0.0.0.

    InvalidConfig where a given gateway lies outside the NIC's vxnet: the kernel could not reach it.
    """
    network = ipaddress.IPv4Interface(nic.address).network
    own = str(ipaddress.IPv4Interface(nic.address).ip)
    routes = tuple(Route(r.dst, host_gateway if r.gw == UNSPECIFIED else r.gw or nic.gateway) for r in config.routes)
    for route in routes:
        if ipaddress.IPv4Address(route.gw) not in network or route.gw == own:
            raise InvalidConfig(
                f"route to {route.dst}: gateway {route.gw} is not a neighbour in vxnet {nic.vxnet_id} ({network});"
                " give an address of that vxnet or another --vxnet"
            )
    if any(r.dst == "0.0.0.0/0" for r in routes):
        return routes
    return (Route("0.0.0.0/0", nic.gateway), *routes)


def render(attachment: Attachment, nic: Nic, version: str) -> dict[str, object]:
    """The result of ADD in the shape of *version* (cni.md section 2)."""
    dns = _render_dns(attachment.dns)
    routes = [{"dst": r.dst, "gw": r.gw} for r in attachment.routes]
    if VERSIONS[version] is Shape.IP4:
        return {
            "cniVersion": version,
            "ip4": {"ip": nic.address, "gateway": nic.gateway, "routes": routes},
            "dns": dns,
        }
    interface = {"name": attachment.key.ifname, "mac": nic.nic_id, "sandbox": attachment.netns.path}
    address = {"version": "4", "interface": 0, "address": nic.address, "gateway": nic.gateway}
    return {"cniVersion": version, "interfaces": [interface], "ips": [address], "routes": routes, "dns": dns}


def _render_dns(dns: Dns) -> dict[str, object]:
    fields: Sequence[tuple[str, object]] = (
        ("nameservers", list(dns.nameservers)),
        ("domain", dns.domain),
        ("search", list(dns.search)),
        ("options", list(dns.options)),
    )
    return {key: value for key, value in fields if value}


def render_error(code: int, message: str, version: str = NEWEST_VERSION, details: str = "") -> dict[str, object]:
    """The CNI error object; *version* is the request's where it could be read."""
    error: dict[str, object] = {"cniVersion": version, "code": code, "msg": message}
    return error | {"details": details} if details else error
