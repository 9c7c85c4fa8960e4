"""Resolving the settings: flag, environment, config file, access file and default, merged and checked."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qingcloud_cni.agent.settings.settings import BY_KEY, SETTINGS, VXNET_PLACEHOLDER, Setting, Settings
from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.nics.names import INSTANCE_ID

LONGEST_SHOWN = 100  # characters of a rejected value, which may be a whole file
BOOT_ID = re.compile(r"[\x21-\x7e]{1,100}")  # the kernel's is a UUID
Raw = Mapping[str, object]  # values by the key of the setting, as a source has them
_VXNET_ID = re.compile(r"vxnet-[0-9a-z]+")


@dataclass(frozen=True, slots=True)
class Given:
    """A raw value and its source: "--vxnet", "QINGAGENT_VXNET", the path of a file."""

    value: object
    source: str


DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, and by name the source of each."""

    settings: Settings
    sources: Mapping[str, str]
    file: str = ""  # the config file that was read, if any


def resolve(
    flags: Raw, environment: Mapping[str, str], file: Raw, file_name: str, *, access_zone: Given | None = None
) -> Resolved:
    """Merge: flag > environment > file > (the access file, for the zone) > default.

    Keys of *flags* and *file* are lower case. StartRefused names source, key, value and what is expected. Unknown
    variables are ignored: Kubernetes sets QINGAGENT_SERVICE_HOST for a Service named qingagent.
    """
    unknown = sorted(set(file) - set(BY_KEY))
    if unknown:
        allowed = ", ".join(s.name for s in SETTINGS)
        raise StartRefused(f"{file_name}: unknown key {unknown[0]!r}; known keys: {allowed}")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        given = _given(setting, flags, environment, file, file_name)
        if given.source == DEFAULT and setting.name == "zone" and access_zone is not None:
            given = access_zone
        sources[setting.name] = given.source
        values[setting.field] = _parsed(setting, given)
    merged = Resolved(Settings(**values), sources, file_name)
    _check(merged)
    return merged


def _given(setting: Setting, flags: Raw, environment: Mapping[str, str], file: Raw, file_name: str) -> Given:
    key = setting.name.lower()
    if key in flags:
        return Given(flags[key], f"--{setting.name}")
    if environment.get(setting.variable):
        return Given(environment[setting.variable], setting.variable)
    if file.get(key) is not None:
        return Given(file[key], file_name)
    return Given(setting.default, DEFAULT)


def _parsed(setting: Setting, given: Given) -> object:
    if given.source == DEFAULT and given.value == "":
        return setting.kind.empty
    try:
        return setting.kind.parse(given.value)
    except ValueError:
        where = _where(setting, given.source)
        raise StartRefused(f"{where} {_shown(given.value)}: rejected: expected {setting.kind.expected}") from None


def _where(setting: Setting, source: str) -> str:
    """The setting as its source spells it, with the file that has it."""
    if source in (f"--{setting.name}", setting.variable):
        return source
    return setting.name if source == DEFAULT else f"{source}: {setting.name}"


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"


def _check(resolved: Resolved) -> None:
    """Check the rules on several values; errors name each with its source."""
    settings = resolved.settings

    def shown(name: str) -> str:
        return f"{name} {getattr(settings, BY_KEY[name].field)} ({resolved.sources[name]})"

    if settings.max_idle < settings.min_idle:
        raise StartRefused(f"{shown('max-idle')} is below {shown('min-idle')}; raise it")
    if settings.max_nics < 1:
        raise StartRefused(f"{shown('max-nics')} leaves no NIC for containers; raise it")
    if settings.api_budget < 1:
        raise StartRefused(f"{shown('api-budget')} allows no call of the cloud; raise it")
    if settings.max_nics < settings.min_idle:
        raise StartRefused(f"{shown('max-nics')} is below {shown('min-idle')}; raise it or lower min-idle")
    if settings.gatewayns == settings.nic_name_prefix:
        raise StartRefused(
            f"{shown('gatewayns')} equals {shown('nic-name-prefix')}; they tell NICs apart, so change one"
        )
    if settings.gatewayns == settings.iface:
        raise StartRefused(f"{shown('gatewayns')} equals {shown('iface')}; a gateway NIC needs another name")
    if len(os.fsencode(settings.socket)) > 107:  # sizeof(sun_path) - 1
        raise StartRefused(f"{shown('run-dir')} is too long for a socket in it; choose a shorter --run-dir")


def known_instance_id(resolved: Resolved) -> str:
    """The setting, or the content of the file; "" without a setting if the default file does not exist."""
    settings, is_default = resolved.settings, resolved.sources["instance-id-file"] == DEFAULT
    if not settings.instance_id and is_default and not os.path.lexists(settings.instance_id_file):
        return ""
    return read_instance_id(settings)


def read_instance_id(settings: Settings) -> str:
    """The setting, or the content of the file."""
    if settings.instance_id:
        return settings.instance_id
    advice = "write this instance's id into it, or set --instance-id"
    expected = "an instance id such as i-1234abcd"
    return _read_id("instance id file", settings.instance_id_file, INSTANCE_ID, expected, advice)


def read_boot_id(settings: Settings) -> str:
    expected = "one word, the same until the next boot"
    return _read_id("boot id file", settings.boot_id_file, BOOT_ID, expected, "set --boot-id-file")


def _read_id(kind: str, path: Path, pattern: re.Pattern[str], expected: str, advice: str) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as err:
        raise StartRefused(f"{kind} {path}: read failed: {err.strerror}; {advice}") from err
    if not pattern.fullmatch(text):
        raise StartRefused(f"{kind} {path} holds {text[:40]!r}: expected {expected}")
    return text


def check_vxnets(resolved: Resolved) -> None:
    """Check that the operator has set vxnet ids, which only an agent needs."""
    where = _where(BY_KEY["vxnet"], resolved.sources["vxnet"])
    for vxnet_id in resolved.settings.vxnet:
        if vxnet_id == VXNET_PLACEHOLDER:
            raise StartRefused(
                f"{where} {VXNET_PLACEHOLDER} is the placeholder of the documentation; set your own with --vxnet"
            )
        if not _VXNET_ID.fullmatch(vxnet_id):
            raise StartRefused(f"{where} {_shown(vxnet_id)}: rejected: expected ids such as vxnet-1234abc")
