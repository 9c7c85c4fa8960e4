"""`qingagent stop` ends the agent with status 0 in a few seconds, whatever hangs.

Nothing here measures a time: what hangs would do so for minutes, longer than `stop` waits.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
import yaml

from machines.agents import AgentProcess
from machines.hosts import QINGAGENT, Host, NewHost
from machines.machine import machine_on
from machines.simulator import Sim, eventually
from qingcloud_cni.sim.fabric.shell import inside

HOSTS = 5
NAMESERVERS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
RESOLV_CONF = (
    "search one.example two.example three.example four.example five.example\noptions timeout:30 attempts:5\n"
    + "".join(f"nameserver {address}\n" for address in NAMESERVERS)
)


@contextmanager
def swallowing(netns: str) -> Iterator[list[socket.socket]]:
    """DNS servers that get queries and answer none."""
    servers = []
    for address in NAMESERVERS:
        server = inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind((address, 53))
        server.settimeout(20)
        servers.append(server)
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def test_dns_servers_that_swallow_queries_do_not_delay_a_stop(
    sim: Sim, host_names: Iterator[str], tmp_path: Path
) -> None:
    with machine_on(sim, next(host_names), tmp_path) as machine, swallowing(machine.netns) as servers:
        (tmp_path / "resolv.conf").write_text(RESOLV_CONF)
        machine.run("mount", "--bind", str(tmp_path / "resolv.conf"), "/etc/resolv.conf")
        access = tmp_path / "client.yaml"
        access.touch(mode=0o600)
        keys = yaml.safe_load(Path(sim.host(machine.name)["client_yaml"]).read_text())
        access.write_text(yaml.safe_dump(keys | {"host": "api"}))
        agent = machine.launch(QYAccessFilePath=access)
        query, _ = servers[0].recvfrom(512)
        assert b"\x03api" in query
        assert_stops(machine, agent)
        assert not agent.events("agent.cut-off")


# Each makes something hang for good that the agent closes at its end, in a thread that is joined when a process ends.
HANGING = {
    "store": ("qingcloud_cni.store.file", "StateFile"),
    "kernel": ("qingcloud_cni.kernel.links.link_operations", "LinkOperations"),
    "background": ("qingcloud_cni.kernel.neighbours.background", "Background"),
}
PROGRAM = """
import os, threading
from {} import {} as Held
from qingcloud_cni.cli.qingagent import main
close = Held.close
Held.close = lambda self: threading.Event().wait() if os.path.exists("dead") else close(self)
main()
"""


@pytest.mark.parametrize("thread", HANGING)
def test_a_thread_that_hangs_is_cut_off_and_named(new_host: NewHost, thread: str) -> None:
    host = new_host()
    with (host.directory / "agent.log").open("wb") as stdout:
        agent = launch(host, sys.executable, "-c", PROGRAM.format(*HANGING[thread]), stdout=stdout)
    eventually(lambda: host.is_ready(agent), f"the agent on {host.name} ready")
    (host.directory / "dead").touch()
    assert_stops(host, agent)
    (line,) = agent.events("agent.cut-off")
    assert f"{thread}_0 in " in line["threads"]


def test_a_log_that_nobody_reads_does_not_delay_a_stop(new_host: NewHost) -> None:
    """The pipe is full: writing to it blocks the loop itself."""
    host = new_host()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        with suppress(BlockingIOError):
            while os.write(writer, bytes(4096)):
                pass
        os.set_blocking(writer, True)
        agent = launch(host, QINGAGENT, stdout=writer)
        eventually(host.socket.exists, f"the socket of the agent on {host.name}")
        assert_stops(host, agent)
    finally:
        os.close(reader)
        os.close(writer)


def launch(host: Host, *program: str, stdout: IO[bytes] | int) -> AgentProcess:
    """At its default level an agent logs nothing before it listens."""
    (host.directory / "agent.log").touch()
    complaints = host.directory / "agent.err"
    with complaints.open("wb") as stderr:
        process = host.spawn(*program, "start", *host.flags(loglevel=None), stdout=stdout, stderr=stderr)
    host.agents.append(AgentProcess(process, host.directory / "agent.log", complaints))
    return host.agent


def assert_stops(host: Host, agent: AgentProcess) -> None:
    host.qingagent("stop")
    assert agent.wait() == 0, agent.stderr
