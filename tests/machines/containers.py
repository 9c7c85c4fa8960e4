"""Network namespaces as container runtimes make them, and traffic between them."""

import json
import secrets
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines.simulator import eventually, run
from qingcloud_cni.sim.fabric.shell import inside

CARRIER = {"LOWER_UP", "NO-CARRIER"}


@dataclass(frozen=True)
class Container:
    """A network namespace such as a runtime makes; its name is the container id too."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def ip(self, *args: str) -> list[dict[str, Any]]:
        """What `ip -j` shows inside."""
        rows = json.loads(run("ip", "-n", self.name, "-j", *args).stdout or "[]")
        return [row for row in rows if row]

    @property
    def names(self) -> list[str]:
        """Of its links, in the kernel's order."""
        return [row["ifname"] for row in self.ip("link", "show")]

    def link(self, ifname: str = "eth0") -> dict[str, Any]:
        (row,) = self.ip("-d", "addr", "show", "dev", ifname)
        return row

    def picture(self) -> list[list[Any]]:
        """Links, addresses, routes and rules, without what comes of itself a moment after a link: carrier, IPv6."""
        rows = self.ip("-d", "link", "show")
        devices = [row | {"operstate": "", "flags": set(row["flags"]) - CARRIER} for row in rows]
        addresses = [(row["ifname"], row["addr_info"]) for row in self.ip("-4", "addr", "show")]
        return [devices, addresses, self.ip("-4", "route", "show", "table", "all"), self.ip("-4", "rule", "show")]

    def routes(self) -> dict[str, str]:
        """Gateway by destination, of all routes that have one."""
        return {row["dst"]: row["gateway"] for row in self.ip("route", "show") if "gateway" in row}

    def reaches(self, address: str) -> bool:
        return pings(self.name, address)

    @contextmanager
    def process(self, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process inside, until it is over or the block is."""
        with subprocess.Popen(("nsenter", f"--net={self.path}", *argv), stdout=subprocess.DEVNULL) as process:
            try:
                inside = Path(self.path).stat().st_ino
                eventually(lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino == inside, f"{argv} inside")
                yield process
            finally:
                process.kill()

    def delete(self) -> None:
        run("ip", "netns", "delete", self.name)


@contextmanager
def new_namespace(prefix: str = "qcpod") -> Iterator[str]:
    """A network namespace of its own, as a container runtime makes it: its name."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        run("ip", "netns", "delete", name, check=False)


def pings(netns: str, address: str) -> bool:
    """Whether three of three echo requests from the namespace called *netns* are answered."""
    ping = ("ping", "-n", "-q", "-c", "3", "-i", "0.05", "-W", "2", address)
    done = run("nsenter", f"--net=/run/netns/{netns}", *ping, check=False)
    return " 0% packet loss" in done.stdout


def speaks_tcp(client: str, server: str, address: str, port: int = 8080) -> bool:
    """Whether a connection from one namespace to *address* in another one carries words both ways."""

    def listen() -> socket.socket:
        return socket.create_server((address, port))

    def call() -> socket.socket:
        return socket.create_connection((address, port), timeout=5)

    with inside(server, listen) as listener, inside(client, call) as caller:
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            caller.sendall(b"ping")
            heard = accepted.recv(16)
            accepted.sendall(b"pong")
            return (heard, caller.recv(16)) == (b"ping", b"pong")


def address_of(result: Mapping[str, Any]) -> str:
    """The address in a result of 0.3.x, without its prefix length."""
    return str(result["ips"][0]["address"]).partition("/")[0]
