"""The network configuration and CNI_ARGS, checked: requests of ADD, valid attachments of GC."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from qingcloud_cni.core.cni.config_keys import check_keys
from qingcloud_cni.core.cni.protocol import network_name, version_of
from qingcloud_cni.core.cni.reading import flag, folded, section, sections, text, texts
from qingcloud_cni.core.cni.results import Result, read_dns, read_result
from qingcloud_cni.core.cni.routes import UNSPECIFIED, read_routes
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Dns, Nic, Route, Workload
from qingcloud_cni.core.nics.names import MAC

VALID_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")  # of GC; the second one as in the tag spec-v1.1.0


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """The address and MAC that a container requests, each "" for any."""

    address: str = ""  # with or without prefix length
    mac: str = ""  # lower case
    requested_by: str = ""  # the keys, for messages

    def __bool__(self) -> bool:
        return bool(self.address or self.mac)

    def __str__(self) -> str:
        parts = [f"address {self.address}"] if self.address else []
        parts += [f"MAC {self.mac}"] if self.mac else []
        return f"{' with '.join(parts)} (requested by {self.requested_by})"

    def fits(self, nic: Nic) -> bool:
        return self.mac in ("", nic.nic_id) and self.address in ("", nic.address, nic.host_address)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    cni_version: str
    name: str
    routes: tuple[Route, ...]  # as `read_routes` returns them
    dns: Dns
    is_gateway: bool
    ip_masq: bool
    request: AddressRequest = field(default_factory=AddressRequest)
    workload: Workload = field(default_factory=Workload)
    previous: Result | None = None  # of the earlier plugins in the chain

    @property
    def services(self) -> tuple[str, ...]:
        """The ranges to reach through this host's gateway: routes via 0.0.0.0."""
        return tuple(r.dst for r in self.routes if r.gw == UNSPECIFIED)


def read_config(config: Mapping[str, object], cni_args: str = "") -> NetworkConfig:
    """Check what ADD needs of a network configuration; keys are case-insensitive."""
    check_keys(config)
    keys = folded(config)
    args = section("args", keys.get("args"))
    runtime = section("runtimeConfig", keys.get("runtimeconfig"))
    pairs = read_cni_args(cni_args)
    return NetworkConfig(
        cni_version=version_of(config),
        name=network_name(config),
        routes=read_routes(keys.get("ipam")),
        dns=_with_runtime_dns(read_dns("dns", keys.get("dns")), runtime.get("dns")),
        is_gateway=flag(keys, "isGateway", default=True),
        ip_masq=flag(keys, "ipMasq", default=False),
        request=_address_request(runtime, _object(args.get("cni")), pairs),
        workload=_workload(args, pairs),
        previous=read_previous(config),
    )


def read_previous(config: Mapping[str, object]) -> Result | None:
    """Return the `prevResult`, in any supported version, if there is one."""
    value = folded(config).get("prevresult")
    return None if value is None else read_result("prevResult", value, version_of(config))


def read_cni_args(cni_args: str) -> dict[str, str]:
    """Return the pairs of CNI_ARGS: `K=V;K=V`. Readers ignore malformed pairs and unknown keys."""
    pairs = (pair.partition("=") for pair in cni_args.split(";"))
    return {key: value for key, equals, value in pairs if key and equals}


# --- dns ---------------------------------------------------------------------------------------------


def _with_runtime_dns(dns: Dns, value: object) -> Dns:
    """Replace each list that the runtime gives; its keys are not those of `dns`."""
    keys = section("runtimeConfig.dns", value)
    servers, searches, options = (
        texts(f"runtimeConfig.dns.{k}", keys.get(k)) for k in ("servers", "searches", "options")
    )
    return replace(
        dns, nameservers=servers or dns.nameservers, search=searches or dns.search, options=options or dns.options
    )


# --- requested address and MAC -----------------------------------------------------------------------


def _address_request(
    runtime: Mapping[str, object], cni: Mapping[str, object], pairs: Mapping[str, str]
) -> AddressRequest:
    """Read the first source that has one: the capability, then `args`, then CNI_ARGS."""
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
    by_address = next((where for where, requested in addresses.items() if requested), "")
    by_mac = next((where for where, requested in macs.items() if requested), "")
    return AddressRequest(
        _requested_address(by_address, addresses[by_address]) if by_address else "",
        _requested_mac(by_mac, macs[by_mac]) if by_mac else "",
        " and ".join(filter(None, (by_address, by_mac))),
    )


def _requested_address(where: str, addresses: tuple[str, ...]) -> str:
    if len(addresses) > 1:
        raise InvalidConfig(f"{where}: {', '.join(addresses)}: a NIC has one address; request one at most")
    (address,) = addresses
    try:
        return str(ipaddress.IPv4Interface(address) if "/" in address else ipaddress.IPv4Address(address))
    except ValueError:
        raise InvalidConfig(f"{where}: {address!r} is not an IPv4 address; NICs have no others") from None


def _requested_mac(where: str, mac: str) -> str:
    if not MAC.fullmatch(mac.lower()):
        raise InvalidConfig(f"{where}: {mac!r} is not a MAC such as 52:54:9e:01:02:03")
    return mac.lower()


# --- the container -----------------------------------------------------------------------------------


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
    """Return the labels with key and value; they are optional, so others are ignored."""
    entries = [_object(entry) for entry in value] if isinstance(value, list) else []
    pairs = [(entry.get("key"), entry.get("value", "")) for entry in entries]
    return tuple((key, label) for key, label in pairs if isinstance(key, str) and isinstance(label, str))


def _object(value: object) -> dict[str, object]:
    return folded(value) if isinstance(value, dict) else {}


# --- GC ----------------------------------------------------------------------------------------------


def is_gc_disabled(config: Mapping[str, object]) -> bool:
    """Read `args.DisableGC`: runtimes do not pass a list's `disableGC` to plugins."""
    args = section("args", folded(config).get("args"))
    return flag(args, "DisableGC", default=False, within="args.")


def valid_attachments(config: Mapping[str, object], network: str) -> frozenset[AttachmentKey] | None:
    """Return the attachments of *network* to retain; null is an empty list, None says that there is no list."""
    keys = folded(config)
    key = next((key for key in VALID_KEYS if key in keys), None)
    if key is None:
        return None
    found = set()
    for n, entry in enumerate(sections(key, keys[key])):
        container_id, ifname = (text(f"{key}[{n}].{k}", entry.get(k.lower())) for k in ("containerID", "ifname"))
        if not (container_id and ifname):
            raise InvalidConfig(f"{key}[{n}]: containerID or ifname is missing, so nothing is freed")
        found.add(AttachmentKey(network, container_id, ifname))
    return frozenset(found)


def unlisted_attachments(
    attachments: Iterable[Attachment], network: str, valid: frozenset[AttachmentKey]
) -> tuple[Attachment, ...]:
    """Return the attachments of *network* that are not in *valid*. Their namespaces may still live."""
    return tuple(a for a in attachments if a.key.network == network and a.key not in valid)
