"""The environment: a cloud whose API continues after a kill, and hosts whose agents can be killed."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chaos.record import Record
from machines.hosts import Host, hosts_of, install
from machines.simulator import Sim, end_sim, eventually, running_sim, start_sim

NICS = 24  # of a host at the most; beside that no setting differs from what operators have but in being quick
AGENT = {
    "policy": "RoundRotate",
    "vxnet": "vxnet-pods001,vxnet-pods002",
    "min_idle": 3,
    "max_idle": 6,
    "max_nics": NICS,
    "idle_ttl": "5s",
    "cooldown": "2s",
    "api_budget": 20_000,  # months of troubles in minutes: the quota is not what is tried here
}


@dataclass
class Environment:
    sim: Sim
    hosts: list[Host]
    record: Record
    directory: Path

    def __post_init__(self) -> None:
        self.up = {host.name for host in self.hosts}  # whose agent is wanted and was started

    # --- the cloud's API -----------------------------------------------------------------------------

    @property
    def is_api_up(self) -> bool:
        return self.sim.process.poll() is None

    def kill_api(self) -> None:
        self.sim.process.kill()
        end_sim(self.sim.process)

    def start_api(self) -> None:
        """The new API continues from the saved cloud; the networks stayed."""
        state = ("--state-dir", str(self.sim.info["state_dir"]))
        self.sim = start_sim(self.sim.name, *state, log=self.directory / "sim.log")
        for host in self.hosts:
            host.sim = self.sim

    # --- agents --------------------------------------------------------------------------------------

    def start_agent(self, host: Host) -> None:
        host.launch(**AGENT)
        self.up.add(host.name)

    def kill_agent(self, host: Host) -> None:
        self.up.discard(host.name)
        host.agent.kill()

    def stop_agent(self, host: Host) -> None:
        """Stop it as systemd does; it must end with 0, unless it had not begun to log."""
        self.up.discard(host.name)
        status = host.agent.stop()
        has_begun = host.agent.log.stat().st_size > 0
        if status and (has_begun or status != -signal.SIGTERM):
            self.record.fail(f"the agent of {host.name} was stopped and ended with {status}: {host.agent.stderr}")

    def check_agents(self) -> None:
        """Fail the run if an agent ended by itself."""
        for host in self.hosts:
            if host.name in self.up and not host.agent.is_running:
                self.up.discard(host.name)
                status = host.agent.process.poll()
                self.record.fail(f"the agent of {host.name} ended with {status}: {host.agent.stderr[-2000:]}")

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces of hosts and of parked NICs."""
        return tuple(name for host in self.hosts for name in (host.netns, host.parking.name))

    # --- what remains of a run -----------------------------------------------------------------------

    def story(self, subject: str) -> str:
        """The agents' `explain` and events of a container or NIC, and the lines of their logs."""
        text: list[str] = []
        kind = "--nic" if ":" in subject else "--container"
        for host in self.hosts:
            with suppress(OSError, AssertionError):
                for command in (("explain", subject), ("events", kind, subject)):
                    said = host.qingagent(*command, check=False)
                    text += [f"--- {host.name}: qingagent {' '.join(command)}", said.stdout or said.stderr]
            for agent in host.agents:
                lines = [line for line in agent.log.read_text(errors="replace").splitlines() if subject in line]
                text += [f"--- {host.name}: {agent.log.name}", *lines] if lines else []
        return "\n".join(text)

    def keep(self, place: Path) -> None:
        """Copy logs and state files there."""
        shutil.rmtree(place, ignore_errors=True)
        sockets = shutil.ignore_patterns("*.sock", "bin")
        shutil.copytree(self.directory, place, ignore=sockets)


@contextmanager
def running_environment(directory: Path, record: Record, hosts: int) -> Iterator[Environment]:
    """Start cloud, hosts and agents; remove everything at the end.

    The cloud draws from a seed of its own: two with one seed would give MACs twice on one machine, and agents that
    look for a NIC in every namespace would find the other's.
    """
    options = ("--state-dir", str(directory / "s"), "--hosts", str(hosts))
    programs = directory / "bin"
    programs.mkdir()
    plugin = install(programs)
    with running_sim(*options, log=directory / "sim.log") as sim:
        names = iter(sim.info["namespaces"]["hosts"])
        with hosts_of(sim, names, directory, plugin) as new_host:
            environment = Environment(sim, [new_host() for _ in range(hosts)], record, directory)
            try:
                for host in environment.hosts:
                    environment.start_agent(host)
                for host in environment.hosts:
                    eventually(host.is_ready, f"the agent of {host.name} ready", seconds=60.0)
                    host.wait_idle(int(str(AGENT["min_idle"])))
                yield environment
            finally:
                end_sim(environment.sim.process)
