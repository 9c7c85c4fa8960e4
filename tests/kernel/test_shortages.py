"""No descriptor is free: each operation succeeds or says so, and leaves nothing open or out of place."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from machines.agents import limited_files
from machines.nics import ADDRESS, Lab, fd_count, kernel, lab
from qingcloud_cni.core.errors import KernelExhausted, is_shortage
from qingcloud_cni.core.seams.kernel import LinkOrder, ServicePath
from qingcloud_cni.kernel import HostKernel

__all__ = ["kernel", "lab"]  # fixtures

IP = ADDRESS.partition("/")[0]
MOST_FILES = 7  # that any operation has open at once
Call = Callable[[HostKernel, LinkOrder], Awaitable[Any]]
IN_CONTAINER: dict[str, Call] = {
    "inspect": lambda kernel, order: kernel.inspect(order.netns.path, "eth0"),
    "detach": lambda kernel, order: kernel.detach(order.nic, order.netns, 0),
    "search": lambda kernel, order: kernel.search([order.nic]),
    "is_gone": lambda kernel, order: kernel.is_gone(order.nic, order.netns),
    "announce": lambda kernel, order: kernel.announce(order, 2),
}
ON_HOST: dict[str, Call] = {
    "identify": lambda kernel, order: kernel.identify(order.netns.path),
    "survey": lambda kernel, _order: kernel.survey(),
    "survey_all": lambda kernel, order: kernel.survey_all([order.netns.path]),
    "park": lambda kernel, order: kernel.park(order.nic),
    "attach": lambda kernel, order: kernel.attach(order),
    "flush": lambda kernel, _order: kernel.flush([IP]),
    "host_addresses": lambda kernel, _order: kernel.host_addresses(),
    "serve": lambda kernel, _order: kernel.serve(ServicePath()),
    "settings_before": lambda kernel, _order: kernel.settings_before(ServicePath()),
    "restore": lambda kernel, _order: kernel.restore({"net/ipv4/conf/all/arp_announce": "0"}),
}


async def new_order(lab: Lab, kernel: HostKernel) -> LinkOrder:
    return lab.order(lab.plug(), await kernel.identify(lab.path(lab.make_netns("pod"))))


async def is_exhausted(call: Awaitable[Any], spare: int) -> bool:
    """Whether a call with so few descriptors fails for want of them; it leaves none open."""
    files = fd_count()
    try:
        with limited_files(spare):
            await call
    except KernelExhausted as err:
        assert "Too many open files" in str(err)  # noqa: PT017 - it may succeed too
        return True
    finally:
        assert fd_count() == files
    return False


@pytest.mark.parametrize("verb", [*IN_CONTAINER, *ON_HOST])
async def test_an_operation_without_descriptors_says_so(lab: Lab, kernel: HostKernel, verb: str) -> None:
    order = await new_order(lab, kernel)
    for spare in range(MOST_FILES):
        if verb in IN_CONTAINER:
            await kernel.attach(order)
        await is_exhausted((IN_CONTAINER | ON_HOST)[verb](kernel, order), spare)
        assert (await kernel.detach(order.nic, order.netns, 0)).is_parked
        assert lab.is_parked(order.mac)


async def test_an_attach_without_descriptors_leaves_its_nic_parked(lab: Lab, kernel: HostKernel) -> None:
    order = await new_order(lab, kernel)
    await kernel.park(order.nic)
    outcomes = []
    for spare in range(MOST_FILES):
        outcomes.append(await is_exhausted(kernel.attach(order), spare))
        if outcomes[-1]:
            assert lab.is_parked(order.mac)
        else:
            await kernel.detach(order.nic, order.netns, 0)
    assert (outcomes[0], outcomes[-1]) == (True, False)


@pytest.mark.parametrize("spare", [0, 1])
async def test_a_probe_without_descriptors_says_so(lab: Lab, kernel: HostKernel, spare: int) -> None:
    order = await new_order(lab, kernel)
    await kernel.park(order.nic)
    await is_exhausted(kernel.probe(order.mac, IP), spare)
    assert await kernel.probe(order.mac, IP) == ""


async def test_a_namespace_that_cannot_be_opened_now_is_unseen_not_gone(lab: Lab, kernel: HostKernel) -> None:
    order = await new_order(lab, kernel)
    await kernel.attach(order)
    for spare in range(MOST_FILES):
        try:
            with limited_files(spare):
                survey = await kernel.survey_all([order.netns.path])
                assert order.netns.path in (*survey.unseen, *(other.netns.path for other in survey.elsewhere))
                assert not await kernel.is_gone(order.nic, order.netns)
        except KernelExhausted:
            continue


async def test_a_start_without_descriptors_is_worth_a_retry(lab: Lab) -> None:
    """Its status is not one of those after which nothing restarts it."""
    for spare in range(14):
        opening = lab.open_kernel()
        try:
            with limited_files(spare):
                kernel = await opening
        except (KernelExhausted, OSError) as err:
            assert is_shortage(err)  # noqa: PT017
        else:
            await kernel.close()
