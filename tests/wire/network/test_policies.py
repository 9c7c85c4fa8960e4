"""The order in which each policy uses the vxnets, as the cloud's own list of NICs shows it."""

from collections.abc import Iterator

import pytest
import yaml

from machines.hosts import Host, NewHost
from machines.simulator import Sim, needs_root, running_sim

pytestmark = needs_root

FULL = 4  # addresses for NICs in a /29: 8 less network, broadcast, the router's and the last one
SMALL = ("vxnet-fail1", "vxnet-round1", "vxnet-random1")
LARGE = tuple(f"vxnet-{policy}{n}" for policy in ("fail", "round", "random") for n in (2, 3))


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """Three vxnets for each policy, the first of them small."""
    router = {"router_id": "rtr-main", "vpc_network": "172.22.0.0/16"}
    vxnets = [{"vxnet_id": "vxnet-nodes", "network": "172.22.0.0/24"}]
    vxnets += [{"vxnet_id": v, "network": f"172.22.{n}.0/29"} for n, v in enumerate(SMALL, 1)]
    vxnets += [{"vxnet_id": v, "network": f"172.22.{n}.0/24"} for n, v in enumerate(LARGE, 11)]
    topology = {
        "routers": [router],
        "vxnets": [vxnet | {"router_id": "rtr-main"} for vxnet in vxnets],
        "hosts": [{"name": f"host{n}", "vxnet_id": "vxnet-nodes"} for n in range(1, 7)],
    }
    file = tmp_path_factory.mktemp("topology") / "policies.yaml"
    file.write_text(yaml.safe_dump(topology))
    with running_sim("--topology", str(file)) as running:
        yield running


def created_in(host: Host) -> list[str]:
    """Vxnets of this host's NICs in the order in which the cloud made them; the host's own table holds the same."""
    nics = host.cloud_nics()
    assert {nic["nic_id"]: nic["vxnet_id"] for nic in host.nics()} == {
        nic_id: nic["vxnet_id"] for nic_id, nic in nics.items()
    }
    return [str(nic["vxnet_id"]) for nic in nics.values()]


def fill(sim: Sim, vxnet_id: str, *, but: int) -> None:
    """Let others take all addresses of a small vxnet except for some."""
    sim.call("CreateNics", vxnet=vxnet_id, count=FULL - but, nic_name="others")


def grow(host: Host, policy: str, vxnets: list[str], count: int) -> list[str]:
    """Let NICs be made one by one: an ADD takes the idle one, and the pool makes the next."""
    host.start(policy=policy, vxnet=",".join(vxnets), min_idle=1, max_idle=1, max_nics=count)
    for number in range(1, count):
        host.add(host.container())
        if number < count:
            host.wait_idle(1)
    return created_in(host)


def named(policy: str) -> list[str]:
    return [f"vxnet-{policy}{n}" for n in (1, 2, 3)]


@pytest.mark.defect("ancestor-5", "others-27")
def test_fail_rotate_stays_until_the_vxnet_is_full_and_then_uses_the_next(new_host: NewHost) -> None:
    one, two, _ = named("fail")
    assert grow(new_host(), "FailRotate", named("fail"), FULL + 3) == [one] * FULL + [two] * 3


@pytest.mark.defect("ancestor-5")
def test_round_rotate_takes_one_vxnet_after_the_other_and_skips_the_full_one(new_host: NewHost, sim: Sim) -> None:
    one, two, three = named("round")
    fill(sim, one, but=2)
    expected = [one, two, three, one, two, three, two, three]
    assert grow(new_host(), "RoundRotate", named("round"), len(expected)) == expected


def test_round_rotate_spreads_a_burst_evenly_with_one_create_per_vxnet(new_host: NewHost, sim: Sim) -> None:
    """And one attach for all of them."""
    before = sim.status()["calls"]
    host = new_host()
    host.start(policy="RoundRotate", vxnet="vxnet-round2,vxnet-round3,vxnet-fail3", min_idle=6, max_idle=6)
    assert sorted(created_in(host)) == ["vxnet-fail3"] * 2 + ["vxnet-round2"] * 2 + ["vxnet-round3"] * 2
    after = sim.status()["calls"]
    assert [after[action] - before.get(action, 0) for action in ("CreateNics", "AttachNics")] == [3, 1]


@pytest.mark.defect("ancestor-5")
def test_random_uses_vxnets_of_the_list_only_and_goes_round_the_full_one(new_host: NewHost, sim: Sim) -> None:
    one, two, three = named("random")
    fill(sim, one, but=0)
    assert set(grow(new_host(), "Random", named("random"), 6)) <= {two, three}


@pytest.mark.defect("others-30")
def test_a_burst_larger_than_the_room_in_a_vxnet_goes_on_in_the_next_one(new_host: NewHost, sim: Sim) -> None:
    """A create that asks for more addresses than are left makes none; what is left is used, then the next vxnet."""
    one, two, three = "vxnet-fail1", "vxnet-fail2", "vxnet-fail3"
    left = FULL - sum(nic["vxnet_id"] == one for nic in sim.status()["nics"])
    host = new_host()
    host.start(policy="FailRotate", vxnet=f"{one},{two},{three}", min_idle=5, max_idle=5)
    assert len(created_in(host)) == 5
    assert created_in(host).count(one) <= left
    assert set(created_in(host)) <= {one, two}


@pytest.mark.defect("others-11")
def test_adds_succeed_while_one_of_the_vxnets_is_full(new_host: NewHost, sim: Sim) -> None:
    """The policy's first choice has no address; the ADD gets a NIC in the next within its time."""
    assert sum(nic["vxnet_id"] == "vxnet-random1" for nic in sim.status()["nics"]) == FULL
    host = new_host()
    host.start(policy="FailRotate", vxnet="vxnet-random1,vxnet-random2", min_idle=0, max_idle=2)
    result = host.add(host.container())
    assert result["ips"][0]["gateway"] == "172.22.15.1"
    assert created_in(host) == ["vxnet-random2"]
