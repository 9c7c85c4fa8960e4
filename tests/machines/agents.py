"""An agent that runs as a process of its own, and requests to its API."""

import http.client
import itertools
import json
import resource
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cni.signing import SigningClient


@dataclass(frozen=True)
class Reply:
    """An HTTP answer of the agent."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def exchange(connection: http.client.HTTPConnection, method: str, target: str, body: bytes, token: str = "") -> Reply:
    """Ask once, signed with *token* if it is given."""
    signing = SigningClient(connection, token) if token else None
    try:
        headers = signing.headers(method, target, body) if signing else {}
        connection.request(method, target, body or None, dict(headers))
        response = connection.getresponse()
        reply = Reply(response.status, response.read())
        if headers and signing:
            signing.verify(response, reply.body)
        return reply
    finally:
        connection.close()


@dataclass
class AgentProcess:
    """One `qingagent start`; *log* is its stdout, *complaints* its stderr."""

    process: subprocess.Popen[bytes]
    log: Path
    complaints: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def stderr(self) -> str:
        return self.complaints.read_text()

    def wait(self, seconds: float = 20.0) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(timeout=seconds)

    def stop(self) -> int:
        """End it as systemd does, and tell its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Lines of its log, of one event or of all."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if name in ("", line["event"])]


def open_files(pid: int) -> dict[str, int]:
    """How many descriptors a process has, by kind."""
    kinds: dict[str, int] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            kind = str(entry.readlink()).partition(":")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


@contextmanager
def limited_files(spare: int, pid: int = 0) -> Iterator[None]:
    """Leave a process, by default this one, so many free descriptors, whatever it has open."""
    listed = [*Path(f"/proc/{pid or 'self'}/fd").iterdir()]
    used = {int(entry.name) for entry in listed if entry.is_symlink()}  # without the listing's own
    free = (number for number in itertools.count() if number not in used)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(itertools.islice(free, spare, None)), hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def attached_address(attachment: Mapping[str, Any]) -> str:
    """The address of an attachment as the API shows it, without its prefix length."""
    return str(attachment["address"]).partition("/")[0]
