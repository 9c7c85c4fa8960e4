"""Replies with unusable fields reach a whole agent: it sets them aside, says so, and uses the rest."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inprocess.agent import SimulatedHost, on_host, simulated
from inprocess.disk import SlowStore
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.agent.api.views import status_view
from qingcloud_cni.core.errors import CloudUnreachable, PoolEmpty
from qingcloud_cni.core.nics.changes import Put
from qingcloud_cni.core.seams.store import EventFilter

FIRST, SECOND = "vxnet-pods001", "vxnet-pods002"


def change(action: str, field: str, edit: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """A tamperer that edits each item of the list *field* in replies of *action*."""

    def tamper(body: bytes) -> bytes:
        content = json.loads(body)
        if content.get("action") == f"{action}Response":
            for item in content.get(field) or ():
                edit(item)
        return json.dumps(content).encode()

    return tamper


def router_of(vxnet_id: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    def edit(vxnet: dict[str, Any]) -> None:
        if vxnet["vxnet_id"] == vxnet_id:
            vxnet["router"] = {**vxnet["router"], **fields}

    return edit


async def events(host: SimulatedHost, name: str) -> list[str]:
    await host.journal.save()
    return [e.detail for e in await host.store.events(EventFilter(1000, 0)) if e.name == name]


def shown(host: SimulatedHost) -> str:
    return "\n".join(status_view(host.agent, "0", 1).set_aside)


UNUSABLE_ROUTERS: list[dict[str, Any]] = [
    {"ip_network": "172.20.1.7/24"},
    {"ip_network": "fd00::/64"},
    {"ip_network": 7},
    {"manager_ip": "192.0.2.1"},
    {"manager_ip": "garbage"},
    {"manager_ip": {"a": 1}},
]


@pytest.mark.parametrize("fields", UNUSABLE_ROUTERS, ids=str)
@in_virtual_time
async def test_a_vxnet_with_an_unusable_network_is_left_out_and_the_other_one_used(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with simulated(tmp_path, is_started=False, vxnet=[FIRST, SECOND]) as host:
        host.cable.tamper = change("DescribeVxnets", "vxnet_set", router_of(FIRST, **fields))
        await host.start()
        await host.until(lambda: host.states() == ["idle"] * 3, "warm")
        assert {nic.vxnet_id for nic in host.nics.values()} == {SECOND}
        field = f"{FIRST}: vxnet_set.router.{next(iter(fields))}"
        assert field in shown(host)
        assert [field in text for text in await events(host, "cloud.set-aside")] == [True]
        host.check_invariants()


@pytest.mark.parametrize("fields", UNUSABLE_ROUTERS[:2], ids=str)
@in_virtual_time
async def test_an_agent_whose_only_vxnet_is_unusable_waits_until_the_cloud_answers_otherwise(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with simulated(tmp_path, is_started=False) as host:
        host.cable.tamper = change("DescribeVxnets", "vxnet_set", router_of(FIRST, **fields))
        await host.start()
        await host.clock.sleep(600.0)
        await host.check_alive()
        assert host.model.calls["CreateNics"] == 0
        assert f"vxnet {FIRST}: vxnet_set.router." in host.agent.last_cloud_error
        host.cable.tamper = lambda body: body
        await host.until(lambda: host.states() == ["idle"] * 3, "warm")


@on_host(vxnet=[FIRST])
async def test_a_vxnet_that_was_usable_stays_so(host: SimulatedHost) -> None:
    host.cable.tamper = change("DescribeVxnets", "vxnet_set", router_of(FIRST, manager_ip="garbage"))
    with pytest.raises(CloudUnreachable):
        await host.agent.check_vxnets()
    for name in ("c0", "c1", "c2"):
        await host.add(name)
    await host.until(lambda: host.states() == ["assigned"] * 3 + ["idle"] * 3, "refilled")
    assert "manager_ip" in shown(host)


@pytest.mark.parametrize("address", ["fe80::1", "garbage", "192.0.2.9", "172.20.1.1", "172.20.1.255", [], None, 5])
@in_virtual_time
async def test_a_new_nic_without_a_usable_address_is_deleted(tmp_path: Path, address: Any) -> None:
    async with simulated(tmp_path, is_started=False) as host:
        host.cable.tamper = change("CreateNics", "nics", lambda nic: nic.update(private_ip=address))
        await host.start()
        await host.until(lambda: host.model.calls["DeleteNics"] > 2, "created and deleted")
        await host.check_alive()
        assert "which is not a host's in 172.20.1.0/24" in status_view(host.agent, "0", 1).cloud_error
        assert (await events(host, "nic.unaddressed"))[0].startswith(f"{FIRST}: the cloud gave NIC ")
        host.check_invariants()
        host.cable.tamper = lambda body: body
        await host.until(lambda: host.states() == ["idle"] * 3, "warm")
        assert set(host.ours_in_cloud()) == set(host.nics)


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("actions", [("CreateNics",), ("CreateNics", "DescribeNics")], ids=len)
@in_virtual_time
async def test_no_two_nics_are_used_with_one_address(
    tmp_path: Path, actions: tuple[str, ...], *, probe: bool
) -> None:
    """The first one serves; the others are deleted."""
    fields = {"CreateNics": "nics", "DescribeNics": "nic_set"}
    same = {
        action: change(action, fields[action], lambda nic: nic.update(private_ip="172.20.1.9")) for action in actions
    }

    def tamper(body: bytes) -> bytes:
        for edit in same.values():
            body = edit(body)
        return body

    async with simulated(tmp_path, is_started=False, duplicate_probe=probe) as host:
        host.cable.tamper = tamper
        await host.start()
        await host.until(lambda: host.model.calls["DeleteNics"] > 2, "created and deleted")
        await host.agent.reconciler.ask(600.0)
        used = [nic.address for nic in host.nics.values() if nic.address]
        assert len(used) == len(set(used)) > 0
        assert "172.20.1.9, which NIC " in (await events(host, "nic.unaddressed"))[0]
        await host.add("c0")
        host.check_invariants()
        host.cable.tamper = lambda body: body
        await host.until(lambda: host.states().count("idle") == 3, "warm", 3600.0)


@on_host()
async def test_nics_that_the_list_gives_one_address_keep_theirs(host: SimulatedHost) -> None:
    had = {nic.nic_id: nic.address for nic in host.nics.values()}
    host.cable.tamper = change("DescribeNics", "nic_set", lambda nic: nic.update(private_ip="172.20.1.99"))
    await host.agent.reconciler.ask(600.0)
    assert {nic.nic_id: nic.address for nic in host.nics.values()} == had
    assert [d.kind for d in status_view(host.agent, "0", 1).differences] == ["unusable"] * 3


@on_host()
async def test_a_nic_without_an_address_serves_nothing_until_the_cloud_gives_it_one(host: SimulatedHost) -> None:
    """Somebody may attach one before the agent has deleted it."""
    await host.kill()
    store = SlowStore(host.settings.database, host.settings.write_counter, host.disk)
    (nic, *others) = (await store.load()).nics
    await store.save([Put(replace(nic, address=""))])
    await store.close()
    host.cable.is_cut = True
    await host.start()
    served = {(await host.add(name)).nic_id for name in ("c0", "c1")}
    assert served == {other.nic_id for other in others}
    with pytest.raises(PoolEmpty):
        await host.add("c2", seconds=5.0)
    host.cable.is_cut = False
    await host.add("c2", seconds=300.0)
    await host.until(lambda: host.nics[nic.nic_id].address == nic.address, "readdressed", 300.0)


@on_host()
async def test_a_create_that_names_a_nic_which_serves_changes_nothing_for_it(host: SimulatedHost) -> None:
    attachment = await host.add("c0")
    host.cable.tamper = change("CreateNics", "nics", lambda nic: nic.update(nic_id=attachment.nic_id))
    for name in ("c1", "c2"):
        await host.add(name)
    await host.until(lambda: host.states().count("idle") >= 3, "refilled by what the lookup found", 3600.0)
    assert host.table.attachments[attachment.key].nic_id == attachment.nic_id
    assert set(host.ours_in_cloud()) == set(host.nics)


ODD_FIELDS: list[tuple[str, str, dict[str, Any]]] = [
    ("DescribeJobs", "job_set", {"error_codes": []}),
    ("DescribeInstances", "instance_set", {"transition_status": {}, "vxnets": ""}),
    ("DescribeInstances", "instance_set", {"status": 5, "transition_status": [1]}),
    ("DescribeNics", "nic_set", {"enable_aspoof": "no", "create_time": 5, "status_time": {}}),
    ("DescribeNics", "nic_set", {"vxnet_id": []}),
    ("DescribeVxnets", "vxnet_set", {"vxnet_name": 5, "available_ip_count": "many"}),
]


@pytest.mark.parametrize(("action", "field", "fields"), ODD_FIELDS)
@in_virtual_time
async def test_optional_fields_of_other_types_hinder_nothing(
    tmp_path: Path, action: str, field: str, fields: dict[str, Any]
) -> None:
    """The agent creates, serves, releases and compares as with a clean cloud."""
    async with simulated(tmp_path, is_started=False, max_idle=3, cooldown=0, idle_ttl=5) as host:
        host.cable.tamper = change(action, field, lambda item: item.update(fields))
        await host.start()
        await host.until(lambda: host.states() == ["idle"] * 3, "warm")
        for name in ("c0", "c1"):
            await host.add(name)
        await host.until(lambda: host.states().count("idle") == 3, "refilled")
        for name in ("c0", "c1"):
            await host.delete(name)
        await host.until(lambda: len(host.nics) == 3 and not host.table.intents, "shrunk", 3600.0)
        await host.agent.reconciler.ask(600.0)
        assert set(host.ours_in_cloud()) == set(host.nics)
        host.check_invariants()


@in_virtual_time
async def test_long_text_with_control_characters_is_escaped_before_table_and_status(tmp_path: Path) -> None:
    text = "\x1b[2J\u202e" + "x" * 9999
    async with simulated(tmp_path) as host:
        host.cable.tamper = change("DescribeNics", "nic_set", lambda nic: nic.update(nic_name=text))
        await host.agent.reconciler.ask(600.0)
        found = status_view(host.agent, "0", 1).differences
        assert len(found) == 3
        for difference in found:
            assert difference.detail.isprintable()
            assert len(difference.detail) < 300
        for detail in await events(host, "drift.seen"):
            assert detail.isprintable()
