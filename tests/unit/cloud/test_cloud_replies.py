"""Replies with any JSON in any field: the client sets aside what is unusable and uses the rest."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.budgets import calls_of, make_limiter
from inprocess.corruption import GARBAGE, corrupt
from qingcloud_cni.cloud import Access, Caller, Client
from qingcloud_cni.core.errors import CloudError, CloudUnreachable, OutcomeUnknown
from qingcloud_cni.core.nics.names import is_nic_id
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, CreatedNic, Instance, InstanceNic, Job, Vxnet
from qingcloud_cni.core.text import LONGEST, printable

MAC, OTHER = "52:54:00:00:12:34", "52:54:00:00:12:35"
SECRET = "THESECRET"
VXNET = {
    "vxnet_id": "vxnet-1", "vxnet_name": "pods", "vxnet_type": 1, "vpc_router_id": "rtr-1", "available_ip_count": 240,
    "router": {"router_id": "rtr-1", "manager_ip": "192.168.1.1", "ip_network": "192.168.1.0/24"},
}  # fmt: skip
NIC = {
    "nic_id": MAC, "nic_name": "qingcni_i-42_0123456789abcdef", "status": "in-use", "instance_id": "i-42", "role": 0,
    "vxnet_id": "vxnet-1", "private_ip": "192.168.1.7", "create_time": "2016-12-23T13:35:56Z", "enable_aspoof": 1,
}  # fmt: skip
INSTANCE = {
    "instance_id": "i-42", "status": "running", "transition_status": "",
    "vxnets": [{"nic_id": MAC, "vxnet_id": "vxnet-1", "private_ip": "192.168.1.7", "role": 1}],
}  # fmt: skip
JOB = {"job_id": "j-1", "status": "successful", "error_codes": ""}

Call = Callable[[CloudCalls], Awaitable[Any]]
CALLS: dict[str, tuple[dict[str, Any], Call]] = {
    "DescribeNics": ({"nic_set": [NIC, NIC | {"nic_id": OTHER}], "total_count": 2}, lambda c: c.nics()),
    "DescribeVxnets": ({"vxnet_set": [VXNET], "total_count": 1}, lambda c: c.vxnets(["vxnet-1"])),
    "DescribeInstances": ({"instance_set": [INSTANCE], "total_count": 1}, lambda c: c.instances(["i-42"])),
    "DescribeJobs": ({"job_set": [JOB], "total_count": 1}, lambda c: c.jobs(["j-1"])),
    "CreateNics": (
        {"nics": [{"nic_id": MAC, "private_ip": "192.168.1.7"}]},
        lambda c: c.create_nics("vxnet-1", 1, "n"),
    ),
    "AttachNics": ({"job_id": "j-1"}, lambda c: c.attach_nics("i-42", [MAC])),
    "DetachNics": ({"job_id": "j-1"}, lambda c: c.detach_nics([MAC])),
    "DeleteNics": ({}, lambda c: c.delete_nics([MAC])),
    "ModifyNicAttributes": ({}, lambda c: c.set_antispoof(MAC, is_on=False)),
}

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.sampled_from(GARBAGE)
)
any_json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)


class FakeClock:
    def now(self) -> float:
        return 1_704_164_645.0

    wall = now

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)


class Repeating:
    """A transport that always gives the same answer, whatever page is asked for."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def send(self, method: str, target: str, body: bytes, timeout: float) -> tuple[int, str, bytes]:
        return 200, "application/json", self.body

    async def close(self) -> None: ...


def client_for(body: bytes) -> Client:
    access, clock = Access("THEKEYID", SECRET, zone="pek3a", connection_retries=0), FakeClock()
    limiter = make_limiter(clock, 10**9)
    return Client(Caller(access, Repeating(body), limiter, clock, random.Random(1), lambda _call: None))


def body_of(action: str, fields: dict[str, Any]) -> bytes:
    return json.dumps({"action": f"{action}Response", "ret_code": 0, **fields}).encode()


def ask(action: str, fields: dict[str, Any]) -> tuple[Any, Client]:
    client = client_for(body_of(action, fields))
    return asyncio.run(CALLS[action][1](calls_of(client))), client  # type: ignore[arg-type]


def check(found: Any) -> None:
    """Assert that what the client returns is as its types promise."""
    match found:
        case tuple():
            for item in found:
                check(item)
        case str():
            assert found.isprintable()
            assert len(found) <= LONGEST
        case CloudNic() | InstanceNic() | CreatedNic():
            assert is_nic_id(found.nic_id)
            assert not found.private_ip or IPv4Address(found.private_ip)
        case Vxnet():
            assert bool(found.network) == bool(found.gateway)
            assert not found.network or IPv4Address(found.gateway) in IPv4Network(found.network)
            check((found.vxnet_id, found.name, found.router_id))
        case Instance():
            check((found.instance_id, found.status, found.transition, found.nics))
        case Job():
            check((found.job_id, found.error))
        case _:
            assert found is None


@given(st.sampled_from(list(CALLS)), st.randoms(use_true_random=False), st.integers(1, 3), st.data())
def test_any_json_in_any_field_gives_a_checked_answer_or_an_error_of_the_cloud(
    action: str, rng: random.Random, changes: int, data: st.DataObject
) -> None:
    body = corrupt(body_of(action, CALLS[action][0]), rng, lambda: data.draw(any_json), changes=changes)
    client = client_for(body)
    with suppress(CloudError):
        check(asyncio.run(CALLS[action][1](calls_of(client))))  # type: ignore[arg-type]
    for text in client.set_aside():
        assert text.isprintable()
        assert SECRET not in text


@given(any_json)
def test_any_json_instead_of_a_reply_is_an_error_of_the_cloud(content: Any) -> None:
    with pytest.raises(CloudError):
        asyncio.run(calls_of(client_for(json.dumps(content).encode())).delete_nics([MAC]))


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b'{"ret_code":' + b"1" * 9999 + b"}"]
)
def test_a_reply_that_is_too_deep_or_too_long_is_not_json(body: bytes) -> None:
    with pytest.raises(OutcomeUnknown):
        asyncio.run(calls_of(client_for(body)).delete_nics([MAC]))


def test_one_unusable_item_does_not_spoil_the_list() -> None:
    items = [NIC, 5, {"nic_id": "x"}, NIC | {"nic_id": OTHER, "instance_id": ["i-1"]}, {}]
    found, client = ask("DescribeNics", {"nic_set": items, "total_count": 5})
    assert [nic.nic_id for nic in found] == [MAC]
    said = " ".join(client.set_aside())
    assert 'x: nic_set.nic_id "x" is not the MAC of a NIC' not in said  # the latest of each field
    assert "DescribeNics: nic_set[4]: nic_set.nic_id null is absent" in said
    assert f"DescribeNics: {OTHER}: nic_set.instance_id (a list) is not a text" in said


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"private_ip": "fe80::1"}, {"private_ip": ""}),
        ({"private_ip": "garbage"}, {"private_ip": ""}),
        ({"private_ip": []}, {"private_ip": ""}),
        ({"vxnet_id": 17}, {"vxnet_id": "17"}),
        ({"role": "0", "instance_id": []}, {"role": 0, "instance_id": ""}),
        ({"role": 0.0, "enable_aspoof": {}}, {"role": 0, "enable_aspoof": None}),
        ({"enable_aspoof": "no", "create_time": 5}, {"enable_aspoof": None, "created": 0.0}),
        ({"status": "\x1b[31m" + "x" * 999}, {"status": "\\x1b[31m" + "x" * 247 + "…"}),
    ],
)
def test_an_optional_field_of_another_type_counts_as_absent(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    (found,), _ = ask("DescribeNics", {"nic_set": [NIC | fields], "total_count": "1"})
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    "router",
    [
        {"ip_network": "192.168.1.7/24"}, {"ip_network": "fd00::/64"}, {"ip_network": "garbage"}, {"ip_network": 5},
        {"manager_ip": "10.0.0.1"}, {"manager_ip": "192.168.1.0"}, {"manager_ip": "192.168.1.255"},
        {"manager_ip": "fe80::1"}, {"manager_ip": None}, {"ip_network": "0.0.0.0/0"},
        {"ip_network": "192.168.1.1/32"},
        {"ip_network": "127.0.0.0/8", "manager_ip": "127.0.0.1"},
    ],
)  # fmt: skip
def test_a_vxnet_with_an_unusable_network_has_none(router: dict[str, Any]) -> None:
    content = VXNET | {"router": {**VXNET["router"], **router}}  # type: ignore[dict-item]
    (vxnet,), client = ask("DescribeVxnets", {"vxnet_set": [content], "total_count": 1})
    assert (vxnet.network, vxnet.gateway, vxnet.router_id) == ("", "", "rtr-1")
    assert vxnet.flaw.startswith("vxnet_set.router.")
    assert client.set_aside() == (f"DescribeVxnets: vxnet-1: {vxnet.flaw}",)


def test_an_address_is_a_hosts_in_the_network_of_the_vxnet() -> None:
    (vxnet,), _ = ask("DescribeVxnets", {"vxnet_set": [VXNET], "total_count": 1})
    assert vxnet.address_of("192.168.1.7") == "192.168.1.7/24"
    for address in ("", "10.0.0.7", "192.168.1.0", "192.168.1.255", vxnet.gateway):
        assert not vxnet.address_of(address)


@pytest.mark.parametrize("errors", [[], "", {}, None, 5, ["E1"]])
def test_a_job_is_read_whatever_its_error_codes_are(errors: Any) -> None:
    (job,), _ = ask("DescribeJobs", {"job_set": [JOB | {"error_codes": errors}], "total_count": 1})
    assert job.error == ("5" if errors == 5 else "")


@pytest.mark.parametrize("total", [None, "x", [], -1, {}])
def test_a_list_with_an_unusable_total_and_items_without_end_is_never_returned(total: Any) -> None:
    with pytest.raises(CloudUnreachable):
        ask("DescribeNics", {"nic_set": [{"nic_id": 5}] * 3, "total_count": total})


@pytest.mark.parametrize("nic_id", ["x", "", None, "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "52:54:00:00:12", {}])
def test_a_create_without_a_usable_id_is_in_doubt(nic_id: Any) -> None:
    with pytest.raises(OutcomeUnknown, match="lists 0 usable NICs"):
        ask("CreateNics", {"nics": [{"nic_id": nic_id, "private_ip": "192.168.1.7"}]})


async def test_an_unusable_field_is_reported_once_and_shown_with_its_latest_value() -> None:
    client = client_for(body_of("DescribeJobs", {"job_set": [JOB | {"status": [1]}], "total_count": 1}))
    for _ in range(3):
        await calls_of(client).jobs(["j-1"])
    reports = client.newly_set_aside()
    assert await anext(reports) == "DescribeJobs: j-1: job_set.status (a list) is not a text"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(reports), 0.01)


@given(st.text(st.characters()))
def test_text_is_printable_and_short(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= LONGEST
    assert shown == text or not text.isprintable() or len(text) > LONGEST
