"""After loss or damage of the state file the agent rebuilds the table from cloud and kernel, and containers go on."""

import random
from pathlib import Path
from typing import Any

import pytest

from inprocess.agent import SimulatedHost, key_of, netns_of, on_host, set_faults, simulated
from inprocess.damage import DAMAGES, Damage
from inprocess.virtual_time import in_virtual_time
from qingcloud_cni.core.cni.network_config import read_config
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.nics.model import Attachment, AttachmentKey, NicState
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.core.seams.kernel import ServicePath
from qingcloud_cni.core.seams.store import EventFilter
from qingcloud_cni.sim.topology import FaultSpec

SEEDS = 4  # of each damage
CONF: dict[str, object] = {"cniVersion": "1.1.0", "name": "net", "type": "qingcni", "dns": {"domain": "local"}}
SERVICES: dict[str, object] = {"ipam": {"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]}, "ipMasq": True}


async def lose_state(host: SimulatedHost) -> None:
    """The agent is killed, and when it is back its file is not."""
    await host.kill()
    for file in host.settings.state_dir.glob("agent.db*"):
        file.unlink()
    await host.start()


async def compared(host: SimulatedHost) -> None:
    await host.until(lambda: host.agent.is_cloud_compared, "compared with the cloud")


def nameless(host: SimulatedHost) -> list[Attachment]:
    return [a for a in host.table.attachments.values() if a.key.is_unclaimed]


@on_host()
async def test_adopted_nics_cool_down_because_their_last_use_is_unknown(
    host: SimulatedHost,
) -> None:
    nics = set(host.nics)
    await lose_state(host)
    await compared(host)
    await host.until(lambda: {host.nics[n].state for n in nics} == {NicState.COOLING}, "parked", 1.0)
    begun = host.clock.now()
    attachment = await host.add("c0")
    assert attachment.nic_id not in nics or host.clock.now() - begun >= host.settings.cooldown_min
    await host.until(lambda: all(host.nics[n].state is NicState.IDLE for n in nics), "rested", 140.0)
    assert host.clock.now() - begun >= host.settings.cooldown - 1.0
    assert set(host.ours_in_cloud()) == set(host.nics)


@pytest.mark.defect("others-15")
@on_host()
async def test_the_nic_of_a_living_container_stays_with_it(host: SimulatedHost) -> None:
    before = await host.add("c0")
    await lose_state(host)
    await compared(host)
    (found,) = nameless(host)
    assert (found.nic_id, found.netns, found.ifindex) == (before.nic_id, before.netns, before.ifindex)
    assert found.routes == before.routes
    assert host.nics[before.nic_id].state is NicState.ASSIGNED
    await host.ask(Verb.GC, "", CONF | {"cni.dev/valid-attachments": []})
    for n in range(1, 5):
        assert (await host.add(f"c{n}")).nic_id != before.nic_id
    for n in range(1, 5):
        await host.delete(f"c{n}")
    host.agent.pool.drain()
    await host.until(lambda: set(host.nics) == {before.nic_id}, "all others are given back")
    await host.clock.sleep(300)
    assert [link.mac for link in host.kernel.links_in(netns_of("c0"))] == [before.nic_id]
    await host.kill()
    await host.start()  # what was found is on disk like everything else
    assert [a.nic_id for a in nameless(host)] == [before.nic_id]
    host.kernel.kill_netns(netns_of("c0"))
    await host.until(lambda: host.nics[before.nic_id].state is NicState.COOLING, "its container is gone", 60.0)


@pytest.mark.parametrize("is_hardware", [False, True])
@pytest.mark.parametrize("is_cloud_silent", [False, True])
@pytest.mark.parametrize("sign", ["all", "mac changed", "name changed", "both"])
@in_virtual_time
async def test_a_del_frees_the_nic_of_a_container_that_the_table_does_not_know(
    tmp_path: Path, sign: str, *, is_cloud_silent: bool, is_hardware: bool
) -> None:
    """Only the cloud tells whose NIC it is, so until its answer the link stays. Hardware is known by its own MAC."""
    async with simulated(tmp_path, is_hardware=is_hardware) as host:
        nic_id = (await host.add("c0")).nic_id
        (link,) = host.kernel.devices_in(netns_of("c0"))
        if sign in ("mac changed", "both"):
            link.mac = "02:00:00:00:00:01"
        if sign in ("name changed", "both"):
            link.name = "net7"
        is_hidden = link.mac != nic_id and not is_hardware
        if is_cloud_silent:
            set_faults(host, FaultSpec("DescribeInstances", "refuse", times=10))
        await lose_state(host)
        if not is_cloud_silent:
            await compared(host)
        for _ in range(2):
            await host.agent.attachments.delete(AttachmentKey("net", "c0", link.name), _del(), netns_of("c0"))
        assert bool(host.kernel.links_in(netns_of("c0"))) == (is_cloud_silent or is_hidden)
        await compared(host)
        if is_hidden:  # nobody knows where it is, but it may be there
            await host.clock.sleep(3600.0)
            assert host.nics[nic_id].state is NicState.MISSING
            assert host.kernel.locations()[nic_id] == netns_of("c0")
            host.kernel.kill_netns(netns_of("c0"))
        await host.until(lambda: host.kernel.locations().get(nic_id) == host.kernel.parking_path, "parked", 5.0)
        await host.until(lambda: host.nics[nic_id].released > 0.0, "its address cools down", 5.0)
        assert not host.table.attachments
        names = [e.name for e in await host.journal.events(EventFilter(1000, nic_id=nic_id))]
        assert ("nic.fetched" in names) == (is_cloud_silent and not is_hidden)
        assert ("attachment.named" in names) == (not is_cloud_silent and not is_hidden)
        host.check_invariants()


@pytest.mark.parametrize("is_hardware", [False, True])
@in_virtual_time
async def test_a_rebuilt_table_takes_no_link_that_only_looks_like_a_nic(tmp_path: Path, *, is_hardware: bool) -> None:
    """One container poses as another. Hardware tells the truth; of the simulator both wait until they are home."""
    async with simulated(tmp_path, is_hardware=is_hardware) as host:
        first, second = (await host.add("c0")).nic_id, (await host.add("c1")).nic_id
        host.kernel.change(netns_of("c1"), "eth0", mac=first)
        host.kernel.add_link(netns_of("c1"), first, "copy", link_alias(host.instance_id, first))
        await lose_state(host)
        await compared(host)
        await host.clock.sleep(3600.0)
        found = {a.nic_id: a.netns.path for a in nameless(host)}
        assert found == ({first: netns_of("c0"), second: netns_of("c1")} if is_hardware else {})
        assert {host.kernel.locations()[n] for n in (first, second)} == {netns_of("c0"), netns_of("c1")}
        copies = [link.name for link in host.kernel.links_in(netns_of("c1")) if not link.fingerprint]
        assert copies == ["copy"]
        for name in ("c0", "c1"):
            host.kernel.kill_netns(netns_of(name))
        parking = host.kernel.parking_path
        await host.until(lambda: {host.kernel.locations().get(n) for n in (first, second)} == {parking}, "home", 60.0)
        await host.clock.sleep(1.0)
        assert not host.table.attachments
        host.check_invariants()


def _del() -> Any:
    from qingcloud_cni.agent.base.attachment_lock import CniCall

    return CniCall(Verb.DEL)


@on_host()
async def test_a_del_takes_nothing_from_a_container_that_another_request_named(host: SimulatedHost) -> None:
    """A NIC stays with its attachment, whatever namespace, interface or container id the DEL names."""
    nic_id = (await host.add("c0")).nic_id
    for key in (AttachmentKey("net", "other", "eth0"), AttachmentKey("other", "c0", "eth0")):
        await host.agent.attachments.delete(key, _del(), netns_of("c0"))
    assert [link.mac for link in host.kernel.links_in(netns_of("c0"))] == [nic_id]
    await lose_state(host)
    await compared(host)
    host.kernel.make_netns(netns_of("empty"))
    for path in (netns_of("empty"), netns_of("none"), "", "/run/netns/host"):
        await host.agent.attachments.delete(key_of("c0"), _del(), path)
    await host.agent.attachments.delete(AttachmentKey("net", "c0", "net1"), _del(), netns_of("c0"))
    assert [link.mac for link in host.kernel.links_in(netns_of("c0"))] == [nic_id]
    assert len(nameless(host)) == 1


@on_host()
async def test_a_repeated_add_and_a_check_find_what_the_first_add_made(host: SimulatedHost) -> None:
    first = await host.ask(Verb.ADD, "c0", CONF, cni_args="K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop")
    second = await host.ask(Verb.ADD, "c1", CONF)
    await lose_state(host)
    await compared(host)
    assert len(nameless(host)) == 2
    await host.ask(Verb.CHECK, "c1", CONF | {"prevResult": second})
    assert await host.ask(Verb.ADD, "c0", CONF, cni_args="K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop") == first
    assert not nameless(host)
    assert host.table.attachments[key_of("c0")].workload.pod_name == "web"
    await host.ask(Verb.CHECK, "c0", CONF | {"prevResult": first})


@on_host()
async def test_an_add_that_names_a_container_is_answered_when_the_name_is_on_disk(host: SimulatedHost) -> None:
    first = await host.ask(Verb.ADD, "c0", CONF)
    await lose_state(host)
    await compared(host)
    await host.journal.save()
    host.disk.seconds = 0.5
    assert await host.ask(Verb.ADD, "c0", CONF) == first
    assert [a.key for a in host.store.on_disk().attachments] == [key_of("c0")]


@on_host(vxnet=["vxnet-pods001", "vxnet-pods002"], policy="RoundRotate", min_idle=4, max_idle=4)
async def test_the_gateway_goes_on_serving_meanwhile(host: SimulatedHost) -> None:
    config = read_config(CONF | SERVICES)
    for n in range(4):
        await host.add(f"c{n}", config=config)
    served = host.kernel.path
    assert len(served.gateways) == 2
    assert served.masquerade
    serving = host.kernel.observe("serve")
    set_faults(host, FaultSpec("DescribeInstances", "refuse", times=1000))
    await lose_state(host)
    await host.clock.sleep(90.0)
    assert not host.agent.is_cloud_compared
    assert not serving.calls
    set_faults(host)
    await compared(host)
    await host.clock.sleep(120.0)
    assert serving.calls
    assert {path.gateways for (path,) in serving.calls} == {served.gateways}
    assert {path.masquerade for (path,) in serving.calls} == {served.masquerade}
    for n in range(4):
        await host.delete(f"c{n}")
    host.agent.pool.drain()
    await host.until(lambda: not host.nics, "all is given back")
    assert host.kernel.path == ServicePath()


# --- damaged ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("part", ["agent.db", "agent.db-wal"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
@in_virtual_time
async def test_damage_of_the_state_file_neither_moves_nor_loses_a_nic(
    tmp_path: Path, damage: Damage, part: str, seed: int
) -> None:
    rng = random.Random(f"{damage.__name__} {part} {seed}")
    is_hardware = seed % 2 == 1
    async with simulated(
        tmp_path, seed=seed, is_hardware=is_hardware, max_nics=20, cooldown=10, cooldown_min=5
    ) as host:
        alive: dict[str, str] = {}
        for n in range(rng.randrange(4, 16)):
            alive[f"c{n}"] = (await host.add(f"c{n}")).nic_id
            if rng.random() < 0.6:
                gone = rng.choice(sorted(alive))
                del alive[gone]
                await host.delete(gone)
                host.kernel.kill_netns(netns_of(gone))
            await host.clock.sleep(rng.choice((0.0, 1.0, 30.0)))
        await _kill_with(host, rng, part, damage)
        await host.start()
        await compared(host)
        await host.clock.sleep(rng.choice((0.0, 60.0)))
        _check(host, alive)
        for n in range(2):
            alive[f"later{n}"] = (await host.add(f"later{n}")).nic_id
        _check(host, alive)
        for name in rng.sample(sorted(alive), len(alive) // 2):
            await host.delete(name)
            del alive[name]
            assert host.kernel.links_in(netns_of(name)) == (), name
        for name in sorted(alive):  # the others die without a DEL
            host.kernel.kill_netns(netns_of(name))
        await host.clock.sleep(300.0)
        await host.until_calm()
        assert not host.table.attachments
        assert set(host.ours_in_cloud()) == set(host.nics)
        parked = {link.mac for link in host.kernel.links_in(host.kernel.parking_path)}
        assert parked == set(host.nics), host.states()


async def _kill_with(host: SimulatedHost, rng: random.Random, part: str, damage: Damage) -> None:
    """Kill the agent; its files are as they were at that moment, one of them damaged."""
    files = {p.name: p.read_bytes() for p in host.settings.state_dir.glob("agent.db*")}
    await host.kill()
    for path in host.settings.state_dir.glob("agent.db*"):
        path.unlink()
    for name, content in files.items():
        raw = bytearray(content)
        if name == part:
            damage(rng, raw)
        host.settings.database.with_name(name).write_bytes(raw)


def _check(host: SimulatedHost, alive: dict[str, str]) -> None:
    host.check_invariants()
    seen: set[str] = set()
    for path in host.paths():
        macs = {link.mac for link in host.kernel.links_in(path)}
        assert not seen & macs
        seen |= macs
    for name, nic_id in alive.items():
        assert [link.mac for link in host.kernel.links_in(netns_of(name))] == [nic_id], name
