"""Table, journal and store together, in any order of changes, crashes, stops and bad times of the disk.

A load returns the table of one moment since the last durable write, never a mixture. The events, replayed, equal it.
"""

import asyncio
import copy
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inprocess import virtual_time
from inprocess.disk import Disk, SlowStore
from inprocess.replay import Replayed
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.agent.base.journal import Journal
from qingcloud_cni.core.errors import StoreRefused
from qingcloud_cni.core.nics.changes import Snapshot
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Netns, Nic, NicState
from qingcloud_cni.core.nics.table import Table
from qingcloud_cni.core.seams.store import EventFilter

T = TypeVar("T")
NETNS = Netns("/run/netns/pod", 4, 4026532000)
FULL = "database or disk is full"
ALL = EventFilter(100_000)
numbers = st.integers(0, 2)  # few, so that rules meet the same NICs, containers and operations
choices = st.lists(st.tuples(st.integers(0, 99), numbers, numbers), min_size=1, max_size=6)


def rows_of(table: Table) -> Snapshot:
    """In no order: rows that were changed stand last on disk."""
    nics, attachments = tuple(table.nics.values()), tuple(table.attachments.values())
    return by_key(Snapshot(nics, attachments, tuple(table.intents.values()), dict(table.settings)))


def by_key(snapshot: Snapshot) -> Snapshot:
    return Snapshot(
        tuple(sorted(snapshot.nics, key=lambda n: n.nic_id)),
        tuple(sorted(snapshot.attachments, key=lambda a: a.key)),
        tuple(sorted(snapshot.intents, key=lambda i: i.op_id)),
        snapshot.settings,
    )


class StoreMachine(RuleBasedStateMachine):
    """One host: its disk outlives the process, which is the table, its journal and the store."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.runner = asyncio.Runner(loop_factory=virtual_time._JumpLoop)
        self.disk = Disk()
        self.now = 10.0
        self.is_reborn = False  # the file was made while the table held rows: the events before are lost
        self.is_gone = False  # somebody removed the file, and nothing was written since
        self.anew: list[Snapshot] = []  # what the table was since: the next file may begin with any
        self.begin(by_key(Snapshot()))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def begin(self, *expected: Snapshot) -> None:
        """A process starts, and finds one of the snapshots that may be there."""

        async def start() -> Snapshot:
            self.store = SlowStore(self.folder / "agent.db", self.folder / "write_counter", self.disk)
            found = await self.store.load()
            self.table = Table(found)
            self.journal = Journal(self.table, self.store, VirtualClock(), random.Random(0))
            self.writing = asyncio.get_running_loop().create_task(self.journal.run())
            return found

        found = self.run(start())
        assert not found.set_aside
        assert by_key(found) in expected
        self.durable = rows_of(self.table)
        self.is_gone, self.anew = False, []
        self.since: list[Snapshot] = []  # what the table was at each handing over after that
        self.events_tell_the_rows()

    def events_tell_the_rows(self) -> None:
        on_disk, events = self.store.on_disk(), self.run(self.store.events(ALL))
        assert [e.seq for e in events] == list(range(events[0].seq, events[0].seq + len(events))) if events else True
        rows = Replayed.by_rows(on_disk.nics, on_disk.attachments, on_disk.intents)
        told = copy.deepcopy(rows) if self.is_reborn else Replayed()  # what is told of at all is told right
        assert told.replay(events) == rows

    def end(self) -> None:
        async def close() -> None:
            with suppress(asyncio.CancelledError):
                await self.writing
            await self.store.close()

        self.run(close())

    def teardown(self) -> None:
        self.writing.cancel()
        self.end()
        self.runner.close()
        shutil.rmtree(self.folder)

    # --- changes -------------------------------------------------------------------------------------

    @rule(choices=choices)
    def change_and_push(self, choices: list[tuple[int, int, int]]) -> None:
        self.change(choices)
        self.push()

    @rule(choices=choices)
    def change_and_record(self, choices: list[tuple[int, int, int]]) -> None:
        self.change(choices)
        self.record()

    @rule(choices=choices)
    def change(self, choices: list[tuple[int, int, int]]) -> None:
        """Some transitions, each of them one that is legal now."""
        for choice, number, other in choices:
            self.now += 1.0
            legal = self.legal(f"nic{number}", number, AttachmentKey("net", f"pod{other}", "eth0"), f"op{other}")
            legal[choice % len(legal)]()
        if self.is_gone:
            self.anew.append(rows_of(self.table))

    def legal(self, nic_id: str, number: int, key: AttachmentKey, op_id: str) -> list[Callable[[], object]]:
        """What may become of this NIC, this container and this operation."""
        table, now = self.table, self.now
        nic, held = table.nics.get(nic_id), table.attachments.get(key)
        nameless = Attachment(AttachmentKey("", nic_id, "eth0"), nic_id, NETNS, now, is_ready=True)
        if nic is None:
            new = Nic(nic_id, "n", "v", f"10.0.0.{number}/24", "10.0.0.254", NicState.CREATING, now)
            return [lambda: table.add(new, "nic.created")]
        found: list[Callable[[], object]] = [lambda: table.record_settings({f"net/{number}": str(now)})]
        if nic_id not in table.busy:
            found.append(lambda: table.drop(nic_id, "nic.gone", now))
        if held is not None:
            found += [
                lambda: table.configured(held, now),
                lambda: table.released(key, now, is_parked=bool(number % 2), cause="DEL"),
                lambda: table.returned_unused(key, now, "refused"),
            ]
        elif nameless.key in table.attachments:
            found.append(lambda: table.claimed(nameless.key, replace(nameless, key=key), now))
        if op_id in table.intents:
            found.append(lambda: table.finish(op_id, f"{table.intents[op_id].kind}.finished", now))
        match nic.state:
            case NicState.CREATING | NicState.MISSING:
                found += [lambda: table.arrived(nic_id, now)] * 3
                if nic.state is NicState.MISSING:
                    found.append(lambda: table.found(nameless, now))
                elif op_id not in table.intents and nic_id not in table.busy:
                    found.append(lambda: table.intend_attach(op_id, [nic_id], now))
            case NicState.ATTACHING | NicState.COOLING:
                found.append(lambda: table.lost(nic_id, now, "its link is nowhere"))
            case NicState.ARRIVING:
                found += [lambda: table.parked(nic_id, now)] * 3
            case NicState.IDLE if held is None:
                found += [lambda: table.assign(Attachment(key, nic_id, NETNS, now))] * 3
        return found

    # --- handing over ----------------------------------------------------------------------------------

    @rule()
    def push(self) -> None:
        async def push() -> None:
            self.journal.push()

        self.run(push())
        self.since.append(rows_of(self.table))

    @rule()
    def record(self) -> None:
        """What it says is so: on disk if it returns, and refused only by a disk that takes nothing."""
        self.since.append(rows_of(self.table))
        try:
            self.run(self.journal.record())
        except StoreRefused:
            assert self.disk.obstacle or self.disk.is_stuck or self.journal.error
            return
        assert by_key(self.store.on_disk()) == rows_of(self.table)
        self.durable, self.since = rows_of(self.table), []
        self._written()

    @rule(seconds=st.sampled_from([0.01, 0.6, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))
        if not self.journal.unsaved and self.since:
            self.durable, self.since = self.since[-1], []
            self._written()

    @precondition(lambda self: not (self.disk.obstacle or self.disk.is_stuck))
    @rule()
    def save_however_long_it_takes(self) -> None:
        rows = rows_of(self.table)
        self.run(self.journal.save())
        assert by_key(self.store.on_disk()) == rows
        self.durable, self.since = rows, []
        self._written()

    def _written(self) -> None:
        if self.is_gone and self.folder.joinpath("agent.db").exists():
            self.is_gone, self.anew = False, []

    # --- the disk ------------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(["well", "slow", "full", "full too late", "stuck"]))
    def disk_changes(self, kind: str) -> None:
        self.disk.seconds = 0.5 if kind == "slow" else 0.0
        self.disk.obstacle = FULL if kind.startswith("full") else ""
        self.disk.takes_what_it_refuses = kind == "full too late"
        self.disk.is_stuck = kind == "stuck"

    @precondition(lambda self: len(self.table.nics) == 3)  # so that it does not happen all the time
    @rule()
    def somebody_removes_the_file(self) -> None:
        (self.folder / "agent.db").unlink(missing_ok=True)
        self.is_gone = self.is_reborn = True
        self.anew = [rows_of(self.table)]

    @precondition(lambda self: len(self.table.nics) == 3 and not (self.disk.obstacle or self.disk.is_stuck))
    @precondition(lambda self: not self.is_gone)
    @rule(what=st.sampled_from(["agent.db", "agent.db-wal", "write_counter", "all", "the directory", "a link"]))
    def somebody_removes_what_is_ours_and_the_agent_looks(self, what: str) -> None:
        """Without a change of the table: all is on disk again, whole."""
        match what:
            case "all":
                for path in self.folder.iterdir():
                    path.unlink()
            case "the directory":
                shutil.rmtree(self.folder)
            case "a link":
                shutil.copy(self.folder / "agent.db", self.folder / "elsewhere")
                (self.folder / "agent.db").unlink()
                (self.folder / "agent.db").symlink_to("elsewhere")
            case name:
                (self.folder / name).unlink(missing_ok=True)
        rows = rows_of(self.table)

        async def look() -> None:
            self.journal.push()
            for _ in range(2):  # the first may find the file gone, the second what lies beside it
                await self.journal.check_files()
                await asyncio.sleep(60.0)

        self.run(look())
        assert by_key(self.store.on_disk()) == rows
        assert (self.folder / "agent.db").is_file()
        assert not (self.folder / "agent.db").is_symlink()
        assert (self.folder / "agent.db-wal").is_file()
        assert (self.folder / "write_counter").is_file() or not self.table.nics
        self.durable, self.since = rows, []
        self.is_gone, self.is_reborn, self.anew = False, True, []

    # --- the process ---------------------------------------------------------------------------------

    @rule()
    def crash(self) -> None:
        self.store.is_dead = True
        self.writing.cancel()
        self.end()
        if self.is_gone and not (self.folder / "agent.db").exists():
            self.is_gone = self.is_reborn = False
            self.begin(by_key(Snapshot()))
        else:
            self.begin(self.durable, *self.since, *self.anew)

    @rule()
    def stop(self) -> None:
        """What the disk takes now is all there afterwards."""
        self.since.append(rows_of(self.table))
        is_well = not (self.disk.obstacle or self.disk.is_stuck)
        self.disk.is_stuck = False
        self.journal.end()
        self.end()
        if self.is_gone and not (self.folder / "agent.db").exists():
            self.is_gone = self.is_reborn = False
            self.begin(by_key(Snapshot()))
        elif is_well:
            self.begin(self.since[-1])
        else:
            self.begin(self.durable, *self.since, *self.anew)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.journal._unsaved) < 1000


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
