"""The environment: a simulated cloud, agents on its hosts, threads in their namespaces, NICs for other plugins."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from machines.hosts import QINGAGENT, Host
from machines.simulator import Sim, links, run
from qingcloud_cni.kernel.namespaces.namespaces import Namespace, enter
from qingcloud_cni.kernel.netlink.messages import LinkChange, LinkInfo, set_link
from qingcloud_cni.kernel.netlink.socket import Netlink

P = ParamSpec("P")
T = TypeVar("T")

VXNETS = ("vxnet-pods001", "vxnet-pods002", "vxnet-pods003")


class BenchFailed(Exception):
    """A measured program failed, so there is nothing to measure."""


def execute(program: Path, environment: Mapping[str, str], stdin: bytes) -> float:
    """Seconds from the exec of *program* to its end; it must succeed."""
    begun = time.perf_counter()
    done = subprocess.run(
        [program],
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=150,
        check=False,
        start_new_session=True,  # a Ctrl-C ends the run as interrupted, not by a plugin that failed
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise BenchFailed(f"{program.name} {environment}: {done.stdout.decode()}{done.stderr.decode()}")
    return seconds


class HostThreads:
    """Threads in a host's namespace; the programs they start are in it from the first instruction."""

    def __init__(self, netns: str, threads: int) -> None:
        self._namespace = Namespace.open(netns)
        self._pool = ThreadPoolExecutor(threads, initializer=enter, initargs=(self._namespace,))

    def begin(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        return self._pool.submit(do, *args, **kwargs)

    def do(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.begin(do, *args, **kwargs).result()

    def close(self) -> None:
        self._pool.shutdown()
        self._namespace.close()


class Mover:
    """Moves links into a namespace and back by bare netlink messages, which every plugin needs."""

    def __init__(self, home: Path, away: str) -> None:
        """Made in a thread in the namespace at *home*."""
        self._names: dict[str, str] = {}  # at home, by MAC
        self._home_ns, self._away_ns = Namespace.open(str(home)), Namespace.open(away)
        self._home = Netlink()
        enter(self._away_ns)
        try:
            self._away = Netlink()
        finally:
            enter(self._home_ns)

    def there(self, mac: str) -> float:
        """Seconds for the move of a link that is down, as in an ADD; it is up afterwards."""
        link = self._find(self._home, mac)
        self._names[mac] = link.name
        seconds = self._move(self._home, link, self._away_ns, "m" + mac.replace(":", ""))
        self._away.do(set_link(self._find(self._away, mac).ifindex, LinkChange(is_up=True)), "set up")
        return seconds

    def back(self, mac: str) -> float:
        """Seconds for the move of a link that is up, as in a DEL."""
        return self._move(self._away, self._find(self._away, mac), self._home_ns, self._names.pop(mac))

    def _find(self, netlink: Netlink, mac: str) -> LinkInfo:
        (link,) = (link for link in netlink.links() if link.mac == mac)
        return link

    def _move(self, netlink: Netlink, link: LinkInfo, target: Namespace, name: str) -> float:
        change = LinkChange(netns_fd=target.fd, name=name, is_up=False if link.is_up else None)
        begun = time.perf_counter()
        netlink.do(set_link(link.ifindex, change), "move")
        return time.perf_counter() - begun

    def close(self) -> None:
        for each in (self._home, self._away, self._home_ns, self._away_ns):
            each.close()


@dataclass(frozen=True)
class Environment:
    """Hosts of one simulator; each measurement uses those it needs."""

    sim: Sim
    directory: Path
    plugin: Path
    empty: Path  # a script of the plugin's interpreter that does nothing

    @contextmanager
    def host(self, name: str, vxnet: str) -> Iterator[Host]:
        home = self.directory / name
        home.mkdir(mode=0o700)
        host = Host(self.sim, name, home, self.plugin, vxnet)
        with ended(host):
            yield host

    @contextmanager
    def host_threads(self, host: Host, threads: int = 1) -> Iterator[HostThreads]:
        host_threads = HostThreads(self.sim.host(host.name)["netns"], threads)
        try:
            yield host_threads
        finally:
            host_threads.close()

    def nics(self, host: Host, count: int) -> dict[str, str]:
        """NICs attached by hand: addresses by MAC. They are down, as parked NICs are."""
        nics = self.sim.new_nics(host.name, host.vxnet, count)
        for name in self.names(host, [nic["nic_id"] for nic in nics]).values():
            run("ip", "-n", host.netns, "link", "set", name, "down")
        return {nic["nic_id"]: nic["private_ip"] for nic in nics}

    def names(self, host: Host, macs: list[str]) -> dict[str, str]:
        """Names of links by MAC."""
        here = links(host.netns)
        return {mac: str(here[mac]["ifname"]) for mac in macs}

    def calls(self) -> int:
        """Calls of the cloud so far."""
        return sum(self.sim.status()["calls"].values())


@contextmanager
def ended(host: Host) -> Iterator[None]:
    """Stop the host's agents after the block, and remove its containers."""
    try:
        yield
    finally:
        for agent in host.agents:
            if agent.is_running:
                agent.stop()
        for container in host.containers:
            run("ip", "netns", "delete", container.name, check=False)


def install(directory: Path, python: Path | None, qingagent: str = QINGAGENT) -> tuple[Path, Path]:
    """The plugin, and a script that does nothing, both of one interpreter."""
    chosen = ("--python", str(python)) if python else ()
    run(qingagent, "install-plugin", "--bin-dir", str(directory), *chosen)
    plugin, empty = directory / "qingcni", directory / "empty"
    with plugin.open() as file:
        empty.write_text(file.readline())
    empty.chmod(0o755)
    return plugin, empty


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields: dict[str, Any] = dict(line.split(":", 1) for line in lines)
    return int(fields["VmRSS"].split()[0]) * 1024


def processor_seconds(pid: int) -> float:
    """Processor time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def peers_directory() -> Path:
    """The directory of the plugins to compare with; BenchFailed if it is missing."""
    for directory in map(Path, ("/usr/lib/cni", "/opt/cni/bin")):
        if os.access(directory / "host-device", os.X_OK) and os.access(directory / "host-local", os.X_OK):
            return directory
    raise BenchFailed("plugins to compare with: missing; install Debian's containernetworking-plugins")
