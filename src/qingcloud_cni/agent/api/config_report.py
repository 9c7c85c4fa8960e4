"""The settings with their sources, for `qingagent config check` and `GET /v1/config`. Without keys and token."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from qingcloud_cni.agent.api.views import CloudView, ConfigView, SettingValue, SettingView
from qingcloud_cni.agent.settings.resolution import Resolved
from qingcloud_cni.agent.settings.settings import SETTINGS
from qingcloud_cni.agent.settings.values import Address
from qingcloud_cni.cloud import Access

CHECKED_AT_START: Sequence[str] = (
    "the user is root, and the kernel has the required features",
    "no other agent runs in this network namespace",
    "iface is a link of this host, which has a NIC",
    "bindaddr, metrics-bind and run-dir are free, state-dir is writable",
    "the cloud answers, and accepts the keys and this host's clock",
    "the cloud knows the instance, the NIC of iface is one of its NICs, and it is in a VPC",
    "every vxnet is managed and of that VPC",
)


def config_report(resolved: Resolved, instance_id: str, access: Access) -> ConfigView:
    """Durations are in seconds."""
    values = {s.name: _jsonable(getattr(resolved.settings, s.field)) for s in SETTINGS}
    sources: Mapping[str, str] = resolved.sources
    if not resolved.settings.instance_id:
        values["instance-id"] = instance_id
        source = str(resolved.settings.instance_id_file) if instance_id else "the cloud, at the start"
        sources = {**sources, "instance-id": source}
    return ConfigView(
        file=resolved.file,
        settings=[SettingView(name, value, sources[name]) for name, value in values.items()],
        cloud=msgspec.convert(access, CloudView, from_attributes=True),
    )


def _jsonable(value: SettingValue | Path | Address | tuple[str | Path, ...]) -> SettingValue:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return str(value) if isinstance(value, Path | Address) else value
