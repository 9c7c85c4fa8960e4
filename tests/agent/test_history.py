"""Events of a whole agent tell what became of each container and NIC, and which calls of the cloud brought it."""

import asyncio

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, on_host, set_faults
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import AgentError, PoolEmpty
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.core.timeline import Timeline, timelines
from qingcloud_cni.sim.cloud.faults import LOSE_REPLY
from qingcloud_cni.sim.topology import FaultSpec

CONF: dict[str, object] = {"cniVersion": "1.1.0", "name": "net", "type": "qingcni"}
POD = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"


async def all_events(host: SimulatedHost) -> tuple[Event, ...]:
    return await host.journal.events(EventFilter(20_000))


async def told(host: SimulatedHost, of: str) -> tuple[Timeline, ...]:
    return timelines(await all_events(host), of)


def names(timeline: Timeline) -> list[str]:
    return [step.name for step in timeline.steps]


@on_host(is_warm=False, min_idle=0)
async def test_a_containers_story_has_every_step_with_its_time_and_the_calls_that_brought_its_nic(
    host: SimulatedHost,
) -> None:
    await host.until(lambda: host.agent.is_initialised, "the first comparison")
    begun = host.clock.now()
    await host.ask(Verb.ADD, "c0", CONF, cni_args=POD)
    (job,) = host.model.state.jobs
    await host.clock.sleep(600.0)
    await host.ask(Verb.DEL, "c0", CONF)
    (timeline,) = await told(host, "c0")
    assert (timeline.subject, timeline.pod, timeline.is_over) == (str(key_of("c0")), "shop/web-1", True)
    assert names(timeline) == [
        "attachment.requested", "attachment.queued", "nic.assigned", "attachment.ready", "nic.released",
    ]  # fmt: skip
    requested, queued, assigned, ready, released = timeline.steps
    assert requested.at == pytest.approx(begun, abs=0.1)
    assert queued.detail == "the cloud has not attached one yet"
    assert 1.0 < assigned.seconds < 10.0
    assert f"queue {assigned.at - requested.at:.3f} s" in ready.detail
    assert released.seconds == pytest.approx(600.0, abs=1.0)
    assert released.detail == "DEL"
    create, attach = timeline.operations
    assert [o.kind for o in (create, attach)] == ["create", "attach"]
    assert all(o.is_over and not o.troubles for o in (create, attach))
    assert (create.job_id, attach.job_id) == ("", job)
    assert begun <= create.at <= attach.at <= assigned.at
    assert attach.seconds > 1.0
    for of in ("c", "shop/web-1", "web-1", str(key_of("c0"))):
        assert await told(host, of) == (timeline,)
    for of in ("eth0", "net", "shop", "web", "c1", ""):
        assert await told(host, of) == ()


@on_host()
async def test_a_nics_story_reaches_from_its_making_to_its_end(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.delete("c0")
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "drained")
    (timeline,) = await told(host, nic_id)
    assert timeline.is_over
    assert names(timeline) == [
        "nic.created", "nic.attaching", "nic.arrived", "nic.parked", "nic.assigned", "attachment.ready",
        "nic.released", "nic.detaching", "nic.deleting", "nic.deleted",
    ]  # fmt: skip
    assert [operation.kind for operation in timeline.operations] == ["create", "attach", "detach", "delete"]
    jobs = [operation.job_id for operation in timeline.operations]
    assert jobs[0] == jobs[3] == ""
    assert {jobs[1], jobs[2]} <= set(host.model.state.jobs)
    (of_operation,) = await told(host, timeline.operations[1].op_id)
    assert of_operation.operations == (timeline.operations[1],)


@on_host()
async def test_each_add_of_the_same_container_is_a_story_of_its_own(host: SimulatedHost) -> None:
    first = (await host.add("c0")).nic_id
    await host.add("c0")  # repeated: the same answer, and nothing new to tell
    host.kernel.kill_netns(netns_of("c0"))
    await host.clock.sleep(60.0)
    second = (await host.add("c0")).nic_id
    one, two = await told(host, "c0")
    assert (one.nic_id, one.is_over, names(one)[-1]) == (first, True, "nic.released")
    assert one.steps[-1].detail == "its link has left the container"
    assert (two.nic_id, two.is_over, names(two)[-1]) == (second, False, "attachment.ready")


@on_host(is_warm=False, min_idle=0)
async def test_the_timeline_of_a_failed_add_has_its_error(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("CreateNics", "refuse", times=1000, code=1400, message="PermissionDenied"))
    with pytest.raises(PoolEmpty):
        await host.add("c0", seconds=20.0)
    (timeline,) = await told(host, "c0")
    assert names(timeline) == ["attachment.requested", "attachment.queued", "attachment.refused"]
    assert timeline.is_over
    assert "PermissionDenied" in timeline.steps[-1].detail
    assert (timeline.nic_id, timeline.operations) == ("", ())


@on_host(is_warm=False, min_idle=0)
async def test_failures_are_shown_with_their_call(host: SimulatedHost) -> None:
    set_faults(host, FaultSpec("CreateNics", LOSE_REPLY), FaultSpec("AttachNics", "fail-job"))
    await host.add("c0", seconds=100.0)
    (timeline,) = await told(host, "c0")
    create, attach = timeline.operations
    assert len(create.troubles) == 1
    assert attach.troubles == ()  # the second attach brought it
    (of_nic,) = await told(host, timeline.nic_id)
    failed = next(o for o in of_nic.operations if o.kind == "attach")
    assert "failed" in failed.troubles[0]
    assert failed.job_id


@on_host()
async def test_a_refused_link_shows_every_nic_that_was_tried(host: SimulatedHost) -> None:
    host.kernel.observe("attach", lambda order: host.kernel.unplug(order.mac), times=1)
    nic_id = (await host.add("c0")).nic_id
    (timeline,) = await told(host, "c0")
    assert names(timeline) == [
        "attachment.requested", "nic.assigned", "nic.released", "nic.assigned", "attachment.ready",
    ]  # fmt: skip
    assert (timeline.nic_id, timeline.is_over) == (nic_id, False)


@on_host()
async def test_no_event_contains_a_key_of_the_cloud(host: SimulatedHost) -> None:
    """Times never go back within what one container waits for, and no key of the cloud is in any text."""
    set_faults(host, *(FaultSpec(a, "refuse", times=2) for a in ("CreateNics", "AttachNics", "DetachNics")))
    results = await asyncio.gather(*(host.add(f"c{n}") for n in range(6)), return_exceptions=True)
    assert not [r for r in results if isinstance(r, BaseException) and not isinstance(r, AgentError)]
    found = await all_events(host)
    assert [e.seq for e in found] == sorted({e.seq for e in found})
    secret = host.topology.secret_access_key
    assert not [e for e in found if secret in e.detail]
    for n in range(6):
        times = [step.at for timeline in timelines(found, f"c{n}") for step in timeline.steps]
        assert times == sorted(times)
