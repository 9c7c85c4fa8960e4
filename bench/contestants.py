"""Plugins under measurement: how each is configured, and how a runtime execs it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.stage import Place, execute
from machines.containers import Container
from machines.hosts import Host


class Contestant(ABC):
    """A plugin on a host; *slot* numbers what it gives out where that matters."""

    name: str

    def __init__(self, program: Path, place: Place) -> None:
        self.place = place
        self.program = program

    @abstractmethod
    def conf(self, slot: int) -> Mapping[str, Any]: ...

    def run(self, verb: str, container: Container, slot: int = 0) -> float:
        """Seconds of one exec; to be called in a thread of the host's namespace."""
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.program.parent),
        }
        return execute(self.program, environment, json.dumps(self.conf(slot)).encode())

    def timed(self, verb: str, container: Container, slot: int = 0) -> float:
        return self.place.do(self.run, verb, container, slot)


class Ours(Contestant):
    """The seed's way: over TCP with a token, as 10-mynet.conf has it."""

    name = "qingcni"

    def __init__(self, host: Host, place: Place) -> None:
        super().__init__(host.plugin, place)
        self._conf = host.conf()

    def conf(self, slot: int) -> Mapping[str, Any]:
        return self._conf


class HostDevice(Contestant):
    """NICs of the same cloud, moved by the reference plugin: the same kernel work."""

    name = "host-device"

    def __init__(self, program: Path, place: Place, devices: list[tuple[str, str]]) -> None:
        """*devices* are names and addresses."""
        super().__init__(program, place)
        self._devices = devices

    def conf(self, slot: int) -> Mapping[str, Any]:
        device, address = self._devices[slot]
        gateway = address.rpartition(".")[0] + ".1"
        return {
            "cniVersion": "0.3.1",
            "name": "bench",
            "type": "host-device",
            "device": device,
            "ipam": {
                "type": "static",
                "addresses": [{"address": f"{address}/24", "gateway": gateway}],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }


class Bridge(Contestant):
    """What people use where pods have no NICs of their own; it makes a veth and moves nothing."""

    name = "bridge + host-local"

    def __init__(self, program: Path, place: Place, data: Path) -> None:
        super().__init__(program, place)
        self._data = data

    def conf(self, slot: int) -> Mapping[str, Any]:
        return {
            "cniVersion": "0.3.1",
            "name": "bench-bridge",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._data),
                "ranges": [[{"subnet": "10.123.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
