"""Implementations of `core.seams.store.Store`: in a thread for the agent, inline for simulations."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from qingcloud_cni.core.errors import StoreRefused, shortage_as
from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.store.file import StateFile

P = ParamSpec("P")
T = TypeVar("T")


class ThreadedStore:
    """Runs the state file in a thread of its own, as `fsync` blocks."""

    def __init__(self, path: Path, write_counter: Path) -> None:
        self._file = StateFile(path, write_counter)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="store")

    def __str__(self) -> str:
        return str(self._file)

    async def load(self) -> Snapshot:
        return await self._run(self._file.load)

    async def save(self, changes: Sequence[Change]) -> None:
        """Write as `Store.save` does, even if the caller is cancelled."""
        await self._run(self._file.save, tuple(changes))

    async def replace_file(self, changes: Sequence[Change]) -> str:
        return await self._run(self._file.replace_file, tuple(changes))

    async def check_files(self) -> str | None:
        return await self._run(self._file.check_files)

    async def tidy(self) -> None:
        await self._run(self._file.tidy)

    async def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        return await self._run(self._file.events, wanted)

    async def close(self) -> None:
        """Finish all work; the store cannot be used again."""
        await self._run(self._file.close)
        self._executor.shutdown()

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def translated() -> T:
            with shortage_as(StoreRefused, str(self)):
                return work(*args, **kwargs)

        return await asyncio.shield(asyncio.wrap_future(self._executor.submit(translated)))


class InlineStore(ThreadedStore):
    """The same without the thread, for loops on a virtual clock."""

    async def save(self, changes: Sequence[Change]) -> None:
        await super().save(changes)
        await asyncio.sleep(0)  # other tasks may run, as they do while the thread writes

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return work(*args, **kwargs)
