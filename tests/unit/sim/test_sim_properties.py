"""Properties of the simulated cloud under any calls, in any order, at any time."""

import random
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qingcloud_cni.sim.cloud.addresses import AddressPool
from qingcloud_cni.sim.cloud.model import Model
from qingcloud_cni.sim.topology import (
    FaultSpec,
    HostSpec,
    Limits,
    PlugNic,
    RouterSpec,
    Topology,
    UnplugNic,
    VxnetSpec,
)

LIMITS = Limits(nics_per_instance=3, nics_per_vxnet=6, nics_per_create=4)
TOPOLOGY = Topology(
    routers=(RouterSpec("rtr-1", "10.0.0.0/16"),),
    vxnets=(
        VxnetSpec("vxnet-a", "a", "10.0.1.0/24", "rtr-1"),  # bounded by its quota
        VxnetSpec("vxnet-b", "b", "10.0.2.0/29", "rtr-1"),  # bounded by its four addresses
    ),
    hosts=(HostSpec("host1", "vxnet-a", "i-1"), HostSpec("host2", "vxnet-a", "i-2")),
    limits=LIMITS,
    faults=(FaultSpec("AttachNics", "fail-job", nth=4), FaultSpec("DetachNics", "fail-job", nth=3)),
)
INSTANCES = ("i-1", "i-2", "i-3")
PICKS = st.lists(st.integers(0, 30), min_size=1, max_size=4)


class CloudLaws(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.model = Model(TOPOLOGY, rng=random.Random(7), now=lambda: self.time)
        self.links = {plug.nic_id: plug.instance_id for plug in self.model.plugged()}  # what hardware would hold
        self.primaries = dict(self.links)
        self.known = list(self.primaries)
        self.jobs: list[str] = []

    def call(self, action: str, **params: str) -> dict[str, Any]:
        reply = self.model.call({"action": action, "zone": TOPOLOGY.zone, **params})
        if "job_id" in reply:
            self.jobs.append(reply["job_id"])
        return reply

    def nics(self) -> list[dict[str, Any]]:
        reply = self.call("DescribeNics", limit="100")
        assert reply["total_count"] == len(reply["nic_set"])
        return list(reply["nic_set"])

    def pick(self, picks: list[int], status: str = "") -> dict[str, str]:
        """Choose NICs, of a status if there are any, else of all there ever were."""
        fitting = [nic["nic_id"] for nic in self.nics() if nic["status"] == status and nic["role"] == 0]
        pool = fitting or self.known
        return {f"nics.{n}": pool[pick % len(pool)] for n, pick in enumerate(picks)}

    @rule(vxnet=st.sampled_from(("vxnet-a", "vxnet-b")), count=st.integers(0, 5))
    def create(self, vxnet: str, count: int) -> None:
        reply = self.call("CreateNics", vxnet=vxnet, count=str(count))
        if reply["ret_code"] == 0:
            assert len(reply["nics"]) == count
            self.known += [nic["nic_id"] for nic in reply["nics"]]

    @rule(instance=st.sampled_from(INSTANCES), picks=PICKS)
    def attach(self, instance: str, picks: list[int]) -> None:
        self.call("AttachNics", instance=instance, **self.pick(picks, "available"))

    @rule(picks=PICKS)
    def detach(self, picks: list[int]) -> None:
        self.call("DetachNics", **self.pick(picks, "in-use"))

    @rule(instance=st.sampled_from(INSTANCES), picks=PICKS, action=st.sampled_from(("AttachNics", "DetachNics")))
    def ask_wildly(self, instance: str, picks: list[int], action: str) -> None:
        self.call(action, instance=instance, **self.pick(picks))

    @rule(picks=PICKS, status=st.sampled_from(("available", "")))
    def delete(self, picks: list[int], status: str) -> None:
        before = {nic["nic_id"] for nic in self.nics()}
        nics = self.pick(picks, status)
        chosen = set(nics.values())
        reply = self.call("DeleteNics", **nics)
        gone = before - {nic["nic_id"] for nic in self.nics()}
        assert gone == (chosen if reply["ret_code"] == 0 else set())

    @rule(pick=st.integers(0, 30), vxnet=st.sampled_from(("", "vxnet-a", "vxnet-b")), last=st.integers(0, 12))
    def modify(self, pick: int, vxnet: str, last: int) -> None:
        nic = self.pick([pick], "available")["nics.0"]
        address = f"10.0.{2 if vxnet == 'vxnet-b' else 1}.{last}" if last else ""
        self.call("ModifyNicAttributes", nic=nic, vxnet=vxnet, private_ip=address, enable_aspoof=str(last % 2))

    @rule(seconds=st.floats(0.0, 5.0), hardware_is_slow=st.booleans())
    def wait(self, seconds: float, hardware_is_slow: bool) -> None:
        self.time += seconds
        while (due := self.model.next_due()) is not None and due <= self.time:
            self.model.advance()
            self._carry_out()
            if hardware_is_slow:
                return

    def _carry_out(self) -> None:
        for effect in self.model.take_effects():
            if isinstance(effect, PlugNic):
                assert effect.nic_id not in self.links, "a NIC is plugged in one place"
                self.links[effect.nic_id] = effect.instance_id
            elif isinstance(effect, UnplugNic):
                del self.links[effect.nic_id]

    @invariant()
    def no_address_is_given_twice(self) -> None:
        counts = Counter((nic["vxnet_id"], nic["private_ip"]) for nic in self.nics())
        assert all(count == 1 for count in counts.values())
        for vxnet_id, address in counts:
            spec = next(vxnet for vxnet in TOPOLOGY.vxnets if vxnet.vxnet_id == vxnet_id)
            network = IPv4Network(spec.network)
            assert IPv4Address(address) in list(network.hosts())[1:-1], "neither the router's nor the last"

    @invariant()
    def limits_hold_and_room_is_told(self) -> None:
        nics = self.nics()
        instances = Counter(nic["instance_id"] for nic in nics if nic["instance_id"])
        assert all(count <= LIMITS.nics_per_instance for count in instances.values())
        vxnets = Counter(nic["vxnet_id"] for nic in nics)
        bounds = {"vxnet-a": LIMITS.nics_per_vxnet, "vxnet-b": 4}
        shown = self.call("DescribeVxnets")["vxnet_set"]
        assert {v["vxnet_id"]: v["available_ip_count"] for v in shown} == {
            vxnet_id: bound - vxnets[vxnet_id] for vxnet_id, bound in bounds.items()
        }

    @invariant()
    def status_and_instance_agree_and_primaries_stay(self) -> None:
        nics = {nic["nic_id"]: nic for nic in self.nics()}
        for nic in nics.values():
            assert (nic["status"] == "in-use") == bool(nic["instance_id"])
            assert (nic["role"] == 1) == (nic["nic_id"] in self.primaries)
        assert {nic_id: nics[nic_id]["instance_id"] for nic_id in self.primaries} == self.primaries
        places = Counter((nic["instance_id"], nic["sequence"]) for nic in nics.values() if nic["instance_id"])
        assert all(count == 1 for count in places.values())

    @invariant()
    def instances_show_the_nics_that_name_them(self) -> None:
        by_instance = {
            instance["instance_id"]: {vxnet["nic_id"] for vxnet in instance["vxnets"]}
            for instance in self.call("DescribeInstances")["instance_set"]
        }
        for instance_id, shown in by_instance.items():
            assert shown == {nic["nic_id"] for nic in self.nics() if nic["instance_id"] == instance_id}

    @invariant()
    def once_all_jobs_are_over_links_are_where_the_cloud_says(self) -> None:
        if self.model.next_due() is None:
            assert self.links == {n["nic_id"]: n["instance_id"] for n in self.nics() if n["status"] == "in-use"}

    def teardown(self) -> None:
        """Every job ends, whatever was asked."""
        for _ in range(2 * len(self.jobs)):
            self.wait(5.0, hardware_is_slow=False)
        for job_id in self.jobs:
            (job,) = self.call("DescribeJobs", **{"jobs.1": job_id})["job_set"]
            assert job["status"] in {"successful", "failed"}
        self.once_all_jobs_are_over_links_are_where_the_cloud_says()


CloudLaws.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestCloudLaws = CloudLaws.TestCase


@given(st.lists(st.integers(0, 40)), st.integers(24, 29), st.integers(1, 5))
def test_a_book_never_hands_out_what_is_taken(moves: list[int], prefix: int, manager: int) -> None:
    """Moves below 20 take an address, the others give one back; the count of free ones is always right."""
    network = IPv4Network(f"10.1.2.0/{prefix}")
    book = AddressPool(network, network.network_address + manager)
    held: list[IPv4Address] = []
    size = book.free
    assert size == network.num_addresses - 4
    for move in moves:
        if move < 20:
            address = book.take()
            assert (address is None) == (len(held) == size)
            if address is not None:
                assert address not in held
                assert address not in book.reserved
                held.append(address)
        elif held:
            book.release(held.pop(move % len(held)))
        assert book.free == size - len(held)
