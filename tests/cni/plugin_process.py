"""The plugin as a process with an environment, stdin, stdout and an exit status, and an agent played to it."""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni.answers import error_object
from cni.results import VERSIONS
from cni.signing import SigningAgent

SUPPORTED = [*VERSIONS]
RESULT = b'{"cniVersion":"0.3.1","interfaces":[],"ips":[]}\n'
ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/var/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=p",
    "CNI_PATH": "/opt/cni/bin",
}
DEL = ADD | {"CNI_COMMAND": "DEL"}
EMPTY = {f"CNI_{name}": "" for name in ("CONTAINERID", "NETNS", "IFNAME", "ARGS")}  # as libcni leaves them
VERBS = {  # each verb's variables, and the first version that allows it
    "ADD": (ADD, "0.1.0"),
    "DEL": (DEL, "0.1.0"),
    "CHECK": (ADD | {"CNI_COMMAND": "CHECK"}, "0.4.0"),
    "GC": (ADD | EMPTY | {"CNI_COMMAND": "GC"}, "1.1.0"),
    "STATUS": (ADD | EMPTY | {"CNI_COMMAND": "STATUS"}, "1.1.0"),
}


@dataclass(frozen=True)
class Outcome:
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails unless it is one, alone on stdout, with exit status 1."""
        assert self.stderr == b""
        return error_object(self.status, self.stdout)


Run = Callable[..., Outcome]


def runs(plugin: Path) -> Run:
    """A function that executes *plugin* with an environment and stdin, and waits for its end."""

    def run(environment: dict[str, str], stdin: bytes | dict[str, Any] = b"") -> Outcome:
        given = stdin if isinstance(stdin, bytes) else json.dumps(stdin).encode()
        started = time.monotonic()
        done = subprocess.run([plugin], env=environment, input=given, capture_output=True, timeout=30, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    return run


def config(bind: str = "unix:///nowhere/agent.sock", version: str | None = "0.3.1", **args: Any) -> dict[str, Any]:
    """The seed's configuration, with *bind* as the agent's address."""
    document: dict[str, Any] = {
        "name": "mynet",
        "type": "qingcni",
        "isGateway": True,
        "args": {"BindAddr": bind, **args},
        "ipMasq": True,
        "ipam": {"routes": [{"dst": "kubernetes service cidr", "gw": "hostip or 0.0.0.0"}]},
    }
    return document if version is None else {"cniVersion": version, **document}


@dataclass
class PlayedAgent:
    """Stands in for the agent: keeps every request and answers each with *reply*; over TCP signed with *token*."""

    listener: socket.socket
    address: str
    reply: bytes = b""
    token: str = "some-token"
    change: Callable[[bytes], bytes] = bytes  # of the signed reply on its way
    resets: bool = False  # closes the connection as a process that is killed does
    hangs: bool = False  # keeps it open after the reply, until the plugin goes away
    heads: list[bytes] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        signing = None if connection.family == socket.AF_UNIX else SigningAgent(connection, self.token)
        head, body = _read(connection)
        if signing is not None and head.startswith(b"GET /v1/challenge?"):
            connection.sendall(answer(200, signing.challenge(head.split()[1].decode()), "keep-alive"))
            head, body = _read(connection)
        if not head:
            return
        self.heads.append(head)
        self.bodies.append(json.loads(body))
        if self.resets:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        reply = self.reply if signing is None else signing.sign(signing.check(head, body), self.reply)
        reply = self.change(reply)
        with contextlib.suppress(ConnectionError):  # the plugin may end with a part of the reply unread
            connection.sendall(reply)
            if self.hangs:
                assert connection.recv(1) == b""


def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of a request; empty if none came."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return b"", b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0]) if b"ength:" in head else 0
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def answer(status: int, body: bytes, connection: str = "close") -> bytes:
    return (
        f"HTTP/1.1 {status} Some Words\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: {connection}\r\n\r\n"
    ).encode() + body


def played(listener: socket.socket, address: str, *, is_listening: bool = False) -> Iterator[PlayedAgent]:
    if not is_listening:
        listener.listen(64)
    agent = PlayedAgent(listener, address, answer(200, RESULT))
    thread = threading.Thread(target=agent.serve, name="agent")
    thread.start()
    yield agent
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(30)
    assert not thread.is_alive()
