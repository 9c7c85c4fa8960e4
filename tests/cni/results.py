"""Results as libcni's types hold them: what decoding refuses and forgets, what converting changes. For tests.

Written from the specification and from what was measured of the library. Nothing of the package is used, so it can
contradict it. Stricter than the library in one thing: an address or a route without its network is refused.
"""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

OLD = ("0.1.0", "0.2.0")
MIDDLE = ("0.3.0", "0.3.1", "0.4.0")
NEW = ("1.0.0", "1.1.0")
VERSIONS = (*OLD, *MIDDLE, *NEW)


class CannotDecode(ValueError):
    """The document is not a result of its version."""


_Kind = Callable[[str, object], Any]


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise CannotDecode(f"{where} {value!r} is not a string")
    return value


def _number(where: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise CannotDecode(f"{where} {value!r} is not a whole number")
    return value


def _address(where: str, value: object) -> str:
    text = _text(where, value)
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError as err:
        raise CannotDecode(f"{where}: {err}") from None


def _network(where: str, value: object) -> str:
    text = _text(where, value)
    try:
        if "/" in text:
            return str(ipaddress.ip_interface(text))
    except ValueError:
        pass
    raise CannotDecode(f"{where} {text!r} is not an address with its prefix length")


def _list(kind: _Kind) -> _Kind:
    def decode(where: str, value: object) -> list[Any]:
        if not isinstance(value, list):
            raise CannotDecode(f"{where} {value!r} is not a list")
        return [kind(f"{where}[{n}]", item) for n, item in enumerate(value)]

    return decode


def _object(
    *, needed: Mapping[str, _Kind] | None = None, kept: Mapping[str, _Kind] | None = None, **rest: _Kind
) -> _Kind:
    """Fields that must be there, those that stay even if they are 0, and those left out where they are empty."""
    needed, kept = needed or {}, kept or {}

    def decode(where: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise CannotDecode(f"{where} {value!r} is not an object")
        given = {key.lower(): item for key, item in value.items() if item is not None}
        if missing := [key for key in needed if key.lower() not in given]:
            raise CannotDecode(f"{where} has no {', '.join(missing)}")
        found = {}
        for key, kind in {**needed, **kept, **rest}.items():
            if key.lower() in given:
                decoded = kind(f"{where}.{key}", given[key.lower()])
                if decoded or key in needed or key in kept:
                    found[key] = decoded
        return found

    return decode


_DNS = _object(nameservers=_list(_text), domain=_text, search=_list(_text), options=_list(_text))
_ROUTE = _object(
    needed={"dst": _network}, kept={"table": _number, "scope": _number},
    gw=_address, mtu=_number, advmss=_number, priority=_number,
)  # fmt: skip
_IP4 = _object(needed={"ip": _network}, gateway=_address, routes=_list(_ROUTE))
_INTERFACE = _object(needed={"name": _text}, mac=_text, sandbox=_text)
_INTERFACE_NEW = _object(needed={"name": _text}, mac=_text, sandbox=_text, mtu=_number, socketPath=_text, pciID=_text)
_IP_NEW = _object(needed={"address": _network}, kept={"interface": _number}, gateway=_address)
_IP_VERSIONED = _object(needed={"address": _network}, kept={"version": _text, "interface": _number}, gateway=_address)


def _ip(where: str, value: object) -> dict[str, Any]:
    """The reference plugin `loopback` leaves `version` out; libcni hands that on as an empty one."""
    found: dict[str, Any] = _IP_VERSIONED(where, value)
    return {"version": "", **found}


_SHAPES = {
    OLD: _object(ip4=_IP4, ip6=_IP4, kept={"dns": _DNS}),
    MIDDLE: _object(interfaces=_list(_INTERFACE), ips=_list(_ip), routes=_list(_ROUTE), kept={"dns": _DNS}),
    NEW: _object(interfaces=_list(_INTERFACE_NEW), ips=_list(_IP_NEW), routes=_list(_ROUTE), dns=_DNS),
}


def _group(version: str) -> tuple[str, ...]:
    for group in _SHAPES:
        if version in group:
            return group
    raise CannotDecode(f"unsupported CNI result version {version!r}")


def decode(document: object, version: str) -> dict[str, Any]:
    """*document* as a result of *version*, with the keys that version has and no others."""
    group = _group(version)
    found: dict[str, Any] = _SHAPES[group]("result", document)
    return {"cniVersion": version, **({} if group is NEW else {"dns": {}}), **found}


def convert(result: Mapping[str, Any], version: str) -> dict[str, Any]:
    """A decoded *result* in the shape of *version*."""
    if result["cniVersion"] == version:
        return dict(result)
    here, there = _group(result["cniVersion"]), _group(version)
    fields: dict[str, Any] = {"interfaces": [], "ips": [], "routes": [], "dns": {}, **result}
    if here is OLD:
        families = [(number, result[f"ip{number}"]) for number in ("4", "6") if f"ip{number}" in result]
        fields["ips"] = [
            {"version": number, "address": ip["ip"]} | ({"gateway": ip["gateway"]} if "gateway" in ip else {})
            for number, ip in families
        ]
        fields["routes"] = [route for _, ip in families for route in ip.get("routes", [])]
    fields["ips"] = [{"version": _family(ip["address"]), **ip} for ip in fields["ips"]]
    if there is OLD:
        return {**result, "cniVersion": version} if here is OLD else _old(fields, version)
    return decode({key: fields[key] for key in ("interfaces", "ips", "routes", "dns")}, version)  # drops the rest


def _old(fields: Mapping[str, Any], version: str) -> dict[str, Any]:
    document: dict[str, Any] = {"dns": fields["dns"]}
    for ip in fields["ips"]:
        if ip["version"]:
            found = {"ip": ip["address"], "gateway": ip.get("gateway", ""), "routes": []}
            document.setdefault(f"ip{ip['version']}", found)
    if document.keys() == {"dns"}:
        raise CannotDecode("cannot convert: no valid IP addresses")
    for route in fields["routes"]:
        if ip := document.get(f"ip{_family(route['dst'])}"):
            ip["routes"].append({key: route[key] for key in ("dst", "gw") if key in route})
    return decode(document, version)


def _family(address: str) -> str:
    return str(ipaddress.ip_interface(address).version)
