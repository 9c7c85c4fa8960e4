"""The table's way to disk: in order, whole, once, and in the end, whatever the disk does meanwhile."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess import virtual_time
from inprocess.disk import Disk, SlowStore
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.agent.base import journal as journal_module
from qingcloud_cni.agent.base.journal import LONGEST_PAUSE, SLOW, Journal
from qingcloud_cni.core.errors import StoreRefused
from qingcloud_cni.core.nics import changes as table_changes
from qingcloud_cni.core.nics.changes import Change, Drop, Put, Setting, Snapshot, compacted
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Event, Intent, Nic, NicState, OpKind
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.store import damaged_files
from qingcloud_cni.store.database import Database

FULL = "database or disk is full"
LATEST = EventFilter(10_000)


class Bench:
    """A table with its journal, on a disk that can be troubled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.disk = Disk()
        self.store = SlowStore(path, path.with_name("write_counter"), self.disk)
        self.table = Table(Snapshot())
        self.heard: list[str] = []
        self.recovered: list[str] = []
        self.journal = Journal(
            self.table, self.store, VirtualClock(), random.Random(1), (lambda e: self.heard.append(_title(e)),),
            on_recovered=lambda: self.recovered.append(self.journal.error),
        )  # fmt: skip

    def add(self, number: int) -> None:
        nic = Nic(f"nic{number}", "n", "v", f"10.0.0.{number}/24", "g", NicState.CREATING, float(number))
        self.table.add(nic, "nic.created", subject=f"made.{number}")

    async def names(self) -> list[str]:
        return [_title(e) for e in await self.store.events(LATEST)]


def _title(event: Event) -> str:
    return event.subject or event.name


def journalled(path: Path, use: Callable[[Bench], Coroutine[Any, Any, None]]) -> Bench:
    """Run *use* with a journal that works; the file is closed afterwards."""
    bench = Bench(path)

    async def main() -> None:
        async with _working(bench):
            await use(bench)

    virtual_time.run(main())
    return bench


@asynccontextmanager
async def _working(bench: Bench) -> AsyncIterator[None]:
    await bench.store.load()
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(bench.journal.run())
            yield
            bench.journal.end()
    finally:
        await bench.store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def on_disk(path: Path) -> Snapshot:
    opened = Database(path)
    try:
        return opened.load()
    finally:
        opened.close()


# --- while all is well -------------------------------------------------------------------------------


def test_what_changes_while_one_write_is_under_way_is_one_write_more(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.seconds = 0.01
        done: list[int] = []

        async def one(number: int) -> None:
            bench.add(number)
            await bench.journal.save()
            assert f"nic{number}" in {n.nic_id for n in bench.store.on_disk().nics}
            done.append(number)

        first = asyncio.create_task(one(0))
        await asyncio.sleep(0.005)
        await asyncio.gather(first, *(one(n) for n in range(1, 100)))
        assert done == list(range(100))
        assert bench.disk.tries == 2
        assert await bench.names() == [f"made.{n}" for n in range(100)] == bench.heard

    journalled(path, use)


def test_a_save_without_changes_waits_for_those_before_it(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.seconds = 1.0
        bench.add(0)
        bench.journal.push()
        assert bench.journal.unsaved == 2
        await bench.journal.save()
        assert len(bench.store.on_disk().nics) == 1
        assert bench.journal.unsaved == 0

    journalled(path, use)


def test_what_changes_during_a_write_is_not_taken_for_written(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.seconds = 1.0
        bench.add(0)
        bench.journal.push()
        await asyncio.sleep(0.5)
        bench.add(1)
        bench.journal.push()
        assert bench.journal.unsaved == 4
        await asyncio.sleep(0.6)
        assert bench.journal.unsaved == 2
        assert len(bench.store.on_disk().nics) == 1

    journalled(path, use)


def test_what_is_pushed_is_written_soon(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.add(0)
        bench.journal.push()
        await asyncio.sleep(0.1)
        assert len(bench.store.on_disk().nics) == 1

    journalled(path, use)


def test_whoever_stops_waiting_leaves_its_changes_behind(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.seconds = 1.0
        bench.add(0)
        waiting = asyncio.create_task(bench.journal.save())
        await asyncio.sleep(0.5)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        bench.add(1)
        await bench.journal.save()
        assert len(bench.store.on_disk().nics) == 2

    journalled(path, use)


def test_what_is_left_at_the_end_is_written(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.add(0)
        bench.journal.push()
        bench.add(1)

    bench = journalled(path, use)
    assert len(on_disk(path).nics) == 2
    assert bench.journal.unsaved == 0


def test_a_bug_in_the_store_ends_the_agent(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.table.note(Event(None, "agent.ready"))  # type: ignore[arg-type]
        await bench.journal.save()

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        journalled(path, use)


# --- a disk that takes nothing -----------------------------------------------------------------------


def test_who_may_not_wait_is_told_at_once_and_who_may_waits(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.obstacle = FULL
        bench.add(0)
        saving = asyncio.create_task(bench.journal.save())
        bench.add(1)
        with pytest.raises(StoreRefused, match=f"{path} cannot be written: {FULL}"):
            await bench.journal.record()
        assert bench.journal.error == f"state file {path} cannot be written: {FULL}"
        tries = bench.disk.tries
        with pytest.raises(StoreRefused, match=FULL):
            await bench.journal.record()
        assert bench.disk.tries == tries
        with pytest.raises(StoreRefused, match=FULL):
            bench.journal.check()
        await asyncio.sleep(3600)
        assert not saving.done()
        assert bench.journal.behind == pytest.approx(3600, abs=1)
        assert bench.store.on_disk() == Snapshot()
        bench.disk.obstacle = ""
        await saving
        await bench.journal.record()
        bench.journal.check()
        assert bench.journal.behind == 0
        assert [n.nic_id for n in bench.store.on_disk().nics] == ["nic0", "nic1"]
        assert await bench.names() == ["made.0", "made.1", "store.refused", "store.recovered"]

    journalled(path, use)


def test_a_full_disk_is_tried_again_and_again_at_pauses_that_grow(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.obstacle = FULL
        bench.add(0)
        bench.journal.push()
        await asyncio.sleep(10.0)
        assert 3 <= bench.disk.tries <= 6
        await asyncio.sleep(3600.0)
        assert 3600 / LONGEST_PAUSE * 0.8 < bench.disk.tries < 3600 / LONGEST_PAUSE * 1.3
        assert bench.heard.count("store.refused") == 1
        bench.disk.obstacle = "disk I/O error"
        await asyncio.sleep(60.0)
        assert bench.heard.count("store.refused") == 2
        assert "I/O error" in bench.journal.error
        assert bench.journal.refusals == bench.disk.tries
        bench.disk.obstacle = ""

    journalled(path, use)


def test_whoever_was_held_back_is_told_when_the_disk_takes_it_again(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.obstacle = FULL
        bench.add(0)
        bench.journal.push()
        await asyncio.sleep(60.0)
        assert not bench.recovered
        bench.disk.obstacle = ""
        await asyncio.sleep(60.0)
        assert bench.recovered == [""]

    journalled(path, use)


def test_what_is_kept_stays_small_however_long_it_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "ROOM", 100)
    monkeypatch.setattr(table_changes, "EVENT_LIMIT", 50)

    async def use(bench: Bench) -> None:
        bench.disk.obstacle = FULL
        bench.add(0)
        for n in range(5000):
            bench.table.arrived("nic0", float(n))
            bench.table.parked("nic0", float(n))
            bench.table.lost("nic0", float(n), "")
            bench.journal.push()
            if n % 100 == 0:
                await asyncio.sleep(1.0)
            assert len(bench.journal._unsaved) < 300
        bench.disk.obstacle = ""
        await bench.journal.save()
        assert bench.store.on_disk().nics == tuple(bench.table.nics.values())
        assert 50 <= len(await bench.names()) < 200

    journalled(path, use)


def test_a_disk_that_says_no_after_it_has_taken_all_has_every_event_once(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.add(0)
        await bench.journal.save()
        bench.disk.obstacle, bench.disk.takes_what_it_refuses = "disk I/O error", True
        bench.add(1)
        bench.journal.push()
        await asyncio.sleep(60.0)
        bench.add(2)
        bench.disk.obstacle = ""
        await bench.journal.save()
        names = [name for name in await bench.names() if name.startswith("made")]
        assert names == ["made.0", "made.1", "made.2"]

    journalled(path, use)


def test_a_disk_that_does_not_answer_counts_as_one_that_takes_nothing(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.is_stuck = True
        bench.add(0)
        begun = VirtualClock().now()
        with pytest.raises(StoreRefused, match="has not answered for 10 s"):
            await bench.journal.record()
        assert VirtualClock().now() - begun == pytest.approx(SLOW)
        with pytest.raises(StoreRefused, match="has not answered"):
            bench.journal.check()
        bench.add(1)
        bench.journal.push()
        await asyncio.sleep(600)
        assert bench.disk.tries == 1
        bench.disk.is_stuck = False
        await bench.journal.save()
        bench.journal.check()
        assert [n.nic_id for n in bench.store.on_disk().nics] == ["nic0", "nic1"]
        assert "store.recovered" in bench.heard

    journalled(path, use)


def test_an_end_does_not_wait_for_a_full_disk_and_tells_what_is_lost(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.obstacle = FULL
        bench.add(0)
        bench.journal.push()
        await asyncio.sleep(100.0)

    bench = journalled(path, use)
    assert bench.journal.unsaved == 3  # the row, its event, and that the disk refused
    assert on_disk(path) == Snapshot()


def test_a_disk_that_has_room_again_at_the_end_gets_all(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.obstacle = FULL
        bench.add(0)
        bench.journal.push()
        await asyncio.sleep(100.0)
        bench.disk.obstacle = ""

    bench = journalled(path, use)
    assert len(on_disk(path).nics) == 1
    assert bench.heard[-1] == "store.recovered"


# --- events ------------------------------------------------------------------------------------------


def test_events_of_this_moment_are_among_those_that_are_read(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.add(0)
        assert [e.subject for e in await bench.journal.events(LATEST)] == ["made.0"]
        bench.disk.obstacle = FULL
        bench.add(1)
        bench.journal.push()
        await asyncio.sleep(1.0)
        assert [e.subject for e in await bench.journal.events(LATEST)] == ["made.0"]
        bench.disk.obstacle = ""

    journalled(path, use)


def test_events_are_not_waited_for_without_end(path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.disk.is_stuck = True
        bench.add(0)
        with pytest.raises(StoreRefused, match=f"{path} does not answer within 5 s"):
            await bench.journal.events(LATEST)
        bench.disk.is_stuck = False

    journalled(path, use)


# --- a file that is damaged or gone while the agent runs -----------------------------------------------


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_new_file_gets_the_whole_table(path: Path, *, is_gone: bool) -> None:
    async def use(bench: Bench) -> None:
        bench.add(0)
        bench.table.intend_create("op0", "v", "name", 2, 0.0)
        bench.table.record_settings({"net/ipv4/ip_forward": "0"})
        await bench.journal.save()
        path.rename(path.with_name("elsewhere"))
        if not is_gone:
            path.write_bytes(b"something else")
        bench.disk.obstacle = FULL
        bench.add(1)
        with pytest.raises(StoreRefused):
            await bench.journal.record()
        bench.disk.obstacle = ""
        await bench.journal.save()
        on_disk = bench.store.on_disk()
        assert on_disk.nics == tuple(bench.table.nics.values())
        assert on_disk.intents == tuple(bench.table.intents.values())
        assert on_disk.settings == {"net/ipv4/ip_forward": "0"}
        await bench.journal.save()
        names = await bench.names()
        assert names[0] == "made.1", names
        assert "store.set-aside" in names
        assert len(damaged_files.earlier(path)) == len(list(path.parent.glob("*.damaged*Z"))) == (0 if is_gone else 1)

    journalled(path, use)


# --- what changes come to ----------------------------------------------------------------------------

ids = st.sampled_from(["a", "b", "c"])
states = st.sampled_from(NicState)
changes = st.one_of(
    st.builds(lambda i, s: Put(Nic(i, "n", "v", "a", "g", s, 1.0)), ids, states),
    st.builds(Drop, st.just(Nic), ids),
    st.builds(lambda i, n: Put(Intent(i, OpKind.CREATE, 1.0, count=n)), ids, st.integers(1, 9)),
    st.builds(Drop, st.just(Intent), ids),
    st.builds(lambda i: Drop(Attachment, AttachmentKey("net", i, "eth0")), ids),
    st.builds(Put, st.builds(Setting, ids, ids)),
    st.builds(lambda i, n: Event(float(n), i), ids, st.integers(0, 9)),
)


@given(st.lists(changes, max_size=40))
def test_changes_put_together_come_to_the_same(found: list[Change]) -> None:
    results = []
    for written in (found, compacted(found)):
        stored = Database(Path(":memory:"))
        stored.write(written)
        tables = ("nics", "intents", "settings")
        rows = [stored._db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables]
        results.append((rows, stored.events(LATEST)))
        stored.close()
    assert results[0] == results[1]
    assert compacted(compacted(found)) == compacted(found)
