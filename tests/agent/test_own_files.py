"""What was removed under a running agent comes back, and ADD works meanwhile wherever it safely can."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, key_of, on_host
from qingcloud_cni.agent.attachments.spool_files import DRAFT_AGE
from qingcloud_cni.agent.process.run_files import RunFiles
from qingcloud_cni.core.errors import StoreRefused
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.core.seams.store import EventFilter

SECONDS = 5.0


def remove_directory(host: SimulatedHost) -> None:
    shutil.rmtree(host.settings.state_dir)


def remove_database(host: SimulatedHost) -> None:
    host.settings.database.unlink()


def remove_wal(host: SimulatedHost) -> None:
    wal_of(host).unlink()


def replace_directory(host: SimulatedHost) -> None:
    host.settings.state_dir.rename(host.settings.state_dir.with_name(f"{host.settings.state_dir.name}-elsewhere"))
    host.settings.state_dir.mkdir(mode=0o700)


def replace_directory_by_a_file(host: SimulatedHost) -> None:
    shutil.rmtree(host.settings.state_dir)
    host.settings.state_dir.touch()


def replace_database_by_a_link(host: SimulatedHost) -> None:
    """To the very file."""
    elsewhere = host.settings.database.with_name("elsewhere.db")
    host.settings.database.rename(elsewhere)
    host.settings.database.symlink_to(elsewhere)


REMOVALS = [
    remove_directory, remove_database, remove_wal, replace_directory, replace_directory_by_a_file,
    replace_database_by_a_link,
]  # fmt: skip
Removal = Callable[[SimulatedHost], None]
removals = pytest.mark.parametrize("remove", REMOVALS, ids=lambda remove: remove.__name__)


def wal_of(host: SimulatedHost) -> Path:
    return host.settings.database.with_name(f"{host.settings.database.name}-wal")


def is_whole(host: SimulatedHost) -> bool:
    database = host.settings.database
    if not (database.is_file() and not database.is_symlink() and wal_of(host).is_file()):
        return False
    on_disk = host.store.on_disk()
    return {a.key for a in on_disk.attachments} == set(host.table.attachments) and len(on_disk.nics) == len(host.nics)


@removals
@on_host()
async def test_the_state_file_is_rewritten_without_a_request(host: SimulatedHost, remove: Removal) -> None:
    await host.add("c0")
    remove(host)
    await host.clock.sleep(SECONDS)
    assert is_whole(host)
    events = await host.journal.events(EventFilter(100, name="store"))
    assert [event.name for event in events if event.name != "store.damaged"] == ["store.set-aside"]
    await host.kill()
    await host.start()
    assert set(host.table.attachments) == {key_of("c0")}
    assert not host.store.on_disk().set_aside


@removals
@on_host()
async def test_an_add_at_once_succeeds_and_survives_a_crash(host: SimulatedHost, remove: Removal) -> None:
    await host.add("c0")
    remove(host)
    await host.add("c1")
    await host.delete("c0")
    assert is_whole(host)
    await host.kill()
    await host.start()
    assert set(host.table.attachments) == {key_of("c1")}


@on_host()
async def test_a_link_to_a_directory_is_not_followed(host: SimulatedHost) -> None:
    """ADD fails, for its record would be elsewhere; DEL works; all goes on when the link is gone."""
    await host.add("c0")
    elsewhere = host.settings.state_dir.with_name(f"{host.settings.state_dir.name}-elsewhere")
    host.settings.state_dir.rename(elsewhere)
    host.settings.state_dir.symlink_to(elsewhere)
    before = {path.name: path.stat().st_mtime_ns for path in elsewhere.iterdir()}
    await host.clock.sleep(SECONDS)
    with pytest.raises(StoreRefused, match="it is a link; remove it"):
        await host.add("c1")
    await host.delete("c0")
    assert {path.name for path in elsewhere.iterdir()} <= before.keys(), "nothing new"
    host.settings.state_dir.unlink()
    await host.until(lambda: not host.journal.error, "the disk accepts writes")
    await host.add("c1")
    assert is_whole(host)


@on_host()
async def test_a_restart_finds_nothing_to_put_back(host: SimulatedHost) -> None:
    await host.add("c0")
    await host.kill()
    await host.start()
    await host.clock.sleep(SECONDS)
    assert not await host.journal.events(EventFilter(10, name="file"))


@on_host(is_started=False)
async def test_files_that_are_missing_at_a_start_are_made_without_an_event(host: SimulatedHost) -> None:
    """The spool directory at the first start, the write counter after a stop that emptied the run directory."""
    run_files = RunFiles(host.settings.run_dir, host.settings.spool, host.settings.token_file, "token")
    for _ in range(2):
        await host.start()
        host.agent.own_files.watch(run_files.restore_spool)
        await host.clock.sleep(SECONDS)
        assert host.settings.spool.is_dir()
        assert host.settings.write_counter.exists()
        assert not await host.journal.events(EventFilter(10, name="file"))
        await host.clock.sleep(60.0)
        await host.kill()
        host.settings.spool.rmdir()
        host.settings.write_counter.unlink()


@on_host()
async def test_a_file_that_is_removed_after_the_first_look_is_put_back_with_an_event(host: SimulatedHost) -> None:
    await host.clock.sleep(SECONDS)
    host.settings.write_counter.unlink()
    await host.clock.sleep(SECONDS)
    events = await host.journal.events(EventFilter(10, name="file"))
    assert [(event.name, event.detail) for event in events] == [
        ("file.restored", f"file {host.settings.write_counter}")
    ]


@on_host()
async def test_the_parking_mount_is_put_back_with_an_event(host: SimulatedHost) -> None:
    host.kernel.is_parking_mounted = False
    await host.add("c0")
    await host.clock.sleep(SECONDS)
    assert host.kernel.is_parking_mounted
    events = await host.journal.events(EventFilter(10, name="file"))
    assert [(event.name, event.detail) for event in events] == [("file.restored", host.kernel.parking_path)]


@on_host()
async def test_a_disk_that_hangs_delays_nothing_else(host: SimulatedHost) -> None:
    host.disk.is_stuck = True
    host.kernel.is_parking_mounted = False
    await host.clock.sleep(SECONDS)
    assert host.kernel.is_parking_mounted
    host.disk.is_stuck = False
    remove_database(host)
    await host.clock.sleep(SECONDS)
    assert is_whole(host)


@on_host()
async def test_an_obstacle_is_told_once_and_fails_the_task(host: SimulatedHost) -> None:
    with host.kernel.fail("restore_parking"):
        await host.clock.sleep(20.0)
        assert host.agent.own_files.record.failures > 3
        events = await host.journal.events(EventFilter(10, name="file"))
        assert [event.name for event in events] == ["file.obstructed"]
        await host.add("c0")
    await host.clock.sleep(SECONDS)
    assert host.agent.own_files.record.failures == 0
    assert host.states() == [NicState.ASSIGNED, *[NicState.IDLE] * 3]


@on_host()
async def test_drafts_of_killed_plugins_go_without_another_file(host: SimulatedHost) -> None:
    host.settings.spool.mkdir(mode=0o700, parents=True)
    draft = host.settings.spool / ".c0.json.1234"
    draft.touch(mode=0o600)
    await host.clock.sleep(60.0)
    assert draft.exists()
    old = draft.stat().st_mtime - DRAFT_AGE
    os.utime(draft, (old, old))
    await host.clock.sleep(SECONDS)
    assert not draft.exists()
