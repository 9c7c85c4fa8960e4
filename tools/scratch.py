#!/usr/bin/env python3
"""Run a command with a short-lived directory under /run as its TMPDIR, and leave nothing of it behind.

    tools/scratch.py COMMAND [ARGUMENT...]

The directory's name is short because a unix socket's path has 107 bytes at most. When the command has ended, this
program ends the processes it left, undoes mounts below the directory and removes the directory. It also removes the
network namespaces of simulated clouds, each named by an empty file in $QC_CLOUDS, and /run/netns if this run made it.
If this program is killed, its next run removes what is left.
It passes signals on to the command's process group. The status is the command's.
"""

import contextlib
import fcntl
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
SIM_DIRECTORY = Path("/run/qingcloud-sim")  # where simulators keep their state
PREFIX = "qc-"
PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


def make_directory() -> Path:
    """Make a directory in which programs may be executed, which many systems deny under /run."""
    parent = "/run" if os.access("/run", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    if os.statvfs(directory).f_flag & os.ST_NOEXEC and os.geteuid() == 0:
        options = "mode=0700,nosuid,nodev,exec"
        subprocess.run(["mount", "--no-mtab", "-t", "tmpfs", "-o", options, "qc-scratch", directory], check=True)
    (directory / "clouds").mkdir()
    return directory


def hold(directory: Path) -> int:
    """Lock the directory as in use until this process ends; returns the descriptor of the lock."""
    held = os.open(directory / "held", os.O_CREAT | os.O_WRONLY, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.write(held, b"held\n")  # once written, a free lock means that this process is dead
    return held


def is_abandoned(directory: Path) -> bool:
    with contextlib.suppress(OSError), (directory / "held").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return bool(file.read())
    return False


def run(command: list[str], directory: Path, received: list[signal.Signals]) -> int:
    """Run *command* to its end; signals that handlers append to *received* are passed on."""
    # A group of its own: a signal from the terminal reaches it once, through us, and not twice.
    environment = os.environ | {"TMPDIR": str(directory), "QC_CLOUDS": str(directory / "clouds")}
    child = subprocess.Popen(command, process_group=0, env=environment)
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
    """Processes that have *directory*, or something in it, in their environment or as an argument."""
    path = os.fsencode(directory)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                values = (word.rpartition(b"=")[2] for word in words.split(b"\0"))
                if any(value == path or value.startswith(path + b"/") for value in values):
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


def remove_clouds(directory: Path) -> None:
    """Remove the namespaces of simulated clouds, with their containers' and hosts' NICs."""
    for cloud in (entry.name for entry in (directory / "clouds").iterdir()):
        spaces = NETNS_DIRECTORY.iterdir() if NETNS_DIRECTORY.is_dir() else ()
        for name in sorted(space.name for space in spaces):
            if name.startswith((f"{cloud}-", f"qingcni-i-{cloud}")):
                print(f"scratch: removing forgotten namespace {name}", file=sys.stderr)
                subprocess.run(["ip", "netns", "delete", name], check=False)
        shutil.rmtree(SIM_DIRECTORY / cloud, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is missing, or holds others'
        SIM_DIRECTORY.rmdir()


def clean_up(directory: Path) -> None:
    end_descendants(directory)
    remove_clouds(directory)
    remove(directory)


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
    directory = make_directory()
    held = hold(directory)
    left = list(filter(is_abandoned, directory.parent.glob(f"{PREFIX}*")))
    had_namespaces = NETNS_DIRECTORY.is_dir() and not left
    for abandoned in left:
        print(f"scratch: removing what a run that was killed left of {abandoned}", file=sys.stderr)
        clean_up(abandoned)
    try:
        return run(command, directory, received)
    except OSError as error:
        print(f"scratch: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    finally:
        clean_up(directory)
        os.close(held)
        if not had_namespaces:
            remove_netns_directory()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
