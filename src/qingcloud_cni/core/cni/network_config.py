"""The network configuration and CNI_ARGS: all that a runtime asks for a container, checked."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qingcloud_cni.core.cni.protocol import network_name, version_of
from qingcloud_cni.core.cni.reading import flag, folded, section, text, texts
from qingcloud_cni.core.cni.results import Result, read_dns, read_result
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import Dns, Nic, Route, Workload

UNSPECIFIED = "0.0.0.0"  # noqa: S104 - a gateway the agent is asked to fill in, not an address to listen on
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class Wish:
    """The address and the MAC the NIC shall have, each "" if any will do."""

    address: str = ""  # with or without prefix length
    mac: str = ""  # lower case
    asked_by: str = ""  # the keys, for messages

    def __bool__(self) -> bool:
        return bool(self.address or self.mac)

    def __str__(self) -> str:
        parts = [f"address {self.address}"] if self.address else []
        parts += [f"MAC {self.mac}"] if self.mac else []
        return f"{' with '.join(parts)} (asked for by {self.asked_by})"

    def fits(self, nic: Nic) -> bool:
        return self.mac in ("", nic.nic_id) and self.address in ("", nic.address, nic.address.partition("/")[0])


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network configuration, checked."""

    cni_version: str
    name: str
    routes: tuple[Route, ...]  # a gateway of "" is the vxnet's own router, one of 0.0.0.0 this host's gateway
    dns: Dns
    is_gateway: bool
    ip_masq: bool
    wish: Wish = field(default_factory=Wish)
    workload: Workload = field(default_factory=Workload)
    previous: Result | None = None  # of the plugins before us in the chain

    @property
    def services(self) -> tuple[str, ...]:
        """What is to be reached through this host's gateway: the routes via 0.0.0.0."""
        return tuple(r.dst for r in self.routes if r.gw == UNSPECIFIED)


def read_config(config: Mapping[str, object], cni_args: str = "") -> NetworkConfig:
    """Check all of a network configuration that matters to ADD; keys match without regard to case."""
    keys = folded(config)
    args = section("args", keys.get("args"))
    runtime = section("runtimeConfig", keys.get("runtimeconfig"))
    pairs = read_cni_args(cni_args)
    return NetworkConfig(
        cni_version=version_of(config),
        name=network_name(config),
        routes=_routes(keys.get("ipam")),
        dns=_with_runtime_dns(read_dns("dns", keys.get("dns")), runtime.get("dns")),
        is_gateway=flag(keys, "isGateway", default=True),
        ip_masq=flag(keys, "ipMasq", default=False),
        wish=_wish(runtime, _object(args.get("cni")), pairs),
        workload=_workload(args, pairs),
        previous=read_previous(config),
    )


def read_previous(config: Mapping[str, object]) -> Result | None:
    """The `prevResult`, in whichever supported version it is; None where there is none."""
    value = folded(config).get("prevresult")
    return None if value is None else read_result("prevResult", value, version_of(config))


def read_cni_args(cni_args: str) -> dict[str, str]:
    """The pairs of CNI_ARGS: `K=V;K=V`. What is no pair is passed over, as is, by those who read, an unknown key."""
    pairs = (pair.partition("=") for pair in cni_args.split(";"))
    return {key: value for key, equals, value in pairs if key and equals}


# --- ipam and dns ------------------------------------------------------------------------------------


def _routes(ipam: object) -> tuple[Route, ...]:
    routes = section("ipam", ipam).get("routes")
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


def _with_runtime_dns(dns: Dns, value: object) -> Dns:
    """What the runtime says replaces what the configuration says, list by list; the keys are not those of `dns`."""
    keys = section("runtimeConfig.dns", value)
    servers, searches, options = (
        texts(f"runtimeConfig.dns.{k}", keys.get(k)) for k in ("servers", "searches", "options")
    )
    return replace(
        dns, nameservers=servers or dns.nameservers, search=searches or dns.search, options=options or dns.options
    )


# --- address and MAC that were asked for -------------------------------------------------------------


def _wish(runtime: Mapping[str, object], cni: Mapping[str, object], pairs: Mapping[str, str]) -> Wish:
    """The first of those who ask counts: the capability, then `args`, then CNI_ARGS."""
    addresses: dict[str, tuple[str, ...]] = {
        "runtimeConfig.ips": texts("runtimeConfig.ips", runtime.get("ips")),
        "args.cni.ips": texts("args.cni.ips", cni.get("ips")),
        "IP in CNI_ARGS": tuple(part for part in pairs.get("IP", "").split(",") if part),
    }
    macs = {
        "runtimeConfig.mac": text("runtimeConfig.mac", runtime.get("mac")),
        "args.cni.mac": text("args.cni.mac", cni.get("mac")),
        "MAC in CNI_ARGS": pairs.get("MAC", ""),
    }
    by_address = next((where for where, asked in addresses.items() if asked), "")
    by_mac = next((where for where, asked in macs.items() if asked), "")
    return Wish(
        _wished_address(by_address, addresses[by_address]) if by_address else "",
        _wished_mac(by_mac, macs[by_mac]) if by_mac else "",
        " and ".join(filter(None, (by_address, by_mac))),
    )


def _wished_address(where: str, addresses: tuple[str, ...]) -> str:
    if len(addresses) > 1:
        raise InvalidConfig(
            f"{where} asks for {', '.join(addresses)}, and a NIC has one address; ask for one at most"
        )
    (address,) = addresses
    try:
        return str(ipaddress.IPv4Interface(address) if "/" in address else ipaddress.IPv4Address(address))
    except ValueError:
        raise InvalidConfig(
            f"{where} asks for {address!r}, which is not an IPv4 address; NICs have no others"
        ) from None


def _wished_mac(where: str, mac: str) -> str:
    if not _MAC.fullmatch(mac.lower()):
        raise InvalidConfig(f"{where} asks for {mac!r}, which is not a MAC such as 52:54:9e:01:02:03")
    return mac.lower()


# --- what is told of the container -------------------------------------------------------------------


def _workload(args: Mapping[str, object], pairs: Mapping[str, str]) -> Workload:
    mesos = _object(_object(args.get("org.apache.mesos")).get("network_info"))
    return Workload(
        pod_name=pairs.get("K8S_POD_NAME", ""),
        pod_namespace=pairs.get("K8S_POD_NAMESPACE", ""),
        pod_uid=pairs.get("K8S_POD_UID", ""),
        infra_container_id=pairs.get("K8S_POD_INFRA_CONTAINER_ID", ""),
        labels=_labels(_object(args.get("cni")).get("labels")) + _labels(_object(mesos.get("labels")).get("labels")),
    )


def _labels(value: object) -> tuple[tuple[str, str], ...]:
    """Those that are key and value: this is optional data, and the rest of it means nothing to us."""
    entries = [_object(entry) for entry in value] if isinstance(value, list) else []
    pairs = [(entry.get("key"), entry.get("value", "")) for entry in entries]
    return tuple((key, label) for key, label in pairs if isinstance(key, str) and isinstance(label, str))


def _object(value: object) -> dict[str, object]:
    return folded(value) if isinstance(value, dict) else {}


# --- routes to install -------------------------------------------------------------------------------


def routes_for(nic: Nic, config: NetworkConfig, host_gateway: str = "") -> tuple[Route, ...]:
    """The routes to install with this NIC: the default one unless it is given, then those asked for.

    *host_gateway* replaces 0.0.0.0.

    InvalidConfig where a given gateway can be none in the NIC's vxnet: the kernel could not reach it.
    """
    own = ipaddress.IPv4Interface(nic.address)
    network = own.network
    nobody = {own.ip, network.network_address, network.broadcast_address}
    routes = tuple(Route(r.dst, host_gateway if r.gw == UNSPECIFIED else r.gw or nic.gateway) for r in config.routes)
    for route in routes:
        gateway = ipaddress.IPv4Address(route.gw)
        if gateway not in network or gateway in nobody:
            raise InvalidConfig(
                f"route to {route.dst}: gateway {route.gw} is not a neighbour in vxnet {nic.vxnet_id} ({network});"
                " give an address of that vxnet or another --vxnet"
            )
    if any(r.dst == "0.0.0.0/0" for r in routes):
        return routes
    return (Route("0.0.0.0/0", nic.gateway), *routes)
