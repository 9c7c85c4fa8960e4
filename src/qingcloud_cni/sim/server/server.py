"""The simulator as a running program: model, API and fabric, from building to removal."""

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
from qingcloud_cni.sim.api.api import Api
from qingcloud_cni.sim.api.http import add_admin, make_app
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.cloud.records import CloudWriter
from qingcloud_cni.sim.fabric import leftovers
from qingcloud_cni.sim.fabric.fabric import Fabric
from qingcloud_cni.sim.fabric.guest_dhcp import GuestDhcp
from qingcloud_cni.sim.fabric.leftovers import Record, replace_file
from qingcloud_cni.sim.fabric.shell import inside
from qingcloud_cni.sim.server.control import API_SOCKET, check_root, take_lock
from qingcloud_cni.sim.server.status import API_HOST, Options, cloud_status, host_files, startup_info
from qingcloud_cni.sim.topology import Topology

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class Simulator:
    def __init__(self, options: Options) -> None:
        """StartRefused if the topology contradicts itself or the saved cloud."""
        self.options = options
        topology = options.topology
        runs, records = (options.saved.runs + 1, options.saved.records) if options.saved else (0, None)
        seed = f"{options.seed} {runs}" if runs else options.seed  # a later run must not draw the same ids
        if records:
            _check_same_shape(records.topology, topology, options.state_dir)
        try:
            self.model = Model(topology, rng=random.Random(seed), now=time.time, saved=records)
        except ValueError as err:
            raise StartRefused(f"topology: {err}") from err
        self.api = Api(self.model, now=time.time, sleep=asyncio.sleep, rng=random.Random(f"{seed} api"))
        self.fabric = Fabric(options.sim, topology, options.state_dir, rng=random.Random(f"{seed} fabric"))
        self._dhcp = GuestDhcp(
            self.fabric.layout,
            self.fabric.ports,
            frozenset(nic.nic_id for nic in self.model.state.nics.values() if nic.role == 1),
            delay=topology.latencies.dhcp,
            rng=random.Random(f"{seed} dhcp"),
        )
        self._writer = CloudWriter(options.state_dir, options.sim, runs)
        self._work = asyncio.Event()  # a job was queued, or an effect is waiting
        self._settled = asyncio.Event()  # all effects so far are carried out
        self.model.subscribe(self._begin_work)

    async def run(self, ready: Callable[[dict[str, Any]], None]) -> None:
        """Build everything, call *ready* with the startup info, serve until SIGINT or SIGTERM, remove everything.

        The fabric and cloud that an earlier simulator left are adopted instead; if that fails, they stay.
        AlreadyRunning, StartRefused or AbilityMissing if it cannot begin; it leaves nothing new then.
        """
        options = self.options
        check_root()
        record = Record(
            sim=options.sim, namespaces=self.fabric.layout.namespaces, instance_ids=tuple(self.fabric.layout.hosts)
        )
        with take_lock(options.sim):
            has_fabric = options.saved is not None and await leftovers.is_fabric_present(options.sim, record)
            if not has_fabric:
                leftovers.check_namespaces_free(options.sim, record)
            stop = _Stop()
            if not options.saved:
                leftovers.write_record(options.state_dir, record)
            is_up = False

            def up(info: dict[str, Any]) -> None:
                nonlocal is_up
                is_up = True
                ready(info)

            try:
                await self._serve(up, has_fabric=has_fabric)
            except asyncio.CancelledError:
                if not stop.is_wanted:
                    raise
            finally:
                if not (options.is_left if is_up else has_fabric):
                    found = await leftovers.find_leftovers(options.sim, options.state_dir)
                    if options.saved and not is_up:  # the saved cloud is older than what failed now
                        found = replace(found, state_dir=None)
                    await leftovers.remove(found)
                stop.remove_handlers()

    async def _serve(self, ready: Callable[[dict[str, Any]], None], *, has_fabric: bool) -> None:
        nics = self.model.plugged()
        try:
            if has_fabric:
                await self.fabric.adopt(nics)
                await self.fabric.apply(*self.model.arriving())
            else:
                await self.fabric.build(nics)
        except KernelRefused as err:
            raise AbilityMissing(f"simulated network: build failed: {err}") from err
        self._write_host_files()
        self._save()
        async with AsyncExitStack() as stack:
            await self._listen(stack)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry_out(), name="carry out effects")
                tasks.create_task(self.fabric.watch(), name="watch links")
                if self.options.guest_dhcp:
                    tasks.create_task(self._dhcp.run(), name="guest DHCP")
                ready(self._startup_info())

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Serve the API at one address in every host's namespace, and with the admin paths on a unix socket."""
        inner = web.AppRunner(self._make_app(), access_log=None, shutdown_timeout=1.0)
        await inner.setup()
        stack.push_async_callback(inner.cleanup)
        for host in self.fabric.layout.hosts.values():
            listener = inside(host.namespace, lambda: socket.create_server((API_HOST, self.options.port)))
            await web.SockSite(inner, listener).start()
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
            """Answer once disk and hardware agree with the answer: ModifyNicAttributes has no job to wait for."""
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

    async def _carry_out(self) -> None:
        """End due jobs, and have the fabric carry out their effects before DescribeJobs shows their end.

        The fabric gets all effects of a moment at once: fifty links then cost about as many processes as one.
        """
        while True:
            self._work.clear()
            try:
                await self.fabric.apply(*self.model.take_effects())
            except KernelRefused as err:  # somebody may have deleted a host's namespace
                log.error("%s", err)  # noqa: TRY400 - the message has the kernel's own text
            if not self._work.is_set():
                self._settled.set()
            due = self.model.next_due()
            if due is not None and due <= time.time():
                self.model.advance()
                self._save()  # before the links change: a later simulator carries out the rest
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
            self._writer.save(self.model.records())
        except OSError as err:  # the cloud continues; a later simulator would start from an older state
            log.error("state directory %s: save failed: %s", self.options.state_dir, err.strerror)  # noqa: TRY400

    def _startup_info(self) -> dict[str, Any]:
        return startup_info(self.options, self.fabric.layout, self.model.state)

    def _tell_status(self) -> dict[str, Any]:
        found = cloud_status(self.model.state, self.fabric.links(), dict(self.model.calls))
        return self._startup_info() | found | {"leases": self._dhcp.leases}


def _check_same_shape(kept: Topology, topology: Topology, state_dir: Path) -> None:
    for key in ("zone", "routers", "vxnets", "hosts"):
        if getattr(kept, key) != getattr(topology, key):
            raise StartRefused(
                f"state directory {state_dir}: load failed: the saved cloud has other {key}; start with its topology"
                " or without one, or run `qingcloud-sim down` first"
            )


class _Stop:
    """The first SIGINT or SIGTERM cancels the task that made this; later ones must not interrupt the removal."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._want)

    def _want(self) -> None:
        if not self.is_wanted and self._task:
            self.is_wanted = True
            self._task.cancel()

    def remove_handlers(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
