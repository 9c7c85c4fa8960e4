"""Which NICs are called orphans: never one that somebody may still want."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.core.drift.orphans import (
    UNKNOWN,
    Candidate,
    LeftAlone,
    Orphan,
    candidates,
    classify,
    gone_instances,
)
from qingcloud_cni.core.seams.cloud import CloudNic, Instance

NOW = 1_700_000_000.0
OP = "0123456789abcdef"
PREFIXES = ("qingcni", "hostnic")
NIC = CloudNic("52:54:00:00:00:01", f"qingcni_i-dead_{OP}", "available", "", "vxnet-1", "172.16.3.7", 0, None,
               NOW - 9000, NOW - 700)  # fmt: skip


def instance(instance_id: str, status: str = "running", transition: str = "") -> Instance:
    return Instance(instance_id, status, (), transition)


@pytest.mark.parametrize(
    ("status", "transition", "cause"),
    [
        ("running", "", ""),
        ("running", "restarting", ""),
        ("pending", "creating", ""),
        ("", "", ""),
        ("running", "stopping", "instance i-1 is stopping in the cloud"),
        ("running", "suspending", "instance i-1 is suspending in the cloud"),
        ("running", "terminating", "instance i-1 is terminating in the cloud"),
        ("stopped", "", "instance i-1 is stopped in the cloud"),
        ("stopped", "starting", ""),
        ("suspended", "resuming", ""),
        ("suspended", "", "instance i-1 is suspended in the cloud"),
        ("stopped", "terminating", "instance i-1 is stopped in the cloud"),
        ("terminated", "", "instance i-1 is terminated in the cloud"),
        ("terminated", "recovering", ""),
        ("ceased", "", "instance i-1 is ceased in the cloud"),
    ],
)
def test_whether_an_instance_is_going_away(status: str, transition: str, cause: str) -> None:
    assert instance("i-1", status, transition).going_away == cause


def test_only_what_is_terminated_or_ceased_is_gone() -> None:
    gone = {
        s
        for s in ("pending", "running", "stopped", "suspended", "terminated", "ceased", "")
        if instance("i-1", s).is_gone
    }
    assert gone == {"terminated", "ceased"}


@pytest.mark.parametrize(
    ("nic", "is_suspect"),
    [
        pytest.param(NIC, True, id="a free NIC of another instance's agent"),
        pytest.param(replace(NIC, name=f"hostnic_i-dead_{OP}"), True, id="a gateway of one"),
        pytest.param(replace(NIC, name=f"qingcni_i-own_{OP}"), False, id="our own"),
        pytest.param(replace(NIC, name=f"other_i-dead_{OP}"), False, id="another prefix"),
        pytest.param(replace(NIC, name="hostnic_i-dead"), False, id="of an older program"),
        pytest.param(replace(NIC, name=f"qingcni_i-dead_{OP}_1"), False, id="another form"),
        pytest.param(replace(NIC, name=f"qingcni_i-dead_{OP[:-1]}"), False, id="no operation id"),
        pytest.param(replace(NIC, name=""), False, id="no name"),
        pytest.param(replace(NIC, status="in-use", instance_id="i-x"), False, id="attached"),
        pytest.param(replace(NIC, instance_id="i-x"), False, id="attached, whatever its status says"),
        pytest.param(replace(NIC, status=""), False, id="of no known status"),
        pytest.param(replace(NIC, role=1), False, id="primary"),
    ],
)
def test_who_is_looked_at(nic: CloudNic, is_suspect: bool) -> None:
    assert bool(candidates([nic], PREFIXES, "i-own")) == is_suspect


def test_from_a_machine_that_is_no_instance_all_are_looked_at() -> None:
    nics = (NIC, replace(NIC, name=f"qingcni_i-own_{OP}"))
    assert candidates(nics, PREFIXES, "") == (Candidate(NIC, "i-dead"), Candidate(nics[1], "i-own"))


@pytest.mark.parametrize(
    ("answers", "fate"),
    [
        pytest.param([[], []], UNKNOWN, id="never listed"),
        pytest.param([[instance("i-x")], []], None, id="listed in one of two"),
        pytest.param([[], [instance("i-x")]], None, id="or in the other"),
        pytest.param([[instance("i-x", "terminated")]] * 2, "terminated", id="terminated"),
        pytest.param([[], [instance("i-x", "ceased")]], "ceased", id="ceased"),
        pytest.param([[instance("i-x", "terminated")], [instance("i-x")]], None, id="brought back"),
        pytest.param([[instance("i-x")], [instance("i-x", "terminated")]], None, id="just terminated"),
        pytest.param([[instance("i-x", "terminated", "recovering")]] * 2, None, id="being brought back"),
        pytest.param([[instance("i-x", "stopped")]] * 2, None, id="stopped"),
        pytest.param([[instance("i-x", "suspended")]] * 2, None, id="suspended"),
        pytest.param([[instance("i-x", "pending")]] * 2, None, id="being created"),
        pytest.param([[instance("i-x", "running", "terminating")]] * 2, None, id="going, not gone"),
        pytest.param([[instance("i-x", "")]] * 2, None, id="of no known status"),
    ],
)
def test_what_became_of_an_instance(answers: list[list[Instance]], fate: str | None) -> None:
    lists = [{i.instance_id: i for i in answer} for answer in answers]
    assert gone_instances(["i-x"], lists).get("i-x") == fate


@pytest.mark.parametrize(
    ("nic", "older_than", "spared"),
    [
        pytest.param(NIC, 600.0, None, id="free for long"),
        pytest.param(replace(NIC, since=NOW - 599), 600.0, "free for 599 s only", id="just detached"),
        pytest.param(replace(NIC, since=0.0), 600.0, None, id="its age alone is known"),
        pytest.param(replace(NIC, created=NOW - 20, since=0.0), 600.0, "free for 20 s only", id="just created"),
        pytest.param(
            replace(NIC, created=0.0, since=0.0), 600.0, "the cloud does not say since when it is free", id="unknown"
        ),
        pytest.param(replace(NIC, created=0.0, since=0.0), 0.0, None, id="whatever its age"),
        pytest.param(replace(NIC, since=NOW + 30), 600.0, "free for 0 s only", id="clocks differ"),
    ],
)
def test_a_nic_that_has_not_been_free_for_long_is_left_alone(
    nic: CloudNic, older_than: float, spared: str | None
) -> None:
    orphans, left = classify([Candidate(nic, "i-dead")], {"i-dead": UNKNOWN}, NOW, older_than)
    assert [s.why for s in left] == ([spared] if spared else [])
    assert orphans == (() if spared else (Orphan(nic, "i-dead", UNKNOWN),))


names = st.sampled_from(
    [f"{p}_{i}_{OP}" for p in (*PREFIXES, "other") for i in ("i-own", "i-a", "i-b", "i-c")] + [""]
)
nics = st.lists(
    st.builds(
        CloudNic,
        nic_id=st.integers(0, 40).map(lambda n: f"52:54:00:00:00:{n:02x}"),
        name=names,
        status=st.sampled_from(("available", "in-use", "")),
        instance_id=st.sampled_from(("", "", "i-a", "i-z")),
        vxnet_id=st.just("vxnet-1"),
        private_ip=st.just("172.16.3.7"),
        role=st.sampled_from((0, 0, 0, 1)),
        created=st.sampled_from((0.0, NOW - 5000, NOW - 10)),
        since=st.sampled_from((0.0, NOW - 1000, NOW - 5)),
    ),
    max_size=12,
    unique_by=lambda nic: nic.nic_id,
)
answers = st.lists(
    st.dictionaries(
        st.sampled_from(("i-a", "i-b", "i-c", "i-own")),
        st.sampled_from(("running", "stopped", "terminated", "ceased", "pending", "")),
    ),
    min_size=2,
    max_size=2,
)


@given(nics, answers)
def test_an_orphan_is_free_ours_by_name_of_an_instance_gone_in_every_list_and_not_young(
    listed: list[CloudNic], statuses: list[dict[str, str]]
) -> None:
    lists = [{i: instance(i, status) for i, status in answer.items()} for answer in statuses]
    found = candidates(listed, PREFIXES, "i-own")
    gone = gone_instances({s.instance_id for s in found}, lists)
    orphans, left = classify(found, gone, NOW, 600.0)
    for orphan in orphans:
        nic = orphan.nic
        assert (nic.status, nic.instance_id, nic.role) == ("available", "", 0)
        prefix, of, _ = nic.name.split("_")
        assert prefix in PREFIXES
        assert of == orphan.instance_id != "i-own"
        assert all(answer.get(of, "ceased") in {"terminated", "ceased"} for answer in statuses)
        assert max(nic.created, nic.since) in {NOW - 5000, NOW - 1000}
    assert not {o.nic.nic_id for o in orphans} & {s.nic.nic_id for s in left}
    assert len(orphans) + len(left) == sum(s.instance_id in gone for s in found)
    assert all(isinstance(s, LeftAlone) for s in left)
