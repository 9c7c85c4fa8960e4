"""Who may ask the agent, on which way, and what never leaves it."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from machines.containers import Container
from machines.hosts import Host, NewHost
from machines.simulator import Sim, needs_root
from qingcloud_cni.sim.topology import default_topology

pytestmark = needs_root
HOSTS = 2

LOOPBACK = "127.0.0.1"
OPEN = ("/healthz", "/readyz", "/metrics")


@pytest.fixture(scope="module")
def host(lasting_host: NewHost) -> Host:
    host = lasting_host()
    host.start(min_idle=2, max_idle=2, max_nics=2)
    return host


def add_request(host: Host, container: Container) -> bytes:
    """What the plugin would send for an ADD."""
    request: dict[str, Any] = {
        "command": "ADD",
        "containerID": container.name,
        "netns": container.path,
        "ifname": "eth0",
    }
    return json.dumps(request | {"timeout": 5, "config": host.conf()}).encode()


def assert_refused(host: Host, netns: str, address: str, given: str) -> None:
    """Neither the ADD nor the reading gets more than 403, and nothing changes."""
    container = host.container()
    host.wait_idle(2)
    before = host.nics()
    for method, target, body in (
        ("POST", "/v1/cni", add_request(host, container)),
        ("GET", "/v1/nics", b""),
        ("GET", "/v1/status", b""),
        ("GET", "/v1/attachments", b""),
        ("POST", "/v1/drain", b""),
    ):
        reply = host.ask_tcp(netns, address, method, target, body=body, token=given)
        assert reply.status == 403, (method, target, reply)
        assert reply.json["code"] == 103
        assert host.token.encode() not in reply.body
    assert host.nics() == before
    assert host.attachments() == []
    assert not host.status()["draining"]
    assert container.names == ["lo"]


@pytest.mark.defect("hostnic-19")
def test_another_host_is_refused_even_with_the_token(host: Host, stranger: Host) -> None:
    for given in ("", "wrong", host.token):
        assert_refused(host, stranger.netns, host.address, given)


@pytest.mark.defect("hostnic-19")
def test_a_container_of_this_host_is_refused_even_with_the_token(host: Host) -> None:
    container = host.container()
    host.add(container)
    for target, given in (("/v1/nics", host.token), ("/v1/nics", "")):
        assert host.ask_tcp(container.name, host.address, "GET", target, token=given).status == 403
    host.delete(container)


@pytest.mark.defect("hostnic-19")
@pytest.mark.parametrize("given", ["", "wrong", " "])
def test_loopback_without_the_right_token_is_refused(host: Host, given: str) -> None:
    assert_refused(host, host.netns, LOOPBACK, given)


def test_this_host_is_served_if_it_signs_on_loopback_and_on_its_own_address(host: Host) -> None:
    for address in (LOOPBACK, host.address):
        container = host.container()
        body = add_request(host, container)
        reply = host.ask_tcp(host.netns, address, "POST", "/v1/cni", body=body, token=host.token)
        assert reply.status == 200, reply
        assert reply.json["interfaces"][0]["mac"] == container.link()["address"]
        nics = host.ask_tcp(host.netns, address, "GET", "/v1/nics", token=host.token)
        assert (nics.status, nics.json) == (200, host.nics())
        host.delete(container)


def test_health_readiness_and_metrics_are_open_to_everyone(host: Host, stranger: Host) -> None:
    for netns, address in ((stranger.netns, host.address), (host.netns, LOOPBACK)):
        for target in OPEN:
            assert host.ask_tcp(netns, address, "GET", target).status == 200, target


def test_metrics_are_open_but_show_no_container_and_no_nic(host: Host) -> None:
    """Labels are closed sets; everyone may read them."""
    container = host.container()
    result = host.add(container)
    text = host.metrics()
    assert 'qingagent_cni_requests_total{code="0",verb="ADD"}' in text
    assert 'qingagent_nics{state="assigned"} 1.0' in text
    for secret in (container.name, result["interfaces"][0]["mac"], result["ips"][0]["address"].partition("/")[0]):
        assert secret not in text
    host.delete(container)


def test_socket_and_token_are_for_root_alone(host: Host) -> None:
    for path, is_kind in ((host.socket, stat.S_ISSOCK), (host.token_file, stat.S_ISREG)):
        found = path.lstat()
        assert is_kind(found.st_mode)
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, os.geteuid())
    assert len(host.token) >= 32


def test_neither_token_nor_secret_key_ever_shows(host: Host, sim: Sim) -> None:
    """Not in debug logs, API, metrics, the table for operators, or the process list."""
    container = host.container()
    host.add(container)
    host.delete(container)
    topology = default_topology(sim.name)
    shown = {target: host.ask("GET", target).body for target in ("/v1/status", "/v1/nics", "/v1/attachments", *OPEN)}
    shown |= {name: host.qingagent(name).stdout.encode() for name in ("status", "nics", "attachments")}
    shown |= {
        "log": host.agent.log.read_bytes(),
        "stderr": host.agent.complaints.read_bytes(),
        "ps": Path(f"/proc/{host.agent.pid}/cmdline").read_bytes(),
        "environment": Path(f"/proc/{host.agent.pid}/environ").read_bytes(),
        "state": b"".join(path.read_bytes() for path in host.state_dir.iterdir()),
    }
    assert b"cloud.call" in shown["log"]
    for secret in (host.token, topology.secret_access_key):
        assert [place for place, content in shown.items() if secret.encode() in content] == []
    assert [place for place, content in shown.items() if b"signature=" in content] == []


def test_each_start_makes_a_token_and_the_former_serves_for_a_while(host: Host) -> None:
    """A plugin that read it before goes on; one that others could read is rejected."""
    before = host.token
    assert host.agent.stop() == 0
    host.token_file.chmod(0o640)
    refused = host.launch(min_idle=2, max_idle=2, max_nics=2)
    assert refused.wait() == 2
    assert str(host.token_file) in refused.stderr
    host.token_file.chmod(0o600)
    host.start(min_idle=2, max_idle=2, max_nics=2)
    assert host.token != before
    for given in (before, host.token):
        assert host.ask_tcp(host.netns, LOOPBACK, "GET", "/v1/nics", token=given).status == 200


def test_the_plugin_works_over_tcp_too(host: Host) -> None:
    """With a copy of the token beside which there is no socket."""
    copy = host.directory / "copied-token"
    copy.touch(mode=0o600)
    copy.write_text(host.token)
    container = host.container()
    conf = host.conf(TokenFile=str(copy))
    result = host.add(container, conf=conf)
    assert container.link()["address"] == result["interfaces"][0]["mac"]
    host.delete(container, conf=conf)
    assert host.attachments() == []
