"""Every key of a network configuration that the specification and the conventions define, and what ADD does with it.

No wish is dropped in silence: in the sections that are the plugin's own, a key without a row is rejected.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from qingcloud_cni.core.cni.reading import folded
from qingcloud_cni.core.errors import InvalidConfig


class Treatment(StrEnum):
    DONE = "done"
    REJECTED = "rejected"  # ADD fails with code 7 if the key has a value
    NOT_OURS = "not ours"


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """*name* has the sections before it; "*" stands for all keys of a section that have no row."""

    name: str
    treatment: Treatment
    why: str = ""
    allowed: str = ""  # the one value of a rejected key that changes nothing


_DONE, _REJECTED, _NOT_OURS = Treatment.DONE, Treatment.REJECTED, Treatment.NOT_OURS
_NIC_IS_THE_CLOUDS = "a NIC has the address that the cloud gave it; remove the key"
_CHAINED = "the work of a chained plugin"
_RUNTIME = "for the runtime"
_IPAM = "ipam"

KEYS: tuple[ConfigKey, ...] = (
    *(ConfigKey(name, _DONE) for name in ("cniVersion", "name", "prevResult", "isGateway", "ipMasq", "bindaddr")),
    ConfigKey("cni.dev/valid-attachments", _DONE),
    ConfigKey("cni.dev/attachments", _DONE),
    ConfigKey("ipMasqBackend", _REJECTED, "the agent masquerades with nftables; remove the key", allowed="nftables"),
    *(ConfigKey(name, _NOT_OURS, _RUNTIME) for name in (
        "type", "capabilities", "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "plugins")),
    ConfigKey("*", _NOT_OURS, "the specification leaves them to other plugins"),
    *(ConfigKey(f"args.{name}", _DONE) for name in (
        "BindAddr", "TokenFile", "SpoolDir", "InstanceID", "TimeoutSeconds", "DisableGC", "org.apache.mesos")),
    *(ConfigKey(f"args.cni.{name}", _DONE) for name in ("ips", "mac", "labels")),
    ConfigKey("args.*", _NOT_OURS, "optional data; the conventions let a plugin ignore what it does not know"),
    ConfigKey("args.cni.*", _NOT_OURS, "as in `args`"),
    ConfigKey(f"{_IPAM}.routes", _DONE),
    ConfigKey(f"{_IPAM}.type", _REJECTED, "the cloud assigns addresses, not another plugin; remove the key",
              allowed="qingcni"),
    ConfigKey(f"{_IPAM}.*", _REJECTED, _NIC_IS_THE_CLOUDS),
    *(ConfigKey(f"{_IPAM}.routes[].{name}", _DONE) for name in (
        "dst", "gw", "mtu", "advmss", "priority", "table", "scope")),
    ConfigKey(f"{_IPAM}.routes[].*", _REJECTED, "a route has no such key; remove it"),
    *(ConfigKey(f"dns.{name}", _DONE) for name in ("nameservers", "domain", "search", "options")),
    ConfigKey("dns.*", _REJECTED, "`dns` has no such key; remove it"),
    *(ConfigKey(f"runtimeConfig.{name}", _DONE) for name in ("ips", "mac", "dns")),
    *(ConfigKey(f"runtimeConfig.dns.{name}", _DONE) for name in ("servers", "searches", "options")),
    ConfigKey("runtimeConfig.dns.*", _REJECTED, "the capability `dns` has no such key; remove it"),
    ConfigKey("runtimeConfig.portMappings", _NOT_OURS, f"{_CHAINED}: `portmap`"),
    ConfigKey("runtimeConfig.bandwidth", _NOT_OURS, f"{_CHAINED}: `bandwidth`"),
    ConfigKey("runtimeConfig.aliases", _NOT_OURS, f"{_CHAINED}: `dnsname`"),
    ConfigKey("runtimeConfig.ipRanges", _REJECTED, "a NIC has the address that the cloud gave it; remove the"
              " capability"),
    ConfigKey("runtimeConfig.deviceID", _REJECTED, "the agent chooses the NIC; request it by the capability `mac`"),
    ConfigKey("runtimeConfig.infinibandGUID", _REJECTED, "NICs are Ethernet; remove the capability"),
    ConfigKey("runtimeConfig.*", _NOT_OURS, "capabilities of other plugins, such as `cgroupPath`"),
)  # fmt: skip
_BY_NAME: Mapping[str, ConfigKey] = {key.name.lower(): key for key in KEYS}
assert len(_BY_NAME) == len(KEYS)
_SECTIONS = tuple(name.removesuffix("*") for name in _BY_NAME if name.endswith("*"))


def treatment_of(name: str) -> ConfigKey:
    """Return the row of a key that is written as in KEYS, in any case."""
    name = name.lower()
    section = max((s for s in _SECTIONS if name.startswith(s)), key=len)
    return _BY_NAME.get(name) or _BY_NAME[f"{section}*"]


def check_keys(config: Mapping[str, object]) -> None:
    """InvalidConfig if a rejected key has a value; null, false, 0 and what is empty request nothing."""
    for name, shown, value in _keys_of(config):
        row = treatment_of(name)
        if row.treatment is Treatment.REJECTED and value and value != row.allowed:
            raise InvalidConfig(f"{shown} {value!r} is not supported: {row.why.replace('`', '')}")


def _keys_of(config: Mapping[str, object]) -> Iterator[tuple[str, str, object]]:
    """Yield each key of the sections with rejected keys: as in KEYS, as an error shows it, and its value."""
    keys = folded(config)
    ipam, runtime = (_object(keys.get(name)) for name in ("ipam", "runtimeconfig"))
    routes = ipam.get("routes")
    sections = [
        ("", "", config),
        ("ipam.", "ipam.", keys.get("ipam")),
        ("dns.", "dns.", keys.get("dns")),
        ("runtimeConfig.", "runtimeConfig.", keys.get("runtimeconfig")),
        ("runtimeConfig.dns.", "runtimeConfig.dns.", runtime.get("dns")),
        *(
            ("ipam.routes[].", f"ipam.routes[{n}].", route)
            for n, route in enumerate(routes if isinstance(routes, list) else ())
        ),
    ]
    for name, shown, section in sections:
        if isinstance(section, Mapping):
            yield from ((f"{name}{key}", f"{shown}{key}", value) for key, value in section.items())


def _object(value: object) -> dict[str, object]:
    """Return a section with folded keys; {} for another type, which its reader rejects."""
    return folded(value) if isinstance(value, dict) else {}
