"""CRI-O with ocicni: CHECK straight after ADD, DEL from the cache while processes run, GC at its start."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cni.libcni import Call, Libcni
from cni.networks import Failed, Network, load
from machines.simulator import run

SUFFIXES = {".conf", ".conflist", ".json"}
ADD_SECONDS, DEL_SECONDS, GC_SECONDS = 300.0, 60.0, 30.0


@dataclass(frozen=True)
class Pod:
    """A sandbox and the pod it is of."""

    sandbox: str
    netns: str
    name: str = "web-0"
    namespace: str = "default"
    uid: str = "5c4b3a29-0000-0000-0000-000000000000"
    capability_args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> Call:
        args = (
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", self.namespace),
            ("K8S_POD_NAME", self.name),
            ("K8S_POD_INFRA_CONTAINER_ID", self.sandbox),
            ("K8S_POD_UID", self.uid),
        )
        return Call(self.sandbox, self.netns, "eth0", args, self.capability_args)


class Crio:
    """One run of CRI-O; *pods* are those it knows from the run before."""

    def __init__(self, library: Libcni, config_dir: Path, pods: Mapping[str, Pod] | None = None) -> None:
        self.library = library
        self.pods = dict(pods or {})
        self.complaints: list[str] = []
        self.networks = {network.name: network for network in reversed([*self._load(config_dir)])}

    def _load(self, config_dir: Path) -> Iterator[Network]:
        """What can be read and whose plugins speak its version; the first is for every pod."""
        for file in sorted(config_dir.iterdir()):
            if file.suffix in SUFFIXES:
                try:
                    network = load(file)
                    self.library.validate(network)
                    yield network
                except Failed as err:
                    self.complaints.append(f"{file}: {err}")

    @property
    def network(self) -> Network:
        """The default one."""
        return [*self.networks.values()][-1]

    def start(self) -> None:
        """At its start: GC with the sandboxes it knows, then a CHECK of each."""
        valid = [(pod.sandbox, "eth0") for pod in self.pods.values()]
        for network in self.networks.values():
            listed = valid if network is self.network else []
            try:
                replace(self.library, seconds=GC_SECONDS).gc(network, listed)
            except Failed as err:
                self.complaints.append(str(err))
        for pod in self.pods.values():
            self.address(pod)

    def status(self) -> None:
        """Polled until it succeeds, and for every node status."""
        self.library.status(self.network)

    def run_pod(self, pod: Pod) -> list[str]:
        """The pod's addresses, in the order of the result; whatever fails is followed by a DEL."""
        run("ip", "-n", Path(pod.netns).name, "link", "set", "lo", "up")
        self.pods[pod.sandbox] = pod
        try:
            replace(self.library, seconds=ADD_SECONDS).add(self.network, pod.call)
            return self.address(pod)
        except Failed:
            self.stop_pod(pod)
            raise

    def address(self, pod: Pod) -> list[str]:
        """CHECK where the version has it, and the addresses of the result in the cache."""
        network, call = self.library.cached_network(self.network.name, pod.call) or (self.network, pod.call)
        if network.allows("0.4.0"):
            self.library.check(network, call)
        result = self.library.cached_result(network, call)
        assert result is not None
        return [str(ip["address"]).partition("/")[0] for ip in result["ips"]]

    def stop_pod(self, pod: Pod) -> None:
        """One DEL, with the configuration and the arguments of the ADD; however it ends, the pod is forgotten."""
        network, call = self.library.cached_network(self.network.name, pod.call) or (self.network, pod.call)
        try:
            replace(self.library, seconds=DEL_SECONDS).delete(network, call)
        except Failed as err:
            self.complaints.append(str(err))
        self.library.forget(network, call)
        self.pods.pop(pod.sandbox, None)
