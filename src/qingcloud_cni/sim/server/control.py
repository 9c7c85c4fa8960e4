"""A simulator from outside: checks of its name and state directory, its lock, status, faults and end."""

import asyncio
import os
import re
import signal
import socket
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector

from qingcloud_cni.core.errors import AbilityMissing, AlreadyRunning, StartRefused, Unavailable
from qingcloud_cni.posix import peer_credentials
from qingcloud_cni.sim.api.http import FAULTS_PATH, STATUS_PATH
from qingcloud_cni.sim.fabric.leftovers import default_state_dir, find_leftovers, remove
from qingcloud_cni.sim.fabric.names import SIM_NAME

API_SOCKET = "api.sock"  # in the state directory
STOP_TIMEOUT = 20.0  # seconds from SIGTERM to SIGKILL

_SUN_PATH_MAX = 107  # bytes of a unix socket's path, the kernel's limit
_STATE_DIR = re.compile(r"/[A-Za-z0-9._/+-]*")  # it is written into `ip -batch` lines


def check_name(sim: str) -> None:
    if not SIM_NAME.fullmatch(sim):
        raise StartRefused(f"name {sim!r}: up to 12 of a-z, 0-9 and '-' are allowed, with a letter or digit first")


def check_state_dir(state_dir: Path) -> None:
    if not _STATE_DIR.fullmatch(str(state_dir)):
        raise StartRefused(f"state directory {state_dir}: an absolute path of letters, digits and ._+- is needed")
    if len(os.fsencode(state_dir / API_SOCKET)) > _SUN_PATH_MAX:
        raise StartRefused(f"state directory {state_dir}: too long for the path of a unix socket in it")


def check_root() -> None:
    if os.geteuid() != 0:
        raise AbilityMissing("the simulator makes network namespaces: run it as root")


def _lock_address(sim: str) -> str:
    return f"\0qingcloud-sim/{sim}"


def take_lock(sim: str) -> socket.socket:
    """Be the only simulator of this name while the socket is open; AlreadyRunning if another one runs."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(_lock_address(sim))
    except OSError as err:
        lock.close()
        raise AlreadyRunning(
            f"simulator {sim}: start failed: already up; choose another --name, or run `qingcloud-sim down`"
        ) from err
    lock.listen()
    return lock


def find_running(sim: str) -> int | None:
    """The process id of this user's simulator of this name, by its socket's credentials; None if none runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(_lock_address(sim))
        except OSError:
            return None
        peer = peer_credentials(caller)
    return peer.pid if peer.uid == os.geteuid() else None


async def stop_and_remove(sim: str, state_dir: Path | None) -> bool:
    """End the simulator of this name and remove all it made; False if there was nothing."""
    check_root()
    pid = find_running(sim)
    if pid is not None:
        await _end(pid)
    leftovers = await find_leftovers(sim, state_dir)
    await remove(leftovers)
    return pid is not None or bool(leftovers)


async def _end(pid: int) -> None:
    """Send a process SIGTERM, and SIGKILL after STOP_TIMEOUT."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)  # stays with the process even if its number is used again
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(handle, ended.set)
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(handle, number)
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOP_TIMEOUT):
                        await ended.wait()
                        return
        finally:
            loop.remove_reader(handle)
            os.close(handle)


async def ask_status(sim: str, state_dir: Path | None) -> dict[str, Any]:
    """The status of the simulator of this name; Unavailable if none answers."""
    return await _ask(sim, state_dir, "GET", STATUS_PATH)


async def ask_faults(sim: str, state_dir: Path | None) -> list[dict[str, Any]]:
    """The faults in force, each with the number of calls it will still strike."""
    faults: list[dict[str, Any]] = (await _ask(sim, state_dir, "GET", FAULTS_PATH))["faults"]
    return faults


async def set_faults(sim: str, state_dir: Path | None, document: object) -> list[dict[str, Any]]:
    """Replace all faults by the list in *document*; StartRefused if the simulator rejects it."""
    faults: list[dict[str, Any]] = (await _ask(sim, state_dir, "POST", FAULTS_PATH, document))["faults"]
    return faults


async def _ask(sim: str, state_dir: Path | None, method: str, path: str, document: object = None) -> dict[str, Any]:
    leftovers = await find_leftovers(sim, state_dir)
    address = (leftovers.state_dir or default_state_dir(sim)) / API_SOCKET
    try:
        async with (
            ClientSession(connector=UnixConnector(str(address)), timeout=ClientTimeout(10)) as session,
            session.request(method, f"http://sim{path}", json=document) as response,
        ):
            found: dict[str, Any] = await response.json()
    except (ClientError, OSError, TimeoutError) as err:
        raise Unavailable(f"simulator {sim}: request failed: no answer at {address}") from err
    if response.status != HTTPStatus.OK:
        raise StartRefused(str(found.get("message", response.status)))
    return found
