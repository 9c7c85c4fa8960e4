"""The agent as a process: opens lock, kernel, store and cloud, serves, and closes them in reverse order."""

import asyncio
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

from qingcloud_cni.agent.agent import Agent, World
from qingcloud_cni.agent.api.connections import Serves
from qingcloud_cni.agent.api.endpoints import Api
from qingcloud_cni.agent.api.metrics import Metrics
from qingcloud_cni.agent.api.server import Server
from qingcloud_cni.agent.api.signatures import FORMER_SECONDS, Signatures, Tokens
from qingcloud_cni.agent.api.views import ConfigView
from qingcloud_cni.agent.base import logs
from qingcloud_cni.agent.base.clock import BootTime, SystemClock
from qingcloud_cni.agent.process.instance_id import find_instance_id
from qingcloud_cni.agent.process.listeners import Ports, UnixSocket, check_iface
from qingcloud_cni.agent.process.lock import agent_lock
from qingcloud_cni.agent.process.run_files import RunFiles, ensure_directory, renew_token
from qingcloud_cni.agent.settings.resolution import read_boot_id
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cloud import Access, AioTransport, Caller, CallSeen, Client, Limiter
from qingcloud_cni.core.budget import Budget
from qingcloud_cni.core.errors import AbilityMissing, StartRefused, StoreRefused
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.store.threaded import ThreadedStore

STOP_SECONDS = 4.0  # after a signal the agent ends within this time, whatever hangs
PORT_SECONDS = 1.0  # between tries to listen on a port that was taken
LAST_SECONDS = 0.5  # for the log line that says so


@dataclass(frozen=True, slots=True)
class Host:
    """What an agent process needs to start."""

    settings: Settings
    instance_id: str  # "" if the cloud has to be asked for it
    access: Access
    config: ConfigView  # of `config_report`


@dataclass(frozen=True, slots=True)
class OpenAgent:
    """An agent with its kernel compared and its tasks running."""

    agent: Agent
    kernel: HostKernel
    metrics: Metrics


def check_root() -> None:
    if os.geteuid() != 0:
        raise AbilityMissing("qingagent needs root: it moves network interfaces between namespaces")


def keep_files_private() -> None:
    """Whatever the umask was: all files that this process makes are for root alone, SQLite's too."""
    os.umask(0o077)


class Stop:
    """The wish to end. It cancels a start, and ends a `wait`."""

    def __init__(self) -> None:
        self._is_requested = asyncio.Event()
        self._start = asyncio.current_task()

    def request(self) -> None:
        self._is_requested.set()
        if self._start is not None:
            self._start.cancel()

    def started(self) -> None:
        """From now on the caller waits."""
        self._start = None

    async def wait(self, seconds: float | None) -> bool:
        """Whether the agent shall end, after at most *seconds*."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_requested.wait(), seconds)
        return self._is_requested.is_set()


async def serve(host: Host) -> None:
    """Run the agent until a signal stops it, or an error that is raised."""
    stop = Stop()
    _watch_signals(stop)
    try:
        await _serve(host, stop)
    except asyncio.CancelledError:
        if not await stop.wait(0):
            raise
    logs.write("agent.stopped", instance=host.instance_id)


async def _serve(host: Host, stop: Stop) -> None:
    settings = host.settings
    _raise_file_limit()
    with agent_lock() as lock:
        check_iface(settings.iface)
        host = await with_instance_id(host)
        ensure_directory(settings.run_dir, "choose another --run-dir")
        tokens = Tokens(*renew_token(settings.token_file), time.monotonic() + FORMER_SECONDS)
        ports = Ports(settings)
        files = RunFiles(settings.run_dir, settings.spool, settings.token_file, tokens.current)
        with UnixSocket(settings.socket) as unix, ports:
            async with opened(host) as parts:
                signatures = Signatures(tokens)
                server = Server(Api(parts.agent, parts.metrics, host.config, signatures, lambda: ports.obstacle))
                try:
                    await server.begin()
                    server.listen(unix.listener, Serves.API | Serves.METRICS)
                    parts.agent.own_files.watch(
                        lock.restore, files.restore_directory, files.restore_token, files.restore_spool,
                        lambda: unix.restore(partial(server.replace, serves=Serves.API | Serves.METRICS)),
                    )  # fmt: skip
                    stop.started()
                    logs.write("agent.started", instance=host.instance_id, bindaddr=str(settings.bindaddr))
                    is_over = False
                    while not is_over:
                        for listener, serves in ports.take():
                            server.listen(listener, serves)
                        is_over = await stop.wait(PORT_SECONDS if ports.obstacle else None)
                finally:
                    parts.agent.stop()
                    await server.end()


async def with_instance_id(host: Host) -> Host:
    if host.instance_id:
        return host
    ensure_directory(host.settings.state_dir, "choose another --state-dir")
    return replace(host, instance_id=await find_instance_id(host.settings, host.access))


@asynccontextmanager
async def opened(host: Host) -> AsyncIterator[OpenAgent]:
    """Run an agent without its API for the block; NICs stay where they are. The caller holds the lock."""
    ensure_directory(host.settings.state_dir, "choose another --state-dir")
    boot_id = read_boot_id(host.settings)
    metrics, clock, rng = Metrics(), SystemClock(), random.Random()
    boot_time = BootTime(host.settings.boot_time)
    store = ThreadedStore(host.settings.database, host.settings.write_counter)
    kernel: HostKernel | None = None
    cloud: Client | None = None
    try:
        kernel = await HostKernel.open(
            host.instance_id,
            iface=host.settings.iface,
            routers=tuple(map(str, host.settings.simulator_netns)),
        )
        await _check_nics(kernel)
        access = replace(host.access, zone=host.settings.zone)
        limiter = Limiter(
            Budget(host.settings.api_budget, clock.now()), clock=clock, rng=rng, on_rate=logs.calls_refused
        )

        def observe(call: CallSeen) -> None:
            metrics.cloud_call(call)
            logs.cloud_call(call)

        cloud = Client(Caller(access, AioTransport(access), limiter, clock, rng, observe))
        listeners = (logs.event, metrics.event)
        world = World(cloud, kernel, store, clock, rng, boot_id, listeners, boot_time.set_forward(clock))
        async with Agent.opened(host.settings, host.instance_id, world) as agent:
            journal = agent.context.journal
            await agent.compare_kernel()
            with suppress(StoreRefused):
                await journal.record()
                boot_time.write(clock)
            agent.own_files.watch(lambda: asyncio.to_thread(boot_time.restore, clock))
            agent.begin()
            yield OpenAgent(agent, kernel, metrics)
        if journal.unsaved:
            logs.write("store.unsaved", changes=journal.unsaved, cause=journal.error)
    except* StartRefused:
        if kernel is not None:
            await _remove_if_empty(kernel)
        raise
    finally:
        if cloud is not None:
            await cloud.close()
        await store.close()
        if kernel is not None:
            await kernel.close()


async def _check_nics(kernel: HostKernel) -> None:
    if not any(link.fingerprint for link in (await kernel.survey()).host):
        raise StartRefused(
            "links: start failed: this network namespace has no NIC of an instance;"
            " on a host of qingcloud-sim set --simulator-netns"
        )


async def _remove_if_empty(kernel: HostKernel) -> None:
    """Remove the parking namespace that a failed start has created."""
    if not (await kernel.survey()).parked:
        await kernel.remove()


def _raise_file_limit() -> None:
    """Allow as many open files as the host permits: connections must not use up those of the agent's work."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # the host's maximum was lowered since
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _watch_signals(stop: Stop) -> None:
    """The first signal stops the agent gracefully, a second one at once; the table is on disk either way.

    The handlers are not those of the loop, which may hang, for example in writing to a log that nobody reads.
    """
    loop = asyncio.get_running_loop()
    is_stopping = False

    def stopping(number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            os._exit(128 + number)
        is_stopping = True
        signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS, LAST_SECONDS)
        loop.call_soon_threadsafe(stop.request)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping)
    signal.signal(signal.SIGALRM, _cut_off)


def _cut_off(_number: int, _frame: FrameType | None) -> None:
    """End at once, although a thread hangs that would be joined; if the log hangs too, at the second call."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    frames = sys._current_frames()  # noqa: SLF001 - the only way to see what other threads do
    working = [
        f"{thread.name} in {frame.f_code.co_qualname}"
        for thread in threading.enumerate()
        if not thread.daemon and (frame := frames.get(thread.ident or 0)) and frame.f_code.co_name != "_worker"
    ]
    logs.write("agent.cut-off", threads=", ".join(working))
    os._exit(0)
