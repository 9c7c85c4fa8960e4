"""Machines that container runtimes run on: a simulated host with files, mounts and processes of its own. For tests.

Runtimes keep things in places nobody can choose: containerd the sockets of its shims, libcni its cache, podman its
locks. On such a machine they find their default places, and examples can be installed where their pages say. Agent
and runtime share it, as they share a host. When it ends everything on it ends with it, whatever the tests did.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cni.libcni import PATH
from machines.hosts import QINGAGENT, Host
from machines.simulator import Sim, eventually, run
from pages import ROOT, table

INIT = Path(__file__).with_name("machine_init.py")
EXAMPLES = ROOT / "examples"
BIN_DIR = "/opt/cni/bin"
REFERENCE_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")  # where Debian has them, and others
ROUTERS = "/var/lib/qingcloud-sim"
ENVIRONMENT = {"PATH": PATH}  # all that systemd gives a service
PODMANS_OWN = "/var/lib/containers/storage/overlay"  # a mount that its commands make and remove as they like


class Entered(subprocess.Popen[bytes]):
    """A program in another pid namespace: the process we started only waits for it there, so signals are sent on."""

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            run("pkill", f"--signal={sig}", f"--parent={self.pid}", check=False)


@dataclass
class Machine(Host):
    """A running one."""

    init: int = 0  # the machine's first process, by the id that we see

    @property
    def root(self) -> Path:
        """Its files, as seen from here."""
        return Path(f"/proc/{self.init}/root")

    @property
    def routers(self) -> str:
        return ",".join(_router_places(self.sim.host(self.name)))

    @property
    def cgroup(self) -> str:
        """What its containers' cgroups must be below."""
        return cgroup_of(self.sim, self.name)

    def command(self, *argv: str) -> list[str]:
        # --root: in a chroot a mount namespace alone would lead out of it
        return ["nsenter", f"--target={self.init}", "--mount", "--pid", "--net", "--root", "--wd=/", *argv]

    def spawn(self, *argv: str, **options: Any) -> Entered:
        return Entered(self.command(*argv), stdin=subprocess.DEVNULL, **options)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the runtime's to its end."""
        return run(*self.command(*argv), check=check, env=ENVIRONMENT)

    def install(self, example: str) -> None:
        """Do what the page of *example* says: put the files where they go, and the plugin."""
        page = (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
        self.run("mkdir", "--parents", BIN_DIR)
        self.run(QINGAGENT, "install-plugin", "--bin-dir", BIN_DIR)
        for file, place, *_ in table(page, "File", "Goes to"):
            source = EXAMPLES / example / file.partition("(")[2].removesuffix(")")
            self.run("install", "-D", "--mode=644", str(source), place.strip("`"))

    def borrow(self, *plugins: str) -> None:
        """Reference plugins, as links in the runtime's directory of plugins."""
        for name in plugins:
            source = next(path for directory in REFERENCE_PLUGINS if (path := Path(directory) / name).exists())
            self.run("ln", "--symbolic", str(source), BIN_DIR)

    def mounts(self) -> list[str]:
        """Where something is mounted, in the order in which it was."""
        return [line.split()[4] for line in Path(f"/proc/{self.init}/mountinfo").read_text().splitlines()]

    def reboot(self) -> None:
        """What a reboot does: no process lives on, and what programs had in /run is gone; the rest is there."""
        self.run("sh", "-c", "kill -KILL -1", check=False)  # spares itself, and the machine's first process
        for agent in self.agents:
            agent.wait()
        for place in reversed(self.mounts()):
            if place.startswith(("/run/netns/", "/run/containerd/")):
                self.run("umount", "--lazy", place)
        self.run("find", "/run/netns", "/run/containerd", "/run/qingcloud-cni", "-mindepth", "1", "-delete")

    def rules(self) -> str:
        """All of nftables."""
        return self.run("nft", "list", "ruleset").stdout

    def traces(self) -> dict[str, Any]:
        """What containers and NICs leave on a host while they are there."""
        links = json.loads(self.run("ip", "-json", "link").stdout)
        return {
            "namespaces": sorted(path.name for path in (self.root / "run/netns").iterdir()),
            "links": sorted(link["ifname"] for link in links),
            "addresses": self.run("ip", "-oneline", "-4", "address").stdout,
            "routes": self.run("ip", "-4", "route", "show", "table", "all").stdout,
            "rules": self.run("ip", "-4", "rule").stdout,
            "nftables": self.rules(),
            "mounts": sorted(set(self.mounts()) - {PODMANS_OWN}),
        }

    def wait_calm(self, idle: int) -> dict[str, Any]:
        """Wait until nothing is under way, *idle* NICs wait, and the cloud has no others of ours: the traces then."""

        def calm() -> bool:
            return len(self.nics("idle")) == idle and self.is_calm()

        eventually(calm, f"{idle} idle NICs and nothing under way on {self.name}", seconds=60.0)
        return self.traces()

    def wait_traces(self, before: Mapping[str, Any]) -> None:
        """All is as it was *before*; the kernel takes a moment to end a namespace."""
        now: dict[str, Any] = {}

        def is_as_before() -> bool:
            now.update(self.traces())
            return now == before

        try:
            eventually(is_as_before, f"{self.name} as before")
        except AssertionError as err:
            differing = [f"{kind}: {now[kind]}, was {before[kind]}" for kind in before if now[kind] != before[kind]]
            raise AssertionError("; ".join([str(err), *differing])) from None


def _router_places(here: Mapping[str, str]) -> list[str]:
    """Where a machine has the namespaces of the simulator's routers."""
    return [f"{ROUTERS}/{Path(path).name}" for path in here["simulator_netns"].split(",")]


def cgroup_of(sim: Sim, name: str) -> str:
    return f"{sim.name}-{name}"


@contextmanager
def machine_on(sim: Sim, name: str, directory: Path) -> Iterator[Machine]:
    """A machine over the network of this host of *sim*; what it wrote outside *directory* is gone afterwards."""
    staged = directory / "staged"
    run_dir = directory / "run"
    for folder in (staged, run_dir):
        folder.mkdir(mode=0o700)
    here = sim.host(name)
    programs = (ROOT, Path(sys.prefix), Path(sys.base_prefix))
    kept = (*programs, Path(tempfile.gettempdir()), Path(here["client_yaml"]).parent, directory)
    layout = {
        "cgroup": cgroup_of(sim, name),
        "staged": str(staged),
        "keep": [str(path.resolve()) for path in kept],
        "binds": {"/run/qingcloud-cni": str(run_dir)},
        "routers": dict(zip(_router_places(here), here["simulator_netns"].split(","), strict=True)),
    }
    enter = ("nsenter", f"--net={here['netns']}", "unshare", "--mount", "--propagation=private", "--pid", "--fork")
    with subprocess.Popen(
        (*enter, "--mount-proc", sys.executable, "-I", INIT, json.dumps(layout)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said == "ready\n", f"the machine {name} did not come up: {said}"
            init = int(run("pgrep", f"--parent={process.pid}").stdout)
            host = Machine(sim, name, directory, Path(BIN_DIR, "qingcni"), init=init)
            try:
                yield host
            finally:
                host.close()
        finally:
            process.stdin.close()
            assert process.wait(timeout=60) == 0, f"the machine {name} left something behind"


@dataclass(frozen=True)
class Before:
    """How machines and the cloud were before there were agents."""

    machines: tuple[Machine, ...]
    traces: tuple[dict[str, Any], ...]
    nics: list[dict[str, Any]]

    @classmethod
    def of(cls, machines: tuple[Machine, ...]) -> "Before":
        return cls(machines, tuple(machine.traces() for machine in machines), machines[0].sim.status()["nics"])

    def is_again(self) -> bool:
        """Whether it is the same once the agents are stopped and cleaned up after."""
        for machine, traces in zip(self.machines, self.traces, strict=True):
            assert machine.agent.stop() == 0
            machine.cleanup()
            machine.wait_traces(traces)
        return bool(self.machines[0].sim.status()["nics"] == self.nics)


class Runtime(Protocol):
    """A container runtime on a machine."""

    @property
    def machine(self) -> Machine: ...

    def end_all(self) -> None:
        """Remove every container there is."""


@contextmanager
def left_as_found(runtimes: Sequence[Runtime], idle: int) -> Iterator[None]:
    """A block that begins and ends without containers, with *idle* NICs waiting and all else as it was."""
    before = [runtime.machine.wait_calm(idle) for runtime in runtimes]
    yield
    for runtime in runtimes:
        runtime.end_all()
    for runtime, traces in zip(runtimes, before, strict=True):
        runtime.machine.wait_calm(idle)
        runtime.machine.wait_traces(traces)
