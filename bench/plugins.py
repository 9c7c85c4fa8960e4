"""The measured plugins: their configurations, and their exec as by a runtime."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.environment import HostThreads, execute
from machines.containers import Container
from machines.hosts import Host


class MeasuredPlugin(ABC):
    """A plugin on a host; *slot* is the number of its device, if it needs one."""

    name: str

    def __init__(self, program: Path, host_threads: HostThreads) -> None:
        self.host_threads = host_threads
        self.program = program

    @abstractmethod
    def conf(self, slot: int) -> Mapping[str, Any]: ...

    def run(self, verb: str, container: Container, slot: int = 0) -> float:
        """Seconds of one exec; called in a thread in the host's namespace."""
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.program.parent),
        }
        return execute(self.program, environment, json.dumps(self.conf(slot)).encode())

    def timed(self, verb: str, container: Container, slot: int = 0) -> float:
        return self.host_threads.do(self.run, verb, container, slot)


class Qingcni(MeasuredPlugin):
    """As in 10-mynet.conf: its address is of this host, so the plugin uses the unix socket."""

    name = "qingcni"

    def __init__(self, host: Host, host_threads: HostThreads) -> None:
        super().__init__(host.plugin, host_threads)
        self._conf = host.conf()

    def conf(self, slot: int) -> Mapping[str, Any]:
        return self._conf


class HostDevice(MeasuredPlugin):
    """NICs of the same cloud, moved by the reference plugin: the same kernel work."""

    name = "host-device"

    def __init__(self, program: Path, host_threads: HostThreads, devices: list[tuple[str, str]]) -> None:
        """*devices* are names and addresses."""
        super().__init__(program, host_threads)
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


class Bridge(MeasuredPlugin):
    """For pods without NICs of their own; it makes a veth and moves nothing."""

    name = "bridge + host-local"

    def __init__(self, program: Path, host_threads: HostThreads, data: Path) -> None:
        super().__init__(program, host_threads)
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
