"""Packets to Services by a gateway NIC, on the fabric: two hosts, anti-spoofing on for every NIC but the gateway."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from machines.services import (
    LOCAL,
    PORT,
    Bed,
    Service,
    ask,
    bed_on,
    connect,
    is_reached,
    kube_proxy,
    path_of,
    redirects,
    talk,
)
from machines.simulator import needs_root, run, running_sim
from qingcloud_cni.core.seams.kernel import Gateway, ServicePath
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root

# Backends by where they are, seen from the client, which is a pod on host1 in pods-1.
BACKENDS = {
    "same-host-same-vxnet": ("host1", 1),
    "same-host-other-vxnet": ("host1", 2),
    "other-host-same-vxnet": ("host2", 1),
    "other-host-other-vxnet": ("host2", 2),
}
PROTOCOLS = ("tcp", "udp")


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with running_sim("--seed", "11") as sim, bed_on(sim) as made:
        made.add_pod("client", "host1", 1)
        made.add_pod("client2", "host1", 2)
        for name, (host, vxnet) in BACKENDS.items():
            made.add_pod(name, host, vxnet)
        made.serve("host1", made.host1)
        made.serve("host2", made.host2)
        for host in (made.host1, made.host2):
            kube_proxy(host, services(made))
        yield made


@pytest.fixture(scope="module")
def gateway(bed: Bed) -> Gateway:
    made = bed.add_gateway(vxnet=1, index=0)
    bed.route_services(bed.pods["client"], made)
    return made


def services(bed: Bed) -> dict[str, Service]:
    backends = {name: bed.pods[name].address for name in (*BACKENDS, "client")}
    backends |= {host: bed.address(host) for host in ("host1", "host2")}
    return {
        name: Service(f"10.96.0.{n}", 30000 + n, address) for n, (name, address) in enumerate(backends.items(), 1)
    }


def plain(interface: str) -> str:
    return interface.partition("/")[0]


async def test_pods_reach_services_wherever_the_backend_is(bed: Bed, gateway: Gateway) -> None:
    client = bed.pods["client"].netns
    async with bed.serving(gateway):
        for proto, (name, service) in itertools.product(PROTOCOLS, services(bed).items()):
            seen = bed.pods["client"].address if name == "host1" else plain(gateway.address)
            assert ask(client, proto, service.address) == (name, seen), (proto, name)


async def test_without_the_gateway_services_are_out_of_reach(bed: Bed, gateway: Gateway) -> None:
    """The bed proves something: each of these things is needed."""
    client, service = bed.pods["client"].netns, services(bed)["other-host-same-vxnet"]
    assert not is_reached(client, service.address)
    async with bed.serving(gateway) as kernel:
        bed.sim.call("ModifyNicAttributes", nic=gateway.mac, enable_aspoof=1)
        try:
            assert not is_reached(client, service.address), "the answer carries the Service's address"
        finally:
            bed.sim.call("ModifyNicAttributes", nic=gateway.mac, enable_aspoof=0)
        assert is_reached(client, service.address)
        await kernel.serve(ServicePath((gateway,)))
        assert not is_reached(client, service.address), "not masqueraded, the backend answers the pod itself"
    assert not is_reached(client, service.address)


async def test_pods_are_not_told_to_take_another_way(bed: Bed, gateway: Gateway) -> None:
    client = bed.pods["client"].netns
    async with bed.serving(gateway):
        for service in services(bed).values():
            assert is_reached(client, service.address)
    assert redirects(client) == 0


async def test_a_process_that_takes_the_gateways_address_uses_the_gateway(bed: Bed, gateway: Gateway) -> None:
    """By another NIC the cloud would drop what it sends."""
    source = plain(gateway.address)
    async with bed.serving(gateway):
        for name in BACKENDS:
            with connect(bed.host1, "tcp", bed.pods[name].address, PORT, source=source) as connection:
                assert talk(connection) == (name, source)


async def test_answers_that_arrive_elsewhere_go_back_by_the_gateway(bed: Bed, gateway: Gateway) -> None:
    """A backend behind the host itself, for which its operator has added a rule."""
    inner = bed.add_inner("inner", "10.88.0.2")
    kube_proxy(bed.host1, services(bed) | {"inner": Service("10.96.1.1", 31001, inner)})
    run("ip", "-n", bed.host1, "rule", "add", "pref", "100", "to", inner, "lookup", "main")
    try:
        async with bed.serving(gateway):
            assert ask(bed.pods["client"].netns, "tcp", "10.96.1.1")[0] == "inner"
    finally:
        run("ip", "-n", bed.host1, "rule", "del", "pref", "100")
        kube_proxy(bed.host1, services(bed))


async def test_connections_of_the_host_into_the_vxnet_survive(bed: Bed, gateway: Gateway) -> None:
    pod, other = bed.pods["same-host-same-vxnet"], bed.pods["other-host-same-vxnet"]
    own = bed.address("host1")
    with ExitStack() as stack:
        to_pods = [
            stack.enter_context(connect(bed.host1, proto, p.address, PORT))
            for proto in PROTOCOLS
            for p in (pod, other)
        ]
        from_pod = [stack.enter_context(connect(pod.netns, proto, own, PORT)) for proto in PROTOCOLS]
        to_service = stack.enter_context(connect(bed.host1, "tcp", services(bed)[other.name].address, 80))
        before = [talk(c) for c in (*to_pods, *from_pod, to_service)]
        async with bed.serving(gateway):
            assert [talk(c) for c in (*to_pods, *from_pod, to_service)] == before
            for proto in PROTOCOLS:
                assert ask(bed.host1, proto, other.address, PORT) == (other.name, own)
                assert ask(pod.netns, proto, own, PORT) == ("host1", pod.address)
                assert ask(bed.host1, proto, services(bed)[other.name].address) == (other.name, own)
        assert [talk(c) for c in (*to_pods, *from_pod, to_service)] == before


async def test_answers_of_the_host_go_back_by_the_gateway(bed: Bed, gateway: Gateway) -> None:
    """Also where they have another source than the gateway's, and with the kernel as strict as it gets."""
    client, address = bed.pods["client"], plain(gateway.address)

    def strict(value: str) -> None:
        for name in ("all", "eth0", "default"):
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text(value)

    inside(bed.host1, lambda: strict("1"))
    try:
        async with bed.serving(gateway):
            assert ask(client.netns, "tcp", address, PORT) == ("host1", client.address)
            for proto in PROTOCOLS:
                assert ask(client.netns, proto, services(bed)["host1"].address) == ("host1", client.address)
                assert ask(client.netns, proto, services(bed)["other-host-same-vxnet"].address)[1] == address
    finally:
        inside(bed.host1, lambda: strict("0"))


async def test_node_ports_answer_at_every_address(bed: Bed, gateway: Gateway) -> None:
    """Asked from a pod, from the other host and its pods; what came in at the gateway goes back there."""
    clients = {n: bed.pods[n].netns for n in ("client", "other-host-same-vxnet", "other-host-other-vxnet")}
    clients["host2"] = bed.host2
    async with bed.serving(gateway):
        for proto, address, netns in itertools.product(
            PROTOCOLS, (plain(gateway.address), bed.address("host1")), clients.values()
        ):
            for name, service in services(bed).items():
                assert ask(netns, proto, address, service.node_port)[0] == name, (proto, address, netns, name)


async def test_what_kube_proxy_leaves_its_source_is_masqueraded_on_its_way_to_a_pod(
    bed: Bed, gateway: Gateway
) -> None:
    """Node ports under the policy Local: a pod would answer the client itself, from an address nobody asked."""
    name = "same-host-same-vxnet"
    port = services(bed)[name].node_port + LOCAL
    ways = {bed.address("host1"): bed.address("host1"), plain(gateway.address): plain(gateway.address)}
    async with bed.serving(gateway) as kernel:
        for proto, (asked, seen) in itertools.product(PROTOCOLS, ways.items()):
            assert ask(bed.host2, proto, asked, port) == (name, seen)
        await kernel.serve(replace(path_of(gateway), masquerade=(), services=()))
        for asked in ways:
            with pytest.raises(TimeoutError):
                ask(bed.host2, "udp", asked, port, seconds=0.5)


async def test_a_second_gateway_serves_another_vxnet(bed: Bed, gateway: Gateway) -> None:
    second = bed.add_gateway(vxnet=2, index=1)
    bed.route_services(bed.pods["client2"], second)
    try:
        async with bed.serving(gateway, second) as kernel:
            for proto, (name, service) in itertools.product(PROTOCOLS, services(bed).items()):
                assert ask(bed.pods["client"].netns, proto, service.address)[0] == name
                assert ask(bed.pods["client2"].netns, proto, service.address)[0] == name
                assert ask(bed.host2, proto, plain(second.address), service.node_port)[0] == name
            await kernel.serve(path_of(second))  # index 1 without 0
            assert ask(bed.pods["client2"].netns, "tcp", services(bed)["host2"].address)[0] == "host2"
    finally:
        bed.sim.remove_nics(second.mac)


async def test_open_connections_outlive_a_repair(bed: Bed, gateway: Gateway) -> None:
    client, service = bed.pods["client"].netns, services(bed)["other-host-other-vxnet"]
    async with bed.serving(gateway) as kernel:
        with connect(client, "tcp", service.address, 80) as connection:
            before = talk(connection)
            run("ip", "-n", bed.host1, "link", "set", "hostnic", "down")
            run("nsenter", f"--net=/run/netns/{bed.host1}", "nft", "delete", "table", "inet", "qingcni")
            await kernel.serve(path_of(gateway))
            assert talk(connection) == before
