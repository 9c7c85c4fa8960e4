"""The table of the agent's settings. Flags, variables, keys of the file and documentation are made from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qingcloud_cni.agent.settings.values import (
    ADDRESS,
    BINDADDR,
    FLAG,
    METRICS_ADDRESS,
    PATH,
    PATHS,
    SECONDS,
    TEXTS,
    WHOLE,
    Address,
    ValueKind,
    choice,
    matching,
)
from qingcloud_cni.core.nics.names import INSTANCE_ID, NIC_NAME_PREFIX
from qingcloud_cni.core.pool.pool_state import PoolPolicy
from qingcloud_cni.core.pool.vxnets import VxnetPolicy

ENVIRONMENT_PREFIX = "QINGAGENT_"
VXNET_PLACEHOLDER = "vxnet-xxxxxxx"
_ZONE = re.compile(r"[a-z][a-z0-9-]*")
_LINK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_LINK_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,14}")  # also a part of NIC names, so without "_"


@dataclass(frozen=True, slots=True)
class Setting:
    """*name* as in flags and files, *default* as a user would write it; "" for none.

    *held* describes what a start with another value does to the NICs and containers that the agent holds already.
    """

    name: str
    kind: ValueKind[Any]
    default: object
    help: str
    held: str = ""  # "" if only what comes later differs

    @property
    def field(self) -> str:
        return self.name.lower().replace("-", "_")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper().replace("-", "_")


SETTINGS: tuple[Setting, ...] = (
    # those of the earlier agent, in its spelling and order
    Setting("QYAccessFilePath", PATH, "/etc/qingcloud/client.yaml", "QingCloud Access File Path"),
    Setting("bindaddr", ADDRESS, "0.0.0.0:31080", "bind address of daemon process"),
    Setting("gatewayns", matching(_LINK_PREFIX, "a link name of at most 15 characters without '_'"), "hostnic",
            "gateway nic name",
            held="The agent renames the links of gateway NICs. The NICs keep their names in the cloud, and stay."),
    Setting("iface", matching(_LINK_NAME, "a link name of at most 15 characters"), "eth0",
            "Default nic which is used by host and will not be deleted",
            held="The agent leaves the NIC of the new link alone. The former one is a foreign NIC."),
    Setting("policy", choice(VxnetPolicy), "FailRotate",
            "policy of Selecting which vxnet to create nic from.(FailRotate,RoundRotate,Random)"),
    Setting("vxnet", TEXTS, VXNET_PLACEHOLDER, "vxnet id list",
            held="No NIC of another vxnet serves again. The agent releases idle, cooling and quarantined ones and"
            " unused gateways at once, others after the DEL of their container."),
    Setting("zone", matching(_ZONE, "a zone in lower case, such as pek3a"), "pek3a", "QingCloud zone"),
    Setting("loglevel", choice(("debug", "info", "warn", "error")), "info", "log level(debug,info,warn,error)"),
    # the pool
    Setting("min-idle", WHOLE, 3, "idle NICs to hold ready", held="The pool grows to it at once."),
    Setting("max-idle", WHOLE, 8, "idle NICs above which the longest idle are deleted",
            held="The agent releases NICs above it that have been idle for `idle-ttl`."),
    Setting("idle-ttl", SECONDS, "10m", "time that a surplus NIC stays idle before it is deleted",
            held="It counts from the moment at which a NIC became idle, before the start as well."),
    Setting("max-nics", WHOLE, 60, "maximum of NICs of this host, gateways included",
            held="The agent releases NICs above it at once: idle ones, then cooling ones, others after the DEL of"
            " their container. `min-idle` does not keep them."),
    Setting("instance-nic-limit", WHOLE, 63, "QingCloud's maximum of NICs per instance beside the primary one",
            held="As `max-nics`."),
    Setting("cooldown", SECONDS, "130s", "time before an address is used again",
            held="It holds for addresses that cool down already, from their release. Idle NICs stay idle."),
    Setting("cooldown-min", SECONDS, "30s", "the same while a container waits", held="As `cooldown`."),
    Setting("duplicate-probe", FLAG, "true", "probe whether an address is in use before its NIC becomes idle",
            held="On: the agent probes the addresses of all idle NICs. Off: quarantined NICs become idle."),
    Setting("api-budget", WHOLE, 120, "maximum of this host's calls of the QingCloud API per hour; at least 1"),
    Setting("nic-name-prefix", matching(NIC_NAME_PREFIX, "letters, digits and '-', at most 32, a letter first"),
            "qingcni", "prefix of the names of NICs that the agent creates",
            held="NICs in the agent's table keep their names and serve on. Without the state file the agent does not"
            " recognise them: drain the host first."),
    Setting("metrics-bind", METRICS_ADDRESS, BINDADDR,
            "address of /metrics, /healthz and /readyz: with the API at bindaddr, elsewhere, or off"),
    # identity and directories
    Setting("instance-id", matching(INSTANCE_ID, "an instance id such as i-1234abcd"), "",
            "id of this instance; by default the content of instance-id-file, or what the cloud says"),
    Setting("instance-id-file", PATH, "/etc/qingcloud/instance-id", "file with the id of this instance"),
    Setting("boot-id-file", PATH, "/proc/sys/kernel/random/boot_id",
            "file with the id of the host's current boot, after which its containers are gone",
            held="Another id ends all containers' attachments."),
    Setting("state-dir", PATH, "/var/lib/qingcloud-cni", "directory of the agent's database",
            held="The agent rebuilds its table from cloud and kernel. NICs and containers stay."),
    Setting("run-dir", PATH, "/run/qingcloud-cni", "directory of the agent's socket, token and spool",
            held="DELs in the former spool are not read. The agent releases their NICs once it sees that the"
            " namespaces are gone."),
    Setting("allow-readable-access-file", FLAG, "false", "accept an access file that other users can read"),
    Setting("simulator-netns", PATHS, "", "network namespaces of the routers of qingcloud-sim, only on its hosts"),
)  # fmt: skip
BY_KEY: Mapping[str, Setting] = {s.name.lower(): s for s in SETTINGS}
assert len(BY_KEY) == len(SETTINGS)


@dataclass(frozen=True, slots=True)
class Settings:
    """Valid values; durations in seconds."""

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
    metrics_bind: Address | str  # BINDADDR or OFF
    instance_id: str  # "": see `read_instance_id`
    instance_id_file: Path
    boot_id_file: Path
    state_dir: Path
    run_dir: Path
    allow_readable_access_file: bool
    simulator_netns: tuple[Path, ...]

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
    def found_instance(self) -> Path:
        return self.state_dir / "found-instance"

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


assert [f.name for f in fields(Settings)] == [s.field for s in SETTINGS]
