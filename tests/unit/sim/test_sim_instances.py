"""Instances of the simulated cloud that are stopped, started, terminated and ceased."""

from typing import Any

import pytest

from inprocess.cloud import Cloud, assert_refused
from qingcloud_cni.sim.topology import UnplugNic


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


def status(cloud: Cloud, instance: str = "i-1") -> tuple[str, str]:
    (found,) = cloud("DescribeInstances", instances=[instance])["instance_set"]
    return found["status"], found["transition_status"]


def change(cloud: Cloud, action: str, *instances: str, **params: Any) -> str:
    reply = cloud(action, instances=instances or ["i-1"], **params)
    assert reply["ret_code"] == 0, reply
    return str(reply["job_id"])


@pytest.mark.parametrize(
    ("action", "transition", "becomes"),
    [
        ("StopInstances", "stopping", "stopped"),
        ("StartInstances", "starting", "running"),
        ("TerminateInstances", "terminating", "terminated"),
        ("CeaseInstances", "ceasing", "ceased"),
    ],
)
def test_a_change_shows_as_a_transition_until_its_job_ends(
    cloud: Cloud, action: str, transition: str, becomes: str
) -> None:
    before = {"StartInstances": "StopInstances", "CeaseInstances": "TerminateInstances"}.get(action)
    if before:
        change(cloud, before)
        cloud.wait()
    was = status(cloud)[0]
    job_id = change(cloud, action)
    assert status(cloud) == (was, transition)
    cloud.wait()
    assert status(cloud) == (becomes, "")
    (job,) = cloud("DescribeJobs", jobs=[job_id])["job_set"]
    assert (job["job_action"], job["status"], job["resource_ids"]) == (action, "successful", "i-1")


def test_nothing_is_attached_to_an_instance_that_does_not_run_or_is_about_not_to(cloud: Cloud) -> None:
    nics = cloud.create()
    change(cloud, "StopInstances")
    assert_refused(cloud("AttachNics", nics=nics, instance="i-1"), 1400, "PermissionDenied")
    cloud.wait()
    assert_refused(cloud("AttachNics", nics=nics, instance="i-1"), 1400, "PermissionDenied")
    change(cloud, "StartInstances")
    cloud.wait()
    assert cloud("AttachNics", nics=nics, instance="i-1")["ret_code"] == 0


@pytest.mark.parametrize("how", [{}, {"direct_cease": 1}])
def test_what_is_terminated_leaves_its_nics_free_in_the_cloud(cloud: Cloud, how: dict[str, int]) -> None:
    """Also those whose attach was under way."""
    mine, other = cloud.attached(2), cloud.attached(1, "i-2")
    late = cloud.create()
    cloud("AttachNics", nics=late, instance="i-1")
    change(cloud, "TerminateInstances", **how)
    cloud.hardware.clear()
    cloud.wait()
    assert status(cloud)[0] == ("ceased" if how else "terminated")
    for nic_id in (*mine, *late):
        assert (cloud.nic(nic_id)["status"], cloud.nic(nic_id)["instance_id"]) == ("available", "")
    assert cloud.nic(other[0])["instance_id"] == "i-2"
    assert cloud.nic(cloud.primary())["instance_id"] == "i-1"
    assert {e.nic_id for e in cloud.hardware if isinstance(e, UnplugNic)} == {*mine, *late}


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ((), "StartInstances"),
        ((), "CeaseInstances"),
        (("StopInstances",), "StopInstances"),
        (("TerminateInstances",), "StartInstances"),
        (("TerminateInstances",), "TerminateInstances"),
        (("TerminateInstances", "CeaseInstances"), "CeaseInstances"),
    ],
)
def test_what_an_instance_is_not_fit_for_is_refused(cloud: Cloud, before: tuple[str, ...], action: str) -> None:
    for step in before:
        change(cloud, step)
        cloud.wait()
    assert_refused(cloud(action, instances=["i-1"]), 1400, "PermissionDenied")
    assert_refused(cloud(action, instances=["i-nowhere"]), 2100, "ResourceNotFound")
    assert_refused(cloud(action), 1100, "InvalidRequestFormat")


def test_all_instances_of_a_call_are_changed_or_none(cloud: Cloud) -> None:
    change(cloud, "StopInstances", "i-2")
    assert_refused(cloud("TerminateInstances", instances=["i-1", "i-2"]), 1400, "PermissionDenied")
    assert status(cloud) == ("running", "")
    cloud.wait()
    change(cloud, "TerminateInstances", "i-1", "i-2")
    cloud.wait()
    assert status(cloud) == status(cloud, "i-2") == ("terminated", "")
