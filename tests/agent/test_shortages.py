"""Descriptors or memory are used up: whichever call of the kernel meets that, no task ends, and no NIC is lost."""

import asyncio
import inspect
from contextlib import suppress

import pytest

from inprocess.agent import CONFIG, SimulatedHost, netns_of, on_host
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.errors import AgentError, KernelExhausted, wire
from qingcloud_cni.core.seams.kernel import Kernel

NO_VERBS = {"changes", "close"}
VERBS = sorted(name for name, _ in inspect.getmembers(Kernel, inspect.isfunction) if name[0] != "_")
THROUGH_GATEWAY = read_config(
    {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "qingcni",
        "ipMasq": True,
        "ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]},
    }
)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in NO_VERBS])
@on_host()
async def test_a_shortage_in_a_call_of_the_kernel_ends_no_task(host: SimulatedHost, verb: str) -> None:
    await host.add("served")
    await host.add("dies", config=THROUGH_GATEWAY)
    with host.kernel.fail(verb, KernelExhausted(f"{verb}: failed: Too many open files")):
        host.kernel.kill_netns(netns_of("dies"))
        for name, config in (("c1", CONFIG), ("c2", THROUGH_GATEWAY)):
            with suppress(AgentError):
                await host.add(name, config=config, seconds=5.0)
        for name in ("served", "c1"):
            with suppress(AgentError):
                await host.delete(name)
        with suppress(AgentError, TimeoutError):
            await host.agent.reconciler.ask(20.0)
        await host.clock.sleep(120.0)
        await host.check_alive()
    for name in ("served", "c1", "c2"):
        await host.delete(name)
    await host.add("after", config=THROUGH_GATEWAY)
    await host.until(lambda: set(host.states()) <= {"assigned", "idle", "gateway"}, "every NIC is in its place")
    await host.until_calm()
    assert len(host.table.attachments) == 1
    host.check_invariants()


@on_host(max_nics=3)
async def test_an_add_that_meets_a_shortage_uses_up_no_nic(host: SimulatedHost) -> None:
    """The runtime retries it for as long as the shortage lasts."""
    with host.kernel.fail("attach", KernelExhausted("attach: failed: Too many open files")):
        for _ in range(10):
            with pytest.raises(KernelExhausted) as caught:
                await host.add("c0")
            assert wire(caught.value) == (11, 503)
    await asyncio.wait_for(host.add("c0"), 1.0)
