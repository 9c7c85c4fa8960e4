"""podman on a machine, called as an operator calls it. For tests."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from machines.machine import Machine
from runtimes.busybox import write_image

IMAGE = "localhost/busybox:test"


@dataclass(frozen=True)
class Podman:
    """A podman in its default places on *machine*, configured as the example says."""

    machine: Machine

    def install(self) -> None:
        self.machine.install("podman")
        archive = self.machine.directory / "busybox.tar"
        write_image(archive, IMAGE)
        self("load", "--quiet", "--input", str(archive))

    def call(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.machine.run("podman", *args, check=check)

    def __call__(self, *args: str) -> str:
        """What a command prints, which must succeed."""
        return self.call(*args).stdout.strip()

    def json(self, *args: str) -> Any:
        return json.loads(self(*args))

    def options(self, *networks: str) -> tuple[str, ...]:
        """Those every container here is run with; no *networks* is the one of the example."""
        joined = (f"--network={network}" for network in networks or ("mynet",))
        return (f"--cgroup-parent={self.machine.cgroup}", *joined)

    def run(self, name: str, *networks: str, flags: Sequence[str] = ()) -> "Container":
        """Run a container in the background."""
        return Container(
            self, name, self("run", "--detach", f"--name={name}", *self.options(*networks), *flags, IMAGE)
        )

    def end_all(self) -> None:
        self("rm", "--all", "--force", "--time=0")


@dataclass(frozen=True)
class Container:
    podman: Podman
    name: str
    container_id: str

    def inspect(self) -> dict[str, Any]:
        (found,) = self.podman.json("inspect", self.name)
        return dict(found)

    def networks(self) -> dict[str, dict[str, Any]]:
        """Its networks as podman shows them, by name."""
        return dict(self.inspect()["NetworkSettings"]["Networks"])

    def exec(self, *command: str) -> str:
        return self.podman("exec", self.name, *command)

    def addresses(self) -> dict[str, str]:
        """What it sees itself: address with prefix length, by interface."""
        rows = [line.split() for line in self.exec("ip", "-o", "-4", "address").splitlines()]
        return {row[1]: row[3] for row in rows if row[1] != "lo"}

    def reaches(self, address: str) -> bool:
        """Whether all of some echo requests from it are answered."""
        done = self.podman.call("exec", self.name, "ping", "-c", "3", "-i", "0.2", "-W", "3", address, check=False)
        return " 0% packet loss" in done.stdout
