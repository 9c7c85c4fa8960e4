"""The agent's addresses: taken before anything else is touched, served once the agent works."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qingcloud_cni.agent.api.server import Listeners
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.agent.settings.values import Address
from qingcloud_cni.core.errors import StartRefused


@contextmanager
def bound(settings: Settings) -> Iterator[Listeners]:
    """Both addresses, given back at the end; StartRefused where one cannot be had."""
    with ExitStack() as stack:
        tcp = stack.enter_context(_tcp(settings.bindaddr))
        unix = stack.enter_context(_unix(settings.socket))
        stack.callback(settings.socket.unlink, missing_ok=True)
        yield Listeners(unix, tcp)


def check_iface(name: str) -> None:
    """The link of the host itself must be there: under a wrong name its NIC would not be known as the host's."""
    names = sorted(link for _, link in socket.if_nameindex())
    if name not in names:
        raise StartRefused(
            f"iface {name}: there is no such link in this network namespace, but {', '.join(names)};"
            " name the host's own with --iface"
        )


def _tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address.host, address.port))
        listener.listen()
    except OSError as err:
        listener.close()
        raise StartRefused(
            f"bindaddr {address} cannot be had: {os.strerror(err.errno or 0)}; free it or choose another --bindaddr"
        ) from err
    return listener


def _unix(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)  # the socket is made with it: for root only from its first moment
    try:
        listener.bind(str(path))
        listener.listen()
    except OSError as err:
        listener.close()
        raise StartRefused(
            f"socket {path} cannot be made: {os.strerror(err.errno or 0)}; remove what stands there,"
            " or choose another --run-dir"
        ) from err
    finally:
        os.umask(umask)
    return listener


def _remove_stale(path: Path) -> None:
    """A socket that nobody serves is what a killed agent leaves; one that is served belongs to another agent."""
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
            return  # binding will tell
        else:
            raise StartRefused(f"socket {path} is served by another agent; give this one its own --run-dir")
