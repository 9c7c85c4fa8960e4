"""Machines with container runtimes are after each test, and after all, as they were found. For tests."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from machines.machine import Machine


@dataclass(frozen=True)
class Before:
    """How machines and the cloud were before there were agents."""

    machines: tuple[Machine, ...]
    traces: tuple[dict[str, Any], ...]
    nics: list[dict[str, Any]]

    @classmethod
    def of(cls, machines: tuple[Machine, ...]) -> "Before":
        return cls(machines, tuple(machine.traces() for machine in machines), machines[0].sim.status()["nics"])

    def is_again(self) -> bool:
        """Whether it is the same once the agents are stopped and cleaned up after."""
        for machine, traces in zip(self.machines, self.traces, strict=True):
            assert machine.agent.stop() == 0
            machine.cleanup()
            machine.wait_traces(traces)
        return bool(self.machines[0].sim.status()["nics"] == self.nics)


class Runtime(Protocol):
    """A container runtime on a machine."""

    @property
    def machine(self) -> Machine: ...

    def end_all(self) -> None:
        """Remove every container there is."""


@contextmanager
def left_as_found(runtimes: Sequence[Runtime], idle: int) -> Iterator[None]:
    """A block that begins and ends without containers, with *idle* NICs waiting and all else as it was."""
    before = [runtime.machine.wait_calm(idle) for runtime in runtimes]
    yield
    for runtime in runtimes:
        runtime.end_all()
    for runtime, traces in zip(runtimes, before, strict=True):
        runtime.machine.wait_calm(idle)
        runtime.machine.wait_traces(traces)


def address_of(attachment: Mapping[str, Any]) -> str:
    """The address the agent tells of, without its prefix length."""
    return str(attachment["address"]).partition("/")[0]
