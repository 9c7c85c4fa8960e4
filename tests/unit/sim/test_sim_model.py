"""The simulated cloud, call by call: answers, errors, and the times of effects."""

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from inprocess.cloud import HOSTS, VXNETS, Cloud, assert_refused
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.topology import (
    FaultSpec,
    FilterNic,
    HostSpec,
    Latencies,
    Limits,
    PlugNic,
    UnplugNic,
    VxnetSpec,
    default_topology,
)


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


# --- what is there at the start ----------------------------------------------------------------------


def test_hosts_start_running_with_a_primary_nic(cloud: Cloud) -> None:
    reply = cloud("DescribeInstances", instances=["i-1"])
    assert (reply["action"], reply["ret_code"], reply["total_count"]) == ("DescribeInstancesResponse", 0, 1)
    (instance,) = reply["instance_set"]
    assert instance["status"] == "running"
    (vxnet,) = instance["vxnets"]
    assert (vxnet["vxnet_id"], vxnet["role"], vxnet["private_ip"]) == ("vxnet-h", 1, "10.0.0.2")
    nic = cloud.nic(vxnet["nic_id"])
    assert (nic["status"], nic["instance_id"], nic["role"], nic["sequence"]) == ("in-use", "i-1", 1, 0)
    assert re.fullmatch(r"52:54(:[0-9a-f]{2}){4}", nic["nic_id"])


def test_the_plugged_nics_are_the_primaries(cloud: Cloud) -> None:
    assert [(plug.instance_id, plug.nic_id) for plug in cloud.model.plugged()] == [
        ("i-1", cloud.primary("i-1")),
        ("i-2", cloud.primary("i-2")),
    ]
    assert cloud.model.take_effects() == []


def test_two_seeds_give_different_macs_and_one_seed_the_same() -> None:
    first, again, other = (Cloud(seed).create(50) for seed in (1, 1, 2))
    assert first == again
    assert set(first).isdisjoint(other)


def test_the_default_topology_makes_a_cloud() -> None:
    model = Model(default_topology("demo"), rng=random.Random(1), now=lambda: 0.0)
    assert {plug.instance_id for plug in model.plugged()} == {"i-demohost1", "i-demohost2"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vxnets": (*VXNETS, VXNETS[0])}, "vxnet-h: given twice"),
        ({"hosts": (*HOSTS, HOSTS[0])}, "i-1: given twice"),
        ({"hosts": (HostSpec("x", "vxnet-none", "i-x"),)}, "vxnet-none does not exist"),
        ({"routers": ()}, "rtr-1"),
        ({"vxnets": (VxnetSpec("vxnet-h", "h", "10.0.0.0/24", "rtr-1", manager_ip="10.1.0.1"),)}, "lies outside"),
        ({"faults": (FaultSpec("AttachNics", "explode"),)}, "explode"),
        ({"faults": (FaultSpec("CreateNics", "fail-job"),)}, "fail-job is for"),
        ({"faults": (FaultSpec("CreateNics", "refuse", nth=0),)}, "count from 1"),
        ({"faults": (FaultSpec("CreateNics", "refuse", code=0),)}, "other than 0"),
    ],
)
def test_a_contradictory_topology_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cloud(**changes)


# --- reading -----------------------------------------------------------------------------------------


def test_vxnets_show_router_network_and_room(cloud: Cloud) -> None:
    (vxnet,) = cloud("DescribeVxnets", vxnets=["vxnet-p"])["vxnet_set"]
    assert vxnet["vpc_router_id"] == "rtr-1"
    assert vxnet["available_ip_count"] == 252
    router = vxnet["router"]
    assert (router["manager_ip"], router["ip_network"]) == ("10.0.1.1", "10.0.1.0/24")
    assert (router["dyn_ip_start"], router["dyn_ip_end"]) == ("10.0.1.2", "10.0.1.254")
    cloud.create(2)
    (vxnet,) = cloud("DescribeVxnets", vxnets=["vxnet-p"])["vxnet_set"]
    assert vxnet["available_ip_count"] == 250


def test_a_vxnet_without_router_says_so(cloud: Cloud) -> None:
    (vxnet,) = cloud("DescribeVxnets", vxnets=["vxnet-l2"])["vxnet_set"]
    assert (vxnet["router"], vxnet["vpc_router_id"], vxnet["vxnet_type"]) == (None, "", 0)


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, ["vxnet-h", "vxnet-p", "vxnet-s", "vxnet-l2"]),
        ({"vxnets": ["vxnet-0", "vxnet-p"]}, ["vxnet-p"]),
        ({"vxnet_type": 2}, ["vxnet-0"]),
        ({"vxnet_type": [0, 2]}, ["vxnet-l2", "vxnet-0"]),
        ({"excluded_vxnets": ["vxnet-h"], "search_word": "s"}, ["vxnet-p", "vxnet-s"]),
        ({"vxnets": ["vxnet-none"]}, []),
    ],
)
def test_vxnet_filters(cloud: Cloud, params: dict[str, Any], found: list[str]) -> None:
    reply = cloud("DescribeVxnets", **params)
    assert [vxnet["vxnet_id"] for vxnet in reply["vxnet_set"]] == found
    assert reply["total_count"] == len(found)


def test_verbose_vxnets_list_their_instances(cloud: Cloud) -> None:
    (vxnet,) = cloud("DescribeVxnets", vxnets=["vxnet-h"], verbose=1)["vxnet_set"]
    assert vxnet["instance_ids"] == ["i-1", "i-2"]


def test_cluster_nodes_show_only_when_asked_for() -> None:
    cloud = Cloud(hosts=(HostSpec("n", "vxnet-h", "i-n", is_cluster_node=True),))
    assert cloud("DescribeInstances", instances=["i-n"])["instance_set"] == []
    assert cloud("DescribeInstances", instances=["i-n"], is_cluster_node=1)["total_count"] == 1


def test_nics_are_filtered_by_everything_at_once(cloud: Cloud) -> None:
    named = cloud.create(2, nic_name="pool_i-1_x")
    other = cloud.create(1, "vxnet-s", nic_name="else")
    attached = cloud.attached(1)

    def found(**params: Any) -> list[str]:
        return [nic["nic_id"] for nic in cloud("DescribeNics", **params)["nic_set"]]

    assert found(nic_name="pool_i-1") == named
    assert found(nics=[*named, "52:54:ff:ff:ff:ff", "", named[0]]) == named
    assert found(nics=[named[0].upper()]) == named[:1]
    assert found(instances=["i-1"]) == [cloud.primary(), *attached]
    assert found(status="available", vxnets=["vxnet-s"]) == other
    assert found(status=["in-use"], vxnet_type=[1], instances=["i-2"]) == [cloud.primary("i-2")]
    assert found(search_word=cloud.nic(other[0])["private_ip"]) == other
    assert found(nics=["52:54:ff:ff:ff:ff"]) == []


def test_empty_filters_are_none(cloud: Cloud) -> None:
    assert cloud("DescribeNics", nic_name="", status="", vxnets=[""], nics=[""], limit="")["total_count"] == 2


@pytest.mark.parametrize(
    ("page", "shown"),
    [({}, 20), ({"limit": 100}, 100), ({"limit": 1000}, 100), ({"limit": 5, "offset": 119}, 3), ({"offset": 500}, 0)],
)
def test_pages(cloud: Cloud, page: dict[str, Any], shown: int) -> None:
    cloud.create(120)  # and two primaries
    reply = cloud("DescribeNics", **page)
    assert (len(reply["nic_set"]), reply["total_count"]) == (shown, 122)


def test_pages_together_show_each_nic_once(cloud: Cloud) -> None:
    made = cloud.create(120)
    seen = [n["nic_id"] for offset in (0, 100) for n in cloud("DescribeNics", limit=100, offset=offset)["nic_set"]]
    assert sorted(seen) == sorted([*made, cloud.primary("i-1"), cloud.primary("i-2")])


def test_list_items_come_by_number_whatever_the_first(cloud: Cloud) -> None:
    nics = cloud.create(3)
    wire = {"nics.10": nics[2], "nics.0": nics[0], "nics.2": nics[1], "nics.3": "", "nics.x": "no"}
    reply = cloud.model.call({"action": "AttachNics", "zone": "pek3a", "instance": "i-1", **wire})
    (job,) = cloud("DescribeJobs", jobs=[reply["job_id"]])["job_set"]
    assert json.loads(job["directive"])["nics"] == nics


# --- creating and deleting ---------------------------------------------------------------------------


def test_created_nics_are_available_with_distinct_addresses(cloud: Cloud) -> None:
    reply = cloud("CreateNics", vxnet="vxnet-p", count=3, nic_name="mine")
    assert reply.keys() == {"action", "ret_code", "nics"}
    assert [nic["private_ip"] for nic in reply["nics"]] == ["10.0.1.2", "10.0.1.3", "10.0.1.4"]
    shown = cloud.nic(reply["nics"][0]["nic_id"])
    assert (shown["status"], shown["instance_id"], shown["nic_name"], shown["role"]) == ("available", "", "mine", 0)
    assert (shown["create_time"], shown["enable_aspoof"]) == ("2024-01-02T03:04:05Z", 1)


def test_count_is_one_unless_given(cloud: Cloud) -> None:
    assert len(cloud("CreateNics", vxnet="vxnet-p")["nics"]) == 1


def test_asked_addresses_are_given(cloud: Cloud) -> None:
    reply = cloud("CreateNics", vxnet="vxnet-p", private_ips=["10.0.1.9", "10.0.1.7"])
    assert [nic["private_ip"] for nic in reply["nics"]] == ["10.0.1.9", "10.0.1.7"]


def test_nics_without_addresses(cloud: Cloud) -> None:
    assert cloud("CreateNics", vxnet="vxnet-p", disable_ip=1)["nics"][0]["private_ip"] == ""
    assert cloud("CreateNics", vxnet="vxnet-l2")["nics"][0]["private_ip"] == ""


@pytest.mark.parametrize(
    ("params", "code", "name"),
    [
        ({}, 1100, "InvalidRequestFormat"),
        ({"vxnet": "vxnet-p", "count": "three"}, 1100, "InvalidRequestFormat"),
        ({"vxnet": "vxnet-p", "private_ips": ["10.0.1.300"]}, 1100, "InvalidRequestFormat"),
        ({"vxnet": "vxnet-p", "count": 0}, 1101, "InvalidParameterValue"),
        ({"vxnet": "vxnet-p", "count": 253}, 1101, "InvalidParameterValue"),
        ({"vxnet": "vxnet-p", "count": 2, "private_ips": ["10.0.1.9"]}, 1101, "InvalidParameterValue"),
        *(
            ({"vxnet": "vxnet-p", "private_ips": [ip]}, 1101, "InvalidParameterValue")
            for ip in ("10.0.1.0", "10.0.1.1", "10.0.1.254", "10.0.1.255", "10.0.2.9")
        ),
        ({"vxnet": "vxnet-h", "private_ips": ["10.0.0.2"]}, 1400, "PermissionDenied"),
        ({"vxnet": "vxnet-none"}, 2100, "ResourceNotFound"),
        ({"vxnet": "vxnet-s", "count": 5}, 2500, "QuotaExceeded"),
    ],
)
def test_create_refused(cloud: Cloud, params: dict[str, Any], code: int, name: str) -> None:
    assert_refused(cloud("CreateNics", **params), code, name)
    assert cloud("DescribeNics")["total_count"] == 2


def test_a_full_vxnet_refuses_and_shows_no_room(cloud: Cloud) -> None:
    cloud.create(252)
    (vxnet,) = cloud("DescribeVxnets", vxnets=["vxnet-p"])["vxnet_set"]
    assert vxnet["available_ip_count"] == 0
    assert_refused(cloud("CreateNics", vxnet="vxnet-p"), 2500, "QuotaExceeded")


def test_the_quota_holds_where_addresses_would_suffice() -> None:
    cloud = Cloud(limits=Limits(nics_per_vxnet=3))
    cloud.create(3)
    assert_refused(cloud("CreateNics", vxnet="vxnet-p"), 2500, "QuotaExceeded")


def test_an_address_comes_back_only_after_all_others(cloud: Cloud) -> None:
    first, *_ = cloud.create(1, "vxnet-s")
    address = cloud.nic(first)["private_ip"]
    assert cloud("DeleteNics", nics=[first])["ret_code"] == 0
    later = [cloud.nic(nic)["private_ip"] for nic in cloud.create(4, "vxnet-s")]
    assert later.index(address) == 3


def test_deleted_nics_are_gone_and_deleting_them_again_is_not_found(cloud: Cloud) -> None:
    nics = cloud.create(2)
    reply = cloud("DeleteNics", nics=[*nics, nics[0], ""])
    assert reply == {"action": "DeleteNicsResponse", "ret_code": 0}
    assert cloud("DescribeNics", nics=nics)["nic_set"] == []
    assert_refused(cloud("DeleteNics", nics=nics), 2100, "ResourceNotFound")


def test_deleting_is_all_or_nothing(cloud: Cloud) -> None:
    (free,) = cloud.create()
    (used,) = cloud.attached()
    assert_refused(cloud("DeleteNics", nics=[free, used]), 1400, "PermissionDenied")
    assert_refused(cloud("DeleteNics", nics=[free, "52:54:ff:ff:ff:ff"]), 2100, "ResourceNotFound")
    assert cloud.nic(free)["status"] == "available"


# --- attaching, detaching and their jobs -------------------------------------------------------------


def test_an_attached_nic_shows_when_its_job_ends_and_its_link_a_step_before(cloud: Cloud) -> None:
    nics = cloud.create(2)
    reply = cloud("AttachNics", nics=nics, instance="i-1")
    assert reply.keys() == {"action", "ret_code", "job_id"}
    assert re.fullmatch(r"j-[a-z0-9]{8}", reply["job_id"])

    due = cloud.model.next_due()
    assert due is not None
    assert 2.0 <= due - cloud.time <= 4.0
    cloud.time = due - 0.01
    cloud.model.advance()
    assert cloud.model.take_effects() == []
    cloud.time = due
    cloud.model.advance()
    assert [type(effect) for effect in cloud.model.take_effects()] == [PlugNic, PlugNic]
    assert cloud("DescribeJobs", jobs=[reply["job_id"]])["job_set"][0]["status"] == "working"
    assert {cloud.nic(nic)["status"] for nic in nics} == {"available"}
    cloud.model.advance()
    (job,) = cloud("DescribeJobs", jobs=[reply["job_id"]])["job_set"]
    assert (job["status"], job["job_action"], job["error_codes"]) == ("successful", "AttachNics", "")
    assert job["resource_ids"] == " ".join([*nics, "i-1"])
    shown = [cloud.nic(nic) for nic in nics]
    assert [(n["status"], n["instance_id"], n["sequence"]) for n in shown] == [
        ("in-use", "i-1", 1),
        ("in-use", "i-1", 2),
    ]
    (instance,) = cloud("DescribeInstances", instances=["i-1"])["instance_set"]
    assert [vxnet["role"] for vxnet in instance["vxnets"]] == [1, 0, 0]
    assert cloud.model.next_due() is None


def test_the_effects_say_what_hardware_needs(cloud: Cloud) -> None:
    (nic,) = cloud.attached(instance="i-2")
    address = cloud.nic(nic)["private_ip"]
    assert cloud("ModifyNicAttributes", nic=nic, enable_aspoof=0)["ret_code"] == 0
    cloud("DetachNics", nics=[nic])
    cloud.wait()
    assert cloud.hardware == [
        PlugNic(nic, "i-2", "vxnet-p", address, enable_aspoof=True),
        FilterNic(nic, address, enable_aspoof=False),
        UnplugNic(nic),
    ]


def test_detached_nics_are_available_and_keep_their_address(cloud: Cloud) -> None:
    (nic,) = cloud.attached()
    before = cloud.nic(nic)
    reply = cloud("DetachNics", nics=[nic])
    assert cloud.nic(nic) == before
    cloud.wait()
    after = cloud.nic(nic)
    assert cloud("DescribeJobs", jobs=[reply["job_id"]])["job_set"][0]["status"] == "successful"
    assert (after["status"], after["instance_id"], after["private_ip"]) == ("available", "", before["private_ip"])


def test_jobs_of_one_instance_queue_and_of_two_do_not(cloud: Cloud) -> None:
    jobs = [
        cloud("AttachNics", nics=cloud.create(), instance=instance)["job_id"] for instance in ("i-1", "i-1", "i-2")
    ]
    assert [job["status"] for job in cloud("DescribeJobs", jobs=jobs)["job_set"]] == ["working", "pending", "working"]
    assert cloud("DescribeJobs", jobs=jobs, status=["pending"])["total_count"] == 1
    cloud.wait(4.0)
    assert [job["status"] for job in cloud("DescribeJobs", jobs=jobs)["job_set"]] == [
        "successful",
        "working",
        "successful",
    ]
    cloud.wait(4.0)
    assert cloud("DescribeJobs", status=["successful"], job_action="AttachNics")["total_count"] == 3


def test_an_unknown_job_or_status_is_an_error(cloud: Cloud) -> None:
    job = cloud("AttachNics", nics=cloud.create(), instance="i-1")["job_id"]
    assert_refused(cloud("DescribeJobs", jobs=[job, "j-none0000"]), 2100, "ResourceNotFound")
    assert_refused(cloud("DescribeJobs", status=["done"]), 1101, "InvalidParameterValue")


@pytest.mark.parametrize("busy", ["attaching", "detaching"])
def test_a_busy_nic_takes_no_other_work(cloud: Cloud, busy: str) -> None:
    if busy == "attaching":
        nics = cloud.create()
        cloud("AttachNics", nics=nics, instance="i-1")
    else:
        nics = cloud.attached()
        cloud("DetachNics", nics=nics)
    words = f"PermissionDenied, resource [{nics[0]}] is [{busy}], please try later"
    for action, params in (
        ("AttachNics", {"nics": nics, "instance": "i-2"}),
        ("DetachNics", {"nics": nics}),
        ("DeleteNics", {"nics": nics}),
        ("ModifyNicAttributes", {"nic": nics[0], "nic_name": "x"}),
    ):
        assert cloud(action, **params) == {"ret_code": 1400, "message": words}


def test_attach_refused(cloud: Cloud) -> None:
    (free,), (used,) = cloud.create(), cloud.attached()
    assert_refused(cloud("AttachNics", nics=[free]), 1100, "InvalidRequestFormat")
    assert_refused(cloud("AttachNics", instance="i-1", nics=[""]), 1100, "InvalidRequestFormat")
    assert_refused(cloud("AttachNics", instance="i-none", nics=[free]), 2100, "ResourceNotFound")
    assert_refused(cloud("AttachNics", instance="i-1", nics=[free, "52:54:0:0:0:0"]), 2100, "ResourceNotFound")
    assert_refused(cloud("AttachNics", instance="i-2", nics=[free, used]), 1400, "PermissionDenied")
    cloud.model.state.hosts["i-1"].status = "stopped"
    reply = cloud("AttachNics", instance="i-1", nics=[free])
    assert reply == {
        "ret_code": 1400,
        "message": "PermissionDenied, instance [i-1] is not running, can not attach nics",
    }
    assert cloud.nic(free)["status"] == "available"
    assert cloud.model.next_due() is None


def test_an_instance_holds_64_nics_those_on_their_way_included(cloud: Cloud) -> None:
    assert cloud("AttachNics", nics=cloud.create(63), instance="i-1")["ret_code"] == 0
    more = cloud.create()
    assert_refused(cloud("AttachNics", nics=more, instance="i-1"), 1400, "PermissionDenied")
    cloud.wait()
    assert_refused(cloud("AttachNics", nics=more, instance="i-1"), 1400, "PermissionDenied")
    assert cloud("AttachNics", nics=more, instance="i-2")["ret_code"] == 0


def test_a_position_on_an_instance_is_taken_once(cloud: Cloud) -> None:
    first, second = cloud.attached(2)
    cloud("DetachNics", nics=[first])
    cloud.wait()
    (third,) = cloud.attached()
    assert {nic: cloud.nic(nic)["sequence"] for nic in (first, second, third)} == {first: 0, second: 2, third: 1}


def test_detach_refused(cloud: Cloud) -> None:
    (free,), (used,) = cloud.create(), cloud.attached()
    assert_refused(cloud("DetachNics"), 1100, "InvalidRequestFormat")
    assert_refused(cloud("DetachNics", nics=[used, free]), 1400, "PermissionDenied")
    assert_refused(cloud("DetachNics", nics=[used, "52:54:ff:ff:ff:ff"]), 2100, "ResourceNotFound")
    assert_refused(cloud("DetachNics", nics=[used, cloud.primary()]), 1400, "PermissionDenied")
    assert cloud.model.next_due() is None


def test_latencies_are_those_of_the_topology() -> None:
    cloud = Cloud(latencies=Latencies(attach=(7.0, 7.0), detach=(9.0, 9.0)))
    nics = cloud.create()
    cloud("AttachNics", nics=nics, instance="i-1")
    assert cloud.model.next_due() == cloud.time + 7.0
    cloud.wait()
    cloud("DetachNics", nics=nics)
    assert cloud.model.next_due() == cloud.time + 9.0


# --- attributes --------------------------------------------------------------------------------------


def test_name_address_and_vxnet_of_a_free_nic_change(cloud: Cloud) -> None:
    (nic,) = cloud.create()
    assert cloud("ModifyNicAttributes", nic=nic, nic_name="new", private_ip="10.0.1.77")["ret_code"] == 0
    assert (cloud.nic(nic)["nic_name"], cloud.nic(nic)["private_ip"]) == ("new", "10.0.1.77")
    assert cloud("ModifyNicAttributes", nic=nic, vxnet="vxnet-s")["ret_code"] == 0
    assert (cloud.nic(nic)["vxnet_id"], cloud.nic(nic)["private_ip"]) == ("vxnet-s", "10.0.2.2")
    assert cloud("CreateNics", vxnet="vxnet-p", private_ips=["10.0.1.77"])["ret_code"] == 0


def test_a_nic_does_not_move_into_a_full_vxnet(cloud: Cloud) -> None:
    cloud.create(4, "vxnet-s")
    (nic,) = cloud.create()
    before = cloud.nic(nic)
    assert_refused(cloud("ModifyNicAttributes", nic=nic, vxnet="vxnet-s"), 2500, "QuotaExceeded")
    assert cloud.nic(nic) == before


def test_attributes_refused(cloud: Cloud) -> None:
    (used,), (free,) = cloud.attached(), cloud.create()
    before = cloud.nic(free)
    assert_refused(cloud("ModifyNicAttributes", nic_name="x"), 1100, "InvalidRequestFormat")
    assert_refused(cloud("ModifyNicAttributes", nic=used, private_ip="10.0.1.77"), 1400, "PermissionDenied")
    assert_refused(cloud("ModifyNicAttributes", nic=used, vxnet="vxnet-s"), 1400, "PermissionDenied")
    assert_refused(cloud("ModifyNicAttributes", nic=free, enable_aspoof=2), 1101, "InvalidParameterValue")
    taken = cloud.nic(used)["private_ip"]
    assert_refused(cloud("ModifyNicAttributes", nic=free, nic_name="x", private_ip=taken), 1400, "PermissionDenied")
    assert cloud.nic(free) == before


def test_anti_spoofing_of_the_primary_can_be_turned_off_at_once(cloud: Cloud) -> None:
    heard: list[bool] = []
    cloud.model.subscribe(lambda: heard.append(True))
    primary = cloud.primary()
    assert cloud("ModifyNicAttributes", nic=primary, enable_aspoof=0)["ret_code"] == 0
    assert heard == [True]
    assert cloud.model.take_effects() == [FilterNic(primary, "10.0.0.2", enable_aspoof=False)]
    assert cloud.nic(primary)["enable_aspoof"] == 0
    assert not cloud.model.plugged()[0].enable_aspoof


# --- calls, quota, faults ----------------------------------------------------------------------------


def test_calls_are_counted_per_action(cloud: Cloud) -> None:
    cloud.create(2)
    cloud("CreateNics", vxnet="vxnet-none")
    cloud("DescribeNics")
    assert cloud.model.calls == {"CreateNics": 2, "DescribeNics": 1}


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        ({}, 1100),
        ({"action": "DescribeNics"}, 1100),
        ({"action": "DescribeNics", "zone": "gd2"}, 1101),
        ({"action": "RunInstances", "zone": "pek3a"}, 1101),
        ({"action": "DescribeNics", "zone": "pek3a", "limit": "-1"}, 1100),
        ({"action": "DescribeNics", "zone": "pek3a", "offset": "x"}, 1100),
    ],
)
def test_malformed_calls(cloud: Cloud, wire: dict[str, str], code: int) -> None:
    assert cloud.model.call(wire)["ret_code"] == code


def test_the_quota_of_calls_comes_back_after_an_hour() -> None:
    cloud = Cloud(limits=Limits(calls_per_hour=2))
    codes = []
    for _ in range(3):
        codes.append(cloud("DescribeNics")["ret_code"])
        cloud.time += 1000
    assert codes == [0, 0, 2500]
    cloud.time += 600
    assert cloud("DescribeNics")["ret_code"] == 0


def test_a_refusing_fault_strikes_its_calls_only_and_does_nothing() -> None:
    cloud = Cloud(faults=(FaultSpec("CreateNics", "refuse", nth=2, times=2, code=5100, message="ServerBusy"),))
    replies = [cloud("CreateNics", vxnet="vxnet-p") for _ in range(4)]
    assert [reply["ret_code"] for reply in replies] == [0, 5100, 5100, 0]
    assert replies[1] == {"ret_code": 5100, "message": "ServerBusy"}
    assert cloud("DescribeNics")["total_count"] == 2 + 2


def test_a_fault_on_any_action_counts_all_calls() -> None:
    cloud = Cloud(faults=(FaultSpec("*", "refuse", nth=2, code=5000, message="oops"),))
    assert [cloud(action)["ret_code"] for action in ("DescribeNics", "DescribeVxnets", "DescribeNics")] == [
        0,
        5000,
        0,
    ]


def test_a_lost_reply_is_lost_after_the_work_is_done() -> None:
    cloud = Cloud(faults=(FaultSpec("CreateNics", "lose-reply"),))
    wire = {"action": "CreateNics", "zone": "pek3a", "vxnet": "vxnet-p"}
    assert [cloud.model.handle(wire).effect == "lose-reply" for _ in range(2)] == [True, False]
    assert cloud("DescribeNics")["total_count"] == 2 + 2


@pytest.mark.parametrize(
    ("make", "action"),
    [(lambda cloud: cloud.create(), "AttachNics"), (lambda cloud: cloud.attached(), "DetachNics")],
)
def test_a_failed_job_changes_nothing(make: Callable[[Cloud], list[str]], action: str) -> None:
    cloud = Cloud(faults=(FaultSpec(action, "fail-job"),))
    nics = make(cloud)
    cloud.hardware.clear()
    before = cloud.nic(nics[0])
    job = cloud(action, nics=nics, instance="i-1")["job_id"]
    cloud.wait()
    (shown,) = cloud("DescribeJobs", jobs=[job])["job_set"]
    assert shown["status"] == "failed"
    assert shown["error_codes"]
    assert cloud.hardware == []
    assert cloud.nic(nics[0]) == before
    assert cloud(action, nics=nics, instance="i-1")["ret_code"] == 0


def test_a_lost_link_is_attached_but_never_plugged() -> None:
    cloud = Cloud(faults=(FaultSpec("AttachNics", "lose-link"),))
    (nic,) = cloud.attached()
    assert cloud.nic(nic)["status"] == "in-use"
    assert cloud.hardware == []
    assert nic not in {plug.nic_id for plug in cloud.model.plugged()}
