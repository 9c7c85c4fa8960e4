"""A host's disk with faults, and the store on it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qingcloud_cni.core.errors import StoreRefused
from qingcloud_cni.core.nics.changes import Change, Snapshot
from qingcloud_cni.store.threaded import InlineStore

T = TypeVar("T")


@dataclass
class Disk:
    """The disk of a host, which outlives the agent, and its faults."""

    seconds: float = 0.0  # that a save takes
    obstacle: str = ""  # why saves fail; "": they succeed
    takes_what_it_refuses: bool = False  # a save that fails has written its changes
    is_stuck: bool = False  # saves wait
    tries: int = 0  # saves begun
    on_write: Callable[[], object] = lambda: None  # called before each write and after it


class SlowStore(InlineStore):
    """A store on a `Disk`: changes are saved after a while, in order, and lost if the agent is killed before."""

    def __init__(self, path: Path, write_counter: Path, disk: Disk) -> None:
        super().__init__(path, write_counter)
        self._disk = disk
        self.is_dead = False  # its process has ended: saves wait for ever

    def on_disk(self) -> Snapshot:
        assert self._file._database is not None
        return self._file._database.load()

    async def save(self, changes: Sequence[Change]) -> None:
        await self._write(super().save, changes, is_late=self._disk.takes_what_it_refuses)

    async def replace_file(self, changes: Sequence[Change]) -> str:
        return await self._write(super().replace_file, changes)

    async def check_files(self) -> str | None:
        while self._disk.is_stuck:
            await asyncio.sleep(0.5)
        return await super().check_files()

    async def _write(
        self, write: Callable[[Sequence[Change]], Awaitable[T]], changes: Sequence[Change], *, is_late: bool = False
    ) -> T:
        self._disk.tries += 1
        self._disk.on_write()
        await asyncio.sleep(self._disk.seconds)
        while self._disk.is_stuck or self.is_dead:
            await asyncio.sleep(0.5)
        if self._disk.obstacle and not is_late:
            raise StoreRefused(f"{self} cannot be written: {self._disk.obstacle}")
        database = self._file._database
        last_seq = database._last_seq if database is not None else 0
        done = await write(changes)
        self._disk.on_write()
        if self._disk.obstacle and database is not None:
            database._last_seq = last_seq  # as if COMMIT had failed
            raise StoreRefused(f"{self} cannot be written: {self._disk.obstacle}")
        return done
