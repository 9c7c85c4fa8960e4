"""The plugin killed by SIGKILL at every moment: no NIC is lost, and no namespace stays half configured."""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from machines.containers import Container
from machines.hosts import Host
from machines.simulator import eventually, needs_root

pytestmark = needs_root
NICS = 5


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# --- at moments that are chosen --------------------------------------------------------------------------


class Relay:
    """Stands between plugin and agent, and lets through as many bytes as the test wants."""

    def __init__(self, host: Host) -> None:
        path = host.directory / "relay.sock"
        path.unlink(missing_ok=True)
        self._agent = host.socket
        self.address = f"unix://{path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def __enter__(self) -> "Relay":
        return self

    def accept(self) -> None:
        self._listener.settimeout(20)
        self.near, _ = self._listener.accept()
        self.far = socket.socket(socket.AF_UNIX)
        for side in (self.near, self.far):
            side.settimeout(20)
        self.far.connect(str(self._agent))

    def request(self) -> bytes:
        """All of it."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.near.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split()[0])
        while len(body) < length:
            body += self.near.recv(65536)
        return head + b"\r\n\r\n" + body

    def answer(self) -> bytes:
        """All of it; the agent closes the connection after one."""
        data = b""
        while chunk := self.far.recv(65536):
            data += chunk
        return data

    def __exit__(self, *_: object) -> None:
        for side in (self.near, self.far, self._listener):
            side.close()


def connected(relay: Relay) -> None:
    """Before a byte is sent."""


def half_sent(relay: Relay) -> None:
    relay.far.sendall(relay.request()[:150])


def body_missing(relay: Relay) -> None:
    relay.far.sendall(relay.request()[:-1])


def sent(relay: Relay) -> None:
    relay.far.sendall(relay.request())


def half_answered(relay: Relay) -> None:
    sent(relay)
    relay.near.sendall(relay.answer()[:20])


def all_but_answered(relay: Relay) -> None:
    sent(relay)
    relay.near.sendall(relay.answer()[:-1])


UNHEARD = [connected, half_sent, body_missing]  # the agent has not got the whole request
HEARD = [half_answered, all_but_answered]  # it has answered


def killed(host: Host, verb: str, container: Container, point: Callable[[Relay], None]) -> None:
    """The plugin is killed at *point*; its connection ends with it."""
    with Relay(host) as relay:
        process = host.begin(verb, container, conf=host.conf(BindAddr=relay.address))
        relay.accept()
        point(relay)
        kill(process)


def state(host: Host, container: Container) -> str:
    """Whether the container is "free", or "whole"; anything else is half of something, or on its way."""
    rows = [row for row in host.attachments() if row["container_id"] == container.name]
    links = {link["ifname"]: link for link in container.ip("addr", "show")}
    if not rows and [*links] == ["lo"]:
        return "free"
    if len(rows) == 1 and rows[0]["is_ready"] and [*links] == ["lo", "eth0"]:
        link = links["eth0"]
        addresses = [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["family"] == "inet"]
        if link["address"] == rows[0]["nic_id"] and addresses == [rows[0]["address"]] and "UP" in link["flags"]:
            return "whole" if "default" in container.routes() else "without a default route"
    return f"{rows} {links}"


def assert_state(host: Host, container: Container, *wanted: str) -> None:
    eventually(lambda: state(host, container) in wanted, f"{container.name} {' or '.join(wanted)}")


@pytest.mark.cni(33)
@pytest.mark.defect("hostnic-8")
@pytest.mark.parametrize("is_repeated", [False, True])
@pytest.mark.parametrize("point", [*UNHEARD, sent, *HEARD])
def test_a_killed_add_leaves_all_or_nothing(host: Host, point: Callable[[Relay], None], is_repeated: bool) -> None:
    """Nothing, if the agent could see that nobody waits; a whole attachment, if it had answered."""
    container = host.container()
    killed(host, "ADD", container, point)
    assert_state(host, container, "whole" if point in HEARD else "free")
    if is_repeated:  # as Nomad does, without a DEL
        host.add(container)
        assert state(host, container) == "whole"
    host.delete(container)
    assert state(host, container) == "free"
    assert host.is_untouched()


@pytest.mark.parametrize("point", [*UNHEARD, sent, *HEARD])
def test_a_killed_del_leaves_all_or_nothing_and_can_be_repeated(host: Host, point: Callable[[Relay], None]) -> None:
    container = host.container()
    host.add(container)
    killed(host, "DEL", container, point)
    if point is sent:  # begun before the agent could see that nobody waits, or not
        assert_state(host, container, "free", "whole")
    else:
        assert_state(host, container, "free" if point in HEARD else "whole")
    host.delete(container)
    assert state(host, container) == "free"
    assert host.is_untouched()


# --- at moments as they come -----------------------------------------------------------------------------


def killed_after(host: Host, verb: str, container: Container, seconds: float) -> None:
    process = host.begin(verb, container)
    time.sleep(seconds)
    kill(process)


@pytest.mark.cni(33)
def test_adds_and_dels_killed_at_any_time_leave_all_or_nothing(host: Host) -> None:
    """Later and later, from the start of the process on; the agent has several at once to deal with."""
    moments = [n * 0.003 for n in range(30)]
    containers = [host.container() for _ in range(4)]
    with ThreadPoolExecutor(len(containers)) as threads:
        for moment in moments:
            for verb in ("ADD", "DEL"):
                list(threads.map(partial(killed_after, host, verb, seconds=moment), containers))
                for container in containers:
                    assert_state(host, container, "free", "whole")
    for container in containers:
        host.delete(container)
        assert state(host, container) == "free"
    assert host.is_untouched()


def test_a_del_killed_while_it_is_kept_leaves_a_whole_file_or_none(host: Host, tmp_path: Path) -> None:
    container = host.container()
    spool = tmp_path / "spool"
    conf = host.conf(BindAddr=f"unix://{tmp_path}/nobody.sock", SpoolDir=str(spool))
    kept = 0
    for n in range(60):
        process = host.begin("DEL", container, conf=conf)
        time.sleep(n * 0.001)
        kill(process)
        for path in spool.glob("*.json") if spool.exists() else ():
            assert json.loads(path.read_bytes())["containerID"] == container.name
            path.unlink()
            kept += 1
    assert 0 < kept <= 60
    assert all(path.name.startswith(".") for path in spool.iterdir())
