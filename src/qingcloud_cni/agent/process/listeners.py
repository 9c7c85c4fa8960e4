"""The agent's sockets: the unix socket, and the TCP addresses as soon as they are free."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Self

from qingcloud_cni.agent.api.connections import Serves
from qingcloud_cni.agent.base import logs
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.agent.settings.values import BINDADDR, Address
from qingcloud_cni.core.errors import AgentError, StartRefused
from qingcloud_cni.posix import restore_directory

BACKLOG = 1024  # connections that wait for accept; the agent takes them in bursts


class UnixSocket:
    """The unix socket, bound again if somebody removes its file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.listener: socket.socket
        self._file: os.stat_result

    def __enter__(self) -> Self:
        """Listen; StartRefused if that is not possible. A client that connects early waits."""
        self._bind()
        return self

    def __exit__(self, *_error: object) -> None:
        self.listener.close()
        if self._is_in_place():
            self._path.unlink()

    async def restore(self, replace: Callable[[socket.socket, socket.socket], None]) -> str | None:
        """As `OwnFiles` has it; *replace* is called with the former listener and the new one."""
        if self._is_in_place():
            return None
        restore_directory(self._path.parent)
        former = self.listener
        self._bind()
        replace(former, self.listener)
        return f"socket {self._path}"

    def _bind(self) -> None:
        self.listener = _unix(self._path)
        self._file = self._path.lstat()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), self._file)
        except OSError:
            return False


class Ports:
    """The TCP addresses. Any program may hold a port, so the agent listens there as soon as it is free."""

    def __init__(self, settings: Settings) -> None:
        metrics = settings.metrics_bind
        is_shared = metrics in (BINDADDR, settings.bindaddr)
        self._missing = [("bindaddr", settings.bindaddr, Serves.API | Serves.METRICS if is_shared else Serves.API)]
        if isinstance(metrics, Address) and not is_shared:
            self._missing.append(("metrics-bind", metrics, Serves.METRICS))
        self._bound: list[tuple[socket.socket, Serves]] = []
        self.obstacle = ""  # why the agent does not listen on one of them

    def __enter__(self) -> Self:
        """Listen where that is possible: a client that connects early waits."""
        self._bind()
        return self

    def __exit__(self, *_error: object) -> None:
        for listener, _ in self._bound:
            listener.close()

    def take(self) -> list[tuple[socket.socket, Serves]]:
        """Try the missing addresses again; return the new listeners, which the caller closes."""
        self._bind()
        bound, self._bound = self._bound, []
        return bound

    def _bind(self) -> None:
        missing, self._missing = self._missing, []
        causes = []
        for setting, address, serves in missing:
            try:
                self._bound.append((_tcp(address), serves))
            except OSError as err:
                self._missing.append((setting, address, serves))
                cause = f"{setting} {address}: bind failed: {os.strerror(err.errno or 0)}"
                causes.append(f"{cause}; free it, or choose another --{setting}; the agent retries")
        obstacle = "; ".join(causes)
        if obstacle and obstacle != self.obstacle:
            logs.write("port.missing", cause=obstacle)
        if self.obstacle and not obstacle:
            logs.write("port.recovered")
        self.obstacle = obstacle


def check_iface(name: str) -> None:
    """AgentError if the host has no such link: under a wrong name the agent would not reserve the host's NIC.

    At a boot the link may be there at the next start.
    """
    names = sorted(link for _, link in socket.if_nameindex())
    if name not in names:
        raise AgentError(
            f"iface {name}: not found in this network namespace, which has {', '.join(names)};"
            " set the host's own link with --iface"
        )


def _tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return _listening(listener, (address.host, address.port))


def _unix(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(listener.fileno(), 0o600)  # `bind` gives the file these rights, so only root can ever connect
    try:
        return _listening(listener, str(path))
    except OSError as err:
        cause = os.strerror(err.errno or 0)
        raise StartRefused(
            f"socket {path}: bind failed: {cause}; remove the file, or choose another --run-dir"
        ) from err


def _listening(listener: socket.socket, target: str | tuple[str, int]) -> socket.socket:
    try:
        listener.bind(target)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove the socket of a killed agent; StartRefused if another agent serves it."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return  # bind reports it
        else:
            raise StartRefused(f"socket {path}: another agent serves it; give this one its own --run-dir")
