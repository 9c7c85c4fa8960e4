"""Nomad's client: one network per allocation, by go-cni, from the current configuration."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cni.libcni import Call, Libcni
from cni.networks import Failed, Network, load
from runtimes.gocni import GoCni, Interface

ATTEMPTS = 3
SUFFIXES = {".conf", ".conflist", ".json"}


@dataclass
class Nomad:
    """Of the file in *config_dir* whose network has this name; an unreadable one before it is an error."""

    library: Libcni
    config_dir: Path
    network: str
    wait: Callable[[float], None] = time.sleep  # between attempts
    complaints: list[str] = field(default_factory=list)

    def setup(self, alloc_id: str, netns: str) -> str:
        """The allocation's address. STATUS first; an ADD that fails is repeated as it is, with no DEL between."""
        cni = self._ready()
        call = Call(alloc_id, netns, "eth0", _labels(alloc_id), {"portMappings": []})
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _address(cni.setup(call))
            except Failed as err:
                self.complaints.append(str(err))
                if attempt < ATTEMPTS:
                    self.wait(1.0)
        raise Failed(f"failed to configure network: {self.complaints[-ATTEMPTS]}")

    def restore(self, alloc_id: str, netns: str) -> None:
        """After a restart of the client: the namespace is there, so the network is only checked."""
        self._ready().check(Call(alloc_id, netns, "eth0", _labels(alloc_id)))

    def teardown(self, alloc_id: str, netns: str) -> None:
        """At the end of the allocation, once: an error is noted, and nothing comes after it."""
        try:
            self._ready().remove(Call(alloc_id, netns, "eth0", (), {"portMappings": []}))
        except Failed as err:
            self.complaints.append(str(err))

    def _ready(self) -> GoCni:
        cni = GoCni(self.library, [("eth0", self._load())])
        cni.status()
        return cni

    def _load(self) -> Network:
        for file in sorted(self.config_dir.iterdir()):
            if file.suffix in SUFFIXES and (network := load(file)).name == self.network:
                return network
        raise Failed(f"CNI network config not found for name {self.network!r}")


def _labels(alloc_id: str) -> tuple[tuple[str, str], ...]:
    return (
        ("IgnoreUnknown", "true"),
        ("NOMAD_REGION", "global"),
        ("NOMAD_NAMESPACE", "default"),
        ("NOMAD_JOB_ID", "web"),
        ("NOMAD_GROUP_NAME", "web"),
        ("NOMAD_ALLOC_ID", alloc_id),
    )


def _address(found: dict[str, Interface]) -> str:
    """Of the first interface in a sandbox that has one, by name; else of the first that has one."""
    having = [each for _, each in sorted(found.items()) if each.addresses]
    if not having:
        raise Failed("failed to configure network: no interface with an address")
    return next((each for each in having if each.sandbox), having[0]).addresses[0]
