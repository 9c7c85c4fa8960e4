"""The store: what was saved is there, in order, whatever happens to the process; what cannot be used is refused."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.errors import StartRefused, StoreFailed, exit_status
from qingcloud_cni.core.model import (
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
from qingcloud_cni.core.seams import (
    Change,
    DropAttachment,
    DropIntent,
    DropNic,
    PutAttachment,
    PutIntent,
    PutNic,
    Snapshot,
    Store,
)
from qingcloud_cni.store import database
from qingcloud_cni.store.database import Database
from qingcloud_cni.store.threaded import InlineStore, ThreadedStore
from simulator import disk_of, needs_root

NIC = Nic("52:54:00:00:00:01", "name", "vxnet-1", "172.16.3.7/24", "172.16.3.1", NicState.COOLING, 1.5, 0.25)
ATTACHMENT = Attachment(
    AttachmentKey("net", "pod", "eth0"), NIC.nic_id, Netns("/var/run/netns/ä", 4, 4026532000), 2.5,
    routes=(Route("0.0.0.0/0", "172.16.3.1"), Route("10.96.0.0/12", "172.16.3.253")),
    dns=Dns(("172.16.0.2",), "vpc.local", ("a", "b"), ("ndots:2",)), ifindex=7, mtu=1500, is_ready=True,
    workload=Workload("web", "shop", "uid", "abc", (("app", "web"), ("", "ä"))),
)  # fmt: skip
CREATE = Intent("op1", OpKind.CREATE, 3.5, vxnet_id="vxnet-1", name="name", count=3)
ATTACH = Intent("op2", OpKind.ATTACH, 4.5, nic_ids=(NIC.nic_id, "52:54:00:00:00:02"), job_id="j-1")
EVENT = Event(5.5, "nic.assigned", NIC.nic_id, "net/pod/eth0", "why, “so”")
ALL: tuple[Change, ...] = (PutNic(NIC), PutAttachment(ATTACHMENT), PutIntent(CREATE), PutIntent(ATTACH), EVENT)
SNAPSHOT = Snapshot((NIC,), (ATTACHMENT,), (CREATE, ATTACH))


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
    def __call__(self, path: Path) -> Store: ...


STORES = pytest.mark.parametrize("opens", [ThreadedStore, InlineStore])


@STORES
async def test_everything_saved_is_there_after_reopening(opens: Opens, path: Path) -> None:
    store = opens(path)
    assert await store.load() == Snapshot()
    await store.save(ALL)
    assert await store.load() == SNAPSHOT
    await store.close()
    store = opens(path)
    assert await store.load() == SNAPSHOT
    assert await store.events(10) == (EVENT,)
    await store.close()


def test_an_attachment_written_before_it_told_of_its_pod_is_still_read(path: Path) -> None:
    written = Database(path)
    written.write([PutAttachment(ATTACHMENT)])
    written.close()
    with closing(sqlite3.connect(path)) as raw:
        (body,) = raw.execute("SELECT body FROM attachments").fetchone()
        old = {key: value for key, value in json.loads(body).items() if key != "workload"}
        raw.execute("UPDATE attachments SET body = ?", (json.dumps(old),))
        raw.commit()
    assert reopened(path).attachments == (replace(ATTACHMENT, workload=Workload()),)


@STORES
async def test_rows_are_replaced_and_dropped(opens: Opens, path: Path) -> None:
    store = opens(path)
    await store.save(ALL)
    idle = Nic(NIC.nic_id, "other", "vxnet-2", "10.0.0.1/8", "10.0.0.2", NicState.IDLE, 9.0)
    await store.save([PutNic(idle), DropAttachment(ATTACHMENT.key), DropIntent("op1")])
    assert await store.load() == Snapshot((idle,), (), (ATTACH,))
    await store.save([DropNic(NIC.nic_id), DropNic("unknown"), DropIntent("unknown"), DropIntent("op2")])
    assert await store.load() == Snapshot()
    await store.close()


@STORES
async def test_events_come_oldest_first_and_no_more_than_asked_for(opens: Opens, path: Path) -> None:
    store = opens(path)
    events = tuple(Event(float(100 - n), f"e{n}") for n in range(7))  # by the order of saving, not by the clock
    for event in events:
        await store.save([event])
    assert await store.events(3) == events[-3:]
    assert await store.events(100) == events
    assert await store.events(0) == ()
    await store.close()


@STORES
async def test_a_save_happens_as_a_whole_or_not_at_all(opens: Opens, path: Path) -> None:
    store = opens(path)
    with pytest.raises(sqlite3.IntegrityError):
        await store.save([PutNic(NIC), Event(None, "x")])  # type: ignore[arg-type]
    assert await store.load() == Snapshot()
    await store.save([PutNic(NIC)])
    assert await store.load() == Snapshot((NIC,))
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
    event=st.builds(Event, times, texts, texts, texts, texts),
)  # fmt: skip
def test_any_row_comes_back_as_it_was(nic: Nic, attachment: Attachment, intent: Intent, event: Event) -> None:
    stored = Database(Path(":memory:"))
    stored.write([PutNic(nic), PutAttachment(attachment), PutIntent(intent), event])
    assert stored.load() == Snapshot((nic,), (attachment,), (intent,))
    assert stored.events(1) == (event,)
    stored.close()


# --- the thread --------------------------------------------------------------------------------------


def numbered(number: int) -> Nic:
    return Nic(f"nic{number}", "n", "v", "a", "g", NicState.IDLE, float(number))


async def test_saves_that_wait_together_are_written_in_order(path: Path) -> None:
    store = ThreadedStore(path)
    done: list[int] = []

    async def save(number: int) -> None:
        await store.save([PutNic(numbered(number)), PutNic(Nic("last", "n", "v", "a", "g", NicState.IDLE, number))])
        done.append(number)

    await asyncio.gather(*(save(n) for n in range(200)))
    snapshot = await store.load()
    await store.close()
    assert done == list(range(200))
    assert {n.nic_id: n.since for n in snapshot.nics}["last"] == 199
    assert len(snapshot.nics) == 201


async def test_a_save_without_changes_waits_for_those_before_it(path: Path) -> None:
    store = ThreadedStore(path)
    first = asyncio.ensure_future(store.save([PutNic(NIC)]))
    await asyncio.sleep(0)
    await store.save([])
    assert await store.load() == Snapshot((NIC,))
    await first
    await store.close()


async def test_a_question_sees_the_saves_made_before_it(path: Path) -> None:
    store = ThreadedStore(path)
    saves = [asyncio.ensure_future(store.save([PutNic(numbered(n))])) for n in range(20)]
    await asyncio.sleep(0)
    assert len((await store.load()).nics) == 20
    await asyncio.gather(*saves)
    await store.close()


async def test_a_cancelled_save_is_written_all_the_same(path: Path) -> None:
    store = ThreadedStore(path)
    save = asyncio.ensure_future(store.save([PutNic(NIC)]))
    await asyncio.sleep(0)
    save.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save
    await store.close()
    assert reopened(path) == Snapshot((NIC,))


async def test_closing_waits_for_what_was_saved(path: Path) -> None:
    store = ThreadedStore(path)
    saves = [asyncio.ensure_future(store.save([PutNic(numbered(n))])) for n in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*saves)
    assert len(reopened(path).nics) == 50


# --- what befalls the process and the file -----------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from qingcloud_cni.core.model import Nic, NicState
from qingcloud_cni.core.seams import PutNic
from qingcloud_cni.store.threaded import ThreadedStore

async def main():
    store = ThreadedStore(Path(sys.argv[1]))
    number = 0
    async def writer():
        nonlocal number
        while True:
            mine, number = number, number + 1
            await store.save([PutNic(Nic(f"nic{mine}", "n", "v", "a", "g", NicState.IDLE, 0.0))])
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


def refusal(path: Path, use: Callable[[Path], object] = reopened) -> str:
    with pytest.raises(StartRefused) as refused:
        use(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    return str(refused.value)


def test_a_second_opener_is_refused_and_told_why(path: Path) -> None:
    Database(path).close()
    first = Database(path)  # has only looked yet
    said = refusal(path, Database)
    first.write([PutNic(NIC)])
    first.close()
    assert "in use by another process" in said
    assert "move it away" not in said
    assert reopened(path) == Snapshot((NIC,))


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    Database(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=2")
    raw.close()
    assert "has schema 2, and this program knows 1: a newer version wrote it" in refusal(path, Database)


@pytest.mark.parametrize(
    "content", [b"no database at all, but long enough to be read as one" * 40, b"SQLite format 3\0" + bytes(80)]
)
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "cannot be used" in refusal(path)


def test_a_damaged_file_is_refused(path: Path) -> None:
    opened = Database(path)
    opened.write([PutNic(numbered(n)) for n in range(300)])
    opened.close()
    raw = bytearray(path.read_bytes())
    for page in range(1, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path.write_bytes(raw)
    assert "cannot be used" in refusal(path)


@pytest.mark.parametrize("body", ["{", "{}", '{"nic_id": 7}', ""])
def test_a_damaged_row_is_refused(path: Path, body: str) -> None:
    Database(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO nics VALUES ('x', ?)", (body,))
    raw.close()
    assert "cannot be used" in refusal(path)


async def test_a_damaged_row_is_refused_by_the_thread_too(path: Path) -> None:
    Database(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO intents VALUES ('x', '[]')")
    raw.close()
    store = ThreadedStore(path)
    with pytest.raises(StartRefused, match="cannot be used"):
        await store.load()
    await store.close()


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    assert "unable to open database file" in refusal(tmp_path / "none" / "agent.db", Database)
    assert "unable to open database file" in refusal(tmp_path, Database)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of("300k", tmp_path / "small") as place:
        yield place


@needs_root
def test_a_full_disk_is_told_and_what_was_written_before_is_kept(small_disk: Path) -> None:
    path = small_disk / "agent.db"
    opened = Database(path)
    opened.write([PutNic(NIC)])
    with pytest.raises(StoreFailed) as refused:
        opened.write([PutNic(numbered(n)) for n in range(2000)])
    assert str(refused.value) == f"state file {path} cannot be written: database or disk is full; make room there"
    assert opened.load() == Snapshot((NIC,))
    opened.close()
    assert reopened(path) == Snapshot((NIC,))


@needs_root
def test_a_start_on_a_full_disk_is_no_matter_of_settings(small_disk: Path) -> None:
    """Status 1, not 2: systemd starts the agent again, and nobody moves the file away."""
    (small_disk / "others").write_bytes(bytes(300 * 1024))
    with pytest.raises(StoreFailed, match=r"agent\.db cannot be used: .*; make room there$") as refused:
        Database(small_disk / "agent.db")
    assert exit_status(refused.value) == 1


def test_a_bug_of_ours_is_not_told_as_trouble_with_the_disk(path: Path) -> None:
    opened = Database(path)
    opened._db.execute("DROP TABLE nics")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        opened.write([PutNic(NIC)])
    opened.close()


def test_old_events_go_as_new_ones_come(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "EVENTS_KEPT", 10)
    monkeypatch.setattr(database, "EVENTS_TRIMMED", 5)
    opened = Database(path)
    opened.write([Event(float(n), f"e{n}") for n in range(28)])
    opened.close()
    opened = Database(path)
    opened.write([Event(float(n), f"e{n}") for n in range(28, 33)])
    assert [e.name for e in opened.events(100)] == [f"e{n}" for n in range(20, 33)]
    opened.close()
