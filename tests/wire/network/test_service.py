"""Services by a gateway NIC, from the network's configuration to the packets: agents, plugin, kube-proxy's rules."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cni.answers import Answer
from machines.containers import Container, address_of
from machines.hosts import Host, NewHost
from machines.services import (
    FEW,
    PORT,
    PROTOCOLS,
    SERVICES,
    Server,
    Service,
    ask,
    connect,
    gateway_of,
    kube_proxy,
    nft,
    service_gateway,
    services_conf,
    shown,
    talk,
)
from machines.simulator import Sim, links, needs_root
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root
HOSTS = 8

PODS_1, PODS_2 = "vxnet-pods001", "vxnet-pods002"
TABLE = "31080"  # the first gateway's routing table
SETTINGS = {"rp_filter": "2", "arp_announce": "2", "arp_ignore": "1", "send_redirects": "0"}


# --- what an ADD makes ---------------------------------------------------------------------------------


@pytest.mark.defect("ancestor-4")
def test_adds_at_once_make_one_gateway_and_all_get_its_address(new_host: NewHost, sim: Sim) -> None:
    """Link, address, table, rules and nftables on the host; anti-spoofing off on it and on no other NIC."""
    host = new_host()
    agent = host.start(min_idle=1, max_idle=8)
    main = shown(host, "route", "show")
    containers = [host.container() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        answers: list[Answer] = list(pool.map(lambda c: host.cni("ADD", c, conf=services_conf(host)), containers))
    gateway = gateway_of(host)
    address = gateway["private_ip"]
    for container, answer in zip(containers, answers, strict=True):
        assert service_gateway(answer.result) == address
        assert container.routes() == {"default": "172.20.1.1", SERVICES: address}
    assert len([event for event in agent.events("nic.created") if event["nic"] == gateway["nic_id"]]) == 1
    assert agent.events("gateway.refused") == []
    assert gateway["vxnet_id"] == PODS_1
    mine = [nic for nic in sim.status()["nics"] if nic["instance_id"] == host.instance_id]
    assert {nic["nic_id"]: nic["enable_aspoof"] for nic in mine} == {
        nic["nic_id"]: nic["nic_id"] != gateway["nic_id"] for nic in mine
    }

    link = links(host.netns)[gateway["nic_id"]]
    assert (link["ifname"], "UP" in link["flags"]) == ("hostnic", True)
    (row,) = shown(host, "-4", "addr", "show", "dev", "hostnic")
    (inet,) = row["addr_info"]
    assert (inet["local"], inet["prefixlen"], inet["noprefixroute"]) == (address, 24, True)
    assert shown(host, "route", "show") == main
    routes = {route["dst"]: route for route in shown(host, "route", "show", "table", TABLE)}
    assert routes.keys() == {"default", "172.20.1.0/24"}
    assert (routes["default"]["gateway"], routes["default"]["dev"]) == ("172.20.1.1", "hostnic")
    rules = [rule for rule in shown(host, "rule", "show") if rule["table"] == TABLE]
    assert [(r.get("fwmark"), r["src"], r.get("iif")) for r in rules] == [
        ("0x2", "all", None),
        (None, address, None),
        (None, "all", "hostnic"),
    ]
    assert "table inet qingcni" in nft(host)
    folder = Path("/proc/sys/net/ipv4/conf/hostnic")
    read = inside(host.netns, lambda: {name: (folder / name).read_text().strip() for name in SETTINGS})
    assert read == SETTINGS


def test_is_gateway_false_with_0_0_0_0_is_refused_with_code_7(new_host: NewHost) -> None:
    """As long as the host has no NIC in that vxnet; nothing is made."""
    host = new_host()
    host.start(**FEW)
    container = host.container()
    refused = host.cni("ADD", container, conf=services_conf(host, isGateway=False))
    assert refused.code == 7, refused
    assert all(word in refused.message for word in ("isGateway", "0.0.0.0", PODS_1)), refused
    assert host.cloud_nics("hostnic") == {}
    assert container.names == ["lo"]
    assert len(host.nics("idle")) == 2
    host.cni("ADD", container, conf=services_conf(host)).succeeded()
    other = host.cni("ADD", host.container(), conf=services_conf(host, isGateway=False)).result  # there is one now
    assert service_gateway(other) == gateway_of(host)["private_ip"]


def test_a_given_gateway_that_is_no_neighbour_is_refused_with_code_7(new_host: NewHost) -> None:
    host = new_host()
    host.start(**FEW)
    container = host.container()
    refused = host.cni("ADD", container, conf=host.conf(routes=[{"dst": SERVICES, "gw": host.address}]))
    assert refused.code == 7, refused
    assert all(word in refused.message for word in (SERVICES, host.address, PODS_1, "172.20.1.0/24")), refused
    assert container.names == ["lo"]
    assert len(host.nics("idle")) == 2


# --- packets -------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """Two hosts with agents, containers in two vxnets on each with a server in every one, a Service for each."""

    hosts: tuple[Host, Host]
    containers: dict[str, tuple[Host, Container, str]] = field(default_factory=dict)  # with its address
    gateways: dict[str, str] = field(default_factory=dict)  # the gateway's address each container was told

    @property
    def services(self) -> dict[str, Service]:
        backends = {name: address for name, (_, _, address) in self.containers.items()}
        return {name: Service(f"10.96.0.{n}", 30000 + n, at) for n, (name, at) in enumerate(backends.items(), 1)}

    def netns(self, name: str) -> str:
        return self.containers[name][1].name


@pytest.fixture(scope="module")
def cluster(lasting_host: NewHost) -> Iterator[Cluster]:
    with ExitStack() as stack:
        made = Cluster((lasting_host(), lasting_host()))
        for host in made.hosts:
            host.start(vxnet=f"{PODS_1},{PODS_2}", policy="RoundRotate", min_idle=4, max_idle=4)
            for number in range(4):
                container = host.container()
                result = host.add(container, conf=services_conf(host))
                address = address_of(result)
                name = f"{host.name}-{address.split('.')[2]}-{number}"
                made.containers[name] = (host, container, address)
                made.gateways[name] = service_gateway(result)
                stack.callback(Server(name, container.name, address).close)
            stack.callback(Server(host.name, host.netns, "0.0.0.0").close)
        for host in made.hosts:
            kube_proxy(host.netns, made.services)
        yield made


@pytest.mark.defect("ancestor-4")
def test_every_container_reaches_every_service_wherever_the_backend_is(cluster: Cluster) -> None:
    """Backends on the other host and the same one, in the same vxnet and another; the client itself too."""
    wheres = {(name.split("-")[0], name.split("-")[1]) for name in cluster.containers}
    assert len(wheres) == 4, "two vxnets on each of two hosts"
    clients = itertools.product(cluster.containers, PROTOCOLS, cluster.services.items())
    for client, proto, (name, service) in clients:
        seen = ask(cluster.netns(client), proto, service.address)
        assert seen == (name, cluster.gateways[client]), (client, proto, name)


def test_the_hosts_reach_every_service_and_every_container(cluster: Cluster) -> None:
    for host, proto, (name, service) in itertools.product(cluster.hosts, PROTOCOLS, cluster.services.items()):
        assert ask(host.netns, proto, service.address)[0] == name, (host, proto, name)
        assert ask(host.netns, proto, service.backend, PORT) == (name, host.address)


def test_what_is_no_service_is_not_translated(cluster: Cluster) -> None:
    """From container to container, and to the hosts: everyone sees who it is."""
    for client, (name, (_, _, address)) in itertools.product(cluster.containers, cluster.containers.items()):
        assert ask(cluster.netns(client), "tcp", address, PORT) == (name, cluster.containers[client][2])
    for client, host in itertools.product(cluster.containers, cluster.hosts):
        assert ask(cluster.netns(client), "tcp", host.address, PORT) == (host.name, cluster.containers[client][2])


def test_anti_spoofing_is_on_for_every_nic_but_the_gateways(cluster: Cluster, sim: Sim) -> None:
    nics = sim.status()["nics"]
    gateways = set().union(*(host.cloud_nics("hostnic") for host in cluster.hosts))
    assert len(gateways) == 4
    here = [nic for nic in nics if nic["instance_id"] in {host.instance_id for host in cluster.hosts}]
    assert {nic["nic_id"] for nic in here if not nic["enable_aspoof"]} == gateways


# --- before and after ----------------------------------------------------------------------------------


def test_connections_of_the_host_into_the_vxnet_survive_the_gateway(new_host: NewHost) -> None:
    host = new_host()
    host.start(**FEW)
    old = host.container()
    address = address_of(host.add(old))
    with ExitStack() as stack:
        stack.callback(Server("old", old.name, address).close)
        stack.callback(Server("host", host.netns, "0.0.0.0").close)
        opened = [stack.enter_context(connect(host.netns, proto, address, PORT)) for proto in PROTOCOLS]
        opened += [stack.enter_context(connect(old.name, proto, host.address, PORT)) for proto in PROTOCOLS]
        before = [talk(connection) for connection in opened]
        assert before == [("old", host.address)] * 2 + [("host", address)] * 2
        client = host.container()
        host.add(client, conf=services_conf(host))
        assert gateway_of(host)["vxnet_id"] == PODS_1
        assert [talk(connection) for connection in opened] == before
        assert [ask(host.netns, proto, address, PORT) for proto in PROTOCOLS] == before[:2]
        host.delete(client)
        assert [talk(connection) for connection in opened] == before
