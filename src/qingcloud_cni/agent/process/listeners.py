"""The agent's sockets: the lock and both addresses, bound before anything else is touched."""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qingcloud_cni.agent.api.connections import Serves
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.agent.settings.values import BINDADDR, Address
from qingcloud_cni.core.errors import AlreadyRunning, StartRefused

BACKLOG = 1024  # connections that wait for accept; the agent takes them in bursts
_LOCK = "\0qingcloud-cni/agent"  # abstract names belong to the network namespace


def take_lock() -> socket.socket:
    """Be the only agent of this network namespace while the socket is open; AlreadyRunning if another is."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        lock.bind(_LOCK)
    except OSError as err:
        lock.close()
        if err.errno != errno.EADDRINUSE:
            raise
        raise AlreadyRunning(
            "another agent runs in this network namespace; `qingagent status` shows it, `qingagent stop` ends it"
        ) from None
    return lock


@contextmanager
def bound(settings: Settings) -> Iterator[Sequence[tuple[socket.socket, Serves]]]:
    """Listen on all addresses for the block; StartRefused if one is not available.

    A client that connects early waits, or is cut off if the start fails.
    """
    metrics = settings.metrics_bind
    with ExitStack() as stack:
        everything = Serves.API | Serves.METRICS
        is_shared = metrics in (BINDADDR, settings.bindaddr)
        bindaddr = stack.enter_context(_tcp(settings.bindaddr, "bindaddr"))
        found = [(bindaddr, everything if is_shared else Serves.API)]
        if isinstance(metrics, Address) and not is_shared:
            found.append((stack.enter_context(_tcp(metrics, "metrics-bind")), Serves.METRICS))
        found.append((stack.enter_context(_unix(settings.socket)), everything))
        stack.callback(settings.socket.unlink, missing_ok=True)
        yield found


def check_iface(name: str) -> None:
    """StartRefused if the host has no such link: under a wrong name the agent would not reserve the host's NIC."""
    names = sorted(link for _, link in socket.if_nameindex())
    if name not in names:
        raise StartRefused(
            f"iface {name}: not found in this network namespace, which has {', '.join(names)};"
            " set the host's own link with --iface"
        )


def _tcp(address: Address, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    target = address.host, address.port
    return _listening(listener, target, f"{setting} {address}", f"free it, or choose another --{setting}")


def _unix(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)  # so that only root can ever connect
    try:
        return _listening(listener, str(path), f"socket {path}", "remove the file, or choose another --run-dir")
    finally:
        os.umask(umask)


def _listening(listener: socket.socket, target: str | tuple[str, int], name: str, advice: str) -> socket.socket:
    try:
        listener.bind(target)
        listener.listen(BACKLOG)
    except OSError as err:
        listener.close()
        raise StartRefused(f"{name}: bind failed: {os.strerror(err.errno or 0)}; {advice}") from err
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
