"""Calls of the agent's API over its unix socket."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from qingcloud_cni.core.errors import AbilityMissing, AgentError, Unavailable
from qingcloud_cni.posix import peer_credentials

TIMEOUT = 30.0  # seconds for one call


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path)


def connect(path: Path) -> socket.socket:
    """Connect to the agent; Unavailable if none listens, AbilityMissing if only root may connect."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    try:
        connection.connect(str(path))
    except PermissionError:
        connection.close()
        raise AbilityMissing(f"agent at {path}: connect failed: only root may connect; run this as root") from None
    except OSError as err:
        connection.close()
        raise Unavailable(f"agent at {path}: connect failed: {err.strerror or err}; is qingagent running?") from err
    return connection


def call(path: Path, method: str, target: str) -> Any:
    """Return the decoded answer; AgentError with the agent's own message if it fails."""
    connection = _UnixConnection(path)
    try:
        connection.request(method, target)
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, http.client.HTTPException) as err:
        raise Unavailable(f"agent at {path}: no answer: {err}") from err
    finally:
        connection.close()
    try:
        answer = json.loads(body)
    except ValueError:
        raise AgentError(f"{method} {target}: failed: the agent answered {reply.status} without JSON") from None
    if reply.status != http.client.OK:
        raise AgentError(f"{method} {target}: {answer.get('msg', reply.reason)}")
    return answer


def agent_pid(path: Path) -> int:
    """The process that listens on the socket."""
    with connect(path) as connection:
        return peer_credentials(connection).pid
