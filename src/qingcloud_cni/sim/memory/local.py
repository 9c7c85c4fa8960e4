"""The simulated cloud inside one process: a transport for the real client, and the task that ends jobs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from qingcloud_cni.core.errors import OutcomeUnknown
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.topology import Effect


class Sink(Protocol):
    """Carries out effects: `FakeKernel.apply`, the fabric, or a function that passes them to several."""

    def __call__(self, *effects: Effect) -> Awaitable[None] | None: ...


class LocalTransport:
    """Sends requests to an `Api` without sockets."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def send(self, method: str, target: str, body: bytes, timeout: float) -> tuple[int, str, bytes]:  # noqa: ASYNC109  # the client's transport has this shape
        """Return status, content type and body of the reply.

        OutcomeUnknown if the reply is lost, or has not come after *timeout* seconds of the loop's time.
        """
        try:
            async with asyncio.timeout(timeout):
                reply = await self._api.respond(method, target, body)
        except TimeoutError as err:
            raise OutcomeUnknown(f"no answer within {timeout:g} s", action="") from err
        if reply is None:
            raise OutcomeUnknown("the connection was closed before an answer", action="")
        return reply.status, reply.content_type, reply.body

    async def close(self) -> None:
        """Do nothing: it holds nothing open."""


async def run_jobs(
    model: Model, sink: Sink, sleep: Callable[[float], Awaitable[None]], now: Callable[[], float]
) -> None:
    """End jobs when they are due and pass effects to *sink*, in order, until cancelled.

    The links of a job are plugged before the job shows as ended.
    """
    work = asyncio.Event()
    model.subscribe(work.set)
    while True:
        work.clear()
        effects = model.take_effects()
        done = sink(*effects) if effects else None
        if done is not None:
            await done
        due = model.next_due()
        if due is not None and due <= now():
            model.advance()
            continue
        if work.is_set():
            continue
        await _first(work, None if due is None else sleep(due - now()))


async def _first(work: asyncio.Event, pause: Awaitable[None] | None) -> None:
    """Wait until there is work, or until *pause* is over."""
    if pause is None:
        await work.wait()
        return
    tasks = [asyncio.ensure_future(pause), asyncio.create_task(work.wait(), name="sim-work")]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task  # a bug in the injected sleep ends the pump
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
