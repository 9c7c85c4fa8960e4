"""Tools of the demo's steps: commands, waiting with progress, and the actions of a container runtime."""

import contextlib
import ipaddress
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_environment import QINGAGENT, QINGCLOUD_SIM, SERVICE_RANGE, Done, Environment, Failed, Host, Word
from demo_reporter import Reporter

Process = subprocess.Popen[str]

CLOUD_SECONDS = 40.0  # far more than the simulator needs
LOOK_SECONDS = 0.3  # between checks while waiting
ADD_SECONDS = 115.0  # the plugin itself gives up after 110

SERVER = """
import socket
server = socket.create_server(("0.0.0.0", 8080))
print("listening", flush=True)
connection, peer = server.accept()
connection.sendall(f"hello {peer[0]}".encode())
"""
CLIENT = """
import socket, sys
print(socket.create_connection((sys.argv[1], 8080), 5).makefile().read())
"""
HELLO_SERVER = """
import socket, sys, threading
name = sys.argv[1]
tcp, udp = socket.create_server(("", 8080)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 8080))

def answer_datagrams():
    while True:
        _, peer = udp.recvfrom(100)
        udp.sendto(f"{name} {peer[0]}".encode(), peer)

threading.Thread(target=answer_datagrams, daemon=True).start()
print("listening", flush=True)
while True:
    connection, peer = tcp.accept()
    with connection:
        connection.sendall(f"{name} {peer[0]}".encode())
"""
ASK_SERVICE = """
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[2] == "tcp" else socket.SOCK_DGRAM
for _ in range(int(sys.argv[3])):
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(5)
        client.connect((sys.argv[1], 80))
        if kind == socket.SOCK_DGRAM:
            client.send(b"who?")
        print(client.recv(100).decode())
"""


def expect(holds: bool, expected: str, came: str, log: Path | None = None) -> None:
    if not holds:
        raise Failed(expected, came, log)


@dataclass
class Tools:
    """The environment, the reporter, and the results so far."""

    environment: Environment
    tell: Reporter
    hosts: dict[str, Host] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # of ADD, by container
    nic_ids: set[str] = field(default_factory=set)  # of all NICs ever seen

    # --- commands --------------------------------------------------------------------------------------

    def shell(self, *words: Word, settings: dict[str, str] | None = None) -> str:
        """Run a command that must succeed, and print it with its output."""
        self.tell.command(words, settings or {})
        output = self.quietly(*words, settings=settings)
        self.tell.show(output)
        return output

    def quietly(self, *words: Word, settings: dict[str, str] | None = None) -> str:
        """Run a command that must succeed; returns its output."""
        done = self.environment.run(*words, settings=settings)
        if done.returncode != 0:
            came = f"it ended with {done.returncode}:\n{done.stderr}{done.stdout}"
            raise Failed(f"success of: {shlex.join(map(str, words))}", came, self.newest_log())
        return done.stdout

    def newest_log(self) -> Path | None:
        """The log that was written last."""
        logs = [log for log in (self.environment.sim_log, *(h.log for h in self.hosts.values())) if log.exists()]
        return max(logs, key=lambda log: log.stat().st_mtime, default=None)

    # --- waiting ---------------------------------------------------------------------------------------

    def wait(self, look: Callable[[], tuple[bool, str]], what: str, process: Process | None = None,
             log: Path | None = None) -> None:  # fmt: skip
        """Check until it holds, and print the progress; Failed after CLOUD_SECONDS, or at the end of *process*."""
        deadline = time.monotonic() + CLOUD_SECONDS
        while True:
            is_so, seen = look()
            if is_so:
                return
            if process is not None and process.poll() is not None:
                raise Failed(what, f"it ended with {process.returncode}", log)
            if time.monotonic() > deadline:
                raise Failed(f"{what} within {CLOUD_SECONDS:.0f} s", seen, log or self.newest_log())
            self.tell.waiting(seen)
            time.sleep(LOOK_SECONDS)

    def wait_for_agent(self, host: Host, process: Process) -> None:
        def look() -> tuple[bool, str]:
            done = self.environment.run(QINGAGENT, "status", "--config", host.config, "-o", "json")
            is_ready = done.returncode == 0 and json.loads(done.stdout)["ready"]
            return is_ready, f"{host.name}: the agent compares its table with kernel and cloud"

        self.wait(look, f"a ready agent on {host.name}", process, host.log)

    def wait_for_nics(self, wanted: dict[str, dict[str, int]]) -> None:
        """Until these hosts have just these NICs, counted by state, and nothing is under way."""

        def look() -> tuple[bool, str]:
            found = {name: self.ask("status", self.hosts[name]) for name in wanted}
            seen = [f"{name}: {states(status['nics'])}" for name, status in found.items()]
            is_so = all(s["nics"] == wanted[name] and not s["operations"] for name, s in found.items())
            return is_so, "; ".join(seen)

        self.wait(look, "; ".join(f"{name}: {states(counts)}" for name, counts in wanted.items()))
        for name in wanted:
            self.nic_ids |= {nic["nic_id"] for nic in self.ask("nics", self.hosts[name])}

    # --- agents and cloud ------------------------------------------------------------------------------

    def ask(self, what: str, host: Host) -> Any:
        """An answer of a host's agent, from the command that shows it to people."""
        return json.loads(self.quietly(QINGAGENT, what, "--config", host.config, "-o", "json"))

    def cloud_status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(
            self.quietly(QINGCLOUD_SIM, "status", "--name", self.environment.name, "-o", "json")
        )
        return status

    def count_calls(self) -> dict[str, int]:
        calls = dict(sorted(self.cloud_status()["calls"].items()))
        counts = ", ".join(f"{action} {count}" for action, count in calls.items())
        self.tell.say(f"cloud calls so far, both hosts together: {sum(calls.values())} ({counts})")
        return calls

    # --- what a container runtime does -----------------------------------------------------------------

    def make_container(self, container: str) -> None:
        """A network namespace with its loopback up: to a network, a container is no more than that."""
        netns = self.environment.netns_of(container).name
        self.quietly("ip", "netns", "add", netns)
        self.quietly("ip", "-n", netns, "link", "set", "lo", "up")

    def add(self, container: str, host: Host, *, is_shown: bool = False) -> None:
        seconds, said = self._cni("ADD", container, host, is_shown=is_shown)
        result = json.loads(said)
        (interface,), (address,) = result["interfaces"], result["ips"]
        network = ipaddress.ip_interface(address["address"]).network
        expect(interface["sandbox"] == str(self.environment.netns_of(container)), "the container's namespace", said)
        expect(ipaddress.ip_address(host.gateway) in network, f"an address of {host.vxnet_id}", said)
        self.results[container] = result
        self.nic_ids.add(interface["mac"])
        self.tell.say(
            f"{container} on {host.name}: {address['address']}, NIC {interface['mac']}, after {shown(seconds)}"
        )

    def delete(self, container: str, host: Host, *, is_shown: bool = False) -> None:
        seconds, said = self._cni("DEL", container, host, is_shown=is_shown)
        expect(not said, "no output of DEL", said, host.log)
        self.tell.say(f"{container} on {host.name}: deleted after {shown(seconds)}")

    def end_container(self, container: str) -> None:
        self.quietly("ip", "netns", "delete", self.environment.netns_of(container).name)

    def _cni(self, verb: str, container: str, host: Host, *, is_shown: bool) -> tuple[float, str]:
        """Exec the plugin on this host: variables, the network's configuration on stdin. Its time and its output."""
        words, settings = host.inside(self.environment.plugin), self.environment.cni_variables(verb, container)
        if is_shown:
            self.tell.command(words, settings, host.network)
        begun = time.monotonic()
        done: Done = self.environment.run(
            *words, settings=settings, stdin=host.network.read_text(), seconds=ADD_SECONDS
        )
        seconds = time.monotonic() - begun
        expect(done.returncode == 0, f"success of {verb} for {container}", done.stdout + done.stderr, host.log)
        if is_shown:
            self.tell.show(done.stdout)
        return seconds, done.stdout

    # --- traffic ---------------------------------------------------------------------------------------

    def ping(self, source: str, target: str) -> None:
        words = ("ping", "-q", "-c", "2", "-i", "0.2", "-W", "2", self.ip_of(target))
        self.shell(*self.environment.inside(source, *words))

    def connect(self, source: str, target: str) -> None:
        """Make a TCP connection; the server answers with the address it sees."""
        python: list[Word] = [sys.executable, "-IS", "-c"]
        words = self.environment.inside(target, *python, SERVER)
        with self.environment.start(*words, output=subprocess.PIPE, log=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            try:
                server.stdout.readline()
                said = self.quietly(*self.environment.inside(source, *python, CLIENT, self.ip_of(target))).strip()
            finally:
                server.kill()
        wanted = f"hello {self.ip_of(source)}"
        expect(said == wanted, f"the greeting {wanted!r}", f"it was {said!r}")
        self.tell.say(f"TCP from {source} to port 8080 of {target} is answered {said!r}: no address was translated")

    @contextlib.contextmanager
    def answering(self, *containers: str) -> Iterator[None]:
        """In each of these containers a server on port 8080, TCP and UDP, that tells its name and whom it sees."""
        with contextlib.ExitStack() as stack:
            for container in containers:
                words = self.environment.inside(container, sys.executable, "-IS", "-c", HELLO_SERVER, container)
                server = stack.enter_context(
                    self.environment.start(*words, output=subprocess.PIPE, log=subprocess.DEVNULL)
                )
                stack.callback(server.kill)
                assert server.stdout is not None
                server.stdout.readline()
            yield

    def ask_service(self, source: str, address: str, proto: str, times: int) -> list[str]:
        """What it answered to a container, each time."""
        python: list[Word] = [sys.executable, "-IS", "-c"]
        return self.quietly(
            *self.environment.inside(source, *python, ASK_SERVICE, address, proto, str(times))
        ).splitlines()

    # --- what ADD gave ---------------------------------------------------------------------------------

    def nic_of(self, container: str) -> str:
        return str(self.results[container]["interfaces"][0]["mac"])

    def address_of(self, container: str) -> str:
        return str(self.results[container]["ips"][0]["address"])

    def ip_of(self, container: str) -> str:
        return self.address_of(container).partition("/")[0]

    def service_gateway_of(self, container: str) -> str:
        return next(str(r["gw"]) for r in self.results[container]["routes"] if r["dst"] == SERVICE_RANGE)


def states(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no NIC"


def shown(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
