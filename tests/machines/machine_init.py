"""The first process of a machine that `machine.py` makes: lays out its files, and takes all of it away in the end.

It runs in namespaces for mounts and processes that begin with it. Given a JSON object as its argument it says "ready"
when the machine can be used; the machine lasts until its stdin is closed, or until it gets SIGTERM.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

OWN = ("/opt", "/tmp", "/var/lib", "/var/tmp", "/dev/shm", "/run")  # empty in every machine
CGROUPS = Path("/sys/fs/cgroup")
NETNS_DIRECTORY = Path("/run/netns")
PATIENCE = 20.0  # seconds for processes to end after SIGKILL


class Ended(Exception):
    """Somebody sent SIGTERM."""


def asked_to_end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Ended


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", "--no-mtab", *words], check=True)


def stage(target: Path, staged: Path, kept: Iterable[Path] = ()) -> None:
    """Put an empty file system over *target*, in which only *kept* is visible."""
    mount("-t", "tmpfs", "-o", "mode=0755", "machine", staged)
    for path in kept:
        if path.is_relative_to(target):
            place = staged / path.relative_to(target)
            place.mkdir(parents=True, exist_ok=True)
            mount("--bind", path, place)
    mount("--move", staged, target)


def own_etc(staged: Path) -> None:
    """A copy of /etc: programs need much of it, and runtimes want to be configured in it."""
    mount("-t", "tmpfs", "-o", "mode=0755", "machine", staged)
    subprocess.run(["cp", "--archive", "/etc/.", staged], check=True)
    mount("--move", staged, "/etc")


def own_sys() -> None:
    """/sys as this network namespace has it, with all cgroup hierarchies of the kernel, mounted elsewhere or not."""
    mount("-t", "sysfs", "sysfs", "/sys")
    hierarchies = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    old = [controllers for controllers in hierarchies if controllers]
    if not old:
        mount("-t", "cgroup2", "cgroup2", CGROUPS)
        return
    mount("-t", "tmpfs", "-o", "mode=0755", "cgroup", CGROUPS)
    for controllers in old:
        place = CGROUPS / controllers.removeprefix("name=")
        place.mkdir()
        options = f"none,{controllers}" if controllers.startswith("name=") else controllers
        mount("-t", "cgroup", "-o", options, "cgroup", place)


def lay_out(staged: Path, kept: list[Path], binds: Mapping[str, str], routers: Mapping[str, str]) -> None:
    held = {place: os.open(source, os.O_RDONLY) for place, source in routers.items()}
    # Copies of these mounts would keep other programs' namespaces alive, and the links in them. It fails for those
    # that their owner removes meanwhile: a mount goes with its place, in every mount namespace.
    forget = ("umount", "--all", "--types", "nsfs", "--lazy")
    subprocess.run(forget, check=False, stderr=subprocess.DEVNULL)
    own_etc(staged)
    own_sys()
    for directory in OWN:
        stage(Path(directory), staged, kept)
    for place, source in binds.items():
        Path(place).mkdir(parents=True)
        mount("--bind", source, place)
    for place, fd in held.items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).touch()
        mount("--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{fd}", place)
        os.close(fd)
    NETNS_DIRECTORY.mkdir()  # as on a host on which `ip netns add` has been used
    mount("--bind", NETNS_DIRECTORY, NETNS_DIRECTORY)
    mount("--make-shared", NETNS_DIRECTORY)


def end_processes() -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            os.kill(-1, signal.SIGKILL)  # all of this machine, and nothing else
        except ProcessLookupError:
            return
        time.sleep(0.01)
    sys.exit("processes of this machine outlive SIGKILL")


def remove_cgroups(name: str) -> None:
    """What runtimes made below *name*; it is empty now."""
    for root in (CGROUPS / name, *CGROUPS.glob(f"*/{name}")):
        for folder, _, _ in os.walk(root, topdown=False):
            Path(folder).rmdir()


def main(cgroup: str, staged: str, keep: list[str], binds: Mapping[str, str], routers: Mapping[str, str]) -> None:
    lay_out(Path(staged), [Path(path) for path in keep], binds, routers)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of this machine become our children
    signal.signal(signal.SIGTERM, asked_to_end)
    print("ready", flush=True)
    with suppress(Ended):
        sys.stdin.buffer.read()
    end_processes()
    remove_cgroups(cgroup)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
