"""A running agent without a free descriptor: it lives, says so, and does its work once there is one."""

import resource
import subprocess

import pytest

from machines.agents import limited_files
from machines.containers import Container
from machines.hosts import QINGAGENT, Host, NewHost
from machines.simulator import eventually, needs_root, run

pytestmark = needs_root
HOSTS = 2
MOST_LOG = 1 << 20  # bytes
RETRY_SECONDS = 3.0  # of a plugin that meets the shortage


@pytest.fixture(scope="module")
def host(lasting_host: NewHost) -> Host:
    host = lasting_host()
    host.start(min_idle=2, max_idle=2, max_nics=4, loglevel="info")
    return host


def test_the_agent_may_open_as_many_files_as_the_host_permits(host: Host) -> None:
    soft, hard = resource.prlimit(host.agent.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 4, 6])
def test_a_shortage_of_descriptors_ends_neither_agent_nor_attachment(host: Host, spare: int) -> None:
    """Meanwhile a namespace ends without DEL, so the agent lists them all; an ADD, a DEL and a GC come."""
    stays, goes, comes = host.container(), host.container(), host.container()
    for container in (stays, goes):
        host.add(container)
    conf = host.conf("1.1.0", TimeoutSeconds=RETRY_SECONDS)
    with limited_files(spare, host.agent.pid):
        run("ip", "netns", "delete", goes.name)
        host.cni("ADD", comes, conf=conf)
        host.cni("GC", "", "", {**conf, "cni.dev/valid-attachments": [valid(stays), valid(comes)]})
        host.cni("CHECK", stays, conf=conf)
    assert host.agent.is_running, host.agent.stderr
    host.add(comes)
    eventually(lambda: len(host.attachments()) == 2, "the ended container's NIC is released", seconds=60.0)
    for container in (stays, comes):
        assert "eth0" in container.names
        host.delete(container)
    assert host.is_untouched()
    assert host.agent.log.stat().st_size < MOST_LOG
    assert len(host.agent.events("connections.shortage")) <= 6


def valid(container: Container) -> dict[str, str]:
    return {"containerID": container.name, "ifname": "eth0"}


def test_an_agent_that_starts_without_descriptors_is_to_be_restarted(new_host: NewHost) -> None:
    """Whichever step of the start meets the limit: after 2, 3 and 4 no supervisor restarts it."""
    host = new_host()
    ended = {}
    for most in range(5, 24, 2):  # the start needs some more
        limited = host.command("prlimit", f"--nofile={most}:{most}", QINGAGENT, "start", *host.flags())
        done = subprocess.run(limited, cwd=host.directory, capture_output=True, text=True, timeout=60, check=False)
        ended[most] = done.returncode, done.stderr[-300:]
    assert {most: why for most, why in ended.items() if why[0] != 1} == {}
