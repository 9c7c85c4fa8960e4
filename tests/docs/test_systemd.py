"""The unit for systemd: valid, in line with the program, and with enough rights for an agent."""

import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machines.flows import addresses, send_udp, track
from machines.hosts import QINGAGENT, Host, lone_host
from machines.simulator import eventually, needs_root
from pages import ROOT, page
from qingcloud_cni.agent.api.connections import ALLOWANCES
from qingcloud_cni.cli.qingagent import main
from qingcloud_cni.core.errors import EXIT, AbilityMissing, StartRefused
from qingcloud_cni.kernel.host import NETNS_DIR

UNIT = ROOT / "deploy" / "systemd" / "qingagent.service"
# What gives a service a mount namespace of its own, or another network or user (systemd.exec(5)).
ISOLATING = {
    "PrivateMounts", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "PrivateIPC", "MountFlags",
    "ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs",
    "ProtectControlGroups", "ProtectHostname", "ProtectProc", "ProcSubset", "ReadWritePaths", "ReadOnlyPaths",
    "InaccessiblePaths", "ExecPaths", "NoExecPaths", "BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem",
    "RootDirectory", "RootImage", "MountImages", "ExtensionImages", "MountAPIVFS", "NetworkNamespacePath",
    "DynamicUser", "User", "Group",
}  # fmt: skip


def settings(section: str) -> dict[str, str]:
    """Keys and values of one section of the unit; no key repeats."""
    (text,) = re.findall(rf"^\[{section}\]$(.*?)(?=^\[|\Z)", UNIT.read_text(), re.DOTALL | re.MULTILINE)
    pairs = [line.partition("=")[::2] for line in text.splitlines() if line and not line.startswith("#")]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def capabilities() -> list[str]:
    return [word.removeprefix("CAP_").lower() for word in settings("Service")["CapabilityBoundingSet"].split()]


def test_it_starts_the_agent_from_where_the_readme_installs_it() -> None:
    program, command, *flags = settings("Service")["ExecStart"].split()
    assert f"python3 -m venv {Path(program).parents[1]}" in page("README.md")
    assert Path(program).name == "qingagent"
    main.commands[command].make_context(command, flags)


def test_it_restarts_the_agent_unless_something_must_be_corrected() -> None:
    service = settings("Service")
    assert service["Restart"] == "on-failure"
    corrected = {EXIT[StartRefused], EXIT[AbilityMissing]}  # no retry can heal these; another agent may end
    assert set(map(int, service["RestartPreventExitStatus"].split())) == corrected


def test_it_shares_the_hosts_mounts_and_network() -> None:
    """No key isolates the agent, and the comment names keys that must not be added."""
    assert not ISOLATING & settings("Service").keys()
    warning = UNIT.read_text().split("No setting that")[1].split("works without")[0]
    assert {"PrivateMounts", "PrivateTmp", "ProtectSystem", "ProtectHome", "PrivateNetwork"} <= (
        ISOLATING & set(re.findall(r"\w+", warning))
    )
    assert str(NETNS_DIR) in warning


def test_it_allows_files_for_all_connections_and_the_agents_own() -> None:
    connections = sum(allowed.connections for allowed in ALLOWANCES.values())
    assert int(settings("Service")["LimitNOFILE"]) >= 10 * connections
    assert f"at most {connections} connections" in UNIT.read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_it_without_a_warning(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("qingagent"))
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(settings("Service")["ExecStart"].split()[0], program))
    found = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_it_allows_every_kind_of_socket_that_the_agent_opens() -> None:
    files = [path for path in (ROOT / "src/qingcloud_cni").rglob("*.py") if "sim" not in path.parts]
    opened = set(re.findall(r"socket\.socket\(socket\.(AF_\w+)", "".join(path.read_text() for path in files)))
    assert opened >= {"AF_NETLINK", "AF_PACKET"}
    assert opened <= set(settings("Service")["RestrictAddressFamilies"].split())


def test_it_allows_the_system_calls_by_which_nics_are_compared() -> None:
    """fsopen, fsconfig and fsmount are in @mount; no namespace but a network's is made or entered."""
    assert {"@system-service", "@mount", "bpf"} <= set(settings("Service")["SystemCallFilter"].split())
    assert settings("Service")["RestrictNamespaces"] == "net"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host whose agent is limited to the capabilities of the unit."""
    program = tmp_path / "qingagent"
    bounds = ",".join(["-all", *(f"+{name}" for name in capabilities())])
    program.write_text(f'#!/bin/sh\nexec setpriv --no-new-privs --bounding-set={bounds} {QINGAGENT} "$@"\n')
    program.chmod(stat.S_IRWXU)
    with lone_host(tmp_path) as host:
        host.program = str(program)
        yield host


@needs_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
def test_an_agent_works_with_the_capabilities_of_the_unit(host: Host) -> None:
    """From the start to the clean-up: parked NICs, a container by a path in /proc, and a gateway."""
    few: dict[str, Any] = {"min_idle": 1, "max_idle": 1, "idle_ttl": "0s"}
    host.start(**few)
    status = Path(f"/proc/{host.agent.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    bits = int(re.findall(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)[0], 16)
    assert bits.bit_count() == len(capabilities())
    assert host.status()["lacks"] == []

    container = host.container()
    conf = host.conf(routes=[{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}])
    with subprocess.Popen(
        ["nsenter", f"--net={container.path}", "setpriv", "--reuid=65534", "sleep", "60"]
    ) as sleeper:
        try:
            path = f"/proc/{sleeper.pid}/ns/net"
            result = host.cni("ADD", container, conf=conf, CNI_NETNS=path).result
        finally:
            sleeper.kill()
    gateway = {route["dst"]: route["gw"] for route in result["routes"]}["10.96.0.0/12"]
    assert container.reaches(gateway)
    assert len(host.nics("gateway")) == 1
    track(host.netns)
    address = result["ips"][0]["address"].partition("/")[0]
    send_udp(host.netns, address)
    assert address in addresses(host.netns)
    host.cni("DEL", container, conf=conf).succeeded()

    eventually(lambda: address not in addresses(host.netns), "the flow is forgotten")
    host.wait_idle(1)
    assert not host.agent.events("nic.probe-failed")
    host.qingagent("drain", "--timeout", "60s")
    assert host.agent.stop() == 0
    done = host.cleanup(**few)
    assert "removed" in done.stdout
