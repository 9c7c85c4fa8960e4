"""Results of ADD, read and written in any version of the specification; docs/reference/cni.md, "Results".

In memory a result has all fields of the newest version. Rendering for an older one leaves out the others.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qingcloud_cni.core.cni.protocol import VERSIONS, Shape
from qingcloud_cni.core.cni.reading import number, section, sections, text, texts
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import Attachment, Dns, Nic, Route

ROUTE_DETAILS = ("mtu", "advmss", "priority", "table", "scope")  # of 1.1.0


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    mac: str = ""
    sandbox: str = ""  # CNI_NETNS; "" on the host
    mtu: int | None = None
    socket_path: str = ""
    pci_id: str = ""


@dataclass(frozen=True, slots=True)
class Ip:
    address: str  # with prefix length
    gateway: str = ""
    interface: int | None = None  # index among the result's interfaces


@dataclass(frozen=True, slots=True)
class ResultRoute:
    dst: str  # CIDR
    gw: str = ""
    details: tuple[tuple[str, int], ...] = ()  # by the keys of ROUTE_DETAILS


@dataclass(frozen=True, slots=True)
class Result:
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Ip, ...] = ()
    routes: tuple[ResultRoute, ...] = ()
    dns: Dns = field(default_factory=Dns)


def family_of(network: str) -> str:
    return "6" if ":" in network else "4"


# --- making ------------------------------------------------------------------------------------------


def result_of(attachment: Attachment, nic: Nic) -> Result:
    """Return the result of one attachment."""
    interface = Interface(attachment.key.ifname, nic.nic_id, attachment.netns.path, attachment.mtu or None)
    routes = tuple(ResultRoute(r.dst, r.gw, route_details(r)) for r in attachment.routes)
    return Result((interface,), (Ip(nic.address, nic.gateway, 0),), routes, attachment.dns)


def route_details(route: Route) -> tuple[tuple[str, int], ...]:
    details = ((key, getattr(route, key)) for key in ROUTE_DETAILS)
    return tuple((key, value) for key, value in details if value is not None)


def extended(previous: Result, own: Result) -> Result:
    """Append our result to that of the earlier plugins; nothing of either is lost."""
    shift = len(previous.interfaces)
    ips = tuple(ip if ip.interface is None else replace(ip, interface=ip.interface + shift) for ip in own.ips)
    return Result(
        previous.interfaces + own.interfaces,
        previous.ips + ips,
        previous.routes + own.routes,
        _merged(previous.dns, own.dns),
    )


def _merged(one: Dns, other: Dns) -> Dns:
    def both(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(first + second))

    return Dns(
        both(one.nameservers, other.nameservers),
        one.domain or other.domain,
        both(one.search, other.search),
        both(one.options, other.options),
    )


def check_extensible(previous: Result, ifname: str, version: str) -> None:
    """InvalidConfig if *version* cannot hold our interface and address beside those of *previous*."""
    if any(interface.name == ifname for interface in previous.interfaces):
        raise InvalidConfig(
            f"prevResult has an interface {ifname} already: qingcni only creates interfaces; put it first in the"
            " chain, or use another CNI_IFNAME"
        )
    families = [family_of(ip.address) for ip in previous.ips] + ["4"]
    if VERSIONS[version].shape is Shape.IP4 and len(set(families)) < len(families):
        raise InvalidConfig(
            f"cniVersion {version} holds one address of each family, and prevResult has"
            f" {', '.join(ip.address for ip in previous.ips)} already; use 0.3.0 or newer"
        )


# --- reading -----------------------------------------------------------------------------------------


def read_result(where: str, value: object, default_version: str) -> Result:
    """Read a result in its cniVersion, or *default_version*; InvalidConfig if it is malformed."""
    keys = section(where, value)
    version = text(f"{where}.cniVersion", keys.get("cniversion")) or default_version
    if version not in VERSIONS:
        raise InvalidConfig(f"{where}.cniVersion {version!r} is not supported; supported are {', '.join(VERSIONS)}")
    dns = read_dns(f"{where}.dns", keys.get("dns"))
    if VERSIONS[version].shape is Shape.IP4:
        halves = [_read_half(f"{where}.ip{n}", keys[f"ip{n}"]) for n in "46" if keys.get(f"ip{n}") is not None]
        ips, routes = tuple(ip for ip, _ in halves), tuple(r for _, routes in halves for r in routes)
        return Result((), ips, routes, dns)
    interfaces = tuple(
        _read_interface(f"{where}.interfaces[{n}]", entry)
        for n, entry in enumerate(sections(f"{where}.interfaces", keys.get("interfaces")))
    )
    ips = tuple(
        _read_ip(f"{where}.ips[{n}]", entry, len(interfaces))
        for n, entry in enumerate(sections(f"{where}.ips", keys.get("ips")))
    )
    return Result(interfaces, ips, _read_routes(f"{where}.routes", keys.get("routes")), dns)


def read_dns(where: str, value: object) -> Dns:
    keys = section(where, value)
    domain = text(f"{where}.domain", keys.get("domain"))
    nameservers, search, options = (texts(f"{where}.{k}", keys.get(k)) for k in ("nameservers", "search", "options"))
    return Dns(nameservers, domain, search, options)


def _read_half(where: str, value: object) -> tuple[Ip, tuple[ResultRoute, ...]]:
    """`ip4` or `ip6`."""
    keys = section(where, value)
    ip = Ip(_cidr(f"{where}.ip", keys.get("ip")), _address(f"{where}.gateway", keys.get("gateway")))
    return ip, _read_routes(f"{where}.routes", keys.get("routes"))


def _read_interface(where: str, keys: Mapping[str, object]) -> Interface:
    return Interface(
        text(f"{where}.name", keys.get("name")),
        text(f"{where}.mac", keys.get("mac")),
        text(f"{where}.sandbox", keys.get("sandbox")),
        number(f"{where}.mtu", keys.get("mtu")),
        text(f"{where}.socketPath", keys.get("socketpath")),
        text(f"{where}.pciID", keys.get("pciid")),
    )


def _read_ip(where: str, keys: Mapping[str, object], interfaces: int) -> Ip:
    index = number(f"{where}.interface", keys.get("interface"))
    if index is not None and index >= interfaces:
        raise InvalidConfig(f"{where}.interface {index} is beyond the {interfaces} interfaces there are")
    text(f"{where}.version", keys.get("version"))
    return Ip(
        _cidr(f"{where}.address", keys.get("address")), _address(f"{where}.gateway", keys.get("gateway")), index
    )


def _read_routes(where: str, value: object) -> tuple[ResultRoute, ...]:
    return tuple(_read_route(f"{where}[{n}]", keys) for n, keys in enumerate(sections(where, value)))


def _read_route(where: str, keys: Mapping[str, object]) -> ResultRoute:
    details = ((key, number(f"{where}.{key}", keys.get(key))) for key in ROUTE_DETAILS)
    return ResultRoute(
        _cidr(f"{where}.dst", keys.get("dst")),
        _address(f"{where}.gw", keys.get("gw")),
        tuple((key, value) for key, value in details if value is not None),
    )


def _cidr(where: str, value: object) -> str:
    """Return the text unchanged if it is an address or network with a prefix length."""
    try:
        if isinstance(value, str) and value.rpartition("/")[2].isdecimal():  # Python accepts a netmask as well
            ipaddress.ip_interface(value)
            return value
    except ValueError:
        pass
    raise InvalidConfig(f"{where} {value!r} is not an address with a prefix length, such as 172.16.3.7/24")


def _address(where: str, value: object) -> str:
    """Return the text unchanged if it is an address; "" if absent."""
    if value is None or value == "":
        return ""
    try:
        if isinstance(value, str):
            ipaddress.ip_address(value)
            return value
    except ValueError:
        pass
    raise InvalidConfig(f"{where} {value!r} is not an address")


# --- writing -----------------------------------------------------------------------------------------


def render(result: Result, version: str) -> dict[str, object]:
    """Render the result in the shape of *version*; InvalidConfig if that requires an address and there is none."""
    shape = VERSIONS[version].shape
    body = _render_halves(result) if shape is Shape.IP4 else _render_lists(result, version)
    return {"cniVersion": version, **body, "dns": _render_dns(result.dns)}


def _render_halves(result: Result) -> dict[str, object]:
    """The first address of each family, and the routes of that family."""
    halves: dict[str, object] = {}
    for family in "46":
        ip = next((ip for ip in result.ips if family_of(ip.address) == family), None)
        if ip is not None:
            routes = [_render_route(r, has_details=False) for r in result.routes if family_of(r.dst) == family]
            halves[f"ip{family}"] = _given(ip=ip.address, gateway=ip.gateway, routes=routes or None)
    if not halves:
        raise InvalidConfig("the result has no address, which versions up to 0.2.0 require")
    return halves


def _render_lists(result: Result, version: str) -> dict[str, object]:
    has_family, has_details = VERSIONS[version].has_family, VERSIONS[version].has_details
    ips = [_given(interface=ip.interface, address=ip.address, gateway=ip.gateway) for ip in result.ips]
    if has_family:
        ips = [{"version": family_of(ip.address), **shown} for ip, shown in zip(result.ips, ips, strict=True)]
    return {
        "interfaces": [_render_interface(i, has_details=has_details) for i in result.interfaces],
        "ips": ips,
        "routes": [_render_route(r, has_details=has_details) for r in result.routes],
    }


def _render_interface(interface: Interface, *, has_details: bool) -> dict[str, object]:
    fields = {"name": interface.name} | _given(mac=interface.mac, sandbox=interface.sandbox)
    if has_details:
        fields |= _given(mtu=interface.mtu, socketPath=interface.socket_path, pciID=interface.pci_id)
    return fields


def _render_route(route: ResultRoute, *, has_details: bool) -> dict[str, object]:
    return _given(dst=route.dst, gw=route.gw) | (dict(route.details) if has_details else {})


def _render_dns(dns: Dns) -> dict[str, object]:
    return _given(
        nameservers=list(dns.nameservers) or None,
        domain=dns.domain,
        search=list(dns.search) or None,
        options=list(dns.options) or None,
    )


def _given(**fields: object) -> dict[str, object]:
    """Drop empty values; 0 is a value (index, metric)."""
    return {key: value for key, value in fields.items() if value is not None and value != ""}
