"""The demo's environment: a simulated cloud, an agent per host, containers; and the removal of all of it.

Every namespace has the environment's name, every file is in its directory, and every process has its mark. So
`remove_all` finds everything after any failure.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

BIN = Path(sys.executable).parent
QINGAGENT, QINGCLOUD_SIM = BIN / "qingagent", BIN / "qingcloud-sim"
NETNS_DIRECTORY = Path("/run/netns")  # where iproute2 keeps named network namespaces
NAME = re.compile(r"demo[0-9a-f]{6}")
MARK = "QINGCNI_DEMO"  # an environment variable of every process: the environment's directory
PATIENCE = 30.0  # seconds a process may take to end; the simulator and the agents need one or two
SERVICE_RANGE = "10.96.0.0/12"  # Kubernetes' default

Word = str | Path
Done = subprocess.CompletedProcess[str]


class Failed(Exception):
    """A step failed; *log* has the details."""

    def __init__(self, expected: str, came: str, log: Path | None = None) -> None:
        super().__init__(f"expected {expected}; {came}")
        self.expected, self.came, self.log = expected, came, log


@dataclass(frozen=True)
class Host:
    """One host of the simulated cloud, and the files of the agent on it."""

    name: str
    netns: str  # path of its namespace
    vxnet_id: str  # its containers' NICs come from here
    gateway: str  # the VPC router's address in that vxnet
    directory: Path
    simulator_netns: str  # of the agent, for a host of the simulator

    @property
    def config(self) -> Path:
        return self.directory / "QingAgent.yaml"

    @property
    def network(self) -> Path:
        return self.directory / "10-mynet.conf"

    @property
    def log(self) -> Path:
        return self.directory / "agent.log"

    def inside(self, *words: Word) -> list[Word]:
        """A command line that runs on this host."""
        return ["nsenter", f"--net={self.netns}", *words]

    def write_files(self, files: Path, pool: dict[str, str | int]) -> None:
        """Write the agent's configuration and the network's; *files* has those of the cloud's image."""
        settings: dict[str, str | int] = {
            "QYAccessFilePath": str(files / "client.yaml"),
            "instance-id-file": str(files / "instance-id"),
            "vxnet": self.vxnet_id,
            "iface": "eth0",
            "bindaddr": "127.0.0.1:31080",
            "state-dir": str(self.directory / "state"),
            "run-dir": str(self.directory / "run"),
            "simulator-netns": self.simulator_netns,
            **pool,
        }
        network = {
            "cniVersion": "0.3.1",
            "name": "mynet",
            "type": "qingcni",
            "isGateway": True,
            "args": {
                "BindAddr": "127.0.0.1:31080",
                "TokenFile": str(self.directory / "run" / "token"),
                "SpoolDir": str(self.directory / "run" / "spool"),
            },
            "ipMasq": True,
            "ipam": {"routes": [{"dst": SERVICE_RANGE, "gw": "0.0.0.0"}]},
        }
        self.directory.mkdir()
        self.config.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in network.items()]
        self.network.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@dataclass(frozen=True)
class Environment:
    """A directory whose name is that of the simulator, and the prefix of every namespace."""

    directory: Path

    @classmethod
    def make(cls, *, is_kept: bool) -> "Environment":
        """Make one in TMPDIR, or in /run, where it outlives TMPDIR."""
        parent = Path("/run") if is_kept else Path(tempfile.gettempdir())
        directory = parent / f"demo{secrets.token_hex(3)}"
        directory.mkdir(mode=0o700)
        environment = cls(directory)
        if not is_kept and (clouds := os.environ.get("QC_CLOUDS")):  # tools/scratch.py removes it after a kill
            Path(clouds, environment.name).touch()
        try:
            if os.statvfs(directory).f_flag & os.ST_NOEXEC:  # as /run often is; the plugin is a program
                options = "mode=0700,nosuid,nodev,exec"
                environment.run("mount", "--no-mtab", "-t", "tmpfs", "-o", options, "demo", directory)
            if not NETNS_DIRECTORY.exists():
                environment.first_namespaces.touch()
            environment.bin_dir.mkdir()
        except BaseException:
            environment.remove_all()
            raise
        return environment

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def bin_dir(self) -> Path:
        return self.directory / "bin"

    @property
    def plugin(self) -> Path:
        return self.bin_dir / "qingcni"

    @property
    def sim(self) -> Path:
        return self.directory / "sim"

    @property
    def sim_log(self) -> Path:
        return self.directory / "sim.log"

    @property
    def sim_ready(self) -> Path:
        return self.directory / "sim.json"

    @property
    def first_namespaces(self) -> Path:
        """Exists if this machine had no named network namespaces before."""
        return self.directory / "first-namespaces"

    @cached_property
    def variables(self) -> dict[str, str]:
        """Environment variables, without settings of the agents and TMPDIR, which goes first."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("QINGAGENT_", "CNI_")) and k != "TMPDIR"}
        return kept | {MARK: str(self.directory)}

    # --- processes -------------------------------------------------------------------------------------

    def run(
        self, *words: Word, stdin: str = "", settings: dict[str, str] | None = None, seconds: float = 60.0
    ) -> Done:
        """Run a program to its end with any status; Failed only if it takes too long."""
        try:
            return subprocess.run(
                words, input=stdin, env=self.variables | (settings or {}), cwd="/", timeout=seconds,
                capture_output=True, text=True, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as err:
            raise Failed(f"an end of {Path(words[0]).name} within {seconds:.0f} s", "it still runs") from err

    def start(self, *words: Word, output: Path | int, log: Path | int) -> subprocess.Popen[str]:
        """Start a program that stays; in its own session Ctrl-C does not reach it before the demo cleans up."""
        with contextlib.ExitStack() as files:
            stdout, stderr = (
                files.enter_context(where.open("w")) if isinstance(where, Path) else where for where in (output, log)
            )
            return subprocess.Popen(
                words, env=self.variables, cwd="/", stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                text=True, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> Iterator[int]:
        """Ids of all processes with this environment's mark."""
        mark = f"{MARK}={self.directory}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(os.getpid()):
                with contextlib.suppress(OSError):  # it has ended
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        yield int(entry.name)

    # --- containers ------------------------------------------------------------------------------------

    def netns_of(self, container: str) -> Path:
        return NETNS_DIRECTORY / f"{self.name}-{container}"

    def inside(self, container: str, *words: Word) -> list[Word]:
        """A command line that runs in a container."""
        return ["nsenter", f"--net={self.netns_of(container)}", *words]

    def cni_variables(self, verb: str, container: str) -> dict[str, str]:
        """The variables that a container runtime sets for a plugin."""
        return {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(self.netns_of(container)),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.bin_dir),
        }

    # --- the end ---------------------------------------------------------------------------------------

    def remove_all(self) -> list[str]:
        """Remove everything of this environment, in any state; returns what remains."""
        self._end_processes()
        complaints: list[str] = []
        if self.sim.exists() or self.namespaces():
            complaints += self._attempt(QINGCLOUD_SIM, "down", "--name", self.name, "--state-dir", self.sim)
        for netns in self.namespaces():  # the containers'
            complaints += self._attempt("ip", "netns", "delete", netns)
        had_namespaces = not self.first_namespaces.exists()
        if os.path.ismount(self.directory):
            complaints += self._attempt("umount", "--no-mtab", "--lazy", self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)
        if not had_namespaces and NETNS_DIRECTORY.is_dir() and not any(NETNS_DIRECTORY.iterdir()):
            self._attempt("umount", "--no-mtab", NETNS_DIRECTORY)
            with contextlib.suppress(OSError):  # another program has just made a namespace
                NETNS_DIRECTORY.rmdir()
        left = self.left()
        return [*left, *complaints] if left else []

    def left(self, nic_ids: Collection[str] = ()) -> list[str]:
        """Everything of this environment that still exists; *nic_ids* are the MACs of its links."""
        done = self.run("ip", "-json", "link")
        return [
            *(f"process {pid}" for pid in self.processes()),
            *(f"network namespace {netns}" for netns in self.namespaces()),
            *(f"link {link['ifname']}" for link in json.loads(done.stdout) if link.get("address") in nic_ids),
            *([f"directory {self.directory}"] if self.directory.exists() else []),
        ]

    def _attempt(self, *words: Word) -> list[str]:
        """Run a program; returns its stderr."""
        try:
            return self.run(*words).stderr.splitlines()
        except Failed as err:
            return [str(err)]

    def namespaces(self) -> list[str]:
        """Names of all its namespaces: hosts, router, containers and the agents' parking namespaces."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in NETNS_DIRECTORY.iterdir() if self.name in path.name)
        return []

    def _end_processes(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + PATIENCE
            signalled: set[int] = set()
            while pids := set(self.processes()):
                for pid in pids - signalled:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                signalled |= pids
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
