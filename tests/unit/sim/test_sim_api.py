"""The simulated API, request by request: checks, their order, and the effect of faults on replies."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from qingcloud_cni.cloud.calls import canonical, signature
from qingcloud_cni.sim.api.api import Api, Reply
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.topology import FaultSpec, Latencies, Limits, Topology, default_topology

NOW = 1_704_164_645.0


def make_topology(**changes: Any) -> Topology:
    base = default_topology("x")
    return Topology(**{"routers": base.routers, "vxnets": base.vxnets, "hosts": base.hosts, **changes})


class Caller:
    """Signs with the real client's signer, which the simulator does not share."""

    def __init__(self, **changes: Any) -> None:
        self.topology = make_topology(**changes)
        self.time = NOW
        self.model = Model(self.topology, rng=random.Random(1), now=lambda: self.time)
        self.api = Api(self.model, now=lambda: self.time, sleep=self.sleep, rng=random.Random(2))

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    def signed(self, method: str = "GET", path: str = "/iaas/", **params: str) -> dict[str, str]:
        stamp = datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        wire = {
            "access_key_id": self.topology.access_key_id,
            "action": "DescribeNics",
            "signature_method": "HmacSHA256",
            "signature_version": "1",
            "time_stamp": stamp,
            "version": "1",
            "zone": "pek3a",
            **params,
        }
        return {**wire, "signature": signature(self.topology.secret_access_key, method, path, canonical(wire))}

    async def send(self, wire: Mapping[str, str], method: str = "GET", path: str = "/iaas/") -> dict[str, Any]:
        encoded = urlencode(wire, quote_via=quote, safe="~")
        target, body = (f"{path}?{encoded}", b"") if method == "GET" else (path, encoded.encode())
        reply = await self.api.respond(method, target, body)
        assert reply is not None
        assert (reply.status, reply.content_type) == (200, "application/json")
        decoded = json.loads(reply.body)
        assert isinstance(decoded, dict)
        return decoded


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/iaas", "/iaas/"])
async def test_both_methods_and_both_paths_are_served(method: str, path: str) -> None:
    caller = Caller()
    reply = await caller.send(caller.signed(method, path, nic_name="a b~ä*"), method, path)
    assert (reply["action"], reply["ret_code"], reply["total_count"]) == ("DescribeNicsResponse", 0, 0)


async def test_the_path_is_part_of_the_signature() -> None:
    caller = Caller()
    assert (await caller.send(caller.signed(path="/iaas/"), path="/iaas"))["ret_code"] == 1200


@pytest.mark.parametrize(
    ("method", "target", "status"), [("GET", "/", 404), ("GET", "/iam/", 404), ("PUT", "/iaas/", 405)]
)
async def test_other_paths_and_methods_are_no_api(method: str, target: str, status: int) -> None:
    reply = await Caller().api.respond(method, target, b"")
    assert reply is not None
    assert (reply.status, reply.content_type) == (status, "text/plain")


async def test_checks_come_in_the_documented_order() -> None:
    """Each request has all faults that come later as well."""
    caller = Caller(limits=Limits(calls_per_hour=1))
    assert (await caller.send(caller.signed()))["ret_code"] == 0  # the hour's only call
    stale = caller.signed()
    caller.time += 61
    wrong_key = {**stale, "access_key_id": "OTHER"}
    codes = [
        (await caller.send(wire))["ret_code"]
        for wire in (
            {name: value for name, value in wrong_key.items() if name != "action"},
            {**wrong_key, "action": "DestroyEverything"},
            {name: value for name, value in wrong_key.items() if name != "time_stamp"},
            {**wrong_key, "action": "AttachNics"},  # its parameters are missing
            wrong_key,
            {**stale, "signature": "AAAA"},
            stale,
            caller.signed(action="CreateNics", vxnet="vxnet-none"),
        )
    ]
    assert codes == [1100, 1101, 1100, 1100, 1200, 1200, 1300, 2500]
    assert caller.model.calls == {"DescribeNics": 1, "CreateNics": 1}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("signature_method", "HmacMD5", 1101),
        ("signature_version", "3", 1101),
        ("time_stamp", "yesterday", 1100),
        ("time_stamp", "2024-01-02T03:04:05", 1100),
        ("signature", "", 1100),
        ("zone", "", 1100),
        ("zone", "pek3b", 1101),
    ],
)
async def test_common_parameters_are_checked(name: str, value: str, code: int) -> None:
    caller = Caller()
    assert (await caller.send({**caller.signed(), name: value}))["ret_code"] == code


@pytest.mark.parametrize(("age", "code"), [(60, 0), (61, 1300), (-3600, 0)])
async def test_a_time_stamp_holds_for_a_minute(age: int, code: int) -> None:
    caller = Caller()
    wire = caller.signed()
    caller.time += age
    assert (await caller.send(wire))["ret_code"] == code


async def test_version_is_optional_and_unknown_parameters_are_ignored() -> None:
    caller = Caller()
    wire = caller.signed(version="", req_id="abc", expires="2030-01-01T00:00:00Z", owner="")
    assert (await caller.send(wire))["ret_code"] == 0


async def test_a_body_that_is_no_form_is_malformed() -> None:
    reply = await Caller().api.respond("POST", "/iaas/", b"\xff\xfe")
    assert reply is not None
    assert json.loads(reply.body)["ret_code"] == 1100


async def test_an_action_happens_within_the_latency_of_its_call() -> None:
    caller = Caller(latencies=Latencies(call=(0.5, 0.5)))
    assert (await caller.send(caller.signed()))["ret_code"] == 0
    assert caller.time == pytest.approx(NOW + 0.5)
    caller.time = NOW
    assert (await caller.send(caller.signed(action="CreateNics", vxnet="vxnet-pods001")))["ret_code"] == 0
    (nic,) = (nic for nic in caller.model.state.nics.values() if not nic.role)
    assert NOW < nic.create_time < NOW + 0.5


async def test_a_lost_reply_is_no_reply_and_the_work_is_done() -> None:
    caller = Caller(faults=(FaultSpec("CreateNics", "lose-reply"),))
    wire = caller.signed(action="CreateNics", vxnet="vxnet-pods001", nic_name="mine")
    assert await caller.api.respond("GET", f"/iaas/?{urlencode(wire)}", b"") is None
    assert (await caller.send(caller.signed(nic_name="mine")))["total_count"] == 1
    assert isinstance(await caller.api.respond("GET", f"/iaas/?{urlencode(wire)}", b""), Reply)
