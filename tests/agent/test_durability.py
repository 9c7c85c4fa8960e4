"""Calls of the cloud, moves of links and answers to the runtime are on disk before they happen."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, on_host, set_faults
from qingcloud_cni.core.nics.model import Intent, NicState, OpKind
from qingcloud_cni.sim.cloud.faults import LOSE_REPLY
from qingcloud_cni.sim.topology import FaultSpec

DISK = 0.02  # seconds that a save takes, so that a caller who does not wait is noticed
KINDS = {
    "CreateNics": OpKind.CREATE,
    "AttachNics": OpKind.ATTACH,
    "DetachNics": OpKind.DETACH,
    "DeleteNics": OpKind.DELETE,
}


class Witness:
    """Reads the disk whenever the cloud gets a call that writes."""

    def __init__(self, host: SimulatedHost) -> None:
        self.seen: set[str] = set()
        self.unannounced: list[str] = []
        self._host = host
        host.model.before_call = self._see

    def _see(self, params: Mapping[str, str]) -> None:
        action = params["action"]
        if action in KINDS:
            self.seen.add(action)
            intents = [i for i in self._host.store.on_disk().intents if i.kind is KINDS[action]]
            if not any(_announces(intent, params) for intent in intents):
                self.unannounced.append(f"{action} {dict(params)}: {intents}")


def _announces(intent: Intent, params: Mapping[str, str]) -> bool:
    if intent.kind is OpKind.CREATE:
        return (intent.name, intent.count) == (params["nic_name"], int(params["count"]))
    nic_ids = {value for name, value in params.items() if name.startswith("nics.")}
    return nic_ids <= set(intent.nic_ids)


@on_host(disk_seconds=DISK)
async def test_every_cloud_write_was_announced_on_disk(host: SimulatedHost) -> None:
    witness = Witness(host)
    await asyncio.gather(*(host.add(f"c{n}") for n in range(5)))
    set_faults(host, *(FaultSpec(action, LOSE_REPLY) for action in KINDS))
    for n in range(5):
        await host.delete(f"c{n}")
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "drained")
    assert witness.seen == set(KINDS)
    assert not witness.unannounced


@on_host(disk_seconds=DISK)
async def test_an_attachment_is_on_disk_before_its_link_moves(host: SimulatedHost) -> None:
    before: list[tuple[str, bool]] = []

    def see(_order: object) -> None:
        before.extend((a.nic_id, a.is_ready) for a in host.store.on_disk().attachments)

    host.kernel.observe("attach", see)
    attachment = await host.add("c0")
    assert before == [(attachment.nic_id, False)]
    assert attachment.is_ready
    (recorded,) = host.store.on_disk().attachments
    assert replace(recorded, is_ready=True, ifindex=attachment.ifindex, mtu=attachment.mtu) == attachment
    await host.clock.sleep(2 * DISK)
    assert host.store.on_disk().attachments == (attachment,)


@on_host(disk_seconds=DISK)
async def test_an_attachment_killed_as_it_is_answered_is_found_as_it_was_answered(host: SimulatedHost) -> None:
    """That it is ready is not on disk yet; the kernel shows it."""
    answered = await host.add("c0")
    await host.kill()
    await host.start()
    assert host.table.attachments[key_of("c0")] == answered
    assert await host.add("c0") == answered


def meddle(host: SimulatedHost, what: str) -> None:
    """What c0 may do to its link, or what its ADD had not done yet when it was cut off."""
    (link,) = host.kernel.devices_in(netns_of("c0"))
    match what:
        case "down":
            link.is_up = False
        case "address":
            link.address = ""
        case "route":
            link.routes = link.routes[1:]
        case "name":
            link.name = "renamed"
        case "alias":
            link.alias = ""
        case "mac":
            link.mac = "02:00:00:00:00:01"


@pytest.mark.parametrize("what", ["down", "address", "route", "name", "alias", "mac"])
@on_host(disk_seconds=DISK)
async def test_a_link_in_its_container_stays_there_whatever_became_of_it(host: SimulatedHost, what: str) -> None:
    """That ADD may have been answered. If it is repeated, the container gets a whole NIC."""
    answered = await host.add("c0")
    await host.kill()
    meddle(host, what)
    await host.start()
    (kept,) = host.table.attachments.values()
    assert kept.is_ready
    assert kept.nic_id == answered.nic_id
    assert [link.nic_id for link in host.kernel.devices_in(netns_of("c0"))] == [answered.nic_id]
    again = await host.add("c0")
    assert again.routes == answered.routes
    (link,) = host.kernel.devices_in(netns_of("c0"))
    assert (link.name, link.mac, link.is_up) == ("eth0", again.nic_id, True)
    await host.delete("c0")
    assert not host.kernel.links_in(netns_of("c0"))


@on_host(disk_seconds=DISK)
async def test_a_link_that_is_in_no_container_was_not_answered_and_is_taken_back(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.kill()
    host.kernel.kill_netns(netns_of("c0"))
    await host.clock.sleep(5.0)
    host.kernel.make_netns(netns_of("c0"))
    await host.start()
    await host.until(lambda: host.nics[nic_id].state is NicState.COOLING, "parked")
    assert not host.table.attachments


@on_host(disk_seconds=DISK)
async def test_a_del_is_answered_when_the_cooldown_of_its_address_is_on_disk(host: SimulatedHost) -> None:
    nic_id = (await host.add("c0")).nic_id
    await host.delete("c0")
    disk = host.store.on_disk()
    assert disk.attachments == ()
    (nic,) = (n for n in disk.nics if n.nic_id == nic_id)
    assert nic.state is NicState.COOLING
    assert nic.released == nic.since


@on_host(max_nics=3, cooldown=0)
async def test_requests_leave_no_lock_and_no_move(host: SimulatedHost) -> None:
    for n in range(20):
        await asyncio.gather(host.add(f"c{n}"), host.add(f"c{n}"))
        await asyncio.gather(host.delete(f"c{n}"), host.delete(f"c{n}"))
    await host.clock.sleep(60)
    assert all(key_of(f"c{n}") not in host.agent.attachments.lock for n in range(20))
    assert not host.moves
    assert key_of("c0") not in host.table.attachments
