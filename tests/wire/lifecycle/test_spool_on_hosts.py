"""DEL while the agent is away or hangs: spooled by the real plugin, done by the real agent when it is back."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from machines.hosts import Host, NewHost
from machines.simulator import eventually, needs_root, run

pytestmark = needs_root
HOSTS = 8

FEW = {"min_idle": 2, "max_idle": 6, "max_nics": 6}


@contextmanager
def hung(host: Host) -> Iterator[None]:
    """The agent stands still: it can be connected to, and says nothing."""
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.agent.process.send_signal(signal.SIGCONT)


def spooled(host: Host) -> list[str]:
    return sorted(path.name for path in host.spool.iterdir()) if host.spool.exists() else []


@pytest.mark.cni(53)
@pytest.mark.defect("ancestor-6")
@pytest.mark.parametrize("is_tcp", [True, False])
def test_a_del_while_the_agent_is_away_is_done_when_it_is_back(new_host: NewHost, is_tcp: bool) -> None:
    host = new_host()
    host.start(**FEW)
    conf = host.conf() if is_tcp else host.conf(BindAddr=f"unix://{host.socket}", SpoolDir="")
    gone, stays, forgotten = host.container(), host.container(), host.container()
    for container in (gone, stays, forgotten):
        host.cni("ADD", container, conf=conf).succeeded()
    host.agent.kill()
    for container in (gone, gone, forgotten):
        answer = host.cni("DEL", container, conf=conf).succeeded()
        assert "connect failed" in answer.note
        assert answer.seconds < 2
    forgotten.delete()
    assert len(spooled(host)) == 2
    assert gone.names == ["lo", "eth0"]
    host.start(**FEW, idle=0)
    assert [row["container_id"] for row in host.attachments()] == [stays.name]
    assert gone.names == ["lo"]
    assert spooled(host) == []
    done = [event["subject"].split("/")[1] for event in host.agent.events("spool.done")]
    assert sorted(done) == sorted([gone.name, forgotten.name])
    eventually(lambda: len(host.nics("idle")) >= 2 and host.is_calm(), "the NICs back in the pool")
    host.add(gone)


def test_a_del_that_a_hung_agent_finds_twice_is_done_once(new_host: NewHost) -> None:
    """As a file, and in the connection that the plugin gave up."""
    host = new_host()
    host.start(**FEW)
    container = host.container()
    host.add(container)
    with hung(host):
        answer = host.cni("DEL", container, conf=host.conf(TimeoutSeconds=2)).succeeded()
        assert "no answer within 2 s" in answer.note
        assert len(spooled(host)) == 1
    eventually(lambda: not spooled(host), "the file done")
    assert host.attachments() == []
    assert container.names == ["lo"]
    assert len(host.agent.events("nic.released")) == 1


@pytest.mark.defect("others-24")
def test_an_add_after_a_kept_del_gets_a_nic_of_its_own_and_keeps_it(new_host: NewHost) -> None:
    """The agent finds all at once: the DEL it did not answer, the file, and the ADD."""
    host = new_host()
    host.start(**FEW)
    container = host.container()
    before = host.add(container)
    with ThreadPoolExecutor() as pool:
        with hung(host):
            host.cni("DEL", container, conf=host.conf(TimeoutSeconds=2)).succeeded()
            adding = pool.submit(host.cni, "ADD", container)
            eventually(lambda: _connections(host) >= 2, "the ADD waiting to be accepted")
        after = adding.result().result
    assert after["interfaces"][0]["mac"] != before["interfaces"][0]["mac"]
    eventually(lambda: not spooled(host), "the file done")
    eventually(lambda: _was_refused(host), "the DEL that came too late refused")
    assert container.link()["address"] == after["interfaces"][0]["mac"]
    assert [row["nic_id"] for row in host.attachments()] == [after["interfaces"][0]["mac"]]
    host.delete(container)


def _was_refused(host: Host) -> bool:
    requests = host.agent.events("cni.request")
    return any("the caller of its DEL has gone" in request.get("error", "") for request in requests)


def _connections(host: Host) -> int:
    """Connections to the agent's socket that are open on its side, accepted or not."""
    lines = run("nsenter", f"--net=/run/netns/{host.netns}", "cat", "/proc/net/unix").stdout.splitlines()
    return sum(line.endswith(f" {host.socket}") for line in lines) - 1  # the listener


def test_files_for_another_agent_stay(new_host: NewHost) -> None:
    host = new_host()
    host.start(**FEW)
    container = host.container()
    host.add(container)
    with hung(host):
        host.cni("DEL", container, conf=host.conf(TimeoutSeconds=1, InstanceID="i-another")).succeeded()
    eventually(lambda: host.agent.events("spool.left"), "told")
    assert len(host.attachments()) == 1
    assert len(spooled(host)) == 1
    document = json.loads((host.spool / spooled(host)[0]).read_bytes())
    reply = host.ask("POST", "/v1/cni", json.dumps(document["request"]).encode())  # as the manual has it
    assert reply.status == 200
    assert host.attachments() == []


def test_cleanup_takes_the_spool_along(new_host: NewHost) -> None:
    host = new_host()
    host.start(**FEW)
    container = host.container()
    host.add(container)
    host.agent.stop()
    host.cni("DEL", container).succeeded()
    host.cni("DEL", "another", conf=host.conf(InstanceID="i-another")).succeeded()
    host.cleanup()  # without --force: the kept DEL has freed the container's NIC
    assert not host.run_dir.exists()
    assert host.cloud_nics() == {}
