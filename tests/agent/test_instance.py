"""An agent begins nothing in the cloud before the NIC of --iface is known to be one of its instance's NICs."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inprocess import virtual_time
from inprocess.agent import SimulatedHost, simulated
from inprocess.budgets import make_limiter
from inprocess.disk import SlowStore
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.process.instance_id import ask_for_instance, remembered
from qingcloud_cni.cloud import Access, Caller, Client
from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.nics.changes import Put
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import default_topology

OWN, OTHER = "i-simhost1", "i-simhost2"


def of_another_host(body: bytes) -> bytes:
    """The reply, as if each NIC were another instance's."""
    content = json.loads(body)
    for nic in content.get("nic_set") or ():
        nic["instance_id"] = OTHER
    for instance in content.get("instance_set") or ():
        instance["vxnets"] = []
    return json.dumps(content).encode()


def wrong_id(host: SimulatedHost) -> None:
    """From now on agents are told the id of another host."""
    host.instance_id = OTHER


def refusal_of(test: Callable[[], Any]) -> str:
    with pytest.raises(ExceptionGroup) as ended:
        virtual_time.run(test())
    refusal: BaseException = ended.value
    while isinstance(refusal, BaseExceptionGroup):
        (refusal,) = refusal.exceptions
    assert isinstance(refusal, StartRefused)
    return str(refusal)


async def run_for(host: SimulatedHost, seconds: float) -> None:
    for _ in range(int(seconds)):
        await host.clock.sleep(1.0)
        await host.check_alive()


def test_the_id_of_another_host_ends_the_start_and_nothing_is_plugged_in_there(tmp_path: Path) -> None:
    hosts: list[SimulatedHost] = []

    async def main() -> None:
        async with simulated(tmp_path, default_topology("sim", 2), is_started=False) as host:
            hosts.append(host)
            wrong_id(host)
            await host.start()
            await run_for(host, 60.0)

    said = refusal_of(main)
    (host,) = hosts
    (own,) = (nic.nic_id for nic in host.model.state.nics.values() if nic.role and nic.instance_id == OWN)
    assert f"NIC {own} of --iface belongs to instance {OWN}, not {OTHER}; set --instance-id {OWN}" in said
    assert host.model.calls["CreateNics"] == host.model.calls["AttachNics"] == 0


@in_virtual_time
async def test_one_answer_does_not_end_the_start(tmp_path: Path) -> None:
    async with simulated(tmp_path, default_topology("sim", 2), is_started=False) as host:
        lies = iter(range(4))
        host.cable.tamper = lambda body: of_another_host(body) if next(lies, None) is not None else body
        await host.start()
        await host.until(lambda: host.states() == ["idle"] * 3, "warm", 120.0)


@in_virtual_time
async def test_while_the_cloud_is_silent_nothing_is_attached_and_then_the_agent_works(tmp_path: Path) -> None:
    async with simulated(tmp_path, is_started=False) as host:
        host.cable.is_cut = True
        await host.start()
        await run_for(host, 900.0)
        assert not host.agent.is_initialised
        host.cable.is_cut = False
        await host.until(lambda: host.states() == ["idle"] * 3, "warm", 600.0)


@in_virtual_time
async def test_an_agent_with_nics_serves_them_and_writes_nothing_to_the_cloud(tmp_path: Path) -> None:
    """The cloud says that eth0 belongs to another instance, although containers run: it may be wrong."""
    async with simulated(tmp_path, default_topology("sim", 2)) as host:
        await host.add("c0")
        await host.kill()
        host.cable.tamper = of_another_host
        writes = [host.model.calls[action] for action in ("CreateNics", "AttachNics", "DetachNics", "DeleteNics")]
        await host.start()
        await run_for(host, 600.0)
        await host.delete("c0")
        await host.add("c1")
        assert f"belongs to instance {OTHER}, not {OWN}" in host.agent.last_cloud_error
        await run_for(host, 600.0)
        assert writes == [host.model.calls[a] for a in ("CreateNics", "AttachNics", "DetachNics", "DeleteNics")]
        host.cable.tamper = lambda body: body
        await host.until(lambda: host.states().count("idle") >= 3, "refilled", 600.0)


async def fill(host: SimulatedHost, instance_id: str) -> None:
    """A state file with a NIC of this instance."""
    store = SlowStore(host.settings.database, host.settings.write_counter, host.disk)
    await store.load()
    name = f"qingcni_{instance_id}_0123456789abcdef"
    nic = Nic("52:54:99:00:00:09", name, "vxnet-pods001", "172.20.1.9/24", "172.20.1.1", NicState.IDLE, 1.0)
    await store.save([Put(nic)])
    await store.close()


def test_a_wrong_id_ends_the_start_of_an_agent_whose_nics_are_of_another_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with simulated(tmp_path, default_topology("sim", 2), is_started=False) as host:
            await fill(host, OWN)
            wrong_id(host)
            await host.start()
            assert not host.agent.is_initialised  # it serves nothing, for these are not its NICs
            await run_for(host, 60.0)

    assert f"set --instance-id {OWN}" in refusal_of(main)


@in_virtual_time
async def test_a_host_whose_disk_is_a_clone_of_anothers_starts_with_its_own_id(tmp_path: Path) -> None:
    async with simulated(tmp_path, default_topology("sim", 2), is_started=False) as host:
        await fill(host, OTHER)
        await host.start()
        await host.until(lambda: host.states() == ["idle"] * 3, "warm, and the other's NIC is gone", 600.0)


# --- the id where no file has it ---------------------------------------------------------------------------


async def found_by(host: SimulatedHost, *macs: str) -> str:
    access = Access(host.topology.access_key_id, host.topology.secret_access_key, zone=host.topology.zone)
    limiter = make_limiter(host.clock)
    cloud = Client(Caller(access, host.cable, limiter, host.clock, random.Random(1), lambda _call: None))
    return await ask_for_instance(cloud, macs, host.clock, random.Random(1))


def eth0_of(host: SimulatedHost) -> str:
    (link,) = host.kernel.links_in(HOST_PATH)
    return link.mac


@in_virtual_time
async def test_the_cloud_knows_whose_nic_eth0_is(tmp_path: Path) -> None:
    async with simulated(tmp_path, default_topology("sim", 2), is_started=False) as host:
        host.cable.is_cut = True
        finding = asyncio.create_task(found_by(host, eth0_of(host), "52:54:99:99:99:99"))
        await host.clock.sleep(600.0)
        assert not finding.done()
        host.cable.is_cut = False
        assert await finding == OWN


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("i-1 52:54:00:00:00:01 52:54:00:00:00:02\n", "i-1"),
        ("i-1 52:54:00:00:00:01\n", ""),
        ("i-1\n", ""),
        ("I-1 52:54:00:00:00:01 52:54:00:00:00:02", ""),
        ("", ""),
        ("\0\xff", ""),
    ],
)
def test_a_remembered_id_counts_for_the_same_macs(tmp_path: Path, content: str, found: str) -> None:
    path = tmp_path / "found-instance"
    assert remembered(path, ["52:54:00:00:00:02", "52:54:00:00:00:01"]) == ""
    path.write_text(content)
    assert remembered(path, ["52:54:00:00:00:02", "52:54:00:00:00:01"]) == found


@in_virtual_time
async def test_a_mac_that_the_cloud_does_not_know_ends_the_start_after_three_answers(tmp_path: Path) -> None:
    async with simulated(tmp_path, is_started=False) as host:
        with pytest.raises(
            StartRefused, match=r"52:54:99:99:99:99 of --iface .* check --iface.*; or set --instance-id"
        ):
            await found_by(host, "52:54:99:99:99:99")
        assert host.calls == 3
