"""The table: any order of transitions keeps its invariants, and the changes it gives out are its rows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from inprocess.rows import make_nic
from qingcloud_cni.core.nics.changes import Change, Drop, Put, Row, RowKey, Snapshot, key_of
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
from qingcloud_cni.core.nics.rows import violations
from qingcloud_cni.core.nics.table import FOLLOWS, IllegalTransition, Table

NETNS = Netns("/run/netns/pod", 4, 4026532000)
S = NicState


def new_nic(number: int, state: NicState = S.CREATING, *, since: float = 1.0, released: float = 0.0) -> Nic:
    return make_nic(number, state, since, released=released)


def new_attachment(nic_id: str, number: int = 1, since: float = 2.0) -> Attachment:
    return Attachment(AttachmentKey("net", f"pod{number}", "eth0"), nic_id, NETNS, since)


def nameless(nic_id: str) -> Attachment:
    """Of a NIC that was found in a container."""
    return Attachment(AttachmentKey("", nic_id, "eth0"), nic_id, NETNS, 2.0, is_ready=True)


def replayed(changes: list[Change]) -> Snapshot:
    """What a store that knows nothing but *changes* would hold."""
    rows: dict[type[Row], dict[RowKey, Any]] = {Nic: {}, Attachment: {}, Intent: {}}
    for change in changes:
        match change:
            case Put(row):
                rows[type(row)][key_of(row)] = row
            case Drop(kind, key):
                del rows[kind][key]
    nics, attachments, intents = (tuple(row.values()) for row in rows.values())
    return Snapshot(nics, attachments, intents)


def content(table: Table) -> tuple[dict[str, Nic], dict[AttachmentKey, Attachment], dict[str, Intent]]:
    return dict(table.nics), dict(table.attachments), dict(table.intents)


numbers = st.integers(0, 4)  # few, so that rules meet the same NICs, containers and operations


class TableMachine(RuleBasedStateMachine):
    """Everything the agent does to its table, in any order; half of it is illegal at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(Snapshot())
        self.changes: list[Change] = []
        self.now = 10.0

    def attempt(self, transition: Callable[[], object], is_legal: bool) -> None:
        """Carry out what is legal; see that the rest is refused and changes nothing."""
        self.now += 1.0
        before = content(self.table)
        if is_legal:
            transition()
            return
        with pytest.raises((IllegalTransition, KeyError)):
            transition()
        assert content(self.table) == before
        assert self.table.take_changes() == ()

    def may(self, nic_id: str, state: NicState) -> bool:
        """Whether the NIC may enter *state* by itself; one that serves does so only as its attachment ends."""
        nic = self.table.nics.get(nic_id)
        if nic is None or (nic.soil and state in (S.IDLE, S.COOLING)):
            return False
        return nic.state is not S.ASSIGNED and state in FOLLOWS[nic.state]

    def parked_state(self, nic_id: str) -> NicState:
        nic = self.table.nics.get(nic_id)
        if nic is not None and nic.soil:
            return S.QUARANTINED
        return S.COOLING if nic is not None and nic.released else S.IDLE

    # Every rule starts with all changes taken, so that an illegal one can be seen to make none.
    @invariant()
    def changes_replayed_are_the_rows(self) -> None:
        self.changes += self.table.take_changes()
        snapshot = replayed(self.changes)
        assert {n.nic_id: n for n in snapshot.nics} == self.table.nics
        assert {a.key: a for a in snapshot.attachments} == self.table.attachments
        assert {i.op_id: i for i in snapshot.intents} == self.table.intents
        assert content(Table(snapshot)) == content(self.table)

    @invariant()
    def nothing_is_violated(self) -> None:
        assert violations(self.table.nics.values(), self.table.attachments.values()) == ()

    @invariant()
    def every_change_of_a_nic_has_its_event(self) -> None:
        puts = [
            c for c in self.changes
            if (isinstance(c, Put) and isinstance(c.row, Nic)) or (isinstance(c, Drop) and c.kind is Nic)
        ]  # fmt: skip
        told = [c for c in self.changes if isinstance(c, Event) and c.name.startswith("nic.")]
        assert len(told) == len(puts)

    # --- NICs

    @rule(number=numbers, state=st.sampled_from((S.CREATING, S.MISSING)))
    def add(self, number: int, state: NicState) -> None:
        nic = new_nic(number, state, since=self.now)
        self.attempt(lambda: self.table.add(nic, "nic.created"), nic.nic_id not in self.table.nics)

    @rule(number=numbers)
    def drop(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        self.attempt(lambda: self.table.drop(nic_id, "nic.gone", self.now), nic_id in self.table.nics)

    @rule(number=numbers)
    def not_attached(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        self.attempt(lambda: self.table.not_attached(nic_id, self.now, "why"), self.may(nic_id, S.CREATING))

    @rule(number=numbers)
    def arrived(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        self.attempt(lambda: self.table.arrived(nic_id, self.now), self.may(nic_id, S.ARRIVING))

    @rule(number=numbers)
    def parked(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        state = self.parked_state(nic_id)
        is_legal = self.may(nic_id, state)
        self.attempt(lambda: self.table.parked(nic_id, self.now), is_legal)
        assert not is_legal or self.table.nics[nic_id].state is state

    @rule(number=numbers)
    def rested(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        is_legal = self.may(nic_id, S.IDLE)
        self.attempt(lambda: self.table.cooled(nic_id, self.now), is_legal)
        assert not is_legal or not self.table.nics[nic_id].released

    @rule(number=numbers)
    def quarantined(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        self.attempt(lambda: self.table.quarantined(nic_id, self.now, "mac"), self.may(nic_id, S.QUARANTINED))

    @rule(number=numbers)
    def cleared(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        self.attempt(lambda: self.table.cleared(nic_id, self.now, "why"), self.may(nic_id, S.IDLE))

    @invariant()
    def only_quarantined_nics_have_a_claimant(self) -> None:
        for nic in self.table.nics.values():
            assert bool(nic.claimant or nic.soil) if nic.state is S.QUARANTINED else not nic.claimant

    @rule(number=numbers)
    def soiled(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        self.attempt(lambda: self.table.soiled(nic_id, self.now, "XDP"), nic_id in self.table.nics)

    @invariant()
    def soiled_nics_are_not_in_the_pool(self) -> None:
        assert not [n for n in self.table.nics.values() if n.soil and n.state in (S.IDLE, S.COOLING)]

    @rule(number=numbers)
    def lost(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        self.attempt(lambda: self.table.lost(nic_id, self.now, "why"), self.may(nic_id, S.MISSING))

    @rule(number=numbers)
    def kept(self, number: int) -> None:
        nic_id = new_nic(number).nic_id
        state = self.parked_state(nic_id)
        is_legal = self.may(nic_id, state)
        self.attempt(lambda: self.table.not_detached(nic_id, self.now, "why"), is_legal)
        assert not is_legal or self.table.nics[nic_id].state is state

    # --- cloud operations

    @rule(operation=numbers, count=st.integers(1, 3))
    def intend_create(self, operation: int, count: int) -> None:
        op_id, before = str(operation), self.table.creating
        is_legal = op_id not in self.table.intents
        self.attempt(lambda: self.table.intend_create(op_id, "vxnet-1", "name", count, self.now), is_legal)
        assert self.table.creating == before + is_legal * count

    @rule(
        operation=numbers,
        of=st.lists(numbers, min_size=1, max_size=3),
        kind=st.sampled_from((OpKind.ATTACH, OpKind.DETACH, OpKind.DELETE)),
    )
    def intend(self, operation: int, of: list[int], kind: OpKind) -> None:
        op_id, nic_ids, table = str(operation), [new_nic(n).nic_id for n in of], self.table
        state, begin = {
            OpKind.ATTACH: (S.ATTACHING, lambda: table.intend_attach(op_id, nic_ids, self.now)),
            OpKind.DETACH: (S.DETACHING, lambda: table.intend_detach(op_id, nic_ids, self.now, "why")),
            OpKind.DELETE: (S.DELETING, lambda: table.intend_delete(op_id, nic_ids, self.now)),
        }[kind]
        is_legal = (
            op_id not in table.intents
            and len(set(nic_ids)) == len(nic_ids)
            and all(self.may(n, state) for n in nic_ids)
        )
        self.attempt(begin, is_legal)
        if is_legal:
            assert table.busy >= set(nic_ids)
            assert {table.nics[n].state for n in nic_ids} == {state}

    @rule(operation=numbers)
    def job_started(self, operation: int) -> None:
        op_id = str(operation)
        is_legal = op_id in self.table.intents
        self.attempt(lambda: self.table.job_started(op_id, "j-1", "attach.accepted", self.now), is_legal)

    @rule(operation=numbers)
    def renew(self, operation: int) -> None:
        op_id = str(operation)
        is_legal = op_id in self.table.intents
        self.attempt(lambda: self.table.restarted(op_id, self.now), is_legal)
        assert not is_legal or self.table.intents[op_id].since == self.now

    @rule(operation=numbers, of=st.lists(numbers, max_size=3))
    def reserve(self, operation: int, of: list[int]) -> None:
        nic_ids = [new_nic(n).nic_id for n in of]
        op_id = str(operation)
        self.attempt(lambda: self.table.reserve(op_id, nic_ids), op_id in self.table.intents)

    @rule(operation=numbers)
    def finish(self, operation: int) -> None:
        op_id = str(operation)
        self.attempt(lambda: self.table.finish(op_id, "create.finished", self.now), op_id in self.table.intents)

    # --- attachments

    @rule(number=numbers, container=numbers)
    def assign(self, number: int, container: int) -> None:
        attachment = new_attachment(new_nic(number).nic_id, container, self.now)
        is_legal = self.may(attachment.nic_id, S.ASSIGNED) and attachment.key not in self.table.attachments
        is_legal = is_legal and self.table.nics[attachment.nic_id].state is not S.MISSING
        self.attempt(lambda: self.table.assign(attachment), is_legal)
        if is_legal:
            assert self.table.attachment_of(attachment.nic_id) == attachment

    @rule(number=numbers)
    def found(self, number: int) -> None:
        attachment = nameless(new_nic(number).nic_id)
        nic = self.table.nics.get(attachment.nic_id)
        is_legal = nic is not None and nic.state is S.MISSING
        self.attempt(lambda: self.table.found(attachment, self.now), is_legal)
        assert not is_legal or self.table.nics[attachment.nic_id].released == 0.0

    @rule(number=numbers, container=numbers)
    def named(self, number: int, container: int) -> None:
        before = nameless(new_nic(number).nic_id)
        attachment = replace(before, key=new_attachment("", container).key)
        known = self.table.attachments
        is_legal = before.key in known and attachment.key not in known
        self.attempt(lambda: self.table.claimed(before.key, attachment, self.now), is_legal)

    @rule(number=numbers, container=numbers)
    def configured(self, number: int, container: int) -> None:
        attachment = replace(new_attachment(new_nic(number).nic_id, container), ifindex=7, mtu=1500)
        known = self.table.attachments.get(attachment.key)
        is_legal = known is not None and known.nic_id == attachment.nic_id
        self.attempt(lambda: self.table.configured(attachment, self.now), is_legal)
        assert not is_legal or self.table.attachments[attachment.key] == replace(attachment, is_ready=True)

    @rule(container=numbers)
    def returned_unused(self, container: int) -> None:
        key = new_attachment("", container).key
        known = self.table.attachments.get(key)
        before = self.table.nics.get(known.nic_id) if known else None
        self.attempt(lambda: self.table.returned_unused(key, self.now, "why"), known is not None)
        if before is not None:
            after = self.table.nics[before.nic_id]
            assert (after.state, after.released) == (S.QUARANTINED if before.soil else S.IDLE, before.released)

    @rule(container=numbers, is_parked=st.booleans())
    def released(self, container: int, is_parked: bool) -> None:
        key = new_attachment("", container).key
        known = self.table.attachments.get(key)
        self.attempt(lambda: self.table.released(key, self.now, is_parked=is_parked, cause="DEL"), known is not None)
        if known is not None:
            nic = self.table.nics[known.nic_id]
            parked = S.QUARANTINED if nic.soil else S.COOLING
            assert (nic.state, nic.released) == (parked if is_parked else S.ARRIVING, self.now)

    @precondition(lambda self: self.table.nics)
    @rule()
    def restart(self) -> None:
        """What is on disk is all there is."""
        self.table = Table(replayed(self.changes))


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def reached(state: NicState, *, released: float = 0.0) -> Table:
    """A table with one NIC in *state*, and its attachment where there has to be one."""
    nic = new_nic(1, state, released=released)
    attachments = (new_attachment(nic.nic_id),) if state is S.ASSIGNED else ()
    return Table(Snapshot((nic,), attachments))


def test_every_state_can_be_left_and_none_follows_itself() -> None:
    assert set(FOLLOWS) == set(S)
    assert all(follow and state not in follow for state, follow in FOLLOWS.items())


def test_an_address_rests_after_a_detach_that_did_not_happen() -> None:
    table = reached(S.DETACHING, released=5.0)
    table.not_detached(new_nic(1).nic_id, 9.0, "the cloud has not detached it")
    assert table.nics[new_nic(1).nic_id].state is S.COOLING


@pytest.mark.parametrize("begin", ["intend_attach", "intend_delete"])
def test_an_operation_begins_for_all_its_nics_or_none(begin: str) -> None:
    table = Table(Snapshot((new_nic(1), new_nic(2, S.IDLE))))
    with pytest.raises(IllegalTransition, match="is not followed by"):
        getattr(table, begin)("op", [new_nic(1).nic_id, new_nic(2).nic_id], 9.0)
    assert table.take_changes() == ()
    assert table.nics[new_nic(1).nic_id].state is S.CREATING


def test_events_carry_who_and_why() -> None:
    table = reached(S.IDLE)
    attachment = replace(
        new_attachment(new_nic(1).nic_id), routes=(Route("0.0.0.0/0", "172.16.3.1"),), dns=Dns(("1.1.1.1",))
    )
    table.assign(attachment)
    table.configured(attachment, 3.0)
    table.released(attachment.key, 4.0, is_parked=True, cause="DEL")
    table.intend_detach("op", [new_nic(1).nic_id], 5.0, "unused")
    table.finish("op", "detach.finished", 6.0)
    events = [c for c in table.take_changes() if isinstance(c, Event)]
    nic_id, key = new_nic(1).nic_id, "net/pod1/eth0"
    assert events == [
        Event(2.0, "nic.assigned", nic_id, key, state="assigned"),
        Event(3.0, "attachment.ready", nic_id, key),
        Event(4.0, "nic.released", nic_id, key, "DEL", "cooling"),
        Event(5.0, "nic.detaching", nic_id, "op", "unused", "detaching"),
        Event(5.0, "detach.intended", subject="op"),
        Event(6.0, "detach.finished", subject="op"),
    ]


@pytest.mark.parametrize(
    ("nics", "attachments", "says"),
    [
        ((), (new_attachment("a"),), ("attachment net/pod1/eth0 has NIC a, which is not in the table",)),
        ((new_nic(1, S.IDLE),), (new_attachment(new_nic(1).nic_id),), (
            "attachment net/pod1/eth0 has NIC 52:54:00:00:00:01, which is idle",)),
        ((new_nic(1, S.ASSIGNED),), (), ("NIC 52:54:00:00:00:01 is assigned to nothing",)),
        ((new_nic(1, S.ASSIGNED),), (new_attachment(new_nic(1).nic_id), new_attachment(new_nic(1).nic_id, 2)), (
            "NIC 52:54:00:00:00:01 serves net/pod1/eth0 and net/pod2/eth0",)),
        ((new_nic(1, S.ASSIGNED),), (new_attachment(new_nic(1).nic_id),), ()),
    ],
)  # fmt: skip
def test_violations_in_words(
    nics: tuple[Nic, ...], attachments: tuple[Attachment, ...], says: tuple[str, ...]
) -> None:
    assert violations(nics, attachments) == says


def test_a_table_shows_its_state() -> None:
    assert repr(reached(S.ASSIGNED)) == (
        "Table(52:54:00:00:00:01 assigned; attachments=['net/pod1/eth0']; intents=[])"
    )


# --- quarantine and time -------------------------------------------------------------------------------


def test_a_claimant_is_remembered_as_long_as_the_quarantine_lasts() -> None:
    table, nic_id = reached(S.IDLE), new_nic(1).nic_id
    table.quarantined(nic_id, 5.0, "02:00:00:00:00:99")
    assert (table.nics[nic_id].state, table.nics[nic_id].claimant) == (S.QUARANTINED, "02:00:00:00:00:99")
    table.cleared(nic_id, 6.0, "nobody answers")
    assert (table.nics[nic_id].state, table.nics[nic_id].claimant) == (S.IDLE, "")
    assert [c for c in table.take_changes() if isinstance(c, Event)] == [
        Event(5.0, "nic.quarantined", nic_id, detail="172.16.3.7 is used by 02:00:00:00:00:99", state="quarantined"),
        Event(6.0, "nic.cleared", nic_id, detail="nobody answers", state="idle"),
    ]


@pytest.mark.parametrize(
    ("forward", "now", "expected"),
    [
        pytest.param(0.0, 1000.0, (100.0, 90.0, 80.0, 70.0), id="not set"),
        pytest.param(500.0, 1000.0, (600.0, 590.0, 580.0, 570.0), id="set forward"),
        pytest.param(950.0, 1000.0, (1000.0, 1000.0, 1000.0, 1000.0), id="set forward, and counted twice"),
        pytest.param(0.0, 85.0, (85.0, 85.0, 80.0, 70.0), id="set back"),
    ],
)
def test_times_on_disk_follow_a_clock_that_was_set(
    forward: float, now: float, expected: tuple[float, float, float, float]
) -> None:
    cooling, assigned = new_nic(1, S.COOLING, since=100.0, released=90.0), new_nic(2, S.ASSIGNED, since=70.0)
    attachment = new_attachment(assigned.nic_id, since=80.0)
    intent = Intent("op", OpKind.CREATE, 70.0)
    table = Table(Snapshot((cooling, assigned), (attachment,), (intent,)))
    table.reset_clock(forward, now)
    nic = table.nics[cooling.nic_id]
    assert (nic.since, nic.released) == expected[:2]
    assert table.attachments[attachment.key].since == expected[2]
    assert table.intents["op"].since == expected[3]
    assert table.nics[assigned.nic_id].released == 0.0
    changes = table.take_changes()
    is_moved = expected != (100.0, 90.0, 80.0, 70.0)
    assert [c.name for c in changes if isinstance(c, Event)] == ["clock.set"] * is_moved
    on_disk = replayed([Put(cooling), Put(assigned), Put(attachment), Put(intent), *changes])
    assert content(Table(on_disk)) == content(table)
