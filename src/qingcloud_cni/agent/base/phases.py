"""How long each phase of one CNI request takes, for its log line and the metrics."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum


class Phase(StrEnum):
    """Phases never overlap."""

    QUEUE = "queue"  # for a NIC
    CLOUD = "cloud"  # for a gateway NIC of its vxnet: found, or made
    KERNEL = "kernel"
    STORE = "store"
    OWN = "own"  # everything else: the agent's own work, and waiting for requests for the same attachment


class Phases:
    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time
        self._begun = self._now()
        self._waits: dict[Phase, float] = {}

    @contextmanager
    def waiting(self, phase: Phase) -> Iterator[None]:
        begun = self._now()
        try:
            yield
        finally:
            self._waits[phase] = self._waits.get(phase, 0.0) + self._now() - begun

    @property
    def total(self) -> float:
        return self._now() - self._begun

    def summary(self) -> str:
        """The phases until now, for people."""
        return ", ".join(f"{phase} {seconds:.3f} s" for phase, seconds in self.seconds().items() if seconds >= 0.0005)

    def seconds(self) -> Mapping[Phase, float]:
        """Seconds of every phase until now; their sum is the total."""
        waits = {phase: self._waits.get(phase, 0.0) for phase in Phase}
        waits[Phase.OWN] = max(self.total - sum(waits.values()), 0.0)
        return waits
