"""The client over a transport that answers from a script: what it asks, believes, repeats and says."""

import json
import random
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from inprocess.budgets import calls_of, make_limiter
from qingcloud_cni.cloud import Access, Caller, CallOutcome, CallSeen, Client
from qingcloud_cni.cloud.calls import canonical, signature
from qingcloud_cni.core.errors import (
    AgentError,
    ClockSkewed,
    CloudBusy,
    CloudError,
    CloudExhausted,
    CloudQuota,
    CloudRefused,
    CloudUnreachable,
    CredentialsRefused,
    NotAllowedNow,
    OutcomeUnknown,
    ResourceNotFound,
)
from qingcloud_cni.core.seams.cloud import CloudCalls, CloudNic, CreatedNic, Job, JobStatus

KEY_ID, SECRET = "THEKEYID", "THESECRET"
NOW = 1_704_164_645.0  # 2024-01-02T03:04:05Z
MAC = "52:54:00:00:12:34"

Answer = tuple[int, str, bytes]
Step = Answer | Exception | Callable[[dict[str, str]], Answer]


def reply(action: str, **fields: Any) -> Answer:
    return 200, "application/json", json.dumps({"action": f"{action}Response", "ret_code": 0, **fields}).encode()


def refusal(code: int, message: str | None = "PermissionDenied, no") -> Answer:
    return 200, "application/json", json.dumps({"ret_code": code, "message": message}).encode()


class FakeClock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time

    wall = now

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Script:
    """A transport that checks each request's signature and plays the next step; it fails once none is left."""

    def __init__(self, clock: FakeClock) -> None:
        self.steps: list[Step] = []
        self.asked: list[dict[str, str]] = []
        self.is_closed = False
        self.takes = 0.0  # seconds per call
        self._clock = clock

    async def send(self, method: str, target: str, body: bytes, timeout: float) -> Answer:
        assert (method, body) == ("GET", b"")
        assert 0 < timeout <= 20
        parts = urlsplit(target)
        params = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
        sent = params.pop("signature")
        assert sent == signature(SECRET, "GET", parts.path, canonical(params))
        assert (params.pop("access_key_id"), params.pop("zone"), params.pop("version")) == (KEY_ID, "pek3a", "1")
        assert (params.pop("signature_method"), params.pop("signature_version")) == ("HmacSHA256", "1")
        self.asked.append(params)
        self._clock.time += self.takes
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step(params) if callable(step) else step

    async def close(self) -> None:
        self.is_closed = True


class Bench:
    def __init__(self, *, retries: int = 3) -> None:
        self.clock = FakeClock()
        self.script = Script(self.clock)
        self.seen: list[CallSeen] = []
        access = Access(KEY_ID, SECRET, zone="pek3a", connection_retries=retries)
        self.client = Client(
            Caller(access, self.script, make_limiter(self.clock), self.clock, random.Random(1), self.seen.append)
        )

    def play(self, *steps: Step) -> CloudCalls:
        self.script.steps = list(steps)
        return calls_of(self.client)

    @property
    def actions(self) -> list[str]:
        return [params["action"] for params in self.script.asked]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def lost() -> OutcomeUnknown:
    return OutcomeUnknown("the connection was closed before an answer came", action="")


def unreachable() -> CloudUnreachable:
    return CloudUnreachable("Connection refused", action="")


# --- requests and replies ------------------------------------------------------------------------------


async def test_an_instance_and_its_nics(bench: Bench) -> None:
    vxnets = [
        {"vxnet_id": "vxnet-1", "nic_id": "52:54:99:F4:DA:2C", "private_ip": "192.168.8.3", "role": 1},
        {"vxnet_id": "vxnet-2", "nic_id": MAC, "private_ip": None},
        {"vxnet_id": "vxnet-3", "nic_id": ""},
    ]
    found = [{"instance_id": "i-42", "status": "running", "vxnets": vxnets, "extra": {"slots": {}}}]
    instance = await bench.play(reply("DescribeInstances", total_count=1, instance_set=found)).instance("i-42")
    assert instance is not None
    assert (instance.instance_id, instance.status) == ("i-42", "running")
    assert [(nic.nic_id, nic.private_ip, nic.role) for nic in instance.nics] == [
        ("52:54:99:f4:da:2c", "192.168.8.3", 1),
        (MAC, "", 0),
    ]
    assert bench.script.asked[0]["instances.1"] == "i-42"


async def test_a_node_of_a_cluster_is_found_on_the_second_asking(bench: Bench) -> None:
    none = reply("DescribeInstances", total_count=0, instance_set=[])
    node = reply("DescribeInstances", total_count=1, instance_set=[{"instance_id": "i-42"}])
    instance = await bench.play(none, node).instance("i-42")
    assert instance is not None
    assert "is_cluster_node" not in bench.script.asked[0]
    assert bench.script.asked[1]["is_cluster_node"] == "1"


@pytest.mark.parametrize("answer", [refusal(2100), reply("DescribeInstances", total_count=0, instance_set=None)])
async def test_an_unknown_instance_is_none(bench: Bench, answer: Answer) -> None:
    assert await bench.play(answer, answer).instance("i-42") is None


async def test_many_instances_are_asked_for_at_once_and_the_missing_ones_as_nodes_of_clusters(bench: Bench) -> None:
    def listed(*found: str) -> Answer:
        return reply("DescribeInstances", total_count=len(found), instance_set=[{"instance_id": i} for i in found])

    found = await bench.play(listed("i-3", "i-1"), listed("i-2", "i-9")).instances(
        ["i-1", "i-2", "i-3", "i-4", "i-1"]
    )
    assert [instance.instance_id for instance in found] == ["i-1", "i-2", "i-3"]  # i-9 was not asked for
    first, second = bench.script.asked
    assert [first[f"instances.{n}"] for n in (1, 2, 3, 4)] == ["i-1", "i-2", "i-3", "i-4"]
    assert [second[f"instances.{n}"] for n in (1, 2)] == ["i-2", "i-4"]
    assert second["is_cluster_node"] == "1"
    assert await bench.play().instances([]) == ()


async def test_where_one_unknown_id_spoils_the_list_they_are_asked_for_one_by_one(bench: Bench) -> None:
    one = reply("DescribeInstances", total_count=1, instance_set=[{"instance_id": "i-1", "status": "stopped"}])
    found = await bench.play(refusal(2100), one, refusal(2100), refusal(2100)).instances(["i-1", "i-2"])
    assert [(instance.instance_id, instance.status) for instance in found] == [("i-1", "stopped")]


async def test_what_an_instance_is_about_to_become(bench: Bench) -> None:
    going = {"instance_id": "i-42", "status": "running", "transition_status": "terminating"}
    instance = await bench.play(reply("DescribeInstances", total_count=1, instance_set=[going])).instance("i-42")
    assert instance is not None
    assert instance.transition == "terminating"


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("2016-12-23T13:35:56Z", 1482500156.0),
        ("2016-12-23T13:35:56", 1482500156.0),
        ("2016-12-23T14:35:56+01:00", 1482500156.0),
        ("", 0.0),
        ("yesterday", 0.0),
        (None, 0.0),
    ],
)
async def test_times_of_a_nic(bench: Bench, stamp: str | None, seconds: float) -> None:
    nic = {"nic_id": MAC, "create_time": stamp, "status_time": stamp}
    (found,) = await bench.play(reply("DescribeNics", total_count=1, nic_set=[nic])).nics()
    assert (found.created, found.since) == (seconds, seconds)


async def test_vxnets_include_base_networks_in_the_order_asked(bench: Bench) -> None:
    managed = {
        "vxnet_id": "vxnet-1", "vxnet_name": "pods", "vxnet_type": 1, "vpc_router_id": "rtr-1", "description": None,
        "available_ip_count": 240, "router": {"manager_ip": "192.168.1.1", "ip_network": "192.168.1.0/24"},
    }  # fmt: skip
    base = {"vxnet_id": "vxnet-0", "vxnet_type": "2", "router": None}

    def second(params: dict[str, str]) -> Answer:
        assert (params["vxnets.1"], params["vxnets.2"], params["vxnet_type"]) == ("vxnet-0", "vxnet-9", "2")
        return reply("DescribeVxnets", total_count=1, vxnet_set=[base])

    first = reply("DescribeVxnets", total_count=1, vxnet_set=[managed])
    vxnets = await bench.play(first, second).vxnets(["vxnet-0", "vxnet-1", "vxnet-9", "vxnet-0"])
    assert [vxnet.vxnet_id for vxnet in vxnets] == ["vxnet-0", "vxnet-1"]
    assert (vxnets[0].vxnet_type, vxnets[0].router_id, vxnets[0].network, vxnets[0].available_ips) == (
        2,
        "",
        "",
        None,
    )
    assert (vxnets[1].router_id, vxnets[1].network, vxnets[1].gateway) == ("rtr-1", "192.168.1.0/24", "192.168.1.1")
    assert vxnets[1].available_ips == 240


async def test_nics_pass_their_filters_and_do_not_trust_the_cloud_with_them(bench: Bench) -> None:
    nics = [
        {"nic_id": MAC.upper(), "nic_name": None, "instance_id": "i-42", "status": "in-use", "role": "0",
         "enable_aspoof": True},
        {"nic_id": "52:54:00:00:00:02", "instance_id": "i-43", "status": "in-use"},
    ]  # fmt: skip
    page = reply("DescribeNics", total_count=2, nic_set=nics)
    found = await bench.play(page).nics(instance_id="i-42", status="in-use", name="qingcni_i-42_0")
    assert found == (CloudNic(MAC, "", "in-use", "i-42", "", "", 0, 1),)
    asked = bench.script.asked[0]
    assert (asked["instances.1"], asked["status"], asked["nic_name"]) == ("i-42", "in-use", "qingcni_i-42_0")


async def test_many_ids_go_in_batches(bench: Bench) -> None:
    macs = [f"52:54:00:00:01:{n:02x}" for n in range(150)]

    def page(params: dict[str, str]) -> Answer:
        asked = [value for key, value in params.items() if key.startswith("nics.")]
        assert len(asked) <= 100
        return reply("DescribeNics", total_count=len(asked), nic_set=[{"nic_id": mac} for mac in asked])

    found = await bench.play(page, page).nics(nic_ids=macs)
    assert sorted(nic.nic_id for nic in found) == macs


async def test_asking_for_no_ids_asks_nothing(bench: Bench) -> None:
    cloud = bench.play()
    assert await cloud.jobs([]) == ()
    assert await cloud.vxnets([]) == ()
    assert await cloud.nics(nic_ids=[""]) == ()
    assert bench.actions == []


async def test_writes(bench: Bench) -> None:
    cloud = bench.play(
        reply("CreateNics", nics=[{"nic_id": MAC, "private_ip": "192.168.1.2"}, {"nic_id": "52:54:00:00:12:35"}]),
        reply("AttachNics", job_id="j-1"),
        reply("DetachNics", job_id="j-2"),
        reply("DeleteNics"),
    )
    created = await cloud.create_nics("vxnet-1", 2, "a b*中")
    assert created == (CreatedNic(MAC, "192.168.1.2"), CreatedNic("52:54:00:00:12:35", ""))
    assert await cloud.attach_nics("i-42", [MAC, "52:54:00:00:12:35"]) == "j-1"
    assert await cloud.detach_nics([MAC]) == "j-2"
    await cloud.delete_nics([MAC])
    create, attach, detach, delete = bench.script.asked
    assert (create["vxnet"], create["count"], create["nic_name"]) == ("vxnet-1", "2", "a b*中")
    assert (attach["instance"], attach["nics.1"], attach["nics.2"]) == ("i-42", MAC, "52:54:00:00:12:35")
    assert (detach["nics.1"], delete["nics.1"]) == (MAC, MAC)
    assert create["time_stamp"] == "2024-01-02T03:04:05Z"
    assert [seen.outcome for seen in bench.seen] == [CallOutcome.OK] * 4


async def test_jobs(bench: Bench) -> None:
    jobs = [
        {"job_id": "j-4", "status": "done with failure", "error_codes": "E1"},
        {"job_id": "j-1", "status": "successful", "error_codes": ""},
        {"job_id": "j-2", "status": "working", "error_codes": None},
        {"job_id": "j-3", "status": "something new"},
        {"job_id": "j-5", "status": "failed"},
    ]
    found = await bench.play(reply("DescribeJobs", total_count=5, job_set=jobs)).jobs(
        ["j-1", "j-2", "j-3", "j-4", "j-5"]
    )
    assert found == (
        Job("j-1", JobStatus.SUCCESSFUL, ""),
        Job("j-2", JobStatus.PENDING, ""),
        Job("j-3", JobStatus.PENDING, ""),
        Job("j-4", JobStatus.FAILED, "E1"),
        Job("j-5", JobStatus.FAILED, ""),
    )


async def test_a_job_left_out_is_unknown(bench: Bench) -> None:
    with pytest.raises(ResourceNotFound, match="j-2: unknown to the cloud"):
        await bench.play(reply("DescribeJobs", total_count=1, job_set=[{"job_id": "j-1"}])).jobs(["j-1", "j-2"])


# --- lists ---------------------------------------------------------------------------------------------


class Shelf:
    """Plays DescribeNics over a list, a page at a time."""

    def __init__(self, count: int, *, cap: int = 100, total: int | None = -1) -> None:
        self.macs = [f"52:54:00:00:{n // 256:02x}:{n % 256:02x}" for n in range(count)]
        self.cap = cap
        self.total = count if total == -1 else total
        self.pages = 0

    def __call__(self, params: dict[str, str]) -> Answer:
        self.pages += 1
        offset, limit = int(params["offset"]), min(int(params["limit"]), self.cap)
        items = [{"nic_id": mac} for mac in self.macs[offset : offset + limit]]
        return reply("DescribeNics", nic_set=items, **({} if self.total is None else {"total_count": self.total}))


@pytest.mark.parametrize(
    ("shelf", "pages"),
    [(Shelf(0), 1), (Shelf(100), 1), (Shelf(250), 3), (Shelf(130, cap=50), 3), (Shelf(130, total=None), 3)],
)
async def test_all_pages_are_read(bench: Bench, shelf: Shelf, pages: int) -> None:
    found = await bench.play(*[shelf] * pages).nics()
    assert [nic.nic_id for nic in found] == shelf.macs
    assert shelf.pages == pages


async def test_a_list_that_changes_between_pages_is_read_anew(bench: Bench) -> None:
    shelf = Shelf(150)
    grown = Shelf(151)
    found = await bench.play(shelf, grown, grown, grown).nics()
    assert len(found) == 151


@pytest.mark.parametrize("total", [151, 149])
async def test_a_partial_or_contradictory_list_is_never_returned(bench: Bench, total: int) -> None:
    shelf = Shelf(150, total=total)
    with pytest.raises(CloudUnreachable, match="changed while it was read"):
        await bench.play(*[shelf] * 9).nics()


async def test_an_item_twice_is_a_contradiction(bench: Bench) -> None:
    twice = reply("DescribeNics", total_count=2, nic_set=[{"nic_id": MAC}, {"nic_id": MAC}])
    with pytest.raises(CloudUnreachable, match="changed while it was read"):
        await bench.play(*[twice] * 3).nics()


@pytest.mark.defect("hostnic-13")
@pytest.mark.parametrize("fields", [{}, {"nic_set": None}, {"nic_set": None, "total_count": 3}])
async def test_a_reply_without_its_list_is_not_an_empty_list(bench: Bench, fields: dict[str, Any]) -> None:
    with pytest.raises(CloudUnreachable, match="holds no list"):
        await bench.play(reply("DescribeNics", **fields)).nics()


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1100, CloudRefused), (1200, CredentialsRefused), (1300, ClockSkewed), (1400, NotAllowedNow),
        (2100, ResourceNotFound), (2400, CloudExhausted), (2500, CloudQuota), (5000, CloudBusy), (5100, CloudBusy),
        (5200, CloudExhausted), (5300, CloudBusy), (5400, CloudRefused), (9999, CloudRefused),
    ],
)  # fmt: skip
async def test_a_refused_write_says_everything_and_is_not_repeated(
    bench: Bench, code: int, kind: type[CloudError]
) -> None:
    with pytest.raises(CloudError) as refused:
        await bench.play(refusal(code, f"SomeName, resource [{MAC}] will not")).attach_nics("i-42", [MAC])
    assert type(refused.value) is kind
    assert (refused.value.action, refused.value.ret_code) == ("AttachNics", code)
    for part in ("AttachNics", MAC, "i-42", "SomeName, resource", str(code)):
        assert part in str(refused.value)
    assert bench.actions == ["AttachNics"]
    assert bench.seen[0].ret_code == code
    assert bench.seen[0].outcome not in {CallOutcome.OK, CallOutcome.LOST}


@pytest.mark.parametrize(
    ("code", "message"),
    [(1400, "PermissionDenied, resource [x] has already been deleted"), (1100, "ResourceNotFound, nic [x]")],
)
async def test_not_found_is_known_by_its_words_too(bench: Bench, code: int, message: str) -> None:
    with pytest.raises(ResourceNotFound):
        await bench.play(refusal(code, message)).delete_nics([MAC])


@pytest.mark.parametrize("message", [None, ""])
async def test_a_refusal_without_a_message(bench: Bench, message: str | None) -> None:
    with pytest.raises(NotAllowedNow, match=r"DeleteNics \(52:54:.*: refused without a message \(1400\)"):
        await bench.play(refusal(1400, message)).delete_nics([MAC])


async def test_a_skewed_clock_is_named(bench: Bench) -> None:
    with pytest.raises(ClockSkewed, match=r"stamped 2024-01-02T03:04:05Z.*check the clock"):
        await bench.play(refusal(1300)).delete_nics([MAC])


async def test_a_list_of_many_is_named_shortly(bench: Bench) -> None:
    macs = [f"52:54:00:00:00:{n:02x}" for n in range(60)]
    with pytest.raises(NotAllowedNow, match="52:54:00:00:00:02 and 57 more"):
        await bench.play(refusal(1400)).delete_nics(macs)


@pytest.mark.defect("hostnic-3")
@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "text/json", ""])
async def test_an_answer_is_known_by_what_it_says_and_not_by_its_content_type(
    bench: Bench, content_type: str
) -> None:
    _, _, body = reply("AttachNics", job_id="j-1")
    assert await bench.play((200, content_type, body)).attach_nics("i-42", [MAC]) == "j-1"


# --- losses --------------------------------------------------------------------------------------------

LOSSES: dict[str, Step] = {
    "lost": lost(),
    "502": (502, "text/html", b"<html>bad gateway</html>"),
    "html": (200, "text/html", b"<html>welcome</html>"),
    "no json": (200, "application/json", b'{"ret_code":0'),
    "not utf-8": (200, "application/json", b'{"ret_code":0,"message":"\xff"}'),
    "empty": (200, "application/json", b""),
    "array": (200, "application/json", b"[]"),
    "no ret_code": (200, "application/json", b'{"action":"AttachNicsResponse","job_id":"j-1"}'),
    "odd ret_code": (200, "application/json", b'{"action":"AttachNicsResponse","job_id":"j-1","ret_code":"x"}'),
    "no action": (200, "application/json", b'{"job_id":"j-1","ret_code":0}'),
    "other action": (200, "application/json", b'{"action":"DetachNicsResponse","job_id":"j-1","ret_code":0}'),
    "wrong type": (200, "application/json", b'{"action":"AttachNicsResponse","job_id":[],"ret_code":0}'),
    "no job": (200, "application/json", b'{"action":"AttachNicsResponse","job_id":null,"ret_code":0}'),
}


@pytest.mark.parametrize("case", LOSSES)
async def test_a_write_without_a_usable_answer_is_in_doubt_and_not_repeated(bench: Bench, case: str) -> None:
    with pytest.raises(OutcomeUnknown, match=r"AttachNics \(52:54:00:00:12:34 to i-42\): .") as doubt:
        await bench.play(LOSSES[case]).attach_nics("i-42", [MAC])
    assert type(doubt.value) is OutcomeUnknown
    assert doubt.value.action == "AttachNics"
    assert bench.actions == ["AttachNics"]


async def test_an_unreachable_cloud_did_nothing(bench: Bench) -> None:
    with pytest.raises(CloudUnreachable, match="Connection refused") as certain:
        await bench.play(unreachable()).create_nics("vxnet-1", 3, "n")
    assert not isinstance(certain.value, OutcomeUnknown)
    assert bench.actions == ["CreateNics"]
    assert bench.seen[0].outcome is CallOutcome.UNREACHABLE


@pytest.mark.parametrize("nics", [None, [], [{"nic_id": MAC}], [{"nic_id": MAC}, {"nic_id": MAC}]])
async def test_fewer_created_nics_than_asked_is_in_doubt(bench: Bench, nics: Any) -> None:
    with pytest.raises(OutcomeUnknown, match="2 NICs in vxnet-1 named n"):
        await bench.play(reply("CreateNics", nics=nics)).create_nics("vxnet-1", 2, "n")


@pytest.mark.parametrize(
    "loss",
    [*(LOSSES[case] for case in ("lost", "502", "html", "empty")), unreachable(), refusal(5000), refusal(5300)],
)
async def test_a_read_is_tried_again_with_a_pause(bench: Bench, loss: Step) -> None:
    shelf = Shelf(1)
    assert len(await bench.play(loss, loss, shelf).nics()) == 1
    assert NOW + 1 < bench.clock.time < NOW + 10
    assert [seen.outcome for seen in bench.seen].count(CallOutcome.OK) == 1


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (2, 3), (100, 6)])
async def test_tries_of_a_read_are_counted(retries: int, tries: int) -> None:
    bench = Bench(retries=retries)
    with pytest.raises(CloudUnreachable) as failed:
        await bench.play(*[lost()] * 20).nics(name="n")
    assert not isinstance(failed.value, OutcomeUnknown)  # a read has no outcome to be in doubt
    assert "DescribeNics (n): the connection was closed" in str(failed.value)
    assert len(bench.actions) == tries


async def test_the_time_for_a_read_is_limited() -> None:
    bench = Bench(retries=5)
    bench.script.takes = 20.0
    with pytest.raises(CloudUnreachable):
        await bench.play(*[lost()] * 20).nics()
    assert bench.clock.time - NOW <= 65


async def test_a_busy_cloud_stays_busy(bench: Bench) -> None:
    with pytest.raises(CloudBusy, match=r"ServerBusy \(5100\)"):
        await bench.play(*[refusal(5100, "ServerBusy")] * 20).nics()


@pytest.mark.parametrize("code", [1100, 1200, 1400, 2400, 2500, 5100, 5200])
async def test_a_refused_read_is_not_tried_again(bench: Bench, code: int) -> None:
    with pytest.raises(CloudError):
        await bench.play(refusal(code)).nics()
    assert len(bench.actions) == 1


async def test_a_read_stamped_too_old_is_stamped_anew_once(bench: Bench) -> None:
    bench.script.takes = 70.0
    assert len(await bench.play(refusal(1300), Shelf(1)).nics()) == 1
    assert [asked["time_stamp"] for asked in bench.script.asked] == ["2024-01-02T03:04:05Z", "2024-01-02T03:05:15Z"]
    with pytest.raises(ClockSkewed):
        await bench.play(*[refusal(1300)] * 5).nics()
    assert len(bench.actions) == 4


# --- secrets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        OutcomeUnknown(f"http://x/iaas?access_key_id={KEY_ID}&signature=abcd%3D broke", action=""),
        CloudUnreachable(f"key {SECRET}", action=""),
        refusal(1200, f"key [{KEY_ID}] with {SECRET}: signature=abcd= does not match"),
        (502, f"text/{KEY_ID}", f"GET access_key_id={KEY_ID}&signature=abcd".encode()),
        (200, "application/json", f'{{"ret_code":0,"action":"{KEY_ID}"}}'.encode()),
        (200, "application/json", f'{{"ret_code":"{KEY_ID}"}}'.encode()),
    ],
)
async def test_no_key_and_no_signature_in_any_error(bench: Bench, step: Step) -> None:
    with pytest.raises(AgentError) as refused:
        await bench.play(step).delete_nics([MAC])
    shown = "".join(traceback.format_exception(refused.value))
    for err in (refused.value, refused.value.__cause__, refused.value.__context__):
        shown += f"{err!r}{vars(err) if err else ''}"
    for secret in (KEY_ID, SECRET, "abcd"):
        assert secret not in shown


async def test_no_key_in_any_repr(bench: Bench) -> None:
    await bench.play(reply("DeleteNics")).delete_nics([MAC])
    shown = repr(bench.client) + repr(bench.seen) + repr(vars(bench.client))
    assert KEY_ID not in shown
    assert SECRET not in shown
    assert "https://api.qingcloud.com:443" in repr(bench.client)


async def test_close_closes_the_transport(bench: Bench) -> None:
    await bench.client.close()
    assert bench.script.is_closed
