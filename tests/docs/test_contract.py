"""Help text, config file and network configuration are those that users rely on, word for word."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cni.answers import Answer, execute
from machines.containers import Container
from machines.hosts import QINGAGENT, Host
from machines.simulator import needs_root, run
from qingcloud_cni.agent.settings.config_file import find_config, read_config
from qingcloud_cni.agent.settings.resolution import check_vxnets, resolve
from qingcloud_cni.agent.settings.settings import BY_KEY, SETTINGS
from qingcloud_cni.cli.qingagent import main
from qingcloud_cni.core.cni.network_config import read_config as read_network_config
from qingcloud_cni.core.errors import InvalidConfig, StartRefused, wire
from qingcloud_cni.core.nics.model import Route

HELP = (
    "QingCloud container networking agent is a daemon process which allocates and recollects nics resources. Usage:"
    " qingagent start [flags] Flags: --QYAccessFilePath string QingCloud Access File Path (default"
    ' "/etc/qingcloud/client.yaml") --bindaddr string bind address of daemon process (default "0.0.0.0:31080")'
    ' --gatewayns string gateway nic name (default "hostnic") -h, --help help for start --iface string Default nic'
    ' which is used by host and will not be deleted (default "eth0") --policy string policy of Selecting which vxnet'
    ' to create nic from.(FailRotate,RoundRotate,Random) (default "FailRotate") --vxnet stringSlice vxnet id list'
    ' (default [vxnet-xxxxxxx]) --zone string QingCloud zone (default "pek3a") Global Flags: --config string config'
    " file (default is ./QingAgent.yaml) --loglevel string log level(debug,info,warn,error) (default"
    ' "info")'
)
CONFIG = "QYAccessFilePath: '/etc/qingcloud/client.yaml' vxnet: 'vxnet-xxxxxxx' iface: 'eth0' loglevel: 'debug'"
MYNET = (
    '{ "cniVersion": "0.3.1", "name": "mynet", "type": "qingcni", "isGateway": true,'
    ' "args": { "BindAddr":"127.0.0.1:31080" }, "ipMasq": true,'
    ' "ipam": { "routes":[{"dst":"kubernetes service cidr","gw":"hostip or 0.0.0.0"}] } }'
)
DST, GW = "kubernetes service cidr", "hostip or 0.0.0.0"
SERVICES = "10.96.0.0/12"
FLAG = re.compile(r"(?:-\w, )?--(\w+)(?: (string|stringSlice))? (.+?)(?: \(default (?:is )?(.+?)\))?$")


def contract_flags(section: str) -> dict[str, tuple[str, str]]:
    """Type and default of each flag of a section."""
    text = HELP.split(f" {section}: ", maxsplit=1)[1].split(" Global Flags: ", maxsplit=1)[0]
    words = re.split(r" (?=-h, --|(?<!-h, )--)", text)
    matches = [FLAG.fullmatch(word) for word in words]
    return {m[1]: (m[2] or "", (m[4] or "").strip('"[]')) for m in matches if m}


def shown_help() -> str:
    return run(QINGAGENT, "start", "-h").stdout


def config_file(directory: Path) -> Path:
    """The contract's file, one key per line."""
    path = directory / "QingAgent.yaml"
    path.write_text(re.sub(r" (?=\w+: )", "\n", CONFIG) + "\n")
    return path


def filled(dst: str = SERVICES, gw: str = "0.0.0.0") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(MYNET.replace(DST, dst).replace(GW, gw))
    return document


# --- help ----------------------------------------------------------------------------------------------


def test_the_help_is_the_contracts_word_for_word_but_for_flags_that_were_added() -> None:
    added = {f"--{s.name}" for s in SETTINGS} - {
        f"--{name}" for s in ("Flags", "Global Flags") for name in contract_flags(s)
    }
    lines = [line for line in shown_help().splitlines() if not line.split() or line.split()[0] not in added]
    assert " ".join(" ".join(lines).split()) == HELP
    assert all(re.fullmatch(r"--[a-z]+(-[a-z]+)*", flag) for flag in added)
    assert len(added) == len(SETTINGS) - 8


def test_sections_names_types_and_defaults_are_the_contracts() -> None:
    flags, global_flags = contract_flags("Flags"), contract_flags("Global Flags")
    assert list(flags) == ["QYAccessFilePath", "bindaddr", "gatewayns", "help", "iface", "policy", "vxnet", "zone"]
    assert list(global_flags) == ["config", "loglevel"]
    assert global_flags["config"] == ("string", "./QingAgent.yaml")
    for name, (kind, default) in (flags | global_flags).items():
        if name not in {"help", "config"}:
            setting = BY_KEY[name.lower()]
            assert (setting.name, setting.kind.metavar, str(setting.default)) == (name, kind, default)


def test_the_defaults_are_those_that_hold() -> None:
    settings = resolve({}, {}, {}, "").settings
    assert str(settings.qyaccessfilepath) == "/etc/qingcloud/client.yaml"
    assert (str(settings.bindaddr), settings.gatewayns, settings.iface) == ("0.0.0.0:31080", "hostnic", "eth0")
    assert (settings.policy, settings.vxnet, settings.zone) == ("FailRotate", ("vxnet-xxxxxxx",), "pek3a")
    assert settings.loglevel == "info"


# --- flags ---------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an access file, which the environment names."""
    access = tmp_path / "client.yaml"
    access.touch(mode=0o600)
    access.write_text("qy_access_key_id: a\nqy_secret_access_key: b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QINGAGENT_QYACCESSFILEPATH", str(access))
    monkeypatch.setenv("QINGAGENT_INSTANCE_ID", "i-1")
    return tmp_path


def checked(*words: str) -> dict[str, tuple[Any, str]]:
    """Value and source of every setting for this command line; `config check` replaces `start`."""
    result = CliRunner().invoke(main, [*words, "-o", "json"])
    assert result.exit_code == 0, result.output
    return {row["name"]: (row["value"], row["source"]) for row in json.loads(result.stdout)["settings"]}


@pytest.mark.parametrize(
    "flags",
    [("--vxnet", "vxnet-1,vxnet-2", "--vxnet", "vxnet-3"), ("--vxnet=vxnet-1", "--vxnet=vxnet-2,vxnet-3"),
     ("--vxnet", "vxnet-1, vxnet-2 ,vxnet-3")],
)  # fmt: skip
@pytest.mark.usefixtures("directory")
def test_vxnet_repeats_and_splits_on_commas(flags: tuple[str, ...]) -> None:
    assert checked("config", "check", *flags)["vxnet"] == (["vxnet-1", "vxnet-2", "vxnet-3"], "--vxnet")


def test_global_flags_may_precede_or_follow_the_command_and_the_last_one_wins(directory: Path) -> None:
    (directory / "a.json").write_text('{"vxnet": "vxnet-a"}')
    (directory / "b.ini").write_text("vxnet = vxnet-b")
    given = ("--config", "a.json", "--loglevel", "debug")
    for words in ((*given, "config", "check"), ("config", *given, "check"), ("config", "check", *given)):
        found = checked(*words)
        assert found["vxnet"] == (["vxnet-a"], str(directory / "a.json"))
        assert found["loglevel"] == ("debug", "--loglevel")
    found = checked(*given, "config", "check", "--config", "b.ini", "--loglevel", "warn")
    assert (found["vxnet"][0], found["loglevel"][0]) == (["vxnet-b"], "warn")


# --- the config file -----------------------------------------------------------------------------------


def test_the_contracts_config_file_is_found_and_read(directory: Path) -> None:
    path = config_file(directory)
    assert find_config() == Path("QingAgent.yaml")
    resolved = resolve({}, {}, read_config(path), str(path))
    given = {name for name, source in resolved.sources.items() if source == str(path)}
    assert given == {"QYAccessFilePath", "vxnet", "iface", "loglevel"}
    assert (resolved.settings.iface, resolved.settings.loglevel) == ("eth0", "debug")
    assert str(resolved.settings.qyaccessfilepath) == "/etc/qingcloud/client.yaml"
    with pytest.raises(StartRefused, match="vxnet-xxxxxxx is the placeholder of the documentation; set your own"):
        check_vxnets(resolved)


def test_with_its_placeholder_filled_the_config_file_is_accepted(directory: Path) -> None:
    path = config_file(directory)
    path.write_text(path.read_text().replace("vxnet-xxxxxxx", "vxnet-1234abc"))
    found = checked("config", "check")
    assert found["vxnet"] == (["vxnet-1234abc"], str(path))
    assert found["QYAccessFilePath"][1] == "QINGAGENT_QYACCESSFILEPATH"


# --- the network configuration -------------------------------------------------------------------------


def test_the_contracts_network_configuration_is_refused_by_key_and_value_until_it_is_filled() -> None:
    for document, key, value in ((json.loads(MYNET), "dst", DST), (filled(gw=GW), "gw", GW)):
        with pytest.raises(InvalidConfig) as refused:
            read_network_config(document)
        assert f"ipam.routes[0].{key} {value!r}" in str(refused.value)
        assert wire(refused.value)[0] == 7
    config = read_network_config(filled(gw="172.20.1.9"))
    assert (config.cni_version, config.name, config.is_gateway, config.ip_masq) == ("0.3.1", "mynet", True, True)
    assert config.routes == (Route(SERVICES, "172.20.1.9"),)


def cni(host: Host, verb: str, container: Container, document: Mapping[str, Any]) -> Answer:
    """The plugin with exactly this configuration; its /run/qingcloud-cni is this agent's."""
    bind_run_dir = (  # the tests' own directories may lie below /run
        'mount --bind "$1" /mnt && mount --bind "$2" /media && mount -t tmpfs none /run'
        ' && ln -s /mnt /run/qingcloud-cni && exec /media/"$3"'
    )
    paths = [str(host.run_dir), str(host.plugin.parent), host.plugin.name]
    argv = ["unshare", "--mount", "sh", "-c", bind_run_dir, "sh", *paths]
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container.name,
        "CNI_NETNS": container.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(host.plugin.parent),
    }
    return execute(host.command(*argv), environment, json.dumps(document).encode())


@needs_root
def test_with_both_placeholders_filled_the_network_configuration_works(host: Host) -> None:
    """With 0.0.0.0, and then with the gateway NIC's own address."""
    first, second = host.container(), host.container()
    result = cni(host, "ADD", first, filled()).result
    (gateway,) = [route["gw"] for route in result["routes"] if route["dst"] == SERVICES]
    assert gateway != "0.0.0.0"
    assert first.routes()[SERVICES] == gateway
    assert [nic["address"].partition("/")[0] for nic in host.nics("gateway")] == [gateway]
    again = cni(host, "ADD", second, filled(gw=gateway)).result
    assert [route["gw"] for route in again["routes"] if route["dst"] == SERVICES] == [gateway]
    assert first.reaches(again["ips"][0]["address"].partition("/")[0])
    for container in (first, second):
        assert cni(host, "DEL", container, filled()).succeeded().stdout == b""
    assert host.attachments() == []


@needs_root
@pytest.mark.parametrize(("document", "key", "value"), [(json.loads(MYNET), "dst", DST), (filled(gw=GW), "gw", GW)])
def test_a_placeholder_left_in_is_code_7_naming_key_and_value(
    document: dict[str, Any], key: str, value: str, host: Host
) -> None:
    container = host.container()
    answer = cni(host, "ADD", container, document)
    assert answer.code == 7
    assert f"ipam.routes[0].{key} {value!r}" in answer.message
    assert host.attachments() == []
    assert cni(host, "DEL", container, document).succeeded()
