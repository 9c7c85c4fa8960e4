"""The agent's settings: one table of names, kinds, defaults and help, and how the four sources are merged.

Flags, environment, file and documentation all follow SETTINGS; a setting that is not in it does not exist.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qingcloud_cni.agent.settings.values import (
    ADDRESS,
    FLAG,
    PATH,
    SECONDS,
    TEXTS,
    WHOLE,
    Address,
    ValueKind,
    choice,
    matching,
)
from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.nics.names import INSTANCE_ID, NIC_NAME_PREFIX
from qingcloud_cni.core.pool.pool_state import PoolPolicy
from qingcloud_cni.core.pool.vxnets import VxnetPolicy

ENVIRONMENT_PREFIX = "QINGAGENT_"
VXNET_PLACEHOLDER = "vxnet-xxxxxxx"
LONGEST_SHOWN = 100  # characters of a refused value; it may be a whole file
BOOT_ID = re.compile(r"[\x21-\x7e]{1,100}")  # the kernel's is a UUID
_ZONE = re.compile(r"[a-z][a-z0-9-]*")
_VXNET_ID = re.compile(r"vxnet-[0-9a-z]+")
_LINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_LINK_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,14}")  # also a part of NIC names, so without "_"


@dataclass(frozen=True, slots=True)
class Setting:
    """*name* as it is spelled in flags and files, *default* as a user would write it; "" = none."""

    name: str
    kind: ValueKind[Any]
    default: object
    help: str

    @property
    def field(self) -> str:
        return self.name.lower().replace("-", "_")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper().replace("-", "_")


SETTINGS: tuple[Setting, ...] = (
    # the seed's, in its spelling and order
    Setting("QYAccessFilePath", PATH, "/etc/qingcloud/client.yaml", "QingCloud Access File Path"),
    Setting("bindaddr", ADDRESS, "0.0.0.0:31080", "bind address of daemon process"),
    Setting("gatewayns", matching(_LINK_PREFIX, "a link name of at most 15 characters without '_'"), "hostnic",
            "gateway nic name"),
    Setting("iface", matching(_LINK_NAME, "a link name of at most 15 characters"), "eth0",
            "Default nic which is used by host and will not be deleted"),
    Setting("policy", choice(VxnetPolicy), "FailRotate",
            "policy of Selecting which vxnet to create nic from.(FailRotate,RoundRotate,Random)"),
    Setting("vxnet", TEXTS, VXNET_PLACEHOLDER, "vxnet id list"),
    Setting("zone", matching(_ZONE, "a zone in lower case, such as pek3a"), "pek3a", "QingCloud zone"),
    Setting("loglevel", choice(("debug", "info", "warn", "error")), "info", "log level(debug,info,warn,error)"),
    # the pool
    Setting("min-idle", WHOLE, 3, "NICs kept ready for the next containers"),
    Setting("max-idle", WHOLE, 8, "idle NICs above which the longest idle are detached and deleted"),
    Setting("idle-ttl", SECONDS, "10m", "a surplus NIC that has been idle for less is kept"),
    Setting("max-nics", WHOLE, 60, "NICs this host may hold for containers and gateways"),
    Setting("instance-nic-limit", WHOLE, 63, "NICs QingCloud lets an instance have beside its primary one"),
    Setting("cooldown", SECONDS, "130s", "rest before an address is used again"),
    Setting("cooldown-min", SECONDS, "30s", "rest that is enough while a container waits"),
    Setting("duplicate-probe", FLAG, "true", "ask whether an address is in use before its NIC is kept ready"),
    Setting("api-budget", WHOLE, 120, "calls of the QingCloud API an hour that this host makes at most; 1 or more"),
    Setting("nic-name-prefix", matching(NIC_NAME_PREFIX, "letters, digits and '-', at most 32, a letter first"),
            "qingcni", "first part of the names of NICs that the agent creates"),
    # identity and places
    Setting("instance-id", matching(INSTANCE_ID, "an instance id such as i-1234abcd"), "",
            "id of this instance; read from instance-id-file if not given"),
    Setting("instance-id-file", PATH, "/etc/qingcloud/instance-id", "file that holds the id of this instance"),
    Setting("boot-id-file", PATH, "/proc/sys/kernel/random/boot_id",
            "file that holds the id of this boot of the host; containers do not outlive it"),
    Setting("state-dir", PATH, "/var/lib/qingcloud-cni", "directory of the agent's database"),
    Setting("run-dir", PATH, "/run/qingcloud-cni", "directory of the agent's socket, token and spool"),
    Setting("allow-readable-access-file", FLAG, "false", "accept an access file that others than root may read"),
)  # fmt: skip
BY_KEY: Mapping[str, Setting] = {s.name.lower(): s for s in SETTINGS}
assert len(BY_KEY) == len(SETTINGS)


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked values, in the units of SETTINGS; durations in seconds."""

    qyaccessfilepath: Path
    bindaddr: Address
    gatewayns: str
    iface: str
    policy: str
    vxnet: tuple[str, ...]
    zone: str
    loglevel: str
    min_idle: int
    max_idle: int
    idle_ttl: float
    max_nics: int
    instance_nic_limit: int
    cooldown: float
    cooldown_min: float
    duplicate_probe: bool
    api_budget: int
    nic_name_prefix: str
    instance_id: str  # "" until `with_instance_id`
    instance_id_file: Path
    boot_id_file: Path
    state_dir: Path
    run_dir: Path
    allow_readable_access_file: bool

    @property
    def pool(self) -> PoolPolicy:
        return PoolPolicy(
            min_idle=self.min_idle,
            max_idle=self.max_idle,
            max_nics=self.max_nics,
            idle_ttl=self.idle_ttl,
            cooldown=self.cooldown,
            cooldown_min=self.cooldown_min,
        )

    @property
    def database(self) -> Path:
        return self.state_dir / "agent.db"

    @property
    def write_counter(self) -> Path:
        return self.run_dir / "agent.seal"

    @property
    def boot_time(self) -> Path:
        return self.state_dir / "boot-time"

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def spool(self) -> Path:
        return self.run_dir / "spool"

    @property
    def token_file(self) -> Path:
        return self.run_dir / "token"


@dataclass(frozen=True, slots=True)
class Given:
    """A value as somebody gave it, and where: "--vxnet", "QINGAGENT_VXNET", the path of a file."""

    value: object
    source: str


DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, and for each the source that decided it."""

    settings: Settings
    sources: Mapping[str, str]
    file: str = ""  # the config file that was read, if any


def resolve(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: Mapping[str, object],
    file_name: str,
    *,
    access_zone: Given | None = None,
) -> Resolved:
    """Merge: flag > environment > file > (the access file, for the zone) > default.

    Keys of *flags* and *file* are lower case. StartRefused names the source, the key, its value and what is wanted.
    Unknown variables pass: Kubernetes sets QINGAGENT_SERVICE_HOST and the like for a Service of that name.
    """
    unknown = sorted(set(file) - set(BY_KEY))
    if unknown:
        allowed = ", ".join(s.name for s in SETTINGS)
        raise StartRefused(f"{file_name}: unknown key {unknown[0]!r}; known are {allowed}")
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


def _given(
    setting: Setting,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    file: Mapping[str, object],
    file_name: str,
) -> Given:
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
        return ""
    try:
        return setting.kind.parse(given.value)
    except ValueError:
        where = _where(setting, given.source)
        raise StartRefused(f"{where} {_shown(given.value)} is refused: wanted {setting.kind.wanted}") from None


def _where(setting: Setting, source: str) -> str:
    """The setting as who gave it wrote it, and the file it stands in."""
    if source in (f"--{setting.name}", setting.variable):
        return source
    return setting.name if source == DEFAULT else f"{source}: {setting.name}"


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"


def _check(resolved: Resolved) -> None:
    """Rules that concern more than one value: each is named with who gave it."""
    settings = resolved.settings

    def told(name: str) -> str:
        return f"{name} {getattr(settings, BY_KEY[name].field)} ({resolved.sources[name]})"

    if settings.max_idle < settings.min_idle:
        raise StartRefused(f"{told('max-idle')} is below {told('min-idle')}; raise it to that")
    if settings.max_nics < 1:
        raise StartRefused(f"{told('max-nics')} leaves no NIC for any container; raise it")
    if settings.api_budget < 1:
        raise StartRefused(f"{told('api-budget')} leaves no call of the cloud; raise it")
    if settings.max_nics < settings.min_idle:
        raise StartRefused(f"{told('max-nics')} is below {told('min-idle')}; raise it or lower min-idle")
    if settings.gatewayns == settings.nic_name_prefix:
        raise StartRefused(
            f"{told('gatewayns')} is {told('nic-name-prefix')} as well; they tell NICs apart, so change one"
        )
    if settings.gatewayns == settings.iface:
        raise StartRefused(f"{told('gatewayns')} is {told('iface')} as well; a gateway NIC needs a name of its own")
    if len(os.fsencode(settings.socket)) > 107:  # sizeof(sun_path) - 1
        raise StartRefused(f"{told('run-dir')} is too long for a socket in it; choose a shorter --run-dir")


def read_instance_id(settings: Settings) -> str:
    """The id of this instance: the setting, else the content of the file."""
    if settings.instance_id:
        return settings.instance_id
    path = settings.instance_id_file
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as err:
        raise StartRefused(
            f"instance id file {path} cannot be read: {err.strerror};"
            " write this instance's id into it or give --instance-id"
        ) from err
    if not INSTANCE_ID.fullmatch(text):
        raise StartRefused(f"instance id file {path} holds {text[:40]!r}: wanted an instance id such as i-1234abcd")
    return text


def read_boot_id(settings: Settings) -> str:
    """The id of this boot of the host."""
    path = settings.boot_id_file
    try:
        boot_id = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as err:
        raise StartRefused(
            f"boot id file {path} cannot be read: {err.strerror}; give the right one with --boot-id-file"
        ) from err
    if not BOOT_ID.fullmatch(boot_id):
        raise StartRefused(
            f"boot id file {path} holds {boot_id[:40]!r}: wanted one word, the same until the next boot"
        )
    return boot_id


def check_vxnets(resolved: Resolved) -> None:
    """What only `start` and `cleanup` need: vxnets named by the operator."""
    where = _where(BY_KEY["vxnet"], resolved.sources["vxnet"])
    for vxnet_id in resolved.settings.vxnet:
        if vxnet_id == VXNET_PLACEHOLDER:
            raise StartRefused(
                f"{where} {VXNET_PLACEHOLDER} is the placeholder of the documentation; name your own with --vxnet"
            )
        if not _VXNET_ID.fullmatch(vxnet_id):
            raise StartRefused(f"{where} {_shown(vxnet_id)} is refused: wanted ids such as vxnet-1234abc")


assert [f.name for f in fields(Settings)] == [s.field for s in SETTINGS]
