"""D: processes without rights on the host, and containers that reach it."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from attack.hostile import NOBODY as NOBODY_ID
from attack.registry import case
from attack.scene import ENVIRONMENT, NOBODY, ONE, Scene, assert_works, hostile, inside, wait_idle
from machines.hosts import PORT, Host
from machines.simulator import eventually, run

HELD = 1500  # connections; the usual soft limit of open files is 1024
LOOPBACK = "127.0.0.1"


def connected(host: Host) -> tuple[str, str]:
    """Namespace and address of a container with a NIC."""
    container = host.container()
    host.add(container)
    return container.path, container.name


@case("D", is_short=True)
def half_requests_of_a_container(scene: Scene) -> None:
    """A container holds 1,500 connections with half a request each. Other containers come and go."""
    host = scene.host(max_nics=3)
    path, _ = connected(host)
    scene.attacker("nsenter", f"--net={path}", *hostile("half_requests", host.address, PORT, HELD))
    for _ in range(3):
        assert_works(host)
    assert host.agent.log.stat().st_size < 2**20, "the log grows"
    assert host.is_ready(host.agent)


@case("D")
def half_requests_of_a_process(scene: Scene) -> None:
    """A process of the host without rights holds 1,500 connections. Containers come and go."""
    host = scene.host()
    scene.attacker(*host.command(*hostile("half_requests", LOOPBACK, PORT, HELD)))
    for _ in range(3):
        assert_works(host)
    assert host.agent.log.stat().st_size < 2**20, "the log grows"


@case("D")
def endless_requests(scene: Scene) -> None:
    """Sixteen threads send headers and bodies without end. Containers come and go, and the agent does not grow."""
    host = scene.host()
    assert_works(host)
    before = resident(host)
    scene.attacker(*host.command(*hostile("endless_requests", LOOPBACK, PORT, 16)))
    for _ in range(3):
        assert_works(host)
    grown = resident(host) - before
    assert grown < 30_000, f"the agent's memory grew by {grown} KiB"


def resident(host: Host) -> int:
    """The agent's memory in KiB."""
    lines = Path(f"/proc/{host.agent.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@case("D")
def metrics_in_a_loop(scene: Scene) -> None:
    """Eight processes ask for the metrics all the time. Containers come and go."""
    host = scene.host()
    for _ in range(8):
        scene.attacker(*host.command(*hostile("ask_metrics", host.address, PORT)))
    for _ in range(3):
        assert_works(host)


@case("D", is_short=True)
def files_of_the_agent(scene: Scene) -> None:
    """A process without rights reads token, state file and access file, and connects to the socket. It may not."""
    host = scene.host()
    access = Path(host.sim.host(host.name)["client_yaml"])
    for directory, file in ((host.run_dir, "token"), (host.state_dir, "agent.db"), (access.parent, access.name)):
        # it begins in the parent directory, whose own parents are closed in a test
        read = run(*NOBODY, "cat", f"{directory.name}/{file}", check=False, cwd=directory.parent)
        assert "Permission denied" in read.stderr, (file, read)
    connect = run(*hostile("use_socket", host.run_dir.name), check=False, cwd=host.directory, env=ENVIRONMENT)
    assert connect.stdout == "PermissionError\n", connect


@case("D")
def signals(scene: Scene) -> None:
    """A process without rights signals the agent. It stays."""
    host = scene.host()
    for number in ("TERM", "KILL", "STOP"):
        run(*NOBODY, "kill", f"-{number}", str(host.agent.pid), check=False)
    assert_works(host)


@case("D", is_short=True)
def token_of_a_process_that_listens(scene: Scene) -> None:
    """A process takes the agent's port while the agent is away. It hears no token, and its answer is not believed."""
    host = scene.host()
    host.agent.stop()
    thief = scene.attacker(*host.command(*hostile("listen", PORT)))
    container = host.container()
    answer = host.cni("ADD", container, conf=host.conf(TimeoutSeconds=5))
    assert answer.status, "the plugin believed a stranger"
    thief.kill()
    assert thief.stdout is not None
    heard = thief.stdout.read()
    assert "/v1/" in heard, "the plugin did not come by"
    assert host.token not in heard, "the plugin sent the token to a stranger"


@case("D")
def stolen_token(scene: Scene) -> None:
    """A container knows the token. From its place it can ask nothing with it."""
    host = scene.host(max_nics=2)
    token = host.token
    _, netns = connected(host)
    for target in ("/v1/nics", "/v1/status", "/v1/attachments"):
        assert host.ask_tcp(netns, host.address, "GET", target, token=token).status == 403


@case("D", is_short=True)
def port_that_is_taken(scene: Scene) -> None:
    """A process takes the agent's port before the agent starts. Containers get NICs, and the port comes back."""
    host = scene.bare_host()
    squatter = scene.attacker(*host.command(*hostile("listen", PORT)))
    host.launch(**ONE)
    eventually(lambda: answers_status(host), "an agent that serves its socket")
    assert_works(host)
    assert f":{PORT}" in str(host.status()["port_error"])
    squatter.kill()
    squatter.wait()
    eventually(lambda: not host.status()["port_error"], "an agent that listens")
    token = host.token
    assert host.ask_tcp(host.netns, LOOPBACK, "GET", "/v1/status", token=token).status == 200


def answers_status(host: Host) -> bool:
    with suppress(OSError):
        return bool(host.status()["cloud_compared"])
    return False


@case("D")
def name_that_is_taken(scene: Scene) -> None:
    """A process binds the abstract name by which agents find each other. The agent starts, and works."""
    host = scene.bare_host()
    scene.attacker(*host.command(*hostile("take_name", "qingcloud-cni/agent")))
    host.start(idle=1, **ONE)
    assert_works(host)


@case("D")
def second_agent(scene: Scene) -> None:
    """A second agent starts with directories of its own. It ends with status 3, and the first one works on."""
    host = scene.host()
    places = {name: host.directory / f"second-{name}" for name in ("state_dir", "run_dir")}
    flags = host.flags(**places, bindaddr="127.0.0.1:31081")
    second = host.spawn(host.program, "start", *flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert second.wait(timeout=30) == 3
    assert_works(host)


@case("D", is_short=True)
def names_that_write_to_terminals(scene: Scene) -> None:
    """Names of pod, interface and namespace have escape sequences. ADD fails, DEL works, and nothing shows them."""
    host = scene.host()
    container = host.container()
    evil = "\x1b]0;owned\x07\u202e\x9b1m"
    hostile_names: tuple[dict[str, Any], ...] = (
        {"CNI_ARGS": f"K8S_POD_NAMESPACE=x;K8S_POD_NAME={evil}"},
        {"CNI_IFNAME": "e\x1b[1m"},
        {"CNI_NETNS": f"/run/netns/{evil}"},
    )
    for variables in hostile_names:
        assert host.cni("ADD", container, **variables).status, f"ADD took {variables}"
        host.cni("DEL", container, **variables).succeeded()
    shown = [host.qingagent(name).stdout for name in ("status", "nics", "attachments", "events", "tasks")]
    shown.append(host.agent.log.read_text())
    assert not [text for text in shown if any(char in text for char in "\x1b\x07\u202e\x9b")]
    assert_works(host)


def assert_refused(host: Host, *words: str) -> None:
    """A start ends with the status of what no retry heals."""
    agent = host.launch(**ONE)
    assert agent.wait() == 2, agent.stderr
    assert all(word in agent.stderr for word in words), agent.stderr


@case("D", is_short=True)
def directory_of_another(scene: Scene) -> None:
    """Another user made the run directory, or a link in its place. The agent writes nothing there, and ends."""
    host = scene.bare_host()
    host.run_dir.mkdir(mode=0o777)
    os.chown(host.run_dir, NOBODY_ID, NOBODY_ID)
    assert_refused(host, str(host.run_dir), "--run-dir")
    trap = host.run_dir.rename(host.directory / "trap")
    host.run_dir.symlink_to(trap)
    assert_refused(host, str(host.run_dir), "--run-dir")
    assert list(trap.iterdir()) == []


@case("D")
def token_that_is_a_trap(scene: Scene) -> None:
    """The token is a FIFO, or a link to another file. The agent ends at once, and leaves the file alone."""
    host = scene.bare_host()
    host.run_dir.mkdir(mode=0o700)
    os.mkfifo(host.token_file)
    assert_refused(host, str(host.token_file))
    host.token_file.unlink()
    other = host.directory / "other"
    other.write_text("another's")
    host.token_file.symlink_to(other)
    assert_refused(host, str(host.token_file))
    assert other.read_text() == "another's"


@case("D")
def address_of_an_idle_nic(scene: Scene) -> None:
    """A container answers for the addresses of idle NICs, which are probed. New containers get NICs all the same."""
    host = scene.bare_host()
    host.start(idle=1, **(ONE | {"max_nics": 3, "min_idle": 1, "duplicate_probe": "true"}))
    container = host.container()
    host.add(container)
    wait_idle(host)
    for nic in host.nics("idle"):
        inside(container, f"addr add {nic['address']} dev eth0")
    assert_works(host)
