"""What a case works on: hosts of its own, and attackers with few rights."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machines.containers import Container
from machines.hosts import Host, NewHost
from machines.simulator import eventually, run

TESTS = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS)}  # of `hostile`
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all")
CONTAINER = ("setpriv", "--bounding-set=-all,+net_admin,+net_raw,+bpf")  # what its root may do
ONE: dict[str, object] = {"min_idle": 1, "max_idle": 1, "max_nics": 1, "duplicate_probe": "false"}


@dataclass
class Scene:
    """A case's hosts and attackers; all of them end with it."""

    take: NewHost
    hosts: list[Host] = field(default_factory=list)
    attackers: list["subprocess.Popen[str]"] = field(default_factory=list)

    def bare_host(self) -> Host:
        """A host without an agent."""
        self.hosts.append(self.take())
        return self.hosts[-1]

    def host(self, **settings: object) -> Host:
        """A host whose agent is ready and holds one NIC, which every container gets in turn."""
        host = self.bare_host()
        host.start(idle=1, **(ONE | settings))
        return host

    def attacker(self, *argv: str) -> "subprocess.Popen[str]":
        """Start a program that says "ready" when it has begun, and leave it running."""
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(argv, text=True, start_new_session=True, env=ENVIRONMENT, **pipes)
        self.attackers.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "ready\n", f"{argv} did not begin: {said}{process.stdout.read()}"
        return process

    def check_attackers(self) -> None:
        """None has failed by itself, so that what held was tried."""
        for process in self.attackers:
            if process.poll():
                assert process.stdout is not None
                assert process.returncode < 0, f"an attacker failed: {process.args!r}: {process.stdout.read()}"

    def close(self) -> None:
        for process in self.attackers:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for host in self.hosts:
            host.end()


def hostile(attack: str, *arguments: object) -> tuple[str, ...]:
    """The command for a function of `hostile`."""
    return (sys.executable, "-m", "attack.hostile", attack, *map(str, arguments))


def within(container: Container, *argv: str) -> tuple[str, ...]:
    """*argv* as root of a container with NET_ADMIN, in its own network namespace."""
    return ("nsenter", f"--net={container.path}", *CONTAINER, *argv)


def inside(container: Container, *commands: str) -> None:
    """Run these commands of `ip` in a container, by its own root."""
    for command in commands:
        run(*within(container, "ip", *command.split()))


# --- what must hold --------------------------------------------------------------------------------


def assert_works(host: Host) -> None:
    """A new container gets a NIC by which it reaches its gateway, and gives it back."""
    container = host.container()
    conf = host.conf("1.0.0")
    result = host.add(container, conf=conf)
    host.cni("CHECK", container, conf=conf | {"prevResult": result}).succeeded()
    host.cni("STATUS", container, conf=host.conf("1.1.0")).succeeded()
    assert_reaches_gateway(container)
    host.delete(container, conf=conf)
    assert_lives(host)


def assert_lives(host: Host) -> None:
    """The agent that was started last."""
    agent = host.agent
    assert agent.is_running, f"the agent ended with {agent.process.returncode}: {agent.stderr[-500:]}"


def assert_reaches_gateway(container: Container) -> None:
    gateway = container.routes()["default"]
    assert container.reaches(gateway), f"the container does not reach its gateway {gateway}"


@contextmanager
def unchanged(host: Host, ifname: str = "eth0") -> Iterator[None]:
    """A link of the host itself keeps its place, name, state and addresses."""

    def look() -> Mapping[str, object]:
        (row,) = [link for link in host_links(host) if link["ifname"] == ifname] or [{}]
        return {key: row.get(key) for key in ("address", "mtu", "flags", "addr_info")}

    before = look()
    yield
    assert look() == before, f"{ifname} of the host: {look()}, was {before}"


def host_links(host: Host) -> list[dict[str, Any]]:
    return Container(host.netns).ip("-4", "addr", "show")


def wait_idle(host: Host) -> None:
    eventually(lambda: host.nics("idle"), f"an idle NIC on {host.name}", seconds=60.0)
