"""containerd on a machine, asked over the container runtime interface as the kubelet asks it. For tests."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from machines.hosts import LOG_LINES
from machines.machine import ENVIRONMENT, Machine
from machines.simulator import eventually
from runtimes.busybox import write_image

SOCKET = "run/containerd/containerd.sock"
# A server that is being started again is looked for often.
CHANNEL = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))


@cache
def interface() -> tuple[ModuleType, ModuleType]:
    """Messages and services of `cri.proto`, compiled."""
    return grpc.protos_and_services("runtimes/cri.proto")


@dataclass
class Containerd:
    """A containerd in its default places on *machine*, configured as the example says."""

    machine: Machine

    @property
    def log(self) -> Path:
        return self.machine.directory / "containerd.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = self.machine.spawn("containerd", stdout=log, stderr=log, env=ENVIRONMENT)
        self._channel = grpc.insecure_channel(f"unix:{self.machine.root / SOCKET}", CHANNEL)
        self._runtime = interface()[1].RuntimeServiceStub(self._channel)
        eventually(self._is_initialised, "containerd serves its CRI", seconds=60.0)

    def _is_initialised(self) -> bool:
        """It answers on its socket before its CRI is ready to be asked."""
        try:
            self.ask("Version")
        except grpc.RpcError as err:
            if "not initialized yet" in str(err.details()):
                return False
            raise
        return True

    def stop(self) -> None:
        """End it as systemd does; containers live on."""
        self._channel.close()
        self._process.terminate()
        self._process.wait(timeout=30)

    def kill(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait(timeout=30)

    def ask(self, method: str, seconds: float = 60.0, **fields: Any) -> Any:
        """One call, which must succeed; raises grpc.RpcError."""
        assert self._process.poll() is None, "containerd has ended"
        request = getattr(interface()[0], f"{method}Request")(**fields)
        return getattr(self._runtime, method)(request, timeout=seconds, wait_for_ready=True)

    def info(self, part: str) -> dict[str, Any]:
        """Its own status: its configuration, its networks."""
        return dict(json.loads(self.ask("Status", verbose=True).info[part]))

    def conditions(self) -> dict[str, bool]:
        return {condition.type: condition.status for condition in self.ask("Status").status.conditions}

    @property
    def pause_image(self) -> str:
        """The image it wants for every pod."""
        return str(self.info("config")["sandboxImage"])

    def import_image(self) -> None:
        archive = self.machine.directory / "pause.tar"
        write_image(archive, self.pause_image)
        self.machine.run("ctr", "--namespace", "k8s.io", "images", "import", str(archive))

    def new_pod(self, name: str, **fields: Any) -> "Pod":
        """Run a sandbox."""
        pod = Pod(self, self.pod_config(name))
        pod.sandbox_id = self.ask("RunPodSandbox", config=pod.config, **fields).pod_sandbox_id
        return pod

    def pod_config(self, name: str) -> Any:
        messages, uid = interface()[0], secrets.token_hex(8)
        return messages.PodSandboxConfig(
            metadata=messages.PodSandboxMetadata(name=name, uid=uid, namespace="default"),
            hostname=name,
            linux=messages.LinuxPodSandboxConfig(cgroup_parent=f"/{self.machine.cgroup}/pod{uid}"),
        )

    def set_network(self, document: dict[str, Any]) -> None:
        """Replace the network configuration as its page advises, and wait until it is read."""
        directory = self.machine.root / "etc/cni/net.d"
        draft = directory / "10-mynet.draft"
        draft.write_text(json.dumps(document))
        draft.rename(directory / "10-mynet.conflist")
        eventually(lambda: self._network_source() == document, "the network configuration read by containerd")

    def _network_source(self) -> Any:
        networks = self.info("cniconfig")["Networks"]
        return json.loads(networks[-1]["Config"]["Source"])  # the first is always the loopback

    def end_all(self) -> None:
        """Take away every sandbox there is, also what is left of one that could not be run."""
        for item in self.ask("ListPodSandbox").items:
            Pod(self, None, item.id).end()


@contextmanager
def containerd_on(machine: Machine) -> Iterator[Containerd]:
    """Started as its example's page says; it and its pods end with the block, or with the machine."""
    machine.install("containerd")
    machine.borrow("loopback", "portmap", "tuning")
    runtime = Containerd(machine)
    try:
        runtime.start()
        runtime.import_image()
        yield runtime
    finally:
        runtime.kill()
        print(f"--- {machine.name} containerd.log", *runtime.log.read_text().splitlines()[-LOG_LINES:], sep="\n")


@dataclass
class Pod:
    """A sandbox, with one container in it once `start_container` was called."""

    runtime: Containerd
    config: Any
    sandbox_id: str = ""
    container_id: str = ""

    def status(self) -> Any:
        return self.runtime.ask("PodSandboxStatus", pod_sandbox_id=self.sandbox_id).status

    @property
    def is_ready(self) -> bool:
        return bool(self.status().state == interface()[0].SANDBOX_READY)

    @property
    def address(self) -> str:
        """What the kubelet takes for the pod's address."""
        return str(self.status().network.ip)

    def details(self) -> dict[str, Any]:
        answer = self.runtime.ask("PodSandboxStatus", pod_sandbox_id=self.sandbox_id, verbose=True)
        return dict(json.loads(answer.info["info"]))

    @property
    def netns(self) -> str:
        """The path of its namespace, on its machine."""
        spaces = {space["type"]: space for space in self.details()["runtimeSpec"]["linux"]["namespaces"]}
        return str(spaces["network"]["path"])

    def start_container(self) -> None:
        messages = interface()[0]
        config = messages.ContainerConfig(
            metadata=messages.ContainerMetadata(name="main"),
            image=messages.ImageSpec(image=self.runtime.pause_image),
        )
        created = self.runtime.ask(
            "CreateContainer", pod_sandbox_id=self.sandbox_id, config=config, sandbox_config=self.config
        )
        self.container_id = created.container_id
        self.runtime.ask("StartContainer", container_id=self.container_id)

    def run(self, *cmd: str) -> tuple[int, str]:
        """Run a program in its container: exit status, stdout."""
        done = self.runtime.ask("ExecSync", container_id=self.container_id, cmd=cmd, timeout=30)
        return done.exit_code, done.stdout.decode()

    def reaches(self, address: str) -> bool:
        """Whether all of some echo requests from its container are answered."""
        _, said = self.run("ping", "-c", "3", "-i", "0.2", "-W", "3", address)
        return " 0% packet loss" in said

    def stop(self, seconds: float = 60.0) -> None:
        self.runtime.ask("StopPodSandbox", seconds, pod_sandbox_id=self.sandbox_id)

    def remove(self) -> None:
        self.runtime.ask("RemovePodSandbox", pod_sandbox_id=self.sandbox_id)

    def end(self) -> None:
        """As the kubelet takes a pod away: stopped once more before it is removed."""
        self.stop()
        self.stop()
        self.remove()
