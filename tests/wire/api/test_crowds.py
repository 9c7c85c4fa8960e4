"""Crowds without rights at the agent's addresses: the agent serves its containers all the same."""

import http.client
import socket

import pytest

from machines.agents import open_files
from machines.crowd import crowd
from machines.hosts import PORT, Host, NewHost
from machines.simulator import eventually, needs_root
from qingcloud_cni.agent.api.connections import ALLOWANCES
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root
HOSTS = 4
LOOPBACK = "127.0.0.1"
MOST_LOG = 1 << 20  # bytes
OWN_FILES = 100  # of an agent without connections
OPEN = ("/healthz", "/readyz", "/metrics")


@pytest.fixture(scope="module")
def host(lasting_host: NewHost) -> Host:
    host = lasting_host()
    host.start(min_idle=2, max_idle=2, max_nics=2, loglevel="info")
    return host


@pytest.mark.parametrize("path", ["/metrics", "/v1/nics", "/v1/challenge?nonce=" + "0" * 64])
@pytest.mark.parametrize("is_here", [False, True], ids=["elsewhere", "here"])
def test_a_crowd_stops_no_verb_and_fills_no_log(host: Host, stranger: Host, path: str, *, is_here: bool) -> None:
    command, address = (host.command(), LOOPBACK) if is_here else (stranger.command(), host.address)
    container = host.container()
    with crowd(command, address, PORT, holders=2_000, clients=24, path=path) as process:
        for _ in range(3):
            host.add(container)
            host.delete(container)
        host.cni("STATUS", "", "", host.conf("1.1.0")).succeeded()
        assert host.qingagent("status").returncode == 0
        assert sum(open_files(host.agent.pid).values()) <= OWN_FILES + sum(a.connections for a in ALLOWANCES.values())
        assert process.poll() is None
        assert host.metric("qingagent_connections_refused_total") > 0
    assert host.agent.is_running
    assert host.agent.log.stat().st_size < MOST_LOG
    assert host.agent.stderr == ""
    eventually(lambda: is_open(stranger, host.address), "the other host can read the metrics again")
    assert host.is_untouched()


def test_a_crowd_elsewhere_leaves_tcp_to_this_host(host: Host, stranger: Host) -> None:
    with crowd(stranger.command(), host.address, PORT, holders=2_000, clients=24):
        for address in (LOOPBACK, host.address):
            assert host.ask_tcp(host.netns, address, "GET", "/v1/nics", token=host.token).status == 200
            assert host.ask_tcp(host.netns, address, "GET", "/readyz").status == 200


def is_open(peer: Host, address: str, port: int = PORT) -> bool:
    try:
        return status(peer, address, "/metrics", port) == 200
    except (OSError, http.client.HTTPException):
        return False


def status(peer: Host, address: str, path: str, port: int) -> int:
    """Of an answer to a host, whose agent need not be its own."""

    def ask() -> int:
        connection = http.client.HTTPConnection(address, port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    return inside(peer.netns, ask)


def test_metrics_have_an_address_of_their_own(new_host: NewHost, stranger: Host) -> None:
    host = new_host()
    host.start(min_idle=0, max_idle=0, metrics_bind="0.0.0.0:9100")
    for path in OPEN:
        assert status(stranger, host.address, path, 9100) == 200
        assert status(host, LOOPBACK, path, 9100) == 200
        assert status(host, LOOPBACK, path, PORT) == 403
        with pytest.raises((OSError, http.client.HTTPException)):
            status(stranger, host.address, path, PORT)
    assert status(host, LOOPBACK, "/v1/nics", 9100) == 403
    assert host.ask_tcp(host.netns, LOOPBACK, "GET", "/metrics", token=host.token).status == 200
    assert host.ask("GET", "/metrics").status == 200


def test_metrics_can_be_off(new_host: NewHost, stranger: Host) -> None:
    host = new_host()
    host.start(min_idle=0, max_idle=0, metrics_bind="off")
    assert host.ask("GET", "/readyz").status == 200
    for path in OPEN:
        assert status(host, LOOPBACK, path, PORT) == 403
        with pytest.raises((OSError, http.client.HTTPException)):
            status(stranger, host.address, path, PORT)


def test_half_a_request_is_cut_off(host: Host, stranger: Host) -> None:
    def held() -> bytes:
        with socket.create_connection((host.address, PORT), timeout=60.0) as peer:
            peer.sendall(b"GET /metrics HTTP/1.1\r\n")
            return peer.recv(1)

    assert inside(stranger.netns, held) == b""
