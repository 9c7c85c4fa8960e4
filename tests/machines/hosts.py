"""Hosts of a simulated cloud as an operator has them: a real agent, the installed plugin, containers. For tests.

Everything is run by its own command in the host's network namespace; `Host.close` ends and removes all of it.
"""

import http.client
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni.answers import Answer, execute
from machines.agents import AgentProcess, Reply, exchange
from machines.containers import Container
from machines.simulator import Sim, UnixConnection, eventually, links, run, running_sim
from qingcloud_cni.agent.api.metrics import PAGE_AGE
from qingcloud_cni.sim.fabric.shell import inside

QINGAGENT = str(Path(sys.executable).with_name("qingagent"))
PORT = 31080
LOG_LINES = 200  # of each agent, printed when its host is closed: pytest shows them where a test failed

CUT_OFF = """
table inet away {{
  chain output {{ type filter hook output priority 0; ip daddr 127.0.0.1 tcp dport 7777 {verdict}; }}
}}
"""


@dataclass
class Host:
    """One host of *sim*; its agent's state and run directory lie in *directory*."""

    sim: Sim
    name: str
    directory: Path
    plugin: Path
    vxnet: str = "vxnet-pods001"  # unless `start` is given others
    program: str = QINGAGENT
    agents: list[AgentProcess] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)

    @property
    def netns(self) -> str:
        return self.sim.netns(self.name)

    @property
    def address(self) -> str:
        return self.sim.host(self.name)["address"]

    @property
    def instance_id(self) -> str:
        return self.sim.host(self.name)["instance_id"]

    @property
    def routers(self) -> str:
        """The agent's simulator-netns."""
        return self.sim.host(self.name)["simulator_netns"]

    @property
    def parking(self) -> Path:
        return Path(f"/run/netns/qingcni-{self.instance_id}")

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def token_file(self) -> Path:
        return self.run_dir / "token"

    @property
    def token(self) -> str:
        """What the agent last wrote there."""
        return self.token_file.read_text().strip()

    @property
    def spool(self) -> Path:
        return self.run_dir / "spool"

    @property
    def agent(self) -> AgentProcess:
        """The one started last."""
        return self.agents[-1]

    # --- the agent and its commands ------------------------------------------------------------------

    def flags(self, **settings: object) -> list[str]:
        """All flags of an agent on this host; *settings* overrides, `min_idle=3` is `--min-idle 3`, None omits."""
        here = self.sim.host(self.name)
        chosen: dict[str, object] = {
            "QYAccessFilePath": here["client_yaml"],
            "instance_id_file": here["instance_id_file"],
            "simulator_netns": self.routers,
            "state_dir": self.state_dir,
            "run_dir": self.run_dir,
            "vxnet": self.vxnet,
            "cooldown": "0s",
            "loglevel": "debug",
        }
        chosen |= settings
        pairs = ((f"--{key.replace('_', '-')}", str(value)) for key, value in chosen.items() if value is not None)
        return [word for pair in pairs for word in pair]

    def command(self, *argv: str) -> list[str]:
        """*argv* as it is run on this host: as `ip netns exec`, without a mount namespace of its own."""
        return ["nsenter", f"--net={self.sim.host(self.name)['netns']}", *argv]

    def spawn(self, *argv: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start *argv* on this host, in a session of its own, where no Ctrl-C reaches it; *options* are Popen's."""
        options |= {"stdin": subprocess.DEVNULL, "cwd": self.directory, "start_new_session": True}
        return subprocess.Popen(self.command(*argv), **options)

    def launch(self, **settings: object) -> AgentProcess:
        """Start an agent and leave it to itself."""
        number = len(self.agents) + 1
        log, complaints = (self.directory / f"agent-{number}.{kind}" for kind in ("log", "err"))
        with log.open("wb") as stdout, complaints.open("wb") as stderr:
            process = self.spawn(self.program, "start", *self.flags(**settings), stdout=stdout, stderr=stderr)
        self.agents.append(AgentProcess(process, log, complaints))
        return self.agent

    def start(self, *, idle: int | None = None, **settings: object) -> AgentProcess:
        """Start an agent and wait until it is ready, and *idle* NICs with it (all of its min-idle if not told)."""
        agent = self.launch(**settings)
        eventually(lambda: self.is_ready(agent), f"the agent on {self.name} ready")
        self.wait_idle(int(str(settings.get("min_idle", 3))) if idle is None else idle)
        return agent

    def is_ready(self, agent: AgentProcess | None = None) -> bool:
        assert agent is None or agent.is_running, f"the agent ended with {agent.process.poll()}: {agent.stderr}"
        with suppress(OSError):
            return self.ask("GET", "/readyz").status == 200
        return False

    def qingagent(self, command: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of the commands that speak to the agent."""
        argv = self.command(self.program, command, "--run-dir", str(self.run_dir), *args)
        return run(*argv, check=check, cwd=self.directory)

    def cleanup(self, *args: str, check: bool = True, **settings: object) -> subprocess.CompletedProcess[str]:
        """Its log goes to stderr; errors are printed at any level."""
        argv = self.command(self.program, "cleanup", *self.flags(**{"loglevel": "error"} | settings), *args)
        return run(*argv, check=check, cwd=self.directory)

    @contextmanager
    def cut_off(self, verdict: str) -> Iterator[None]:
        """While it lasts, packets to the cloud's API meet this verdict of nftables."""
        run(*self.command("nft", "-f", "-"), input=CUT_OFF.format(verdict=verdict))
        try:
            yield
        finally:
            run(*self.command("nft", "delete", "table", "inet", "away"))

    # --- its API -------------------------------------------------------------------------------------

    def ask(self, method: str, target: str, body: bytes = b"") -> Reply:
        """Over the unix socket."""
        connection = UnixConnection(str(self.socket))
        return exchange(connection, method, target, body)

    def ask_tcp(
        self, netns: str, address: str, method: str, target: str, *, body: bytes = b"", token: str = ""
    ) -> Reply:
        """Over TCP to *address*, from the namespace called *netns*, signed with *token* if it is given."""
        connection = http.client.HTTPConnection(address, PORT, timeout=10)
        return inside(netns, lambda: exchange(connection, method, target, body, token))

    def get(self, target: str) -> Any:
        reply = self.ask("GET", target)
        assert reply.status == 200, reply
        return reply.json

    def metrics(self) -> str:
        """All metrics, as they are now: the agent answers with a page that may be PAGE_AGE old."""
        time.sleep(PAGE_AGE)
        return self.ask("GET", "/metrics").body.decode()

    def metric(self, sample: str) -> float:
        """The first sample whose line begins with *sample*: a metric's name, with its labels if it has any."""
        lines = self.metrics().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))

    def nics(self, *states: str) -> list[dict[str, Any]]:
        """NICs of the agent's table, of all states or of these."""
        return [nic for nic in self.get("/v1/nics") if not states or nic["state"] in states]

    def attachments(self) -> list[dict[str, Any]]:
        return list(self.get("/v1/attachments"))

    def status(self) -> dict[str, Any]:
        return dict(self.get("/v1/status"))

    def wait_idle(self, count: int) -> None:
        def settled() -> bool:
            return len(self.nics("idle")) >= count and not self.status()["operations"]

        # a write that was cut off is given 30 s to take effect before it is judged
        eventually(settled, f"{count} idle NICs on {self.name}", seconds=60.0)

    def cloud_nics(self, *prefixes: str) -> dict[str, dict[str, Any]]:
        """NICs in the cloud that bear our name and this instance's id, by id, as the simulator shows them.

        Those of the pool, or those named with other *prefixes*: gateways are `hostnic`.
        """
        marks = tuple(f"{prefix}_{self.instance_id}_" for prefix in prefixes or ("qingcni",))
        return {nic["nic_id"]: nic for nic in self.sim.status()["nics"] if nic["name"].startswith(marks)}

    def agrees_with_cloud(self) -> bool:
        """Whether the agent's table has just the NICs of ours that the cloud has, gateways included."""
        return {nic["nic_id"] for nic in self.nics()} == set(self.cloud_nics("qingcni", "hostnic"))

    def is_calm(self) -> bool:
        """As `agrees_with_cloud`, and nothing is under way."""
        return self.agrees_with_cloud() and not self.status()["operations"]

    def is_untouched(self) -> bool:
        """Whether nothing is held: every NIC idle and parked, no attachment, nobody waiting.

        NICs become idle a little after the DEL is answered, so this waits for them.
        """
        # a remedy needs two comparisons, CONFIRM_SECONDS (20) apart
        return eventually(self._is_untouched, f"nothing held on {self.name}", seconds=60.0)

    def _is_untouched(self) -> bool:
        status, nics = self.status(), self.nics()
        parked = set(links(self.parking.name))
        return (
            (status["attachments"], status["waiting"], status["operations"]) == (0, 0, [])
            and all(nic["state"] == "idle" for nic in nics)
            and parked >= {nic["nic_id"] for nic in nics}
        )

    # --- containers ----------------------------------------------------------------------------------

    def container(self) -> Container:
        """A new namespace, removed when the host is closed."""
        container = Container(f"{self.sim.name}-c{secrets.token_hex(4)}")
        run("ip", "netns", "add", container.name)
        self.containers.append(container)
        run("ip", "-n", container.name, "link", "set", "lo", "up")
        return container

    def conf(
        self, version: str | None = "0.3.1", *, routes: Sequence[Mapping[str, str]] = (), **args: object
    ) -> dict[str, Any]:
        """The seed's network configuration; *args* go under `args`."""
        document: dict[str, Any] = {
            "name": "mynet",
            "type": "qingcni",
            "isGateway": True,
            "args": {
                "BindAddr": f"127.0.0.1:{PORT}",
                "TokenFile": str(self.token_file),
                "SpoolDir": str(self.spool),
                **args,
            },
            "ipMasq": True,
            "ipam": {"routes": list(routes)},
        }
        return document if version is None else {"cniVersion": version, **document}

    def cni(
        self,
        verb: str,
        container: Container | str,
        ifname: str = "eth0",
        conf: Mapping[str, Any] | bytes | None = None,
        **variables: str | None,
    ) -> Answer:
        """Exec the installed plugin on this host; *variables* override `CNI_*`, None leaves one out."""
        stdin = conf if isinstance(conf, bytes) else json.dumps(self.conf() if conf is None else conf).encode()
        return execute(self.command(str(self.plugin)), self._environment(verb, container, ifname, variables), stdin)

    def begin(
        self,
        verb: str,
        container: Container | str,
        ifname: str = "eth0",
        conf: Mapping[str, Any] | None = None,
        output: int = subprocess.DEVNULL,
        **variables: str | None,
    ) -> subprocess.Popen[bytes]:
        """As `cni`, but it is left to run, in a session of its own: to be killed, or waited for."""
        with tempfile.TemporaryFile() as stdin:
            stdin.write(json.dumps(self.conf() if conf is None else conf).encode())
            stdin.seek(0)
            return subprocess.Popen(
                self.command(str(self.plugin)),
                env=self._environment(verb, container, ifname, variables),
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _environment(
        self, verb: str, container: Container | str, ifname: str, variables: Mapping[str, str | None]
    ) -> dict[str, str]:
        name = container if isinstance(container, str) else container.name
        usual: dict[str, str | None] = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": ifname,
            "CNI_PATH": str(self.plugin.parent),
        }
        return {key: value for key, value in {**usual, **variables}.items() if value is not None}

    def add(
        self, container: Container | str, ifname: str = "eth0", conf: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """ADD, which must succeed: its result."""
        return self.cni("ADD", container, ifname, conf).result

    def delete(self, container: Container | str, ifname: str = "eth0", conf: Mapping[str, Any] | None = None) -> None:
        """DEL, which must succeed."""
        self.cni("DEL", container, ifname, conf).succeeded()

    # --- the end -------------------------------------------------------------------------------------

    def end(self) -> None:
        """End this host's agents and remove its containers; its NICs go with the simulator."""
        for agent in self.agents:
            if agent.is_running:
                agent.kill()
        for container in self.containers:
            run("ip", "netns", "delete", container.name, check=False)

    def close(self) -> None:
        """As `end`, and print the logs."""
        self.end()
        for agent in self.agents:
            for path in (agent.log, agent.complaints):
                lines = path.read_text().splitlines()
                print(f"--- {self.name} {path.name}", *lines[-LOG_LINES:], sep="\n")


def install(directory: Path) -> Path:
    """The plugin, written into *directory* by the command for it."""
    run(QINGAGENT, "install-plugin", "--bin-dir", str(directory))
    return directory / "qingcni"


NewHost = Callable[[], Host]


@contextmanager
def lone_host(directory: Path) -> Iterator[Host]:
    """The only host of a simulator of its own, with the plugin installed, without an agent."""
    directory.joinpath("bin").mkdir()
    plugin = install(directory / "bin")
    with running_sim("--hosts", "1") as sim, hosts_of(sim, iter(["host1"]), directory, plugin) as take:
        yield take()


@contextmanager
def hosts_of(sim: Sim, names: Iterator[str], directory: Path, plugin: Path) -> Iterator[NewHost]:
    """A function that takes the next of *names* into use; what was taken is closed at the end."""
    taken: list[Host] = []

    def take() -> Host:
        name = next(names)
        home = directory / name
        home.mkdir(mode=0o700)
        taken.append(Host(sim, name, home, plugin))
        return taken[-1]

    try:
        yield take
    finally:
        for host in taken:
            host.close()
