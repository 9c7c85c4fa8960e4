"""The promises of successful ADDs, and those that a disturbance broke on purpose."""

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from machines.containers import Container, address_of
from machines.hosts import Host


@dataclass(frozen=True, eq=False)
class Promise:
    """The result that an undisturbed container has, from the answer of ADD to the request of DEL."""

    host: Host
    container: Container
    result: Mapping[str, Any]
    conf: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.container.name

    @property
    def nic_id(self) -> str:
        (nic_id,) = (row["mac"] for row in self.result["interfaces"] if row.get("sandbox"))
        return str(nic_id)

    @property
    def address(self) -> str:
        return address_of(self.result)

    @property
    def gateway(self) -> str:
        return str(self.result["ips"][0]["gateway"])


class Promises:
    """Shared by all threads. A disturbance is entered before it happens, and a promise withdrawn before a DEL."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._containers: dict[str, tuple[Host, Container]] = {}
        self._promises: dict[str, Promise] = {}
        self._disturbed: dict[str, str] = {}  # what was done, by the container's name
        self._taken: dict[str, str] = {}  # what was done at the console, by NIC id

    # --- containers ----------------------------------------------------------------------------------

    def made(self, host: Host, container: Container) -> None:
        with self._lock:
            self._containers[container.name] = (host, container)

    def gone(self, host: Host, container: Container) -> None:
        """Forget a container without namespace and promise."""
        with self._lock:
            host.containers.remove(container)
            del self._containers[container.name]
            self._disturbed.pop(container.name, None)

    def containers(self) -> list[tuple[Host, Container]]:
        with self._lock:
            return list(self._containers.values())

    def any_container(self, rng: random.Random) -> tuple[Host, Container] | None:
        found = self.containers()
        return rng.choice(found) if found else None

    # --- promises ------------------------------------------------------------------------------------

    def promise(self, promise: Promise) -> Promise | None:
        """Enter a promise; returns the one that it contradicts, if any."""
        with self._lock:
            twice = [p for p in self._promises.values() if p.address == promise.address and self._holds(p)]
            self._promises[promise.name] = promise
            other = [p for p in twice if p.name != promise.name]
            return other[0] if other and self._holds(promise) else None

    def withdraw(self, container: Container) -> None:
        with self._lock:
            self._promises.pop(container.name, None)

    def holds(self, promise: Promise) -> bool:
        with self._lock:
            return self._holds(promise)

    def _holds(self, promise: Promise) -> bool:
        is_untouched = promise.name not in self._disturbed and promise.nic_id not in self._taken
        return is_untouched and self._promises.get(promise.name) is promise

    def promises(self) -> list[Promise]:
        """The promises that hold."""
        with self._lock:
            return [p for p in self._promises.values() if self._holds(p)]

    # --- disturbances ------------------------------------------------------------------------------------

    def disturb(self, container: Container, how: str) -> None:
        with self._lock:
            self._disturbed.setdefault(container.name, how)

    def is_disturbed(self, container: Container) -> bool:
        with self._lock:
            return container.name in self._disturbed

    def take(self, nic_id: str, how: str) -> None:
        with self._lock:
            self._taken.setdefault(nic_id, how)

    def is_taken(self, nic_id: str) -> bool:
        with self._lock:
            return nic_id in self._taken
