"""Damage to a state file is always detected: the store returns only rows that were written.

SQLite believes the part of a WAL before the damage. Only the write counter shows that the file lacks changes.
"""

import logging
import random
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

from inprocess.damage import DAMAGES, Damage
from machines.agents import limited_files
from qingcloud_cni.core.errors import StartRefused, StoreDamaged, StoreRefused
from qingcloud_cni.core.nics.changes import Change, Drop, Put, Setting, Snapshot
from qingcloud_cni.core.nics.model import (
    Attachment,
    AttachmentKey,
    Event,
    Intent,
    Netns,
    Nic,
    NicState,
    OpKind,
    Route,
)
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.store import damaged_files
from qingcloud_cni.store.database import Database
from qingcloud_cni.store.file import StateFile
from qingcloud_cni.store.threaded import InlineStore, ThreadedStore

SEEDS = 40  # damages of each kind
LATEST = EventFilter(10_000)
log = logging.getLogger(__name__)


def served(n: int) -> tuple[Change, ...]:
    """A container gets a NIC."""
    nic = Nic(f"52:54:9f:00:00:{n:02x}", f"qingcni_i-1_{n:016x}", "vxnet-1", f"172.16.0.{n}/24", "172.16.0.254",
              NicState.ASSIGNED, float(n))  # fmt: skip
    attachment = Attachment(
        AttachmentKey("net", f"c{n}", "eth0"), nic.nic_id, Netns(f"/run/netns/c{n}", 4, 4026532000 + n), float(n),
        routes=(Route("0.0.0.0/0", "172.16.0.254"),), ifindex=7, mtu=1500, is_ready=True,
    )  # fmt: skip
    intent = Intent(f"{n:016x}", OpKind.ATTACH, float(n), nic_ids=(nic.nic_id,))
    events = [Event(float(n), f"nic.e{k}", nic.nic_id, str(attachment.key)) for k in range(6)]
    return Put(nic), Put(attachment), Put(intent), Put(Setting(f"net/ipv4/s{n}", str(n))), *events


def gone(n: int) -> tuple[Change, ...]:
    """The container, and the NIC with it."""
    key = AttachmentKey("net", f"c{n}", "eth0")
    return Drop(Attachment, key), Drop(Nic, f"52:54:9f:00:00:{n:02x}"), Drop(Intent, f"{n:016x}")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    """A file with some changes in its WAL still, as a kill leaves it, and every state it went through since then."""
    folder = tmp_path_factory.mktemp("history")
    file = StateFile(folder / "agent.db", folder / "write_counter")
    file.load()
    assert file._database is not None
    for n in range(40):
        file.save(served(n))
    for n in range(0, 40, 3):
        file.save(gone(n))
    file._database._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    states = [file._database.load()]
    for n in range(40, 60):
        file.save([*served(n), *gone(n - 20 if (n - 20) % 3 else n - 19)])
        states.append(file._database.load())
    kept = folder / "kept"
    kept.mkdir()
    for part in ("agent.db", "agent.db-wal", "write_counter"):
        shutil.copy(folder / part, kept)
    file.close()
    return kept, states


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["agent.db", "agent.db-wal"])
@pytest.mark.parametrize("is_sealed", [True, False], ids=["sealed", "unsealed"])
def test_no_row_is_believed_that_was_not_written(
    history: tuple[Path, list[Snapshot]], tmp_path: Path, part: str, damage: Damage, *, is_sealed: bool
) -> None:
    source, states = history
    outcomes: dict[str, int] = {}
    for seed in range(SEEDS):
        rng = random.Random(f"{part} {damage.__name__} {seed}")
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        raw = bytearray((folder / part).read_bytes())
        damage(rng, raw)
        (folder / part).write_bytes(raw)
        if not is_sealed:
            (folder / "write_counter").unlink()
        outcome = _opened(folder / "agent.db", states, f"seed {seed}")
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    log.info("%s %s: %s", part, damage.__name__, outcomes)
    assert outcomes.get("as written", 0) < SEEDS, "nothing was damaged"
    assert not (is_sealed and "earlier" in outcomes)


def _opened(path: Path, states: list[Snapshot], told: str) -> str:
    """Load the file, and see that what came of it is right; what came of it."""
    file = StateFile(path, path.with_name("write_counter"))
    try:
        found = file.load()
    except StartRefused as err:  # the very number of its version was changed
        if "a newer version wrote it" not in str(err):
            raise
        return "newer"
    if found.set_aside:
        assert found == Snapshot(set_aside=found.set_aside), told
        assert "\n" not in found.set_aside
        if "was empty" not in found.set_aside:
            (kept,) = damaged_files.earlier(path)
            assert found.set_aside.endswith(f"it was renamed to {kept}"), told
        file.save(served(1))
        file.close()
        assert len(_reloaded(path).nics) == 1
        return "set aside"
    assert found in states, told
    assert all(e.seq for e in file.events(LATEST)), told
    file.save(served(99))
    file.close()
    assert len(_reloaded(path).nics) == len(found.nics) + 1, told
    return "as written" if found == states[-1] else "earlier"


def _reloaded(path: Path) -> Snapshot:
    file = StateFile(path, path.with_name("write_counter"))
    try:
        return file.load()
    finally:
        file.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE nics SET body = '{' WHERE rowid = 3",
        "UPDATE nics SET body = replace(body, '172.16.0.1/', '172.16.0.2/')",
        "UPDATE nics SET nic_id = 'other' WHERE rowid = 3",
        "UPDATE attachments SET sum = sum + 1 WHERE rowid = 3",
        "UPDATE settings SET before = '1' WHERE rowid = 3",
        "INSERT INTO intents VALUES ('x', '[]', 0)",
        "DELETE FROM nics WHERE rowid = 5",
        "DELETE FROM attachments WHERE rowid = 5",
        "DROP TABLE settings",
        "ALTER TABLE nics DROP COLUMN sum",
    ],
)
def test_rows_that_are_not_as_they_were_written_give_the_file_away(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "agent.db"
    writer = Database(path)
    writer.write([change for n in range(8) for change in served(n)])
    writer.close()
    with sqlite3.connect(path) as raw:
        raw.execute(statement)
    raw.close()
    file = StateFile(path, path.with_name("write_counter"))
    assert "is damaged" in file.load().set_aside
    file.close()


def test_a_copy_from_yesterday_is_told_from_the_file_itself(tmp_path: Path) -> None:
    path, write_counter = tmp_path / "agent.db", tmp_path / "write_counter"
    file = StateFile(path, write_counter)
    file.load()
    file.save(served(1))
    file.close()
    copy = path.read_bytes()
    for n in range(2, 5):
        file = StateFile(path, write_counter)
        assert not file.load().set_aside
        file.save(served(n))
        file.close()
    path.write_bytes(copy)
    file = StateFile(path, write_counter)
    assert "its last 3 of 4 writes are missing" in file.load().set_aside
    file.save(served(9))
    file.close()
    assert not StateFile(path, write_counter).load().set_aside


@pytest.mark.parametrize("content", [None, b"", b"x", b"\xff 1", b"one two three", b"0123456789ABCDEF 99999"])
def test_a_seal_that_says_nothing_of_this_file_is_no_obstacle(tmp_path: Path, content: bytes | None) -> None:
    path, write_counter = tmp_path / "agent.db", tmp_path / "write_counter"
    file = StateFile(path, write_counter)
    file.load()
    file.save(served(1))
    file.close()
    write_counter.unlink()
    if content is not None:
        write_counter.write_bytes(content)
    file = StateFile(path, write_counter)
    assert len(file.load().nics) == 1
    file.close()


def test_where_no_seal_can_be_made_the_file_is_used_all_the_same(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "agent.db", tmp_path / "no such directory" / "write_counter")
    for n in range(3):
        assert len(file.load().nics) == n
        file.save(served(n))
    file.close()


def test_a_file_that_is_no_state_file_is_set_aside(tmp_path: Path) -> None:
    for number, content in enumerate((b"no database at all, but long enough to be read as one" * 40, b"short")):
        path = tmp_path / str(number)
        path.write_bytes(content)
        file = StateFile(path, path.with_name("write_counter"))
        assert "file is not a database" in file.load().set_aside
        file.close()
        assert damaged_files.earlier(path)[0].read_bytes() == content


def test_a_foreign_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE nics (x)")
    raw.close()
    file = StateFile(path, path.with_name("write_counter"))
    assert "table nics already exists" in file.load().set_aside
    file.close()


def test_the_latest_damaged_files_are_kept_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "agent.db"
    for n in range(damaged_files.RETAINED + 3):
        path.write_bytes(b"no database %d" % n)
        path.with_name("agent.db-wal").write_bytes(b"nor a WAL %d" % n)
        damaged_files.set_aside(path)
    kept = damaged_files.earlier(path)
    assert [p.read_bytes() for p in kept] == [b"no database %d" % n for n in range(3, damaged_files.RETAINED + 3)]
    assert [p.with_name(p.name + "-wal").read_bytes()[:9] for p in kept] == [b"nor a WAL"] * damaged_files.RETAINED
    assert len(list(tmp_path.iterdir())) == 2 * damaged_files.RETAINED


def test_where_nothing_can_be_renamed_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path, _target: Path) -> Path:
        raise OSError(30, "Read-only file system")

    path = tmp_path / "agent.db"
    path.write_bytes(b"no database at all")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StoreRefused, match="cannot be set aside: Read-only file system"):
        StateFile(path, path.with_name("write_counter")).load()


# --- while the agent runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("opens", [ThreadedStore, InlineStore])
@pytest.mark.parametrize("is_there", [True, False])
async def test_a_new_file_holds_what_it_is_given_and_the_old_one_is_kept(
    opens: type[ThreadedStore], tmp_path: Path, is_there: bool
) -> None:
    path = tmp_path / "agent.db"
    store = opens(path, path.with_name("write_counter"))
    await store.load()
    await store.save(served(1))
    if is_there:
        path.write_bytes(b"overwritten by somebody")
    else:
        path.unlink()
    where = await store.replace_file(served(2))
    assert (await store.events(LATEST))[0].nic_id == "52:54:9f:00:00:02"
    await store.save(served(3))
    assert {n.nic_id[-2:] for n in (await store.load()).nics} == {"02", "03"}
    await store.close()
    assert [str(p) for p in damaged_files.earlier(path)] == ([where] if is_there else [])


def test_until_the_new_file_is_whole_nothing_else_is_written_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again, it sets aside nothing more, and leaves no row of the first try."""
    path = tmp_path / "agent.db"
    file = StateFile(path, path.with_name("write_counter"))
    file.load()
    file.save(served(1))
    write = Database.write

    def too_late(self: Database, changes: list[Change], *, is_all: bool = False) -> None:
        write(self, changes, is_all=is_all)
        raise StoreRefused("disk I/O error")

    monkeypatch.setattr(Database, "write", too_late)
    for n in (2, 3):
        with pytest.raises(StoreRefused):
            file.replace_file(served(n))
        with pytest.raises(StoreDamaged, match="its replacement could not be written yet"):
            file.save(served(9))
        with pytest.raises(StoreRefused, match="its replacement could not be written yet"):
            file.events(LATEST)
    monkeypatch.undo()
    where = file.replace_file(served(4))
    assert [str(p) for p in damaged_files.earlier(path)] == [where]
    assert {n.nic_id[-2:] for n in file.load().nics} == {"04"}
    file.close()


async def test_a_shortage_of_descriptors_is_no_damage(tmp_path: Path) -> None:
    path, counter, saved = tmp_path / "agent.db", tmp_path / "write_counter", ""
    for spare in (10, *range(6), 10):
        store = ThreadedStore(path, counter)
        with limited_files(spare), suppress(StoreRefused):
            await store.load()
            await store.save([Put(Setting("spare", str(spare)))])
            saved = str(spare)
            await store.tidy()
        await store.close()
    assert (saved, damaged_files.earlier(path)) == ("10", [])
    assert _reloaded(path).settings == {"spare": "10"}
