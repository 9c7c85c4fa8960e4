#!/usr/bin/env python3
"""Run a command with a short-lived directory under /run as its TMPDIR, and leave nothing of it behind.

    tools/scratch.py COMMAND [ARGUMENT...]

The directory's name is short because a unix socket's path may have 107 bytes at most. However the command ends,
processes it forgot are ended, mounts below the directory are undone and the directory is removed; so is
/run/netns, which the first `ip netns add` makes, if it was not there before and is empty again.
Signals are passed on to the command's process group. The status is the command's.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRACE = 120.0  # seconds the command may take to clean up after a signal: the demo detaches its NICs first
NETNS_DIRECTORY = Path("/run/netns")
PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


def make_directory() -> Path:
    """A fresh directory in which programs may be executed, which many systems deny under /run."""
    parent = "/run" if os.access("/run", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="qc-", dir=parent))
    if os.statvfs(directory).f_flag & os.ST_NOEXEC and os.geteuid() == 0:
        options = "mode=0700,nosuid,nodev,exec"
        subprocess.run(["mount", "--no-mtab", "-t", "tmpfs", "-o", options, "qc-scratch", directory], check=True)
    return directory


def run(command: list[str], directory: Path, received: list[signal.Signals]) -> int:
    """Run *command* to its end; signals that handlers append to *received* are passed on."""
    # A group of its own: a signal from the terminal reaches it once, through us, and not twice.
    child = subprocess.Popen(command, process_group=0, env=os.environ | {"TMPDIR": str(directory)})
    give_up = float("inf")
    while child.poll() is None:
        while received:
            os.killpg(child.pid, PASSED_ON[received.pop(0)])
            give_up = min(give_up, time.monotonic() + GRACE)
        if time.monotonic() > give_up:
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def descendants(directory: Path) -> list[int]:
    """Processes that still carry *directory* as their TMPDIR."""
    mark = f"TMPDIR={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def end_descendants(directory: Path) -> None:
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        for pid in descendants(directory):
            with contextlib.suppress(ProcessLookupError):
                print(f"scratch: ending forgotten process {pid} ({number.name})", file=sys.stderr)
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while descendants(directory) and time.monotonic() < deadline:
            time.sleep(0.05)


def remove(directory: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([m for m in mounts if m == str(directory) or m.startswith(f"{directory}/")]):
        subprocess.run(["umount", "--no-mtab", "--lazy", point], check=False)
    shutil.rmtree(directory)


def remove_netns_directory() -> None:
    """Undo what the first `ip netns add` of a machine does: a directory, mounted onto itself."""
    if NETNS_DIRECTORY.is_dir() and not any(NETNS_DIRECTORY.iterdir()):
        subprocess.run(["umount", "--no-mtab", NETNS_DIRECTORY], check=False, stderr=subprocess.DEVNULL)
        with contextlib.suppress(OSError):  # another process has just made a namespace
            NETNS_DIRECTORY.rmdir()


def main(command: list[str]) -> int:
    if not command:
        print("usage: scratch.py COMMAND [ARGUMENT...]", file=sys.stderr)
        return 2
    received: list[signal.Signals] = []
    for number in PASSED_ON:
        signal.signal(number, lambda number, _frame: received.append(signal.Signals(number)))
    had_namespaces = NETNS_DIRECTORY.is_dir()
    directory = make_directory()
    try:
        return run(command, directory, received)
    except OSError as error:
        print(f"scratch: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    finally:
        end_descendants(directory)
        remove(directory)
        if not had_namespaces:
            remove_netns_directory()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
