"""Faults of the kernel in memory, as the simulated cloud has them: verbs that fail, take long, or wait for a test."""

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from qingcloud_cni.core.errors import AgentError, KernelRefused

P = ParamSpec("P")
T = TypeVar("T")
ALWAYS = sys.maxsize  # times


@dataclass(eq=False)
class KernelFault:
    """Strikes *times* calls of a verb after the first *skip*, until it is ended or its `with` block is left."""

    verb: str
    times: int = ALWAYS
    skip: int = 0
    nic_id: str = ""  # strikes only calls about this NIC; "": all
    seconds: float = 0.0  # before the verb does its work
    late: float = 0.0  # seconds between the end of its work and its answer
    error: AgentError | None = None  # instead of its work
    listener: Callable[..., object] = lambda *_args: None  # called first, with the verb's arguments
    calls: list[tuple[Any, ...]] = field(default_factory=list)  # arguments of the calls that it has struck
    _is_open: asyncio.Event | None = None  # a blocked call waits for it
    _reached: asyncio.Event = field(default_factory=asyncio.Event)

    def __enter__(self) -> "KernelFault":
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def end(self) -> None:
        """Strike no more calls. A blocked one stays blocked."""
        self.times = 0

    def release(self) -> None:
        """Let blocked calls go on, and strike no more."""
        self.end()
        assert self._is_open is not None, "it blocks nothing"
        self._is_open.set()

    async def reached(self) -> None:
        """Wait until it has struck a call."""
        await self._reached.wait()

    def strikes(self, verb: str, args: tuple[Any, ...]) -> bool:
        if verb != self.verb or len(self.calls) >= self.times:
            return False
        if self.nic_id and self.nic_id not in (args[0], getattr(args[0], "mac", "")):
            return False
        self.skip -= 1
        return self.skip < 0

    async def strike(self, args: tuple[Any, ...], sleep: Callable[[float], Awaitable[None]]) -> None:
        self.calls.append(args)
        self.listener(*args)
        self._reached.set()
        if self.seconds:
            await sleep(self.seconds)
        if self._is_open is not None:
            await self._is_open.wait()
        if self.error is not None:
            raise self.error


class KernelFaults:
    """The list of a kernel's faults. *verb* is a method of core.seams.Kernel."""

    _sleep: Callable[[float], Awaitable[None]]
    _faults: list[KernelFault]

    def fail(
        self, verb: str, error: AgentError | None = None, *, times: int = ALWAYS, skip: int = 0, nic_id: str = ""
    ) -> KernelFault:
        """Raise *error*, by default KernelRefused."""
        error = error or KernelRefused(f"{verb}: failed: Device or resource busy (EBUSY)")
        return self._add(KernelFault(verb, times, skip, nic_id, error=error))

    def delay(
        self, verb: str, seconds: float = 0.0, *, late: float = 0.0, times: int = ALWAYS, nic_id: str = ""
    ) -> KernelFault:
        """Begin *seconds* later, and answer *late* seconds after the work is done."""
        return self._add(KernelFault(verb, times, nic_id=nic_id, seconds=seconds, late=late))

    def block(self, verb: str, *, times: int = 1, nic_id: str = "") -> KernelFault:
        """Wait before the work until the fault is released."""
        return self._add(KernelFault(verb, times, nic_id=nic_id, _is_open=asyncio.Event()))

    def observe(
        self, verb: str, listener: Callable[..., object] = lambda *_args: None, *, times: int = ALWAYS
    ) -> KernelFault:
        """Change nothing: *listener* gets the arguments of each call, which the fault collects as well."""
        return self._add(KernelFault(verb, times, listener=listener))

    def _add(self, fault: KernelFault) -> KernelFault:
        self._faults.append(fault)
        return fault

    async def struck(self, verb: str, args: tuple[Any, ...], work: Callable[[], Awaitable[T]]) -> T:
        """Do *work* under the faults that strike this call."""
        faults = [fault for fault in self._faults if fault.strikes(verb, args)]
        for fault in faults:
            await fault.strike(args, self._sleep)
        done = await work()
        if late := sum(fault.late for fault in faults):
            await self._sleep(late)
        return done


Kernels = TypeVar("Kernels", bound=KernelFaults)


def verb(
    work: Callable[Concatenate[Kernels, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Kernels, P], Coroutine[Any, Any, T]]:
    """Mark a method that faults can strike."""

    @functools.wraps(work)
    async def struck(kernel: Kernels, /, *args: P.args, **more: P.kwargs) -> T:
        return await kernel.struck(work.__name__, args, lambda: work(kernel, *args, **more))

    return struck
