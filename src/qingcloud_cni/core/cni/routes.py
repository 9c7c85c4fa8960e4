"""The routes that a container gets: read from the network configuration, and completed for its NIC."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace

from qingcloud_cni.core.cni.reading import folded, number, section
from qingcloud_cni.core.cni.results import ROUTE_DETAILS
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import LINK_SCOPE, MAIN_TABLE, Nic, Route

UNSPECIFIED = "0.0.0.0"  # noqa: S104 - a gateway the agent is asked to fill in, not an address to listen on
DEFAULT = "0.0.0.0/0"
_LOCAL_TABLE = 255  # of the kernel, for the host's own addresses
_U32 = 2**32 - 1
_ALLOWED: Mapping[str, range] = {  # the kernel would change other values, or reject them
    "mtu": range(68, 65521),
    "advmss": range(1, 65496),
    "priority": range(_U32 + 1),
    "table": range(_U32 + 1),
}


def read_routes(ipam: object) -> tuple[Route, ...]:
    """Read `ipam.routes`, without repetitions; gateway "": the vxnet's router; 0.0.0.0: this host's gateway."""
    entries = section("ipam", ipam).get("routes")
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise InvalidConfig(f"ipam.routes {entries!r} is not a list")
    routes = [_route(f"ipam.routes[{n}]", entry) for n, entry in enumerate(entries)]
    _check_distinct(routes)
    return tuple(dict.fromkeys(routes))


def _route(where: str, entry: object) -> Route:
    if not isinstance(entry, dict):
        raise InvalidConfig(f'{where} {entry!r} is not an object like {{"dst": "10.96.0.0/12", "gw": "…"}}')
    keys = folded(entry)
    details = {key: _detail(f"{where}.{key}", key, keys.get(key)) for key in ROUTE_DETAILS}
    network, gateway = _network(f"{where}.dst", keys.get("dst")), _gateway(where, keys.get("gw"), details["scope"])
    return Route(network, gateway, **details)


def _network(where: str, dst: object) -> str:
    try:
        network = ipaddress.IPv4Network(dst) if isinstance(dst, str) and "/" in dst else None
    except ValueError as err:
        raise InvalidConfig(f"{where} {dst!r} is not an IPv4 network ({err})") from None
    if network is None:
        raise InvalidConfig(f"{where} {dst!r} is not an IPv4 network, such as 10.96.0.0/12")
    return str(network)


def _gateway(where: str, gw: object, scope: int | None) -> str:
    gw = "" if gw is None else gw
    if not isinstance(gw, str):
        raise InvalidConfig(f"{where}.gw {gw!r} is not an IPv4 address")
    if gw and scope == LINK_SCOPE:
        raise InvalidConfig(f"{where}.scope {scope} has no gateway, and {where}.gw is {gw!r}; remove one of them")
    try:
        return str(ipaddress.IPv4Address(gw)) if gw else ""
    except ValueError:
        raise InvalidConfig(
            f"{where}.gw {gw!r} is not an IPv4 address; use that of a gateway in the pod's vxnet"
        ) from None


def _detail(where: str, key: str, value: object) -> int | None:
    detail = number(where, value)
    if detail is None:
        return None
    if key == "scope":
        if detail not in (0, LINK_SCOPE):
            raise InvalidConfig(f"{where} {detail} is not supported; use 0 (global) or {LINK_SCOPE} (link)")
    elif detail not in _ALLOWED[key]:
        raise InvalidConfig(f"{where} {detail} is not between {_ALLOWED[key][0]} and {_ALLOWED[key][-1]}")
    elif key == "table" and detail == _LOCAL_TABLE:
        raise InvalidConfig(f"{where} {detail} is the kernel's own table of local addresses; use another one")
    return detail


def _check_distinct(routes: Iterable[Route]) -> None:
    """InvalidConfig if two routes exclude each other: a table has one route of a priority to a network."""
    first: dict[tuple[int, str, int], tuple[int, Route]] = {}
    for n, route in enumerate(routes):
        earlier, other = first.setdefault((*route.destination, route.priority or 0), (n, route))
        if other != route:
            raise InvalidConfig(
                f"ipam.routes[{n}] and ipam.routes[{earlier}] differ and lead to {route.dst}; remove one of them, or"
                " give them different priorities"
            )


def routes_for(nic: Nic, asked: Iterable[Route], host_gateway: str = "") -> tuple[Route, ...]:
    """Return the routes to install: the default route unless *asked* has one, then those.

    *host_gateway* replaces 0.0.0.0. InvalidConfig if a gateway is not an address of the NIC's vxnet, or if a route
    leads to that vxnet's network through one: the kernel's own route to it comes first.
    """
    own = ipaddress.IPv4Interface(nic.address)
    network = own.network
    asked = tuple(asked)
    for route in asked:
        if route.gw and route.destination == (MAIN_TABLE, str(network)):
            raise InvalidConfig(
                f"route to {route.dst}: gateway {route.gw} is not possible: the container reaches the network of its"
                f" own vxnet {nic.vxnet_id} directly; remove the route"
            )
    not_neighbours = {own.ip, network.network_address, network.broadcast_address}
    routes = tuple(replace(r, gw=_next_hop(r, nic, host_gateway)) for r in asked)
    for route in routes:
        if not route.gw:
            continue
        gateway = ipaddress.IPv4Address(route.gw)
        if gateway not in network or gateway in not_neighbours:
            raise InvalidConfig(
                f"route to {route.dst}: gateway {route.gw} is not a neighbour in vxnet {nic.vxnet_id} ({network});"
                " use an address of that vxnet or another --vxnet"
            )
    if any(r.destination == (MAIN_TABLE, DEFAULT) for r in routes):
        return routes
    return (Route(DEFAULT, nic.gateway), *routes)


def _next_hop(route: Route, nic: Nic, host_gateway: str) -> str:
    if route.scope == LINK_SCOPE:
        return ""
    return host_gateway if route.gw == UNSPECIFIED else route.gw or nic.gateway
