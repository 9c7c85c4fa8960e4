"""The topology file of `qingcloud-sim up --topology`: YAML in, Topology out, errors with file and key.

Its keys are those of sim.topology; docs/simulator.md describes them for users.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec
import yaml

from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.nics.names import INSTANCE_ID
from qingcloud_cni.sim.api.fault_list import FaultEntry, make_faults, readable
from qingcloud_cni.sim.fabric.names import HOST_NAME
from qingcloud_cni.sim.topology import (
    HostSpec,
    KeySpec,
    Latencies,
    Limits,
    Range,
    RouterSpec,
    Topology,
    VxnetSpec,
    default_topology,
    parse_range,
)


class _Key(msgspec.Struct, forbid_unknown_fields=True):
    access_key_id: str
    secret_access_key: str


class _Latencies(msgspec.Struct, forbid_unknown_fields=True):
    attach: str | float | None = None
    detach: str | float | None = None
    call: str | float | None = None
    replug: str | float | None = None
    dhcp: str | float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    zone: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    more_keys: list[_Key] = msgspec.field(default_factory=list)
    routers: list[RouterSpec] | None = None
    vxnets: list[VxnetSpec] | None = None
    hosts: list[HostSpec] | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    latencies: _Latencies = msgspec.field(default_factory=_Latencies)
    faults: list[FaultEntry] = msgspec.field(default_factory=list)


def load_topology(path: Path, sim: str, hosts: int | None = None) -> Topology:
    """Read a topology file; StartRefused names the file and the wrong key.

    A file without routers, vxnets and hosts changes the rest of the default topology of *hosts* hosts.
    """
    try:
        raw = yaml.safe_load(path.read_bytes())
    except OSError as err:
        raise StartRefused(f"topology file {path}: {err.strerror}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: an impossible date
        where = getattr(err, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise StartRefused(
            f"topology file {path}{line}: {getattr(err, 'problem', None) or 'not valid YAML'}"
        ) from err
    try:
        file = msgspec.convert({} if raw is None else raw, _File)
        topology = _topology(file, sim, hosts)
        _check(topology)
    except msgspec.ValidationError as err:
        raise StartRefused(f"topology file {path}: {readable(str(err))}") from err
    except ValueError as err:
        raise StartRefused(f"topology file {path}: {err}") from err
    return topology


def _topology(file: _File, sim: str, hosts: int | None) -> Topology:
    base = default_topology(sim, 2 if hosts is None else hosts)
    own_shape = [key for key in ("routers", "vxnets", "hosts") if getattr(file, key) is not None]
    if own_shape:
        for key in ("vxnets", "hosts"):
            if not getattr(file, key):
                raise ValueError(f"{key}: at least one is needed where the file gives {' and '.join(own_shape)}")
        if hosts is not None:
            raise ValueError("hosts: given both here and by --hosts")
    tag = "".join(c for c in sim if c.isalnum())
    latencies = {
        name: _latency(name, value)
        for name, value in msgspec.structs.asdict(file.latencies).items()
        if value is not None
    }
    return Topology(
        routers=tuple(file.routers or ()) if own_shape else base.routers,
        vxnets=tuple(file.vxnets or ()) if own_shape else base.vxnets,
        hosts=tuple(_identified(host, tag) for host in file.hosts or ()) if own_shape else base.hosts,
        zone=base.zone if file.zone is None else file.zone,
        access_key_id=base.access_key_id if file.access_key_id is None else file.access_key_id,
        secret_access_key=base.secret_access_key if file.secret_access_key is None else file.secret_access_key,
        more_keys=tuple(KeySpec(key.access_key_id, key.secret_access_key) for key in file.more_keys),
        limits=file.limits,
        latencies=Latencies(**latencies),
        faults=make_faults(file.faults),
    )


def _identified(host: HostSpec, tag: str) -> HostSpec:
    return msgspec.structs.replace(host, instance_id=host.instance_id or f"i-{tag}{host.name.replace('-', '')}")


def _latency(name: str, value: str | float) -> Range:
    try:
        return parse_range(value)
    except ValueError as err:
        raise ValueError(f"latencies.{name}: {err}") from err


def _check(topology: Topology) -> None:
    """Raise ValueError, naming the key, for a topology that no cloud could have."""
    _check_texts(topology)
    for name, value in ((name, getattr(topology.limits, name)) for name in Limits.__struct_fields__):
        if value < 0:
            raise ValueError(f"limits.{name}: {value} is negative")
    _distinct("routers", "router_id", (router.router_id for router in topology.routers))
    _distinct("vxnets", "vxnet_id", (vxnet.vxnet_id for vxnet in topology.vxnets))
    _distinct("hosts", "name", (host.name for host in topology.hosts))
    _distinct("hosts", "instance_id", (host.instance_id for host in topology.hosts))
    routers = {
        router.router_id: _network(f"routers[{n}].vpc_network", router.vpc_network)
        for n, router in enumerate(topology.routers)
    }
    seen: dict[str, list[IPv4Network]] = {}
    for number, vxnet in enumerate(topology.vxnets):
        _check_vxnet(f"vxnets[{number}]", vxnet, routers, seen.setdefault(vxnet.router_id, []))
    vxnets = {vxnet.vxnet_id for vxnet in topology.vxnets}
    for number, fault in enumerate(topology.faults):
        if fault.vxnet and fault.vxnet not in vxnets:
            raise ValueError(f"faults[{number}].vxnet: vxnet {fault.vxnet!r} does not exist")
    for number, host in enumerate(topology.hosts):
        _check_host(f"hosts[{number}]", host, topology)


def _check_texts(topology: Topology) -> None:
    texts = {"zone": topology.zone}
    texts |= {"access_key_id": topology.access_key_id, "secret_access_key": topology.secret_access_key}
    for number, more in enumerate(topology.more_keys):
        texts[f"more_keys[{number}].access_key_id"] = more.access_key_id
        texts[f"more_keys[{number}].secret_access_key"] = more.secret_access_key
    for key, text in texts.items():
        if not re.fullmatch(r"[!-~]+", text):
            raise ValueError(f"{key}: printable characters without spaces are needed")
    if len(topology.keys) != 1 + len(topology.more_keys):
        raise ValueError("more_keys: an access_key_id is given twice")


def _check_host(key: str, host: HostSpec, topology: Topology) -> None:
    if not HOST_NAME.fullmatch(host.name):
        raise ValueError(f"{key}.name: {host.name!r}: up to 12 of a-z, 0-9 and '-' are allowed, not 'router…'")
    if not INSTANCE_ID.fullmatch(host.instance_id):
        raise ValueError(f"{key}.instance_id: {host.instance_id!r} is not of the form i-abc123")
    if host.vxnet_id not in {vxnet.vxnet_id for vxnet in topology.vxnets}:
        raise ValueError(f"{key}.vxnet_id: vxnet {host.vxnet_id!r} does not exist")
    if host.access_key_id and host.access_key_id not in topology.keys:
        raise ValueError(f"{key}.access_key_id: access key {host.access_key_id!r} does not exist")


def _check_vxnet(key: str, vxnet: VxnetSpec, routers: dict[str, IPv4Network], others: list[IPv4Network]) -> None:
    if vxnet.vxnet_type not in {0, 1, 2}:
        raise ValueError(f"{key}.vxnet_type: {vxnet.vxnet_type} is not 0, 1 or 2")
    if vxnet.router_id and vxnet.router_id not in routers:
        raise ValueError(f"{key}.router_id: router {vxnet.router_id!r} does not exist")
    if not vxnet.network:
        if vxnet.router_id or vxnet.manager_ip:
            raise ValueError(f"{key}.network: needed where router_id or manager_ip is given")
        return
    network = _network(f"{key}.network", vxnet.network)
    if vxnet.router_id and not network.subnet_of(routers[vxnet.router_id]):
        raise ValueError(f"{key}.network: {network} lies outside the router's {routers[vxnet.router_id]}")
    overlap = next((other for other in others if other.overlaps(network)), None)
    if overlap:
        raise ValueError(f"{key}.network: {network} overlaps {overlap} of another vxnet")
    others.append(network)
    if vxnet.manager_ip:
        try:
            address = IPv4Address(vxnet.manager_ip)
        except ValueError:
            address = network.network_address
        if not network.network_address < address < network.broadcast_address:
            raise ValueError(f"{key}.manager_ip: {vxnet.manager_ip!r} is not a host address of {network}")


def _network(key: str, text: str) -> IPv4Network:
    try:
        network = IPv4Network(text)
    except ValueError as err:
        raise ValueError(f"{key}: {err}") from err
    if not 8 <= network.prefixlen <= 29:
        raise ValueError(f"{key}: {network}: a prefix length of 8 to 29 is needed")
    return network


def _distinct(kind: str, key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for number, value in enumerate(values):
        if not value or re.search(r"\s", value):
            raise ValueError(f"{kind}[{number}].{key}: {value!r}: an id without spaces is needed")
        if value in seen:
            raise ValueError(f"{kind}[{number}].{key}: {value!r} is given twice")
        seen.add(value)
