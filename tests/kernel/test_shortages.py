"""No descriptor is free: each operation succeeds or says so, and leaves nothing open or out of place."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from machines.agents import limited_files
from machines.nics import ADDRESS, Lab, fd_count, kernel, lab
from qingcloud_cni.core.errors import KernelExhausted, is_shortage
from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import ServicePath
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.links.link_operations import LinkOperations

__all__ = ["kernel", "lab"]  # fixtures

MOST_FILES = 6  # that any operation has open at once
Call = Callable[[HostKernel, Lab, str, Netns], Awaitable[Any]]
CALLS: dict[str, Call] = {
    "identify": lambda kernel, _lab, _mac, netns: kernel.identify(netns.path),
    "inspect": lambda kernel, _lab, _mac, netns: kernel.inspect(netns.path, "eth0"),
    "survey": lambda kernel, _lab, _mac, _netns: kernel.survey(),
    "survey_all": lambda kernel, _lab, _mac, netns: kernel.survey_all([netns.path]),
    "park": lambda kernel, lab, mac, _netns: kernel.park(lab.record(mac)),
    "attach": lambda kernel, lab, mac, netns: kernel.attach(lab.order(mac, netns)),
    "detach": lambda kernel, lab, mac, netns: kernel.detach(lab.record(mac), netns, 0),
    "search": lambda kernel, lab, mac, _netns: kernel.search([lab.record(mac)]),
    "is_gone": lambda kernel, lab, mac, netns: kernel.is_gone(lab.record(mac), netns),
    "announce": lambda kernel, lab, mac, netns: kernel.announce(lab.order(mac, netns), 2),
    "flush": lambda kernel, _lab, _mac, _netns: kernel.flush([ADDRESS.partition("/")[0]]),
    "host_addresses": lambda kernel, _lab, _mac, _netns: kernel.host_addresses(),
    "serve": lambda kernel, _lab, _mac, _netns: kernel.serve(ServicePath()),
    "settings_before": lambda kernel, _lab, _mac, _netns: kernel.settings_before(ServicePath()),
    "restore": lambda kernel, _lab, _mac, _netns: kernel.restore({"net/ipv4/conf/all/arp_announce": "0"}),
}


@pytest.mark.parametrize("verb", CALLS)
async def test_an_operation_without_descriptors_says_so_and_changes_nothing(
    lab: Lab, kernel: HostKernel, verb: str
) -> None:
    mac, netns = lab.plug(), await kernel.identify(lab.path(lab.make_netns("pod")))
    for spare in range(MOST_FILES):
        if verb in {"detach", "inspect", "is_gone", "search", "announce"}:
            await kernel.attach(lab.order(mac, netns))
        files = fd_count()
        with limited_files(spare):
            try:
                await CALLS[verb](kernel, lab, mac, netns)
            except KernelExhausted as err:
                assert "Too many open files" in str(err)  # noqa: PT017 - it may succeed too
        assert fd_count() == files
        assert (await kernel.detach(lab.record(mac), netns, 0)).is_parked
        assert lab.is_parked(mac)


@pytest.mark.parametrize("spare", [0, 1])
async def test_a_probe_without_descriptors_says_so(lab: Lab, kernel: HostKernel, spare: int) -> None:
    mac = lab.plug()
    await kernel.park(lab.record(mac))
    with limited_files(spare):
        try:
            assert await kernel.probe(mac, ADDRESS.partition("/")[0]) == ""
        except KernelExhausted as err:
            assert is_shortage(err.__cause__ or err)  # noqa: PT017
    assert await kernel.probe(mac, ADDRESS.partition("/")[0]) == ""


async def test_a_namespace_that_cannot_be_opened_now_is_unseen_not_gone(lab: Lab, kernel: HostKernel) -> None:
    mac, pod = lab.plug(), lab.make_netns("pod")
    netns = await kernel.identify(lab.path(pod))
    await kernel.attach(lab.order(mac, netns))
    for spare in range(MOST_FILES):
        with limited_files(spare):
            try:
                survey = await kernel.survey_all([netns.path])
                assert netns.path in (*survey.unseen, *(other.netns.path for other in survey.elsewhere))
                assert not await kernel.is_gone(lab.record(mac), netns)
            except KernelExhausted:
                continue


async def test_a_start_without_descriptors_is_worth_a_retry(lab: Lab) -> None:
    """Its status is not one of those after which nothing restarts it."""
    for spare in range(12):
        with limited_files(spare):
            try:
                kernel = await HostKernel.open(lab.instance_id, host_netns=lab.path(lab.host))
            except (KernelExhausted, OSError) as err:
                assert is_shortage(err)  # noqa: PT017
                continue
            await kernel.close()


def test_every_operation_is_here() -> None:
    told = {name for name in vars(LinkOperations) if not name.startswith("_")} & set(CALLS)
    assert told >= {"identify", "inspect", "survey", "survey_all", "park", "attach", "detach", "search", "is_gone"}
