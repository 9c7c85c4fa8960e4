"""The state of a NIC's link as the cloud plugged it in, and how another state differs from it. Pure."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from qingcloud_cni.kernel.netlink.messages import IFLA_MTU, LinkChange, LinkInfo
from qingcloud_cni.kernel.nic_state.link_attributes import (
    FLAG_MASK,
    PLUGGED_FLAGS,
    RESTORED,
    SIZES,
    show,
    show_flags,
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a container can change on a link and a move keeps. Programs and links above it are never part of it."""

    attributes: Mapping[int, bytes] = field(default_factory=dict)  # those of RESTORED
    features: str = ""  # wanted offloads, as `ethtool.wanted_features`
    ethtool: Mapping[str, str] = field(default_factory=dict)
    sysfs: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> "Description | None":
        """Read `str`; None for "" and for the text of a version that cannot be read."""
        return _parsed(text)

    def __str__(self) -> str:
        """Compact JSON, for the NIC's row."""
        fields = {
            "link": {str(number): value.hex() for number, value in self.attributes.items()},
            "features": self.features,
            "ethtool": dict(self.ethtool),
            "sysfs": dict(self.sysfs),
        }
        return json.dumps(fields, separators=(",", ":"), sort_keys=True)

    @property
    def mtu(self) -> int:
        return int.from_bytes(self.attributes[IFLA_MTU], "little")

    def differences(self, now: "Description") -> Iterator[str]:
        """What is not as described, for people: "NOARP", "txqlen 7 instead of 1000"."""
        for number in self.attributes.keys() & now.attributes.keys():
            was, value = self.attributes[number], now.attributes[number]
            if was != value:
                yield f"{RESTORED.get(number, number)} {show(number, value)} instead of {show(number, was)}"
        if self.features and now.features and self.features != now.features:
            yield f"offloads {now.features} instead of {self.features}"
        for mine, theirs in ((self.ethtool, now.ethtool), (self.sysfs, now.sysfs)):
            for name in mine.keys() & theirs.keys():
                if mine[name] != theirs[name]:
                    yield f"{name} {theirs[name]} instead of {mine[name]}"


@lru_cache(256)
def _parsed(text: str) -> Description | None:
    try:
        fields: dict[str, Any] = json.loads(text)
        attributes = {int(number): bytes.fromhex(value) for number, value in fields["link"].items()}
        found = Description(attributes, str(fields["features"]), dict(fields["ethtool"]), dict(fields["sysfs"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if IFLA_MTU in attributes else None


def attributes_of(link: LinkInfo) -> dict[int, bytes]:
    return {number: link.attributes[number] for number in RESTORED if number in link.attributes}


def link_differences(link: LinkInfo, plugged: Description | None) -> Iterator[str]:
    """What GETLINK shows that a plugged NIC has not; without a description only what none has."""
    if (link.flags ^ PLUGGED_FLAGS) & FLAG_MASK:
        yield f"flags {show_flags(link.flags)} instead of {show_flags(PLUGGED_FLAGS)}"
    if link.xdp:
        yield f"XDP program {link.xdp[0].program}"
    if plugged is not None:
        yield from Description(plugged.attributes).differences(Description(attributes_of(link)))


def restoring_change(link: LinkInfo, plugged: Description | None) -> LinkChange:
    """The change of flags and attributes that brings *link* back; MTU, name, MAC and alias are the caller's."""
    is_off = bool((link.flags ^ PLUGGED_FLAGS) & FLAG_MASK)
    attributes: tuple[tuple[int, bytes], ...] = ()
    if plugged is not None:
        wanted = {n: v for n, v in plugged.attributes.items() if n != IFLA_MTU and n in link.attributes}
        changed = {number for number, value in wanted.items() if link.attributes[number] != value}
        if changed & SIZES:
            changed |= SIZES & wanted.keys()
        attributes = tuple((number, wanted[number]) for number in wanted if number in changed)
    return LinkChange(
        flags=PLUGGED_FLAGS if is_off else 0, flag_mask=FLAG_MASK if is_off else 0, attributes=attributes
    )
