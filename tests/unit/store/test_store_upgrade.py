"""State files of earlier versions are brought up to date as a whole or not at all; newer ones are left alone.

`state/schema-1.db` was written by the program of that time, with NICs in every state and all that a row can hold.
"""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.nics.changes import Put, Snapshot
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
)
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.store import schema
from qingcloud_cni.store.database import Database
from qingcloud_cni.store.schema import SCHEMA_VERSION

FILES = Path(__file__).parent / "state"
T0 = 1764000000.0
CONTAINER, CUT_OFF = "52:54:9f:00:00:05", "52:54:9f:00:00:0c"


def nic(number: int, state: NicState) -> Nic:
    return Nic(
        f"52:54:9f:00:00:{number:02x}", f"qingcni_i-1234abcd_{number:016x}", "vxnet-pods001", f"172.20.1.{number}/24",
        "172.20.1.1", state, T0 + number, T0 + 0.25 if state is NicState.COOLING else 0.0,
    )  # fmt: skip


IN_EVERY_STATE = [nic(n, state) for n, state in enumerate(NicState, 1) if n <= 11]
IN_EVERY_STATE[10] = replace(
    IN_EVERY_STATE[10], name="hostnic_i-1234abcd_00000000000000ff", state=NicState.GATEWAY, gateway_index=0
)
OTHER = replace(
    nic(12, NicState.ASSIGNED),
    vxnet_id="vxnet-pods002",
    address="172.20.2.12/24",
    gateway="172.20.2.1",
    since=T0 + 12.5,
)
SERVED = Attachment(
    AttachmentKey("mynet", "c1", "eth0"), CONTAINER, Netns("/run/netns/cni-ä", 4, 4026532000), T0 + 5,
    routes=(Route("0.0.0.0/0", "172.20.1.1"), Route("10.96.0.0/12", "172.20.1.11")),
    dns=Dns(("10.96.0.10",), "cluster.local", ("svc.cluster.local",), ("ndots:5",)),
    ifindex=7, mtu=1500, is_ready=True, services=("10.96.0.0/12",), ip_masq=True,
)  # fmt: skip
HALF = Attachment(AttachmentKey("mynet", "c2", "net1"), CUT_OFF, Netns("/proc/77/ns/net", 4, 4026532001), T0 + 12.5)
INTENTS = (
    Intent("000000000000000a", OpKind.CREATE, T0 + 20, "vxnet-pods001", "qingcni_i-1234abcd_000000000000000a", 3),
    Intent("000000000000000b", OpKind.ATTACH, T0 + 21, nic_ids=("52:54:9f:00:00:02",), job_id="j-attach01"),
    Intent("000000000000000d", OpKind.DETACH, T0 + 22, nic_ids=("52:54:9f:00:00:07",)),
    Intent("000000000000000e", OpKind.DELETE, T0 + 23, nic_ids=("52:54:9f:00:00:08",)),
)
SETTINGS = {"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/send_redirects": "1"}
ALL = Snapshot((*IN_EVERY_STATE, OTHER), (SERVED, HALF), INTENTS, SETTINGS)
EVENTS = 27


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(FILES / "schema-1.db", tmp_path / "agent.db"))


def version_of(path: Path) -> int:
    with sqlite3.connect(path) as raw:
        (version,) = raw.execute("PRAGMA user_version").fetchone()
    raw.close()
    return int(version)


def loaded(path: Path) -> Snapshot:
    opened = Database(path)
    try:
        return opened.load()
    finally:
        opened.close()


def test_everything_in_a_file_of_schema_1_is_there_after_the_upgrade(path: Path) -> None:
    assert version_of(path) == 1
    opened = Database(path)
    assert opened.load() == ALL
    events = opened.events(EventFilter(100))
    assert [e.seq for e in events] == list(range(1, EVENTS + 1))
    assert events[4] == Event(T0 + 4, "nic.assigned", CONTAINER, "mynet/c1/eth0")
    assert events[-1] == Event(T0 + 119, "cloud.unanswered", detail="try 19")
    opened.write([Put(replace(OTHER, since=T0 + 99)), Event(T0 + 120, "agent.ready")])
    assert opened.events(EventFilter(1))[0].seq == EVENTS + 1
    opened.close()
    assert version_of(path) == SCHEMA_VERSION
    assert loaded(path).nics == (*IN_EVERY_STATE, replace(OTHER, since=T0 + 99))


def test_an_upgraded_file_is_as_a_new_one(path: Path, tmp_path: Path) -> None:
    Database(path).close()
    Database(tmp_path / "new.db").close()

    def tables(file: Path) -> list[tuple[str, str]]:
        with sqlite3.connect(file) as raw:
            rows = raw.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").fetchall()
        raw.close()
        return [row for row in rows if not row[0].startswith("sqlite_")]

    assert tables(path) == tables(tmp_path / "new.db")
    assert version_of(path) == version_of(tmp_path / "new.db")


def test_an_upgrade_that_is_cut_off_anywhere_leaves_the_file_as_it_was(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies the files before each statement, as a kill would leave them."""
    left: list[Path] = []
    prepare = Database._prepare

    def watched(self: Database) -> None:
        def before(_statement: str) -> None:
            folder = tmp_path / f"killed-{len(left)}"
            folder.mkdir()
            for part in tmp_path.glob("agent.db*"):
                shutil.copy(part, folder)
            left.append(folder / "agent.db")

        self._db.set_trace_callback(before)
        prepare(self)

    monkeypatch.setattr(Database, "_prepare", watched)
    Database(path).close()
    monkeypatch.undo()
    assert len(left) > 30
    versions = [version_of(file) for file in left]
    assert versions == sorted(versions)
    assert set(versions) == {1, SCHEMA_VERSION}
    for file in left:
        assert loaded(file) == ALL


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(db: sqlite3.Connection) -> None:
        db.execute("DROP TABLE events")
        raise RuntimeError("a bug in the next step")

    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, failing))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    with pytest.raises(RuntimeError, match="next step"):
        Database(path)
    assert version_of(path) == 1
    monkeypatch.undo()
    assert loaded(path) == ALL


def test_a_file_of_a_newer_version_is_refused_and_left_as_it_is(path: Path) -> None:
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(
        StartRefused, match="newer version wrote it; run that version, or move the file away"
    ) as refused:
        Database(path)
    assert f"has schema {SCHEMA_VERSION + 1}, and this program knows {SCHEMA_VERSION}" in str(refused.value)
    assert path.read_bytes() == before
