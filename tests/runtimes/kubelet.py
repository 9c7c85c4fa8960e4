"""kubelet over containerd's CRI: sandboxes of pods, stopped several times, and late."""

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni.libcni import Call, Libcni
from cni.networks import Failed, Network
from machines.containers import Container
from runtimes.gocni import GoCni

LIMITS = {"IngressRate": 1_000_000, "IngressBurst": 4294967295, "EgressRate": 1_000_000, "EgressBurst": 4294967295}


@dataclass(frozen=True)
class Sandbox:
    """One try of a pod: a namespace and an id of its own, whatever the pod is called."""

    container: Container
    pod: str = "web-0"

    @property
    def id(self) -> str:
        return self.container.name


@dataclass
class Kubelet:
    library: Libcni
    network: Network
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    def run_sandbox(self, sandbox: Sandbox) -> tuple[str, ...]:
        """The addresses of its `eth0`; loopback and network are added at once, and removed if either fails."""
        cni = GoCni.with_loopback(self.library, self.network)
        call = Call(sandbox.id, sandbox.container.path, "eth0", self._labels(sandbox), _capabilities(sandbox))
        try:
            return cni.setup(call)["eth0"].addresses
        except Failed:
            with suppress(Failed):  # containerd logs it, and tells kubelet of the first error
                cni.remove(call)
            raise

    def stop_sandbox(self, sandbox: Sandbox) -> None:
        """DEL, then the namespace goes; the next time it is gone, and no path is sent."""
        netns = sandbox.container.path if Path(sandbox.container.path).exists() else ""
        call = Call(sandbox.id, netns, "eth0", self._labels(sandbox), _capabilities(sandbox))
        GoCni.with_loopback(self.library, self.network).remove(call)
        if netns:
            sandbox.container.delete()

    def is_node_ready(self) -> bool:
        """What every CRI Status call asks, each five seconds."""
        try:
            GoCni.with_loopback(self.library, self.network).status()
        except Failed:
            return False
        return True

    def _labels(self, sandbox: Sandbox) -> tuple[tuple[str, str], ...]:
        """In the order of a Go map: any."""
        pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", "default"),
            ("K8S_POD_NAME", sandbox.pod),
            ("K8S_POD_INFRA_CONTAINER_ID", sandbox.id),
            ("K8S_POD_UID", "5c4b3a29-0000-0000-0000-000000000000"),
        ]
        self.rng.shuffle(pairs)
        return tuple(pairs)


def _capabilities(sandbox: Sandbox) -> Mapping[str, Any]:
    """What a pod may ask for, with the keys that Go gives to fields without a name in JSON."""
    return {
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        "bandwidth": LIMITS,
        "dns": {"Servers": ["10.96.0.10"], "Searches": ["svc.cluster.local"], "Options": ["ndots:5"]},
        "cgroupPath": f"/kubepods/besteffort/{sandbox.id}",
        "io.kubernetes.cri.pod-annotations": {"app": "web"},
    }
