"""`core.seams.Store` over a database: in a thread of its own for the agent, inline for simulations."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qingcloud_cni.core.model import Event
from qingcloud_cni.core.seams import Change, Snapshot
from qingcloud_cni.store.database import Database

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Write:
    changes: tuple[Change, ...]
    done: "Future[None]"


class ThreadedStore:
    """Saves that wait together share one transaction, and so one fsync."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path)
        self._work: queue.SimpleQueue[_Write | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._thread.start()

    async def load(self) -> Snapshot:
        return await self._ask(self._database.load)

    async def events(self, limit: int) -> tuple[Event, ...]:
        return await self._ask(lambda: self._database.events(limit))

    async def save(self, changes: Sequence[Change]) -> None:
        """See `core.seams.Store`; a cancelled caller's changes are written all the same."""
        done: Future[None] = Future()
        self._work.put(_Write(tuple(changes), done))
        await asyncio.shield(asyncio.wrap_future(done))

    async def close(self) -> None:
        """Everything saved so far is on disk when this returns; the store cannot be used again."""
        self._work.put(None)
        await asyncio.to_thread(self._thread.join)
        self._database.close()

    async def _ask(self, question: Callable[[], _T]) -> _T:
        answer: Future[_T] = Future()

        def run() -> None:
            try:
                answer.set_result(question())
            except Exception as err:  # noqa: BLE001 - carried to the caller, whatever it is
                answer.set_exception(err)

        self._work.put(run)
        return await asyncio.shield(asyncio.wrap_future(answer))

    def _serve(self) -> None:
        """The thread: take all that waits, write it in one go, answer."""
        while True:
            item = self._work.get()
            writes: list[_Write] = []
            while isinstance(item, _Write):
                writes.append(item)
                try:
                    item = self._work.get_nowait()
                except queue.Empty:
                    break
            if writes:
                self._write(writes)
            if item is None:
                return
            if not isinstance(item, _Write):
                item()

    def _write(self, writes: Sequence[_Write]) -> None:
        try:
            self._database.write([change for write in writes for change in write.changes])
        except Exception as err:  # noqa: BLE001 - carried to every caller, whatever it is
            for write in writes:
                write.done.set_exception(err)
        else:
            for write in writes:
                write.done.set_result(None)


class InlineStore:
    """The same without a thread, for loops on a virtual clock."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path)

    async def load(self) -> Snapshot:
        return self._database.load()

    async def events(self, limit: int) -> tuple[Event, ...]:
        return self._database.events(limit)

    async def save(self, changes: Sequence[Change]) -> None:
        self._database.write(changes)
        await asyncio.sleep(0)  # others may run here, as they do while the thread writes

    async def close(self) -> None:
        self._database.close()
