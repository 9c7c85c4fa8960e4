"""Refusals and losses of the cloud while the agent serves: it reports one sentence and loses nothing.

On a virtual clock; lifecycle/test_trouble_on_hosts.py has those that differ over real sockets.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, on_host, set_faults, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.api.views import status_view
from qingcloud_cni.core.errors import PoolEmpty, wire
from qingcloud_cni.sim.cloud.faults import EFFECTS
from qingcloud_cni.sim.topology import FaultSpec, Limits, default_topology

LONG = 100_000  # calls: a fault that lasts until it is taken away


@dataclass(frozen=True)
class Fault:
    action: str
    effect: str
    says: tuple[str, ...]  # in the answer to an ADD that gets no NIC, and in the status


FAULTS = {
    "no connection": Fault("*", "reset", ("the connection was closed",)),
    "silence": Fault("*", "silence", ("no answer",)),
    "502 with HTML": Fault("*", "bad-gateway", ("HTTP 502", "text/html", "not a reply of the API")),
    "no JSON": Fault("DescribeNics", "not-json", ("it is not JSON",)),
    "no JSON from a write": Fault("CreateNics", "not-json", ()),
    "a lost reply": Fault("CreateNics", "lose-reply", ()),
    "busy": Fault("*", "refuse", ("ServerBusy", "(5100)")),
    "call quota": Fault("*", "call-quota", ("CreateNics", "(2500)", "API calls")),
    "NIC quota": Fault("CreateNics", "nic-quota", ("CreateNics", "(2500)", "nics of this account")),
    "address quota": Fault("CreateNics", "address-quota", ("vxnet-pods001", "0 addresses left", "(2500)")),
    "wrong keys": Fault("*", "wrong-keys", ("CreateNics", "(1200)", "check qy_access_key_id")),
    "clock skew": Fault("*", "clock-skew", ("CreateNics", "(1300)", "check the clock")),
    "failing attach job": Fault("AttachNics", "fail-job", ("attach of", "failed")),
    "links that do not come": Fault("AttachNics", "lose-link", ("attach of", "no link within")),
}


def faults_of(fault: Fault) -> list[FaultSpec]:
    first = FaultSpec(fault.action, fault.effect, times=LONG)
    if fault.action != "DescribeNics":
        return [first]
    return [first, FaultSpec("CreateNics", "lose-reply", times=LONG)]  # so that something has to be looked up


def reported_cause(host: SimulatedHost) -> str:
    return status_view(host.agent, "0", 1).cloud_error


@pytest.mark.defect("hostnic-1", "hostnic-5", "hostnic-6")
@pytest.mark.parametrize("name", FAULTS)
@in_virtual_time
async def test_a_fault_of_the_cloud_is_reported_until_it_ends(tmp_path: Path, name: str) -> None:
    """The pool serves; an ADD that it cannot serve says why with code 11; afterwards table and cloud agree."""
    fault = FAULTS[name]
    async with simulated(tmp_path, min_idle=1, max_idle=2) as host:
        set_faults(host, *faults_of(fault))
        await host.add("c0", seconds=1.0)
        if fault.says:  # else nobody notices
            with pytest.raises(PoolEmpty) as refused:
                await host.add("c1", seconds=70.0)
            said = str(refused.value)
            assert wire(refused.value)[0] == 11
            assert all(word in said for word in fault.says), said
            assert "\n" not in said
            assert all(word in reported_cause(host) for word in fault.says), reported_cause(host)
            assert host.agent.is_initialised
            await host.delete("c0")
            await host.until(lambda: "idle" in host.states(), "rested")
            await host.add("c0", seconds=1.0)
        host.check_invariants()
        set_faults(host)
        await host.add("c1", seconds=400.0)  # a vxnet without addresses rests for a growing while
        await host.until_calm()
        await host.until(lambda: "idle" in host.states(), "refilled")
        await host.until(lambda: not reported_cause(host), "no cause any more")
        assert set(host.ours_in_cloud()) == set(host.nics)


GIVING_BACK = [
    (action, effect)
    for action in ("DetachNics", "DeleteNics")
    for effect in ("fail-job", "refuse", "silence", "bad-gateway", "not-json", "lose-reply")
    if action in EFFECTS[effect] or not EFFECTS[effect]
]


@pytest.mark.parametrize(("action", "effect"), GIVING_BACK)
@on_host()
async def test_faults_during_a_release_leave_no_nic(host: SimulatedHost, action: str, effect: str) -> None:
    set_faults(host, FaultSpec(action, effect, times=3))
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "drained")
    assert not host.ours_in_cloud()
    assert host.agent.is_drained()


@pytest.mark.defect("others-9")
@on_host(topology=replace(default_topology("sim", 1), limits=Limits(nics_per_instance=4)), min_idle=1, max_idle=2)
async def test_the_error_of_an_add_names_the_instances_limit(host: SimulatedHost) -> None:
    """As the cloud has it: lower than --instance-nic-limit says."""
    for n in range(3):
        await host.add(f"c{n}")
    with pytest.raises(PoolEmpty, match=r"AttachNics.*holds 4 of at most 4 nics"):
        await host.add("c3", seconds=60.0)
    await host.delete("c0")
    await host.add("c3", seconds=200.0)
    host.check_invariants()
    assert set(host.ours_in_cloud()) == set(host.nics)


@pytest.mark.defect("others-31")
@on_host()
async def test_a_permanently_refused_attach_is_retried_ever_more_rarely_without_new_nics(
    host: SimulatedHost,
) -> None:
    """As on an instance that the cloud takes for ceased: the host is there to ask, so it goes on."""
    refusal = FaultSpec("AttachNics", "refuse", times=LONG, code=1400, message="PermissionDenied, instance ceased")
    set_faults(host, refusal)
    for n in range(3):
        await host.add(f"c{n}")
    with pytest.raises(PoolEmpty, match="instance ceased"):
        await host.add("c3", seconds=60.0)
    created = host.model.calls["CreateNics"]
    before = host.model.calls["AttachNics"]
    await host.clock.sleep(7_200.0)
    assert host.model.calls["AttachNics"] - before <= 2 * 70  # its pause grows to a minute, more or less
    assert host.model.calls["CreateNics"] == created  # those that are there are enough, once they may be attached
    assert set(host.ours_in_cloud()) == set(host.nics)
    set_faults(host)
    await host.add("c3", seconds=2000.0)
