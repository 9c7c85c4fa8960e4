"""The effect of each fault on a call and its reply; lists of faults are read and printed."""

import asyncio
import json
import random
import re
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlencode

import aiohttp
import pytest
from aiohttp import web

from qingcloud_cni.cloud.calls import canonical, signature
from qingcloud_cni.sim.api.api import Api, Reply
from qingcloud_cni.sim.api.fault_list import faults_document, read_faults
from qingcloud_cni.sim.api.http import make_app
from qingcloud_cni.sim.cloud.faults import EFFECTS, Faults
from qingcloud_cni.sim.cloud.model import REQUIRED_PARAMS, Model
from qingcloud_cni.sim.topology import FaultSpec, Topology, default_topology

NOW = 1_704_164_645.0
PODS = "vxnet-pods001"
CREATE = {"action": "CreateNics", "vxnet": PODS, "nic_name": "mine"}


class Cloud:
    def __init__(self, *faults: FaultSpec) -> None:
        base = default_topology("x")
        self.topology = Topology(base.routers, base.vxnets, base.hosts, faults=faults)
        self.model = Model(self.topology, rng=random.Random(1), now=lambda: NOW)
        self.api = Api(self.model, now=lambda: NOW, sleep=lambda _: asyncio.sleep(0), rng=random.Random(2))

    def target(self, **params: str) -> str:
        wire = {
            "access_key_id": self.topology.access_key_id,
            "signature_method": "HmacSHA256",
            "signature_version": "1",
            "time_stamp": datetime.fromtimestamp(NOW, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "zone": self.topology.zone,
            **params,
        }
        signed = signature(self.topology.secret_access_key, "GET", "/iaas/", canonical(wire))
        return f"/iaas/?{urlencode(wire | {'signature': signed})}"

    async def send(self, **params: str) -> Reply | None:
        return await self.api.respond("GET", self.target(**params), b"")

    async def code(self, **params: str) -> int:
        reply = await self.send(**params)
        assert reply is not None
        return int(json.loads(reply.body)["ret_code"])

    @property
    def made(self) -> int:
        return sum(nic.name == "mine" for nic in self.model.state.nics.values())

    async def room(self) -> dict[str, int]:
        reply = await self.send(action="DescribeVxnets")
        assert reply is not None
        return {row["vxnet_id"]: row["available_ip_count"] for row in json.loads(reply.body)["vxnet_set"]}


@pytest.mark.parametrize(
    ("effect", "code", "name"),
    [
        ("refuse", 5100, "ServerBusy"),
        ("clock-skew", 1300, "RequestHasExpired"),
        ("wrong-keys", 1200, "AuthFailure"),
        ("call-quota", 2500, "QuotaExceeded"),
        ("nic-quota", 2500, "QuotaExceeded"),
        ("address-quota", 2500, "QuotaExceeded"),
    ],
)
async def test_a_refusal_is_an_answer_of_the_clouds_own_and_nothing_is_done(
    effect: str, code: int, name: str
) -> None:
    cloud = Cloud(FaultSpec("CreateNics", effect, nth=2))
    replies = [await cloud.send(**CREATE) for _ in range(3)]
    documents = [json.loads(reply.body) for reply in replies if reply and reply.status == 200]
    assert [document["ret_code"] for document in documents] == [0, code, 0]
    assert documents[1]["message"].startswith(name)
    assert cloud.made == 2


async def test_only_a_quota_of_addresses_shows_in_the_vxnet_until_a_create_there_succeeds() -> None:
    cloud = Cloud(FaultSpec("CreateNics", "address-quota", times=2), FaultSpec("CreateNics", "nic-quota", nth=4))
    for shown in (0, 0, 251, 251):
        await cloud.send(**CREATE)
        room = await cloud.room()
        assert (room[PODS], room["vxnet-pods002"]) == (shown, 252)
    assert await cloud.code(**CREATE) == 0


async def test_new_faults_end_the_old_ones_and_count_anew() -> None:
    cloud = Cloud(FaultSpec("CreateNics", "address-quota", times=99))
    await cloud.send(**CREATE)
    cloud.model.set_faults([FaultSpec("CreateNics", "call-quota", nth=2)])
    assert (await cloud.room())[PODS] == 252
    assert [await cloud.code(**CREATE) for _ in range(3)] == [0, 2500, 0]


@pytest.mark.parametrize(
    ("effect", "arrives", "done"),
    [("bad-gateway", (502, "text/html"), 0), ("not-json", (200, "application/json"), 1)],
)
async def test_an_answer_may_be_none_of_the_clouds(effect: str, arrives: tuple[int, str], done: int) -> None:
    cloud = Cloud(FaultSpec("CreateNics", effect))
    reply = await cloud.send(**CREATE)
    assert reply is not None
    assert (reply.status, reply.content_type) == arrives
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(reply.body)
    assert cloud.made == done
    assert await cloud.code(**CREATE) == 0


@pytest.mark.parametrize(("effect", "done"), [("reset", 0), ("lose-reply", 1)])
async def test_a_connection_may_break_before_or_after_the_work(effect: str, done: int) -> None:
    cloud = Cloud(FaultSpec("CreateNics", effect))
    assert await cloud.send(**CREATE) is None
    assert cloud.made == done


@pytest.mark.parametrize("effect", ["lose-reply", "not-json"])
@pytest.mark.parametrize("other", ["refuse", "reset", "bad-gateway", "silence"])
async def test_of_a_lost_answer_and_a_refusal_the_first_in_the_list_decides(effect: str, other: str) -> None:
    lost, refused = FaultSpec("CreateNics", effect), FaultSpec("*", other)
    first, second = Cloud(lost, refused), Cloud(refused, lost)
    for cloud in (first, second):
        with suppress(TimeoutError):  # of the silence
            async with asyncio.timeout(0.02):
                await cloud.send(**CREATE)
    assert (first.made, second.made) == (1, 0)


async def test_silence_lasts_until_the_client_has_gone() -> None:
    cloud = Cloud(FaultSpec("CreateNics", "silence"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await cloud.send(**CREATE)
    assert await cloud.code(**CREATE) == 0
    cloud.model.set_faults([FaultSpec("CreateNics", "silence")])
    looks = iter([False, False, True])
    held = cloud.api.respond("GET", cloud.target(**CREATE), b"", is_disconnected=lambda: next(looks))
    assert await held is None
    assert cloud.made == 1


async def test_faults_of_the_connection_go_over_http() -> None:
    """Silence holds the connection as long as its client does, and no other call."""
    cloud = Cloud(
        FaultSpec("DescribeNics", "silence"),
        FaultSpec("DescribeNics", "reset", nth=2, times=2),  # aiohttp tries a broken GET once more
        FaultSpec("DescribeNics", "bad-gateway", nth=4),
    )
    runner = web.AppRunner(make_app(cloud.api), access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}{cloud.target(action='DescribeNics')}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            with pytest.raises(TimeoutError):
                await session.get(url, timeout=aiohttp.ClientTimeout(0.1))
            with pytest.raises(aiohttp.ClientError):
                await session.get(url)
            async with session.get(url) as gateway:
                assert (gateway.status, gateway.content_type) == (502, "text/html")
            async with session.get(url) as well:
                assert (await well.json())["ret_code"] == 0
        async with asyncio.timeout(2):  # the held request has ended: nothing is left to wait for
            await runner.cleanup()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("effect", [effect for effect, actions in EFFECTS.items() if actions])
def test_a_fault_on_every_action_strikes_only_where_it_can(effect: str) -> None:
    faults = Faults([FaultSpec("*", effect, times=99)], rng=random.Random(1))
    struck = {action for action in REQUIRED_PARAMS if faults.strike({"action": action}, 0.0)}
    assert struck == set(EFFECTS[effect])


def test_the_list_tells_how_many_calls_each_will_still_strike() -> None:
    specs = [FaultSpec("CreateNics", "reset", nth=2, times=2), FaultSpec("*", "silence")]
    faults = Faults(specs, rng=random.Random(1))
    left = []
    for _ in range(4):
        left.append([row["left"] for row in faults_document(faults, 0.0)])
        faults.strike({"action": "CreateNics"}, 0.0)
    assert left == [[2, 1], [2, 0], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    "document", [[{"action": "*", "effect": "reset"}], {"faults": [{"action": "*", "effect": "reset"}]}]
)
def test_a_list_is_taken_bare_or_as_in_the_topology_file(document: object) -> None:
    assert read_faults(document) == (FaultSpec("*", "reset"),)


def test_nothing_is_an_empty_list() -> None:
    assert read_faults(None) == ()


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("reset", "faults: Expected `array`"),
        ({"faults": [], "zone": "pek3a"}, "zone: unknown key"),
        ([{"action": "CreateNics"}], "faults[0]"),
        ([{"action": "CreateNics", "effect": "reset", "when": 1}], "faults[0].when: unknown key"),
        ([{"action": "EatNics", "effect": "reset"}], "faults[0].action: 'EatNics'"),
        ([{"action": "*", "effect": "explode"}], "'explode' is none of"),
        ([{"action": "*", "effect": "reset", "times": 0}], "count from 1"),
    ],
)
def test_what_could_never_strike_is_refused_in_a_sentence(document: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        read_faults(document)
