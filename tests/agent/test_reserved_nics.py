"""Whatever the cloud or the state file says, no path of the agent touches a NIC of the host's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, simulated
from inprocess.disk import SlowStore
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.nics.changes import Put
from qingcloud_cni.core.nics.model import Attachment, Intent, Netns, Nic, NicState, OpKind
from qingcloud_cni.sim.memory.machine import HOST_PATH
from qingcloud_cni.sim.topology import default_topology

SECOND = "52:54:99:00:00:02"  # a NIC of the host's that the agent did not make
ROLES = ("iface", "default route", "primary")
WRITES = ("AttachNics", "DetachNics", "DeleteNics", "ModifyNicAttributes")


class Watched:
    """A host whose own NICs are watched: their links stay where they are, and no cloud write names them."""

    def __init__(self, host: SimulatedHost, role: str) -> None:
        self.host = host
        (iface,) = (link.nic_id for link in host.kernel.devices_in(HOST_PATH))
        host.kernel.add_link(HOST_PATH, SECOND, "eth1")
        for link in host.kernel.devices_in(HOST_PATH):
            link.nic_id = link.mac
        self.target = iface if role == "iface" else SECOND
        if role == "default route":
            host.kernel.default_route, host.kernel.is_iface_default = "eth1", False
        self.role = role
        self.named: list[str] = []
        host.model.before_call = self._note
        self.before = self.links()

    def _note(self, params: Any) -> None:
        if params.get("action") in WRITES and self.target in params.values():
            self.named.append(params["action"])

    def links(self) -> list[Any]:
        links = [link for link in self.host.kernel.devices_in(HOST_PATH) if link.mac in (self.target, SECOND)]
        return [(link.mac, link.name, link.ifindex, link.is_up, link.alias, link.address) for link in links]

    def check(self) -> None:
        assert self.links() == self.before
        assert not self.named
        assert self.target not in self.host.nics

    def item(self, **fields: Any) -> dict[str, Any]:
        """The target as a NIC of ours, or as the primary one under our name."""
        name = f"qingcni_{self.host.instance_id}_0123456789abcdef"
        return {
            "nic_id": self.target.upper(), "nic_name": name, "status": "in-use", "private_ip": "172.20.1.77",
            "instance_id": self.host.instance_id, "vxnet_id": "vxnet-pods001", "role": int(self.role == "primary"),
            "create_time": "2016-12-23T13:35:56Z",
        } | fields  # fmt: skip


def listed(watched: Watched, **fields: Any) -> Callable[[bytes], bytes]:
    """DescribeNics shows the target as a NIC of ours."""

    def tamper(body: bytes) -> bytes:
        content = json.loads(body)
        if content.get("action") == "DescribeNicsResponse":
            others = [nic for nic in content["nic_set"] if nic["nic_id"] != watched.target]
            content["nic_set"] = [*others, watched.item(**fields)]
            content["total_count"] = len(content["nic_set"])
        return json.dumps(content).encode()

    return tamper


def created(watched: Watched) -> Callable[[bytes], bytes]:
    """CreateNics answers with the target's MAC in the first place."""

    def tamper(body: bytes) -> bytes:
        content = json.loads(body)
        if content.get("action") == "CreateNicsResponse" and content["nics"]:
            content["nics"][0]["nic_id"] = watched.target
        return json.dumps(content).encode()

    return tamper


async def live(watched: Watched) -> None:
    """Fill the pool, serve, release, compare twice, drain."""
    host = watched.host
    await host.until(lambda: host.states().count("idle") >= 3, "warm", 3600.0)
    for name in ("c0", "c1", "c2"):
        await host.add(name)
    for name in ("c0", "c1"):
        await host.delete(name)
    for _ in range(2):
        await host.agent.reconciler.ask(600.0)
        await host.clock.sleep(60.0)
    await host.ask("GC", "", {"cni.dev/valid-attachments": []})
    watched.check()
    host.agent.pool.drain()
    await host.clock.sleep(900.0)
    await host.check_alive()
    watched.check()


@pytest.mark.parametrize("role", ROLES[:2])
@in_virtual_time
async def test_a_create_that_answers_with_the_mac_of_the_hosts_own_nic(tmp_path: Path, role: str) -> None:
    async with simulated(tmp_path, is_started=False) as host:
        watched = Watched(host, role)
        host.cable.tamper = created(watched)
        await host.start()
        await host.until(lambda: host.model.calls["CreateNics"] > 3, "created", 3600.0)
        watched.check()
        host.cable.tamper = lambda body: body
        await live(watched)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("status", ["in-use", "available"])
@in_virtual_time
async def test_a_list_that_calls_the_hosts_own_nic_one_of_ours(tmp_path: Path, role: str, status: str) -> None:
    async with simulated(tmp_path, is_started=False) as host:
        watched = Watched(host, role)
        where = {} if status == "in-use" else {"instance_id": ""}
        host.cable.tamper = listed(watched, status=status, **where)
        await host.start()
        await live(watched)


@pytest.mark.parametrize("role", ROLES)
@in_virtual_time
async def test_a_list_that_calls_it_a_gateway_of_ours(tmp_path: Path, role: str) -> None:
    async with simulated(tmp_path, is_started=False) as host:
        watched = Watched(host, role)
        host.cable.tamper = listed(watched, nic_name=f"hostnic_{host.instance_id}_0123456789abcdef")
        await host.start()
        await live(watched)


OPERATIONS: dict[NicState, OpKind] = {
    NicState.ATTACHING: OpKind.ATTACH, NicState.DETACHING: OpKind.DETACH, NicState.DELETING: OpKind.DELETE,
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES[:2])
@pytest.mark.parametrize("state", NicState)
@in_virtual_time
async def test_a_state_file_that_holds_the_hosts_own_nic(tmp_path: Path, state: NicState, role: str) -> None:
    """As a version without this guard may have left it, in whatever state and operation."""
    async with simulated(tmp_path, is_started=False) as host:
        watched = Watched(host, role)
        store = SlowStore(host.settings.database, host.settings.write_counter, host.disk)
        await store.load()
        name = f"qingcni_{host.instance_id}_0123456789abcdef"
        nic = Nic(watched.target, name, "vxnet-pods001", "172.20.1.77/24", "172.20.1.1", state, host.clock.now())
        rows: list[Nic | Attachment | Intent] = [nic]
        if state is NicState.GATEWAY:
            rows[0] = replace(nic, gateway_index=0)
        if state is NicState.ASSIGNED:
            host.kernel.make_netns(netns_of("old"))
            netns = Netns(netns_of("old"), 4, 1)
            rows.append(Attachment(key_of("old"), nic.nic_id, netns, 1.0, is_ready=True))
        if state in OPERATIONS:
            rows.append(Intent("0123456789abcdef", OPERATIONS[state], 1.0, nic_ids=(nic.nic_id,), job_id="j-1"))
        await store.save([Put(row) for row in rows])
        await store.close()
        await host.start()
        watched.check()
        await live(watched)


@in_virtual_time
async def test_a_nic_of_ours_with_the_best_default_route_is_parked_as_the_hosts_own_has_one_too(
    tmp_path: Path,
) -> None:
    """After a boot a DHCP client of the host may have given it one before the agent starts."""
    async with simulated(tmp_path) as host:
        await host.kill()
        host.kernel.reboot()
        host.clock.boot = "another"
        host.kernel.default_route = "eth2"
        await host.start()
        await host.until(lambda: host.states() == ["idle"] * 3, "parked again")
        await host.kill()
        host.kernel.reboot()
        host.kernel.is_iface_default = False
        await host.start()
        assert len(host.nics) == 2
        host.check_invariants()


@in_virtual_time
async def test_a_nic_of_ours_that_the_cloud_calls_primary_by_mistake_comes_back(tmp_path: Path) -> None:
    async with simulated(tmp_path) as host:
        (nic_id, *_) = host.nics

        def tamper(body: bytes) -> bytes:
            content = json.loads(body)
            for nic in content.get("nic_set") or ():
                nic["role"] = int(nic["role"] or nic["nic_id"] == nic_id)
            return json.dumps(content).encode()

        host.cable.tamper = tamper
        await host.agent.reconciler.ask(600.0)
        assert nic_id not in host.nics
        assert nic_id in host.agent.context.reserved
        host.cable.tamper = lambda body: body
        await host.agent.reconciler.ask(600.0)
        await host.until(lambda: set(host.ours_in_cloud()) == set(host.nics), "adopted again", 900.0)
        assert nic_id in host.nics


@in_virtual_time
async def test_a_nic_that_serves_is_not_given_up_because_the_cloud_calls_it_primary(tmp_path: Path) -> None:
    async with simulated(tmp_path, default_topology("sim", 1)) as host:
        attachment = await host.add("c0")

        def tamper(body: bytes) -> bytes:
            content = json.loads(body)
            for nic in content.get("nic_set") or ():
                nic["role"] = 1
            return json.dumps(content).encode()

        host.cable.tamper = tamper
        await host.agent.reconciler.ask(600.0)
        await host.clock.sleep(120.0)
        assert host.table.attachments[attachment.key] == attachment
        assert "reserved" in {seen.difference.kind for seen in host.agent.reconciler.open}
        host.cable.tamper = lambda body: body
        await host.delete("c0")
        host.check_invariants(strangers=99)
