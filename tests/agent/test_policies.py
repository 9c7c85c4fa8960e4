"""The order in which each policy uses the vxnets, as the cloud's own list of NICs shows it."""

import pytest

from inprocess.agent import SimulatedHost, on_host
from qingcloud_cni.sim.topology import HostSpec, RouterSpec, Topology, VxnetSpec

FULL = 4  # addresses for NICs in a /29: 8 less network, broadcast, the router's and the last one
ONE, TWO, THREE = VXNETS = ["vxnet-small", "vxnet-large1", "vxnet-large2"]
NETWORKS = {"vxnet-nodes": "172.22.0.0/24", ONE: "172.22.1.0/29", TWO: "172.22.2.0/24", THREE: "172.22.3.0/24"}
TOPOLOGY = Topology(
    routers=(RouterSpec("rtr-main", "172.22.0.0/16"),),
    vxnets=tuple(VxnetSpec(vxnet_id, "", network, "rtr-main") for vxnet_id, network in NETWORKS.items()),
    hosts=(HostSpec("host1", "vxnet-nodes", "i-1"),),
)


def created_in(host: SimulatedHost) -> list[str]:
    """Vxnets of this host's NICs in the order in which the cloud made them; the agent's table has the same."""
    vxnets = {nic_id: host.model.state.nics[nic_id].vxnet_id for nic_id in host.ours_in_cloud()}
    assert {nic_id: nic.vxnet_id for nic_id, nic in host.nics.items()} == vxnets
    return [*vxnets.values()]


async def start_with(host: SimulatedHost, room: int) -> None:
    """Start the agent after others have taken all addresses of the small vxnet except *room*."""
    if room < FULL:
        host.console("CreateNics", vxnet=ONE, count=str(FULL - room), nic_name="others")
    await host.start()
    await host.until(lambda: host.states().count("idle") >= host.settings.min_idle, "a warm pool")


async def grow(host: SimulatedHost, room: int = FULL) -> list[str]:
    """Let NICs be made one by one: an ADD takes the idle one, and the pool makes the next."""
    await start_with(host, room)
    for number in range(1, host.settings.max_nics):
        await host.add(f"c{number}")
        await host.until(lambda: "idle" in host.states(), "the next one")
    return created_in(host)


def growing(policy: str, count: int) -> dict[str, object]:
    """Return settings under which the pool makes *count* NICs, each when the one before is taken."""
    return {"policy": policy, "vxnet": VXNETS, "min_idle": 1, "max_idle": 1, "max_nics": count}


@pytest.mark.defect("ancestor-5", "others-27")
@on_host(topology=TOPOLOGY, is_started=False, **growing("FailRotate", FULL + 3))
async def test_fail_rotate_stays_until_the_vxnet_is_full_and_then_uses_the_next(host: SimulatedHost) -> None:
    assert await grow(host) == [ONE] * FULL + [TWO] * 3


@pytest.mark.defect("ancestor-5")
@on_host(topology=TOPOLOGY, is_started=False, **growing("RoundRotate", 8))
async def test_round_rotate_takes_one_vxnet_after_the_other_and_skips_the_full_one(host: SimulatedHost) -> None:
    assert await grow(host, room=2) == [ONE, TWO, THREE, ONE, TWO, THREE, TWO, THREE]


@on_host(topology=TOPOLOGY, policy="RoundRotate", vxnet=VXNETS, min_idle=6, max_idle=6)
async def test_round_rotate_spreads_a_burst_evenly_with_one_create_per_vxnet(host: SimulatedHost) -> None:
    """One attach is enough for all of them."""
    assert sorted(created_in(host)) == sorted(VXNETS * 2)
    assert [host.model.calls[action] for action in ("CreateNics", "AttachNics")] == [3, 1]


@pytest.mark.defect("ancestor-5")
@on_host(topology=TOPOLOGY, is_started=False, **growing("Random", 6))
async def test_random_uses_vxnets_of_the_list_only_and_goes_round_the_full_one(host: SimulatedHost) -> None:
    assert set(await grow(host, room=0)) <= {TWO, THREE}


@pytest.mark.defect("others-30")
@on_host(topology=TOPOLOGY, is_started=False, policy="FailRotate", vxnet=VXNETS, min_idle=5, max_idle=5)
async def test_a_burst_larger_than_the_room_in_a_vxnet_goes_on_in_the_next_one(host: SimulatedHost) -> None:
    """A create that asks for more addresses than are left makes none; what is left is used, then the next vxnet."""
    await start_with(host, room=2)
    assert len(created_in(host)) == 5
    assert created_in(host).count(ONE) <= 2
    assert set(created_in(host)) <= {ONE, TWO}


@pytest.mark.defect("others-11")
@on_host(topology=TOPOLOGY, is_started=False, policy="FailRotate", vxnet=[ONE, TWO], min_idle=0, max_idle=2)
async def test_adds_succeed_while_one_of_the_vxnets_is_full(host: SimulatedHost) -> None:
    """The policy's first choice has no address; the ADD gets a NIC in the next within its time."""
    await start_with(host, room=0)
    attachment = await host.add("c0")
    assert host.nics[attachment.nic_id].gateway == "172.22.2.1"
    assert created_in(host) == [TWO]
