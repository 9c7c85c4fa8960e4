"""Many requests at once: each is served, in the order in which they came."""

import json
import os
import signal
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from machines.containers import Container
from machines.hosts import Host, NewHost
from machines.simulator import eventually, links, needs_root

pytestmark = needs_root
HOSTS = 3

MANY = 50


def message(host: Host, verb: str, container: Container) -> bytes:
    """A request as the plugin composes it."""
    body = json.dumps({
        "command": verb, "containerID": container.name, "netns": container.path, "ifname": "eth0",
        "config": host.conf("1.1.0"), "timeout": 100,
    })  # fmt: skip
    return (
        f"POST /v1/cni HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )


def ask_at_once(host: Host, verb: str, containers: Sequence[Container]) -> list[tuple[int, bytes]]:
    """Status and body of each answer; all requests have come, in order, before the agent sees the first."""
    with ExitStack() as stack:
        calls = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in containers]
        os.kill(host.agent.pid, signal.SIGSTOP)
        try:
            for call, container in zip(calls, containers, strict=True):
                call.settimeout(100)
                call.connect(str(host.socket))
                call.sendall(message(host, verb, container))
        finally:
            os.kill(host.agent.pid, signal.SIGCONT)
        return [answer(call) for call in calls]


def answer(call: socket.socket) -> tuple[int, bytes]:
    head, _, body = b"".join(iter(lambda: call.recv(65536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def order_of(host: Host, event: str) -> list[str]:
    """Container ids in the order in which *event* was told of them."""
    return [line["subject"].split("/")[1] for line in host.agent.events(event)]


@pytest.mark.cni(36)
@pytest.mark.parametrize("idle", [MANY, 3])
def test_fifty_adds_at_once_are_served_in_the_order_they_came_and_fifty_dels_too_in_any(
    new_host: NewHost, idle: int
) -> None:
    """Whether the NICs are there already, or most of them have to be made."""
    host = new_host()
    host.start(min_idle=idle, max_idle=MANY, max_nics=MANY)
    containers = [host.container() for _ in range(MANY)]
    names = [container.name for container in containers]

    results: list[dict[str, Any]] = []
    for status, body in ask_at_once(host, "ADD", containers):
        assert status == 200, body
        results.append(json.loads(body))
    assert order_of(host, "nic.assigned") == names
    assert order_of(host, "attachment.ready") == names
    macs = [result["interfaces"][0]["mac"] for result in results]
    assert len(set(macs)) == len({result["ips"][0]["address"] for result in results}) == MANY
    for container, mac in zip(containers, macs, strict=True):
        assert container.link()["address"] == mac

    assert ask_at_once(host, "DEL", containers) == [(200, b"")] * MANY
    released = order_of(host, "nic.released")  # a DEL that finds its NIC still being announced lets the next go first
    assert sorted(released) == sorted(names)
    assert set(links(host.parking.name)) >= set(macs)
    host.wait_idle(MANY)
    assert host.is_untouched()


def test_a_del_ends_the_add_that_waits_for_a_nic_and_both_are_answered_at_once(new_host: NewHost) -> None:
    host = new_host()
    host.start(min_idle=1, max_idle=1, max_nics=1)
    first, second = host.container(), host.container()
    host.add(first)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(host.cni, "ADD", second)
        eventually(lambda: host.status()["waiting"] == 1, "an ADD that waits")
        host.delete(second)
        waiting.result(timeout=20).refused(11, "a DEL of the same attachment came meanwhile")
    assert host.status()["waiting"] == 0
    assert [a["container_id"] for a in host.attachments()] == [first.name]
    host.delete(first)
    host.add(second)
