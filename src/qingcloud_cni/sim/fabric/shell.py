"""The fabric's ways to the kernel: `ip -batch`, `nft -f`, threads in a namespace, and reports of link changes."""

import asyncio
import ctypes
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Any, TypeVar

from qingcloud_cni.core.errors import AbilityMissing, KernelRefused

NETNS_DIR = Path("/run/netns")  # where iproute2 keeps named namespaces
RTM_NEWLINK = 16
RTM_DELLINK = 17

_RTMGRP_LINK = 1
_NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_CLONE_NEWNET = 0x40000000
_NOISE = re.compile(r"Command failed .*|")  # `ip -batch` prints it after the error itself
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


async def _run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
    """Run a program to its end: exit status, stdout, stderr. Cancellation kills it."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError as err:
        raise AbilityMissing(f"program {argv[0]!r}: start failed: not installed") from err
    try:
        out, complaint = await process.communicate(stdin.encode())
    except asyncio.CancelledError:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return process.returncode or 0, out.decode(), complaint.decode(errors="replace").strip()


def _ip(netns: str) -> tuple[str, ...]:
    return ("ip", "-n", netns) if netns else ("ip",)


async def ip_batch(netns: str, lines: Iterable[str], *, tolerate: tuple[str, ...] = ()) -> None:
    """Carry out *lines* in the namespace called *netns* ("": the process's), until one fails. Raises KernelRefused.

    With *tolerate* it tries all lines, and ignores a failure whose message contains one of these texts.
    """
    batch = "".join(f"{line}\n" for line in lines)
    if not batch:
        return
    force = ("-force",) if tolerate else ()
    status, _, complaint = await _run(*_ip(netns), *force, "-batch", "-", stdin=batch)
    failures = [line for line in complaint.splitlines() if not _NOISE.fullmatch(line)]
    if tolerate:
        failures = [line for line in failures if not any(text in line for text in tolerate)]
        status = len(failures)
    if status:
        raise KernelRefused(f"ip in namespace {netns or 'of the simulator'}: {'; '.join(failures) or complaint}")


async def ip_json(netns: str, *args: str) -> list[dict[str, Any]]:
    """The output of `ip -j` in the namespace called *netns*; raises KernelRefused."""
    status, out, complaint = await _run(*_ip(netns), "-j", *args)
    if status:
        raise KernelRefused(f"ip {' '.join(args)} in namespace {netns or 'of the simulator'}: {complaint}")
    return [row for row in json.loads(out or "[]") if row]  # ip prints {} for a row that it filters out


async def nft(netns: str, script: str) -> None:
    """Carry out *script* as one transaction in the namespace called *netns*; raises KernelRefused."""
    path = NETNS_DIR / netns
    status, _, complaint = await _run("nsenter", f"--net={path}", "nft", "-f", "-", stdin=script)
    if status == 127:  # nsenter found no such program
        raise AbilityMissing("program 'nft': start failed: not installed")
    if status:
        raise KernelRefused(f"nft in namespace {netns}: {complaint.splitlines()[0] if complaint else status}")


def inside(netns: str, do: Callable[[], _T]) -> _T:
    """Call *do* in the namespace called *netns*.

    It runs in a thread of its own, since setns moves one thread. Opening a socket or writing a sysctl takes less than
    a millisecond, so the caller may wait.
    """
    results: list[_T] = []
    failures: list[BaseException] = []

    def step() -> None:
        try:
            fd = os.open(NETNS_DIR / netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(fd, _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(NETNS_DIR / netns))
            finally:
                os.close(fd)
            results.append(do())
        except BaseException as err:  # noqa: BLE001 - raised in the caller's thread
            failures.append(err)

    thread = threading.Thread(target=step, name=f"in {netns}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def open_monitor() -> socket.socket:
    """A socket on which the kernel reports link changes in the calling thread's namespace."""
    reports = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    reports.bind((0, _RTMGRP_LINK))
    return reports


def drain(reports: socket.socket, wake: asyncio.Event, kinds: Set[int]) -> None:
    """Read all reports; set *wake* for one of *kinds*, or if reports were lost."""
    while True:
        try:
            data = reports.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: the buffer was full
            wake.set()
            return
        offset = 0
        while offset + _NLMSGHDR.size <= len(data):
            length, kind, *_ = _NLMSGHDR.unpack_from(data, offset)
            if kind in kinds:
                wake.set()
            offset += max(length + 3 & ~3, _NLMSGHDR.size)
