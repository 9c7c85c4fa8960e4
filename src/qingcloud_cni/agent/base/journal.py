"""Writes the table's changes to disk in order, and retains them while the disk rejects writes."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.signals import Signal, settle
from qingcloud_cni.core.errors import StoreDamaged, StoreRefused
from qingcloud_cni.core.nics.changes import Change, Drop, compacted
from qingcloud_cni.core.nics.model import Attachment, Event
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.store import EventFilter, Store

T = TypeVar("T")

SLOW = 10.0  # seconds without an answer after which a disk counts as failed
LONGEST_PAUSE = 15.0  # seconds between two tries of a failed write
ROOM = 10_000  # changes that may gather during one write before they are compacted
ANSWER = 5.0  # seconds within which the events are read
GLANCE = 1.0  # seconds within which a disk shows whether files are there

Listener = Callable[[Event], None]  # called with every event


@dataclass(frozen=True, slots=True)
class _Waiter:
    target: int
    is_patient: bool  # waits until the disk takes writes again
    done: "asyncio.Future[None]"


class Journal:
    """The table in memory is ahead of the disk, but answers tell only what is on disk.

    One write is under way at a time; later changes are the next one. While the disk rejects writes, the agent assigns
    no NIC and begins no cloud write, for a crash would lose their records. What the kernel shows after a crash, such
    as where a link is, may go on.
    """

    def __init__(
        self,
        table: Table,
        store: Store,
        clock: Clock,
        rng: random.Random,
        listeners: tuple[Listener, ...] = (),
        *,
        on_recovered: Callable[[], None] = lambda: None,
        on_released: Callable[[], None] = lambda: None,
    ) -> None:
        """*on_recovered* is called when a disk that rejected writes takes them again, *on_released* at a release."""
        self._table = table
        self._store = store
        self._clock = clock
        self._rng = rng
        self._listeners = listeners
        self._on_recovered = on_recovered
        self._on_released = on_released
        self._unsaved: list[Change] = []  # without those being written
        self._taken = 0  # changes of the table, since the start
        self._saved = 0  # of them on disk
        self._waiters: list[_Waiter] = []
        self._due = Signal()
        self._ending = Signal()
        self._is_ending = False
        self._failures = 0  # in a row
        self._damage: StoreDamaged | None = None  # found by `upkeep`
        self._behind_since = 0.0  # seconds since the epoch
        self.refusals = 0  # failed writes since the start
        self.error = ""  # why the disk rejects writes at the moment; "" if it does not

    # --- for those who change the table ----------------------------------------------------------------

    def push(self) -> int:
        """Have the changes written soon; for those that kernel or cloud show again after a crash."""
        changes = self._table.take_changes()
        for change in changes:
            match change:
                case Event():
                    for listener in self._listeners:
                        listener(change)
                case Drop(kind) if kind is Attachment:
                    self._on_released()
        self._unsaved += changes
        self._taken += len(changes)
        if len(self._unsaved) > ROOM:
            self._unsaved = compacted(self._unsaved)
        if self._unsaved:
            self._due.notify()
        return self._taken

    async def save(self) -> None:
        """Wait until all changes are on disk, however long that takes."""
        await self._until(self.push(), is_patient=True)

    async def record(self) -> None:
        """As `save`, but StoreRefused if the disk rejects writes now; the changes are retained."""
        await self._until(self.push(), is_patient=False)

    def check(self) -> None:
        """StoreRefused if no NIC may be assigned."""
        if self.error:
            raise StoreRefused(self.error)

    async def upkeep(self) -> None:
        """Periodic work on the file. If it is damaged, the next write replaces it."""
        await self._examine(self._store.tidy)

    async def check_files(self) -> str | None:
        """If somebody removed the file, it is rewritten at once; returns what was restored beside it."""
        with suppress(TimeoutError):  # a disk that hangs is reported by the next write
            async with asyncio.timeout(GLANCE):
                return await self._examine(self._store.check_files)
        return None

    async def _examine(self, examine: Callable[[], Awaitable[T]]) -> T | None:
        if not self.error:
            try:
                return await examine()
            except StoreDamaged as err:
                self._damage = err
                self._note("store.damaged", str(err))
        return None

    async def events(self, wanted: EventFilter) -> tuple[Event, ...]:
        """Events on disk, up to now unless the disk rejects writes; StoreRefused if they cannot be read either."""
        try:
            async with asyncio.timeout(ANSWER):
                if not self.error:
                    await self.save()
                return await self._store.events(wanted)
        except TimeoutError:
            raise StoreRefused(f"{self._store} does not answer within {ANSWER:.0f} s") from None

    @property
    def unsaved(self) -> int:
        return self._taken - self._saved

    @property
    def behind(self) -> float:
        return max(self._clock.now() - self._behind_since, 0.0) if self.error else 0.0

    async def _until(self, target: int, *, is_patient: bool) -> None:
        if self._saved >= target:
            return
        if not is_patient:
            self.check()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(_Waiter(target, is_patient, done))
        await done

    # --- writing ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until `end`, then once more what is left."""
        while not self._is_ending:
            if self.error:
                await self._ending.wait(delay_after(self._failures, self._rng, longest=LONGEST_PAUSE))
            else:
                await self._due.wait()
            await self._write()
            while self._unsaved and not self.error:
                await self._write()
        self.push()
        await self._write()

    def end(self) -> None:
        """No change follows; `run` returns soon."""
        self._is_ending = True
        self._due.notify()
        self._ending.notify()

    async def _write(self) -> None:
        if not self._unsaved:
            return
        watchdog = asyncio.get_running_loop().call_later(SLOW, self._stalled)
        try:
            target = await self._save()
        except StoreRefused as err:
            self._refused(str(err))
        else:
            self._succeeded(target)
        finally:
            watchdog.cancel()

    async def _save(self) -> int:
        try:
            if self._damage is not None:
                raise self._damage
            target, _ = await self._hand_over(self._store.save)
        except StoreDamaged as err:
            target = await self._replace_file(err)
        return target

    async def _replace_file(self, damage: StoreDamaged) -> int:
        self.push()

        async def write(batch: Sequence[Change]) -> str:
            events = [change for change in batch if isinstance(change, Event)]
            return await self._store.replace_file([*self._table.rows(), *events])

        target, where = await self._hand_over(write)
        self._damage = None
        old = f"it was renamed to {where}" if where else "it is gone"
        self._note("store.set-aside", f"{damage}; {old}, and a new one holds all but earlier events")
        return target

    async def _hand_over(self, write: Callable[[Sequence[Change]], Awaitable[T]]) -> tuple[int, T]:
        """Write all changes in one transaction; how many are saved then. If that fails they are put back."""
        batch, self._unsaved, target = self._unsaved, [], self._taken
        try:
            return target, await write(batch)
        except (StoreRefused, StoreDamaged):
            self._unsaved = compacted([*batch, *self._unsaved])
            raise

    def _succeeded(self, target: int) -> None:
        self._saved, self._failures = target, 0
        if self.error:
            waited, self.error = self.behind, ""
            self._note("store.recovered", f"all is on disk again, {waited:.0f} s late at most")
            self._on_recovered()
        self._settle(lambda w: w.target <= target, None)

    def _refused(self, cause: str) -> None:
        self._failures += 1
        self.refusals += 1
        if not self.error:
            self._behind_since = self._clock.now()
        if cause != self.error:
            self.error = cause
            self._note("store.refused", cause)
        self._settle(lambda w: not w.is_patient, cause)

    def _stalled(self) -> None:
        self._refused(f"{self._store} cannot be written: the disk has not answered for {SLOW:.0f} s")

    def _note(self, name: str, detail: str) -> None:
        self._table.note(Event(self._clock.now(), name, detail=detail))
        self.push()

    def _settle(self, which: Callable[[_Waiter], bool], refusal: str | None) -> None:
        settled = [w for w in self._waiters if which(w)]
        self._waiters = [w for w in self._waiters if not which(w)]
        for waiter in settled:
            settle(waiter.done, None if refusal is None else StoreRefused(refusal))
