"""The process itself: it ends in time, holds nothing open, says one thing, and may be replaced while it runs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni.answers import error_object
from machines.hosts import Host
from machines.simulator import eventually, needs_root

pytestmark = needs_root

AT_ONCE = 100
SECONDS = 1.0  # that a request may take here …
BUSY = 5.0  # … and what a busy machine may add
VERBS = ("ADD", "CHECK", "GC", "STATUS")


def call(host: Host, verb: str, address: str = "") -> subprocess.Popen[bytes]:
    """The plugin in a session of its own, with *SECONDS* for its request and its streams open."""
    conf = host.conf("1.1.0", TimeoutSeconds=SECONDS) | {"prevResult": {}, "cni.dev/valid-attachments": []}
    if address:
        conf["args"]["BindAddr"] = address
    return host.begin(verb, "c1", conf=conf, output=subprocess.PIPE)


def ended(plugin: subprocess.Popen[bytes]) -> bytes:
    """What it said, once both its streams are closed; nobody of its session is left."""
    begun = time.monotonic()
    stdout, _ = plugin.communicate(timeout=30)
    assert time.monotonic() - begun < SECONDS + BUSY
    with pytest.raises(ProcessLookupError):
        os.killpg(plugin.pid, 0)
    return stdout


@pytest.mark.cni(77)
@pytest.mark.parametrize("verb", VERBS)
def test_the_process_ends_in_time_while_the_agent_stands_still(host: Host, verb: str) -> None:
    """It reports the timeout, and leaves no child that a runtime would wait for."""
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        plugin = call(host, verb)
        error = error_object(1, ended(plugin))
    finally:
        host.agent.process.send_signal(signal.SIGCONT)
    assert (plugin.returncode, error["code"]) == (1, 50 if verb == "STATUS" else 11)
    assert f"no answer within {SECONDS:g} s" in error["msg"]
    assert host.is_untouched()


@pytest.mark.cni(77)
def test_a_del_ends_in_time_while_the_agent_stands_still(host: Host) -> None:
    """It is spooled, within its time as well."""
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        plugin = call(host, "DEL")
        assert ended(plugin) == b""
    finally:
        host.agent.process.send_signal(signal.SIGCONT)
    assert plugin.returncode == 0


@contextlib.contextmanager
def dripping(path: Path) -> Iterator[str]:
    """An agent that answers for ever, byte by byte: its address."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"HTTP/1.1 200 OK\r\n")
                    while True:
                        connection.sendall(b"X")
                        time.sleep(0.02)

    thread = threading.Thread(target=serve, name="dripping")
    thread.start()
    try:
        yield f"unix://{path}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.cni(77)
@pytest.mark.parametrize("verb", VERBS)
def test_the_process_ends_in_time_though_the_answer_has_no_end(host: Host, tmp_path: Path, verb: str) -> None:
    with dripping(tmp_path / "agent.sock") as address:
        plugin = call(host, verb, address)
        error = error_object(1, ended(plugin))
    assert error["code"] == (50 if verb == "STATUS" else 11)


@pytest.mark.cni(78)
@pytest.mark.parametrize("verb", VERBS)
def test_an_unexpected_interrupt_becomes_an_error_object(host: Host, verb: str) -> None:
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        plugin = call(host, verb)
        eventually(lambda: is_waiting(plugin), "the plugin waiting for its answer")
        plugin.send_signal(signal.SIGINT)
        error = error_object(1, ended(plugin))
    finally:
        host.agent.process.send_signal(signal.SIGCONT)
    assert (plugin.returncode, error["code"]) == (1, 999)
    assert "KeyboardInterrupt" in error["msg"]
    assert host.is_untouched()


def is_waiting(plugin: subprocess.Popen[bytes]) -> bool:
    """Whether it is past its start: it has a socket."""
    with contextlib.suppress(OSError):
        return any(str(file.readlink()).startswith("socket:") for file in Path(f"/proc/{plugin.pid}/fd").iterdir())
    return False


@pytest.mark.cni(14, 78)
@pytest.mark.parametrize("depth", [100, 900, 970, 980, 985, 990, 1000, 5000, 100_000])
def test_a_configuration_nested_however_deeply_is_served_or_refused(host: Host, depth: int) -> None:
    """By the plugin or by the agent, whose limits are not quite the same."""
    plain, deep = json.dumps(host.conf("1.1.0")), "[" * depth + "]" * depth
    answer = host.cni("ADD", host.container(), conf=f'{plain[:-1]},"x":{deep}}}'.encode())
    if depth <= 900:
        answer.succeeded()
    elif answer.status:
        answer.refused(6)


REPLACE = 'while cp -p "$0" "$0.new" && mv "$0.new" "$0"; do sleep 0.01; done'  # by rename, as install-plugin does


@pytest.mark.cni(80)
def test_the_executable_may_be_replaced_while_a_hundred_calls_run(host: Host) -> None:
    """Over and over; none of the calls fails, whatever its verb."""
    container = host.container()
    conf = host.conf("1.1.0")
    conf["prevResult"] = host.add(container, conf=conf)
    version = {"cniVersion": "1.0.0"}

    def ask(number: int) -> int:
        verb = ("CHECK", "VERSION", "STATUS", "DEL")[number % 4]
        name = container if verb == "CHECK" else f"other{number}"
        host.cni(verb, name, conf=version if verb == "VERSION" else conf).succeeded()
        return host.plugin.stat().st_ino

    with subprocess.Popen(("sh", "-c", REPLACE, host.plugin)) as replacing, ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            inodes = set(pool.map(ask, range(AT_ONCE)))
        finally:
            replacing.kill()
    host.plugin.with_name(f"{host.plugin.name}.new").unlink(missing_ok=True)
    assert len(inodes) > 1
