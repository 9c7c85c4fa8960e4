"""The simulator as a running program: model, API and fabric put together, from the first namespace to the last."""

import asyncio
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from qingcloud_cni.core.errors import AbilityMissing, KernelRefused, StartRefused
from qingcloud_cni.sim.api.admin import add_admin
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.api.http import make_app
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.cloud.records import Keeper
from qingcloud_cni.sim.fabric.fabric import Fabric
from qingcloud_cni.sim.fabric.guest_dhcp import GuestDhcp
from qingcloud_cni.sim.fabric.remains import (
    Record,
    find_remains,
    is_standing,
    refuse_taken,
    remove,
    replace_file,
    write_record,
)
from qingcloud_cni.sim.fabric.shell import inside
from qingcloud_cni.sim.server.control import API_SOCKET, check_root, take_lock
from qingcloud_cni.sim.server.status import API_HOST, Options, describe, host_files, tell
from qingcloud_cni.sim.topology.topology import Topology

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class Simulator:
    """One simulated cloud that is up, or about to be."""

    def __init__(self, options: Options) -> None:
        """StartRefused where the topology contradicts itself, or the cloud that is kept."""
        self.options = options
        topology = options.topology
        runs = options.kept.runs + 1 if options.kept else 0
        seed = f"{options.seed} {runs}" if runs else options.seed  # or the ids of before were drawn again
        try:
            self.model = Model(topology, rng=random.Random(seed), now=time.time)
        except ValueError as err:
            raise StartRefused(f"topology: {err}") from err
        if options.kept:
            _check_same_shape(options.kept.records.topology, topology, options.state_dir)
            self.model.restore(options.kept.records)
        self.api = Api(self.model, now=time.time, sleep=asyncio.sleep, rng=random.Random(f"{seed} api"))
        self.fabric = Fabric(options.sim, topology, options.state_dir, rng=random.Random(f"{seed} fabric"))
        self._dhcp = GuestDhcp(
            self.fabric.layout,
            self.fabric.ports,
            frozenset(nic.nic_id for nic in self.model.state.nics.values() if nic.role == 1),
            delay=topology.latencies.dhcp,
            rng=random.Random(f"{seed} dhcp"),
        )
        self._keeper = Keeper(options.state_dir, options.sim, runs)
        self._is_standing = False  # the fabric of an earlier simulator is there
        self._work = asyncio.Event()  # a job was queued, or an effect is waiting
        self._settled = asyncio.Event()  # all effects so far are carried out
        self.model.on_work = self._begin_work

    async def run(self, ready: Callable[[dict[str, Any]], None]) -> None:
        """Build everything, call *ready* with its description, serve until SIGINT or SIGTERM, take everything down.

        Where an earlier simulator left its fabric and its cloud, they are taken over instead; if that cannot be, they
        stay. AlreadyRunning, StartRefused or AbilityMissing if it cannot begin; nothing new is left then.
        """
        options = self.options
        check_root()
        record = Record(
            sim=options.sim, namespaces=self.fabric.layout.namespaces, instance_ids=tuple(self.fabric.layout.hosts)
        )
        with take_lock(options.sim):
            self._is_standing = options.kept is not None and await is_standing(options.sim, record)
            if not self._is_standing:
                refuse_taken(options.sim, record)
            stop = _Stop()
            if not options.kept:
                write_record(options.state_dir, record)
            is_up = False

            def up(description: dict[str, Any]) -> None:
                nonlocal is_up
                is_up = True
                ready(description)

            try:
                await self._serve(up)
            except asyncio.CancelledError:
                if not stop.is_wanted:
                    raise
            finally:
                if not (options.is_left if is_up else self._is_standing):
                    remains = await find_remains(options.sim, options.state_dir)
                    if options.kept and not is_up:  # the cloud is older than what failed now
                        remains = replace(remains, state_dir=None)
                    await remove(remains)
                stop.forget()

    async def _serve(self, ready: Callable[[dict[str, Any]], None]) -> None:
        nics = self.model.plugged()
        try:
            if self._is_standing:
                await self.fabric.adopt(nics)
                await self.fabric.apply(*self.model.arriving())
            else:
                await self.fabric.build(nics)
        except KernelRefused as err:
            raise AbilityMissing(f"this machine refuses a part of the simulated network: {err}") from err
        self._write_host_files()
        self._save()
        async with AsyncExitStack() as stack:
            await self._listen(stack)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry_out(), name="carry out effects")
                tasks.create_task(self.fabric.watch(), name="watch links")
                if self.options.guest_dhcp:
                    tasks.create_task(self._dhcp.run(), name="guest DHCP")
                ready(self._describe())

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Serve the API at the same address in every host's namespace, and with the status on a unix socket."""
        inner = web.AppRunner(self._make_app(), access_log=None, shutdown_timeout=1.0)
        await inner.setup()
        stack.push_async_callback(inner.cleanup)
        for host in self.fabric.layout.hosts.values():
            await web.SockSite(inner, inside(host.namespace, self._open_socket)).start()
        app = self._make_app()
        add_admin(app, self.model, self._tell_status)
        outer = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await outer.setup()
        stack.push_async_callback(outer.cleanup)
        path = self.options.state_dir / API_SOCKET
        await web.UnixSite(outer, str(path)).start()
        os.chmod(path, 0o600)  # noqa: PTH101 - pathlib's would be flagged as blocking

    def _make_app(self) -> web.Application:
        @web.middleware
        async def settle(request: web.Request, handler: Handler) -> web.StreamResponse:
            """Answer when disk and hardware are as the answer says: ModifyNicAttributes is no job."""
            response = await handler(request)
            self._save()
            await self._settled.wait()
            return response

        app = make_app(self.api)
        app.middlewares.append(settle)
        return app

    def _begin_work(self) -> None:
        self._settled.clear()
        self._work.set()

    def _open_socket(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((API_HOST, self.options.port))
        return listener

    async def _carry_out(self) -> None:
        """Let jobs end when they are due, and have the fabric show what they did before their end shows.

        Unlike sim.local.run_jobs it hands over all effects of a moment at once: fifty links then cost about as many
        processes as one.
        """
        while True:
            self._work.clear()
            try:
                await self.fabric.apply(*self.model.take_effects())
            except KernelRefused as err:  # a host's namespace may have been deleted under us
                log.error("%s", err)  # noqa: TRY400 - the kernel's words say it all
            if not self._work.is_set():
                self._settled.set()
            due = self.model.next_due()
            if due is not None and due <= time.time():
                self.model.advance()
                self._save()  # before the links change: what is planned and not done can be done later
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else due - time.time()):
                    await self._work.wait()

    def _write_host_files(self) -> None:
        """Give each host the two files a real one has; an agent may read them at any moment."""
        topology = self.options.topology
        for host in topology.hosts:
            key_id = host.access_key_id or topology.access_key_id
            access = {
                "qy_access_key_id": key_id,
                "qy_secret_access_key": topology.keys[key_id],
                "zone": topology.zone,
                "host": API_HOST,
                "port": self.options.port,
                "protocol": "http",
            }
            client_yaml, instance_id_file = host_files(self.options.state_dir, host)
            client_yaml.parent.mkdir(exist_ok=True)
            replace_file(client_yaml, yaml.safe_dump(access, sort_keys=False).encode())
            replace_file(instance_id_file, host.instance_id.encode(), mode=0o644)

    def _save(self) -> None:
        try:
            self._keeper.save(self.model.records())
        except OSError as err:  # the cloud goes on; only its next run would not know of this
            log.error("cannot keep the cloud in %s: %s", self.options.state_dir, err.strerror)  # noqa: TRY400

    def _describe(self) -> dict[str, Any]:
        return describe(self.options, self.fabric.layout, self.model.state)

    def _tell_status(self) -> dict[str, Any]:
        found = tell(self.model.state, self.fabric.links(), dict(self.model.calls))
        return self._describe() | found | {"leases": self._dhcp.leases}


def _check_same_shape(kept: Topology, topology: Topology, state_dir: Path) -> None:
    for key in ("zone", "routers", "vxnets", "hosts"):
        if getattr(kept, key) != getattr(topology, key):
            raise StartRefused(
                f"state directory {state_dir}: holds a cloud with other {key}: give the topology it had, or none,"
                " or take it down first"
            )


class _Stop:
    """The first SIGINT or SIGTERM cancels the task that made this; later ones are ignored: what is made must go."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._want)

    def _want(self) -> None:
        if not self.is_wanted and self._task:
            self.is_wanted = True
            self._task.cancel()

    def forget(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
