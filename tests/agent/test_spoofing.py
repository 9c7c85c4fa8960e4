"""A hostile container makes links that look like another's NIC: the agent takes none, and waits for the NIC."""

from pathlib import Path

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, simulated
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.nics.model import NicState
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.core.seams.store import EventFilter

SOON = 60.0  # two comparisons confirm that a namespace is gone
SPOOFS = ("mac", "alias", "index", "all", "own NIC")


async def spoof(host: SimulatedHost, what: str, nic_id: str) -> list[str]:
    """Return what the hostile container has afterwards."""
    await host.add("hostile")
    path, victim = netns_of("hostile"), host.table.attachment_of(nic_id)
    assert victim is not None
    alias = link_alias(host.instance_id, nic_id)
    if what == "own NIC":
        host.kernel.change(path, "eth0", mac=nic_id, alias=alias)
    else:
        mac = nic_id if what in ("mac", "all") else "02:00:00:00:00:01"
        ifindex = victim.ifindex if what in ("index", "all") else 0
        host.kernel.add_link(path, mac, "fake", alias if what in ("alias", "all") else "", ifindex=ifindex)
    return [link.name for link in host.kernel.links_in(path)]


@pytest.mark.parametrize("is_hardware", [False, True])
@pytest.mark.parametrize("has_del", [True, False])
@pytest.mark.parametrize("what", SPOOFS)
@in_virtual_time
async def test_the_nic_of_a_dead_container_returns_and_no_other_link_is_taken(
    tmp_path: Path, what: str, *, has_del: bool, is_hardware: bool
) -> None:
    async with simulated(tmp_path, is_hardware=is_hardware, cooldown=1, cooldown_min=1) as host:
        nic_id = (await host.add("c0")).nic_id
        theirs = await spoof(host, what, nic_id)
        host.kernel.kill_netns(netns_of("c0"))
        if has_del:
            await host.delete("c0")
            assert key_of("c0") not in host.table.attachments
        await host.until(lambda: host.nics[nic_id].state is NicState.IDLE, "it is free again", SOON)
        assert key_of("c0") not in host.table.attachments
        assert host.kernel.locations()[nic_id] == host.kernel.parking_path
        assert [link.name for link in host.kernel.links_in(netns_of("hostile"))] == theirs
        if has_del and what != "index":  # that of another namespace is not a likeness
            events = await host.journal.events(EventFilter(1000, nic_id=nic_id))
            assert "nic.spoofed" in [event.name for event in events]
        for n in range(4):
            given = await host.add(f"later{n}")
            assert host.kernel.locations()[given.nic_id] == netns_of(f"later{n}")
        assert not host.model.calls["DetachNics"]
        host.check_invariants()


@pytest.mark.parametrize("is_hardware", [False, True])
@in_virtual_time
async def test_a_copy_at_the_place_of_a_nic_that_moved_is_not_taken_for_it(
    tmp_path: Path, *, is_hardware: bool
) -> None:
    """The container moved its NIC into a nested namespace, and put a link with all its signs at its index."""
    async with simulated(tmp_path, is_hardware=is_hardware) as host:
        attachment = await host.add("c0")
        nic_id, inner = attachment.nic_id, netns_of("inner")
        host.kernel.make_netns(inner)
        host.kernel.move(netns_of("c0"), "eth0", inner)
        alias = link_alias(host.instance_id, nic_id)
        host.kernel.add_link(netns_of("c0"), nic_id, "eth0", alias, ifindex=attachment.ifindex)
        await host.clock.sleep(SOON)
        assert key_of("c0") in host.table.attachments
        await host.delete("c0")
        assert host.kernel.locations()[nic_id] == host.kernel.parking_path
        assert host.kernel.links_in(inner) == ()
        assert [link.fingerprint for link in host.kernel.links_in(netns_of("c0"))] == [""]


@pytest.mark.parametrize("is_hardware", [False, True])
@in_virtual_time
async def test_a_nested_namespace_that_outlives_the_container_gives_the_nic_back(
    tmp_path: Path, *, is_hardware: bool
) -> None:
    """No DEL comes. The link has another MAC, and neither name nor alias of ours."""
    async with simulated(tmp_path, is_hardware=is_hardware) as host:
        nic_id, inner = (await host.add("c0")).nic_id, netns_of("inner")
        host.kernel.make_netns(inner)
        host.kernel.change(netns_of("c0"), "eth0", mac="02:00:00:00:00:01", alias="")
        host.kernel.move(netns_of("c0"), "eth0", inner)
        host.kernel.kill_netns(netns_of("c0"))
        await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "fetched", SOON)
        assert host.kernel.locations()[nic_id] == host.kernel.parking_path
        assert not host.model.calls["DetachNics"]


@pytest.mark.parametrize("is_hardware", [False, True])
@in_virtual_time
async def test_a_fingerprint_is_on_disk_before_a_container_has_the_nic(tmp_path: Path, *, is_hardware: bool) -> None:
    async with simulated(tmp_path, is_hardware=is_hardware, min_idle=0, max_idle=0) as host:
        seen: list[str] = []

        def see(_order: object) -> None:
            seen.extend(nic.fingerprint for nic in host.store.on_disk().nics if nic.state is NicState.ASSIGNED)

        host.kernel.observe("attach", see)
        nic_id = (await host.add("c0")).nic_id  # it comes straight from the host
        assert seen == [host.nics[nic_id].fingerprint]
        assert seen[0] == next(n.fingerprint for n in host.kernel.devices_in(netns_of("c0")) if n.nic_id == nic_id)
