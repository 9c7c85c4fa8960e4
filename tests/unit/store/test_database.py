"""The store: what was saved is there, in order, whatever happens to the process; what cannot be used is refused."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from machines.simulator import disk_of, fill, needs_root
from qingcloud_cni.core.errors import StartRefused, StoreDamaged, StoreRefused, exit_status
from qingcloud_cni.core.nics.changes import Change, Drop, Put, Snapshot
from qingcloud_cni.core.nics.model import (
    Attachment,
    AttachmentKey,
    Dns,
    Event,
    Intent,
    Netns,
    Nic,
    NicState,
    OpKind,
    Route,
    Workload,
)
from qingcloud_cni.core.seams.store import EventFilter, Store
from qingcloud_cni.store import database
from qingcloud_cni.store.database import Database
from qingcloud_cni.store.threaded import InlineStore, ThreadedStore

NIC = Nic("52:54:00:00:00:01", "name", "vxnet-1", "172.16.3.7/24", "172.16.3.1", NicState.ASSIGNED, 1.5, 0.25)
ATTACHMENT = Attachment(
    AttachmentKey("net", "pod", "eth0"), NIC.nic_id, Netns("/var/run/netns/ä", 4, 4026532000), 2.5,
    routes=(Route("0.0.0.0/0", "172.16.3.1"), Route("10.96.0.0/12", "172.16.3.253")),
    dns=Dns(("172.16.0.2",), "vpc.local", ("a", "b"), ("ndots:2",)), ifindex=7, mtu=1500, is_ready=True,
    workload=Workload("web", "shop", "uid", "abc", (("app", "web"), ("", "ä"))),
)  # fmt: skip
CREATE = Intent("op1", OpKind.CREATE, 3.5, vxnet_id="vxnet-1", name="name", count=3)
ATTACH = Intent("op2", OpKind.ATTACH, 4.5, nic_ids=(NIC.nic_id, "52:54:00:00:00:02"), job_id="j-1")
EVENT = Event(5.5, "nic.assigned", NIC.nic_id, "net/pod/eth0", "why, “so”", "assigned", "j-1", "default/web")
ALL: tuple[Change, ...] = (Put(NIC), Put(ATTACHMENT), Put(CREATE), Put(ATTACH), EVENT)
SNAPSHOT = Snapshot((NIC,), (ATTACHMENT,), (CREATE, ATTACH))
LATEST = EventFilter(100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def reopened(path: Path) -> Snapshot:
    opened = Database(path)
    try:
        return opened.load()
    finally:
        opened.close()


# --- both stores -------------------------------------------------------------------------------------


class Opens(Protocol):
    def __call__(self, path: Path, write_counter: Path) -> Store: ...


STORES = pytest.mark.parametrize("opens", [ThreadedStore, InlineStore])


@STORES
async def test_everything_saved_is_there_after_reopening(opens: Opens, path: Path) -> None:
    store = opens(path, path.with_name("write_counter"))
    assert await store.load() == Snapshot()
    await store.save(ALL)
    assert await store.load() == SNAPSHOT
    await store.close()
    store = opens(path, path.with_name("write_counter"))
    assert await store.load() == SNAPSHOT
    assert await store.events(LATEST) == (EVENT,)
    await store.close()


@STORES
async def test_rows_are_replaced_and_dropped(opens: Opens, path: Path) -> None:
    store = opens(path, path.with_name("write_counter"))
    await store.load()
    await store.save(ALL)
    idle = Nic(NIC.nic_id, "other", "vxnet-2", "10.0.0.1/8", "10.0.0.2", NicState.IDLE, 9.0)
    await store.save([Put(idle), Drop(Attachment, ATTACHMENT.key), Drop(Intent, "op1")])
    assert await store.load() == Snapshot((idle,), (), (ATTACH,))
    await store.save([Drop(Nic, NIC.nic_id), Drop(Nic, "unknown"), Drop(Intent, "unknown"), Drop(Intent, "op2")])
    assert await store.load() == Snapshot()
    await store.close()


@STORES
async def test_a_save_happens_as_a_whole_or_not_at_all(opens: Opens, path: Path) -> None:
    store = opens(path, path.with_name("write_counter"))
    await store.load()
    with pytest.raises(sqlite3.IntegrityError):
        await store.save([Put(CREATE), Event(None, "x")])  # type: ignore[arg-type]
    assert await store.load() == Snapshot()
    await store.save([Put(CREATE)])
    assert await store.load() == Snapshot(intents=(CREATE,))
    await store.close()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
times = st.floats(0, 4e9)


@given(
    nic=st.builds(Nic, texts, texts, texts, texts, texts, st.sampled_from(NicState), times, times),
    attachment=st.builds(
        Attachment, st.builds(AttachmentKey, texts, texts, texts), texts,
        st.builds(Netns, texts, st.integers(0, 2**63), st.integers(0, 2**63)), times,
        routes=st.lists(st.builds(Route, texts, texts), max_size=2).map(tuple), ifindex=st.integers(0, 2**31),
        mtu=st.integers(0, 65536), is_ready=st.booleans(),
    ),
    intent=st.builds(
        Intent, texts, st.sampled_from(OpKind), times, texts, texts, st.integers(0, 99),
        st.lists(texts, max_size=3).map(tuple), texts,
    ),
    event=st.builds(Event, times, texts, texts, texts, texts, texts, texts, texts),
)  # fmt: skip
def test_any_row_comes_back_as_it_was(nic: Nic, attachment: Attachment, intent: Intent, event: Event) -> None:
    nic = replace(nic, state=NicState.ASSIGNED)
    attachment = replace(attachment, nic_id=nic.nic_id)
    stored = Database(Path(":memory:"))
    stored.write([Put(nic), Put(attachment), Put(intent), event])
    assert stored.load() == Snapshot((nic,), (attachment,), (intent,))
    assert stored.events(EventFilter(1)) == (event,)
    stored.close()


# --- the thread --------------------------------------------------------------------------------------


@pytest.fixture
async def threaded(path: Path) -> AsyncIterator[ThreadedStore]:
    store = ThreadedStore(path, path.with_name("write_counter"))
    await store.load()
    yield store
    await store.close()


async def test_saves_are_written_in_the_order_they_were_asked_for(threaded: ThreadedStore) -> None:
    done: list[int] = []

    async def save(number: int) -> None:
        last = make_nic(since=number, nic_id="last")
        await threaded.save([Put(make_nic(number)), Put(last)])
        done.append(number)

    await asyncio.gather(*(save(n) for n in range(50)))
    snapshot = await threaded.load()
    assert done == list(range(50))
    assert {n.nic_id: n.since for n in snapshot.nics}["last"] == 49
    assert len(snapshot.nics) == 51


async def test_a_question_sees_the_saves_made_before_it(threaded: ThreadedStore) -> None:
    saves = [asyncio.ensure_future(threaded.save([Put(make_nic(n))])) for n in range(20)]
    await asyncio.sleep(0)
    assert len((await threaded.load()).nics) == 20
    await asyncio.gather(*saves)


async def test_a_cancelled_save_is_written_all_the_same(threaded: ThreadedStore) -> None:
    save = asyncio.ensure_future(threaded.save([Put(make_nic(1))]))
    await asyncio.sleep(0)
    save.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save
    assert await threaded.load() == Snapshot((make_nic(1),))


async def test_closing_waits_for_what_was_saved(path: Path) -> None:
    store = ThreadedStore(path, path.with_name("write_counter"))
    await store.load()
    saves = [asyncio.ensure_future(store.save([Put(make_nic(n))])) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*saves)
    assert len(reopened(path).nics) == 50


# --- what befalls the process and the file -----------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.nics.changes import Put
from qingcloud_cni.store.threaded import ThreadedStore

async def main():
    store = ThreadedStore(Path(sys.argv[1]), Path(sys.argv[1] + ".write_counter"))
    await store.load()
    number = 0
    async def writer():
        nonlocal number
        while True:
            mine, number = number, number + 1
            await store.save([Put(Nic(f"nic{mine}", "n", "v", "a", "g", NicState.IDLE, 0.0))])
            print(mine, flush=True)
    await asyncio.gather(*(writer() for _ in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40, 300])
def test_a_killed_writer_leaves_every_save_it_was_told_of(path: Path, lines: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = {int(writer.stdout.readline()) for _ in range(lines)}
        os.kill(writer.pid, signal.SIGKILL)
        told |= {int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")}
    held = {n.nic_id for n in reopened(path).nics}
    assert len(told) >= lines
    assert {f"nic{n}" for n in told} <= held


def test_every_commit_waits_for_the_disk(path: Path) -> None:
    """What no test can try without cutting the power: SQLite syncs its log with every commit (2 is FULL)."""
    opened = Database(path)
    settings = {name: opened._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")}
    opened.close()
    assert settings == {"synchronous": 2, "journal_mode": "wal"}


def refusal(path: Path) -> str:
    with pytest.raises((StartRefused, StoreRefused)) as refused:
        Database(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_a_second_opener_is_refused_and_told_why(path: Path) -> None:
    Database(path).close()
    first = Database(path)  # has only read yet
    said = refusal(path)
    first.write([Put(CREATE)])
    first.close()
    assert "in use by another process" in said
    assert reopened(path) == Snapshot(intents=(CREATE,))


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    assert "unable to open database file" in refusal(tmp_path / "none" / "agent.db")
    assert "is a directory" in refusal(tmp_path)


@pytest.mark.parametrize("part", ["", "-wal"])
@pytest.mark.parametrize("others", [id, Path.touch, Path.mkdir, lambda path: path.symlink_to("moved")])
def test_a_file_that_vanishes_or_is_replaced_takes_no_more(
    path: Path, part: str, others: Callable[[Path], object]
) -> None:
    """Either of the two: what is written to a WAL without a name is lost at the next crash."""
    opened = Database(path)
    opened.write([Put(CREATE)])
    opened.check_files()
    file = path.with_name(path.name + part)
    file.rename(path.with_name("moved"))
    others(file)
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="moved or removed"):
            opened.write([Put(ATTACH)])
        with pytest.raises(StoreDamaged, match="moved or removed"):
            opened.check_files()
    opened.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file on a disk of 300 KiB."""
    with disk_of("300k", tmp_path / "small") as place:
        yield place / "agent.db"


@needs_root
def test_a_full_disk_is_told_and_takes_more_when_there_is_room(small: Path) -> None:
    opened = Database(small)
    opened.write([Put(CREATE)])
    others = fill(small.parent)
    many = [Put(make_nic(n)) for n in range(200)]
    for _ in range(3):
        with pytest.raises(StoreRefused) as refused:
            opened.write(many)
    said = f"state file {small} cannot be written: database or disk is full; make room there"
    assert str(refused.value) == said
    assert exit_status(refused.value) == 1
    assert opened.load() == Snapshot(intents=(CREATE,))
    others.unlink()
    opened.write(many)
    opened.close()
    assert len(reopened(small).nics) == 200


@needs_root
@pytest.mark.parametrize("is_killed", [True, False])
def test_a_file_is_read_from_a_full_disk(small: Path, *, is_killed: bool) -> None:
    """With the WAL of a kill, too."""
    opened = Database(small)
    opened.write([Put(CREATE), *[Event(float(n), "x") for n in range(20)]])
    if is_killed:
        left = [small, small.with_name("agent.db-wal")]
        contents = [part.read_bytes() for part in left]
    opened.close()
    if is_killed:
        for part, content in zip(left, contents, strict=True):
            part.write_bytes(content)
    others = fill(small.parent)
    opened = Database(small)
    assert opened.load() == Snapshot(intents=(CREATE,))
    with pytest.raises(StoreRefused):
        opened.write([Put(make_nic(n)) for n in range(200)])
    others.unlink()
    opened.write([Put(make_nic(1))])
    assert len(opened.events(LATEST)) == 20
    opened.close()


@needs_root
def test_a_first_start_on_a_full_disk_is_no_matter_of_settings(small: Path) -> None:
    """Status 1, not 2: systemd starts the agent again, and nobody moves the file away."""
    others = fill(small.parent)
    with pytest.raises(StoreRefused, match=r"cannot be written: .*; make room there$") as refused:
        Database(small)
    assert exit_status(refused.value) == 1
    others.unlink()
    assert reopened(small) == Snapshot()


@needs_root
def test_an_upgrade_on_a_full_disk_waits_for_room(small: Path) -> None:
    shutil.copy(Path(__file__).parent / "state" / "schema-1.db", small)
    others = fill(small.parent)
    with pytest.raises(StoreRefused, match="make room there"):
        Database(small)
    others.unlink()
    assert len(reopened(small).nics) == 12


def test_a_bug_of_ours_is_not_told_as_trouble_with_the_disk(path: Path) -> None:
    opened = Database(path)
    opened._db.execute("DROP TABLE nics")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        opened.write([Put(NIC)])
    opened.close()


# --- events ------------------------------------------------------------------------------------------


@pytest.fixture
def events(path: Path) -> Iterator[Callable[..., list[str]]]:
    """Writes some, and gives the details of those that fit a filter."""
    opened = Database(path)
    keys = ("net/c1/eth0", "net/c12/eth0", "c1/other/c1", "other/c1/net1")
    opened.write([Event(9.0 - n, "nic.assigned", f"nic{n}", key, str(n), pod="default/web" if n == 1 else "web/x")
                  for n, key in enumerate(keys)])  # fmt: skip
    opened.write([Event(1.0, "nic.rested", "nic0", detail="4"), Event(1.0, "nice.try", subject="c1", detail="5")])

    def details(limit: int = 100, **wanted: Any) -> list[str]:
        return [e.detail for e in opened.events(EventFilter(limit, **wanted))]

    yield details
    opened.close()


def test_events_come_oldest_first_and_no_more_than_asked_for(events: Callable[..., list[str]]) -> None:
    """By the order of saving, not by the clock."""
    assert events() == ["0", "1", "2", "3", "4", "5"]
    assert events(3) == ["3", "4", "5"]
    assert events(0) == []


def test_events_are_told_apart_by_all_they_say(events: Callable[..., list[str]]) -> None:
    assert events(nic_id="nic0") == ["0", "4"]
    assert events(subject="net/c1/eth0") == ["0"]
    assert events(subject="c1") == ["5"]
    assert events(container="c12") == ["1"]
    assert events(container="c1") == ["0", "1", "3"]  # the beginning is enough, of the container id and nothing else
    assert events(container="%") == []
    assert events(pod="default/web") == events(pod="web") == ["1"]
    assert events(name="nic") == ["0", "1", "2", "3", "4"]
    assert events(name="nic.rested") == ["4"]
    assert events(name="nic.assigned", container="c1", limit=1) == ["3"]
    assert events(name="ni") == events(pod="default") == []


def test_whoever_reads_on_misses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Database(path)
    opened.write([Event(float(n), f"e{n}") for n in range(10)])
    seen: list[Event] = []
    while found := opened.events(EventFilter(3, after=seen[-1].seq if seen else 1)):
        seen += found
    assert [e.name for e in seen] == [f"e{n}" for n in range(10)]
    opened.close()
    path.unlink()
    now = time.time_ns() + 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)
    opened = Database(path)  # another file, as after a damaged one
    opened.write([Event(10.0, "e10")])
    assert [e.name for e in opened.events(EventFilter(3, after=seen[-1].seq))] == ["e10"]
    opened.close()


def test_events_that_are_written_again_are_there_once(path: Path) -> None:
    """A disk may say no after it has taken everything: the same is tried again, and more with it."""
    opened = Database(path)
    first, more = [Event(1.0, "e1"), Event(2.0, "e2")], [Event(3.0, "e3")]
    opened.write(first)
    opened._last_seq -= len(first)  # as it would be had the commit failed
    opened.write([*first, *more])
    assert [e.name for e in opened.events(LATEST)] == ["e1", "e2", "e3"]
    opened.close()


def test_old_events_go_as_new_ones_come(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "EVENT_LIMIT", 10)
    monkeypatch.setattr(database, "EVENTS_TRIMMED", 5)
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # so that the first event has number 1
    opened = Database(path)
    opened.write([Event(float(n), f"e{n}") for n in range(28)])
    assert [e.name for e in opened.events(LATEST)] == [f"e{n}" for n in range(18, 28)]
    opened.close()
    opened = Database(path)
    opened.write([Event(28.0, "e28")])
    opened.write([Event(29.0, "e29")])
    assert [e.name for e in opened.events(LATEST)] == [f"e{n}" for n in range(20, 30)]
    opened.close()
