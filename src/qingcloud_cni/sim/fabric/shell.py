"""How the fabric speaks to the kernel: `ip -batch`, `nft -f`, and threads that step into a namespace."""

import asyncio
import ctypes
import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from qingcloud_cni.core.errors import AbilityMissing, KernelRefused

NETNS_DIR = Path("/run/netns")  # where iproute2 keeps named namespaces

_CLONE_NEWNET = 0x40000000
_NOISE = re.compile(r"Command failed .*|")  # what `ip -batch` says after the error itself
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


async def _run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
    """Run a program to its end: exit status, stdout, stderr. It is killed if we are cancelled meanwhile."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError as err:
        raise AbilityMissing(f"the program {argv[0]!r} is not installed") from err
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
    """Carry out *lines* in the namespace called *netns* ("": our own), stopping at the first failure.

    With *tolerate* all lines are tried, and a failure whose words contain one of these is none. Raises KernelRefused.
    """
    batch = "".join(f"{line}\n" for line in lines)
    if not batch:
        return
    force = ("-force",) if tolerate else ()
    status, _, complaint = await _run(*_ip(netns), *force, "-batch", "-", stdin=batch)
    words = [line for line in complaint.splitlines() if not _NOISE.fullmatch(line)]
    if tolerate:
        words = [line for line in words if not any(word in line for word in tolerate)]
        status = len(words)
    if status:
        raise KernelRefused(f"ip in namespace {netns or 'of the simulator'}: {'; '.join(words) or complaint}")


async def ip_json(netns: str, *args: str) -> list[dict[str, Any]]:
    """The answer of `ip -j` in the namespace called *netns*; raises KernelRefused."""
    status, out, complaint = await _run(*_ip(netns), "-j", *args)
    if status:
        raise KernelRefused(f"ip {' '.join(args)} in namespace {netns or 'of the simulator'}: {complaint}")
    return [row for row in json.loads(out or "[]") if row]  # what a filter leaves out is printed as {}


async def nft(netns: str, script: str) -> None:
    """Carry out *script* as one transaction in the namespace called *netns*; raises KernelRefused."""
    path = NETNS_DIR / netns
    status, _, complaint = await _run("nsenter", f"--net={path}", "nft", "-f", "-", stdin=script)
    if status == 127:  # nsenter's word for a program that is not there
        raise AbilityMissing("the program 'nft' is not installed")
    if status:
        raise KernelRefused(f"nft in namespace {netns}: {complaint.splitlines()[0] if complaint else status}")


def inside(netns: str, do: Callable[[], _T]) -> _T:
    """Call *do* in the namespace called *netns*.

    A namespace belongs to a thread, so this one gets a thread that ends with it: none that has been elsewhere is
    ever used again. Opening a socket or writing a sysctl takes well under a millisecond, so the caller may wait.
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
        except BaseException as err:  # noqa: BLE001 - carried over to the caller's thread
            failures.append(err)

    thread = threading.Thread(target=step, name=f"in {netns}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
