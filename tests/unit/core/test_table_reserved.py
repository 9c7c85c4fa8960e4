"""No entry point of the table brings a NIC of the host's own into a row."""

import inspect
from collections.abc import Callable
from contextlib import suppress

import pytest

from qingcloud_cni.core.nics.changes import Put, Snapshot
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, Event, Intent, Netns, Nic, NicState, OpKind
from qingcloud_cni.core.nics.table import Table

HOST, OURS = "52:54:00:00:00:01", "52:54:00:00:00:02"
KEY, OTHER = AttachmentKey("net", "c1", "eth0"), AttachmentKey("", HOST, "eth0")


def nic(nic_id: str, state: NicState = NicState.IDLE) -> Nic:
    return Nic(nic_id, "qingcni_i-1_0123456789abcdef", "vxnet-1", "172.16.3.7/24", "172.16.3.1", state, 1.0)


def attachment(nic_id: str, key: AttachmentKey = KEY) -> Attachment:
    return Attachment(key, nic_id, Netns("/run/netns/c1", 4, 7), 1.0)


CALLS: dict[str, Callable[[Table], object]] = {
    "intend_attach": lambda t: t.intend_attach("op", [HOST], 1.0),
    "intend_detach": lambda t: t.intend_detach("op", [HOST], 1.0, ""),
    "intend_repair": lambda t: t.intend_repair("op", [HOST], 1.0, {HOST: 1}),
    "intend_delete": lambda t: t.intend_delete("op", [HOST], 1.0),
    "reserve": lambda t: t.reserve("create", [HOST]),
    "add": lambda t: t.add(nic(HOST), "nic.created"),
    "drop": lambda t: t.drop(HOST, "nic.gone", 1.0),
    "not_attached": lambda t: t.not_attached(HOST, 1.0, ""),
    "arrived": lambda t: t.arrived(HOST, 1.0),
    "identified": lambda t: t.identified(HOST, "fingerprint"),
    "parked": lambda t: t.parked(HOST, 1.0),
    "strayed": lambda t: t.strayed(HOST, 1.0, ""),
    "readdressed": lambda t: t.readdressed(HOST, "vxnet-1", "172.16.3.8/24", "172.16.3.1", 1.0),
    "pinned": lambda t: t.pinned(HOST, 1.0),
    "quarantined": lambda t: t.quarantined(HOST, 1.0, OURS),
    "soiled": lambda t: t.soiled(HOST, 1.0, "XDP program 7"),
    "cleared": lambda t: t.cleared(HOST, 1.0, ""),
    "cooled": lambda t: t.cooled(HOST, 1.0),
    "lost": lambda t: t.lost(HOST, 1.0, ""),
    "reset_repairs": lambda t: t.reset_repairs(HOST),
    "not_detached": lambda t: t.not_detached(HOST, 1.0, ""),
    "assign": lambda t: t.assign(attachment(HOST)),
    "found": lambda t: t.found(attachment(HOST), 1.0),
    "claimed": lambda t: t.claimed(OTHER, attachment(HOST), 1.0),
    "routed": lambda t: t.routed(attachment(HOST)),
    "configured": lambda t: t.configured(attachment(HOST), 1.0),
    "returned_unused": lambda t: t.returned_unused(KEY, 1.0, ""),
    "released": lambda t: t.released(KEY, 1.0, is_parked=False, cause=""),
}
OF_NO_NIC = {"note_boot", "keep_off", "intend_create", "job_started", "restarted", "finish", "forget_new_addresses"}


def table_with_host_nic(state: NicState = NicState.ASSIGNED) -> Table:
    """As an earlier version, or a poisoned state file, may have left it."""
    intents = (
        Intent("create", OpKind.CREATE, 1.0, count=1),
        Intent("delete", OpKind.DELETE, 1.0, nic_ids=(HOST, OURS)),
    )
    attachments = (attachment(HOST),) if state is NicState.ASSIGNED else ()
    return Table(Snapshot((nic(HOST, state), nic(OURS, NicState.DELETING)), attachments, intents))


def is_free_of_it(table: Table) -> bool:
    changes = [change.row for change in table.take_changes() if isinstance(change, Put)]
    rows = [*changes, *table.nics.values(), *table.attachments.values(), *table.intents.values()]
    return not any(HOST in (getattr(row, "nic_id", ""), *getattr(row, "nic_ids", ())) for row in rows)


def test_every_entry_point_is_tried() -> None:
    methods = {name for name, _ in inspect.getmembers(Table, inspect.isfunction) if name in vars(Table)}
    public = {name for name in methods if not name.startswith("_")}
    assert public == CALLS.keys() | OF_NO_NIC


@pytest.mark.parametrize("name", CALLS)
def test_no_entry_point_takes_the_hosts_own_nic(name: str) -> None:
    table = table_with_host_nic()
    table.keep_off({HOST}, 2.0)
    with suppress(RuntimeError, KeyError):
        CALLS[name](table)
    assert is_free_of_it(table)


@pytest.mark.parametrize("state", NicState)
def test_rows_of_the_state_file_that_name_it_are_dropped(state: NicState) -> None:
    table = table_with_host_nic(state)
    table.keep_off({HOST}, 2.0)
    assert [change.name for change in table.take_changes() if isinstance(change, Event)] == ["nic.reserved"]
    assert set(table.nics) == {OURS}
    assert not table.attachments
    assert table.intents["delete"].nic_ids == (OURS,)


def test_a_nic_of_ours_is_added_as_before_and_the_hosts_own_is_refused_with_an_event() -> None:
    table = Table(Snapshot())
    table.keep_off({HOST}, 2.0)
    assert table.add(nic(OURS), "nic.created")
    table.take_changes()
    assert not table.add(nic(HOST), "nic.created", subject="op")
    (event,) = table.take_changes()
    assert isinstance(event, Event)
    assert (event.name, event.nic_id, event.subject) == ("nic.reserved", HOST, "op")
