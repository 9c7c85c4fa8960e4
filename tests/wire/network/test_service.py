"""Services by a gateway NIC, from the network's configuration to the packets: agents, plugin, kube-proxy's rules."""

import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cni.answers import Answer
from machines.containers import Container, address_of
from machines.hosts import Host, NewHost, hosts_of
from machines.services import PORT, Server, Service, ask, connect, kube_proxy, talk
from machines.simulator import Sim, eventually, links, needs_root, run
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root
HOSTS = 20

SERVICES = "10.96.0.0/12"
ROUTES = ({"dst": SERVICES, "gw": "0.0.0.0"},)
PODS_1, PODS_2 = "vxnet-pods001", "vxnet-pods002"
PROTOCOLS = ("tcp", "udp")
FEW: dict[str, Any] = {"min_idle": 2, "max_idle": 2, "idle_ttl": "0s"}
TABLE = "31080"  # the first gateway's routing table
SETTINGS = {"rp_filter": "2", "arp_announce": "2", "arp_ignore": "1", "send_redirects": "0"}


def conf(host: Host, **keys: object) -> dict[str, Any]:
    """The seed's configuration with its placeholders filled in: Services by the host's gateway; *keys* override."""
    return host.conf(routes=ROUTES) | keys


def service_gateway(result: dict[str, Any]) -> str:
    (gateway,) = (route["gw"] for route in result["routes"] if route["dst"] == SERVICES)
    return str(gateway)


def gateway_of(host: Host) -> dict[str, Any]:
    """The one gateway NIC of a host, as the cloud has it; the agent's table has it as well."""
    (nic,) = host.cloud_nics("hostnic").values()
    assert [row["nic_id"] for row in host.nics("gateway")] == [nic["nic_id"]]
    return nic


def nft(host: Host) -> str:
    return "\n" + run(*host.command("nft", "list", "ruleset")).stdout


def shown(host: Host, *words: str) -> list[dict[str, Any]]:
    rows = json.loads(run("ip", "-n", host.netns, "-j", *words).stdout or "[]")
    return [row for row in rows if row]


def settings(host: Host) -> dict[str, str]:
    """IPv4 settings of the host, all that can be read and belong to no NIC that comes and goes."""

    def read() -> dict[str, str]:
        found = {}
        for path in (Path(top, name) for top, _, names in os.walk("/proc/sys/net/ipv4") for name in names):
            is_lasting = not {"conf", "neigh"} & set(path.parts) or path.parent.name in ("all", "default", "eth0")
            if is_lasting and path.is_file() and path.stat().st_mode & 0o400:
                try:
                    found[str(path)] = path.read_text()
                except OSError:
                    continue
        return found

    return inside(host.netns, read)


def state(host: Host) -> dict[str, Any]:
    """All of a host that a gateway changes, as others see it, in whichever order it was made.

    Without the routes to link-local addresses: those of a young host come once IPv6 has found them unique.
    """
    routes = [route for route in shown(host, "route", "show", "table", "all") if not route["dst"].startswith("fe80:")]
    return {
        "links": {link["ifname"] for link in shown(host, "link", "show")},
        "rules": shown(host, "rule", "show"),
        "routes": sorted(map(str, routes)),
        "nft": sorted(table.strip() for table in nft(host).split("\ntable ")),
        "settings": settings(host),
    }


def wait_for(host: Host, wanted: dict[str, Any], seconds: float = 20.0) -> None:
    """Until `state` is *wanted*; a failure shows what differs."""
    seen: dict[str, Any] = {}

    def differs() -> dict[str, Any]:
        now = state(host)
        seen.clear()
        seen.update({key: (now[key], wanted[key]) for key in wanted if now[key] != wanted[key]})
        return seen

    with suppress(AssertionError):
        eventually(lambda: not differs(), f"{host.name} as before", seconds)
    assert seen == {}


# --- what an ADD makes ---------------------------------------------------------------------------------


@pytest.mark.defect("ancestor-4")
def test_adds_at_once_make_one_gateway_and_all_get_its_address(new_host: NewHost, sim: Sim) -> None:
    """Link, address, table, rules and nftables on the host; anti-spoofing off on it and on no other NIC."""
    host = new_host()
    agent = host.start(min_idle=1, max_idle=8)
    main = shown(host, "route", "show")
    containers = [host.container() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        answers: list[Answer] = list(pool.map(lambda c: host.cni("ADD", c, conf=conf(host)), containers))
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
    refused = host.cni("ADD", container, conf=conf(host, isGateway=False))
    assert refused.code == 7, refused
    assert all(word in refused.message for word in ("isGateway", "0.0.0.0", PODS_1)), refused
    assert host.cloud_nics("hostnic") == {}
    assert container.names == ["lo"]
    assert len(host.nics("idle")) == 2
    host.cni("ADD", container, conf=conf(host)).succeeded()
    other = host.cni("ADD", host.container(), conf=conf(host, isGateway=False)).result  # there is one now
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
def cluster(
    sim: Sim, host_names: Iterator[str], plugin_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with hosts_of(sim, host_names, tmp_path_factory.mktemp("cluster"), plugin_file) as take, ExitStack() as stack:
        made = Cluster((take(), take()))
        for host in made.hosts:
            host.start(vxnet=f"{PODS_1},{PODS_2}", policy="RoundRotate", min_idle=4, max_idle=4)
            for number in range(4):
                container = host.container()
                result = host.add(container, conf=conf(host))
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
        host.add(client, conf=conf(host))
        assert gateway_of(host)["vxnet_id"] == PODS_1
        assert [talk(connection) for connection in opened] == before
        assert [ask(host.netns, proto, address, PORT) for proto in PROTOCOLS] == before[:2]
        host.delete(client)
        assert [talk(connection) for connection in opened] == before


@dataclass
class Pair:
    """A client with the route and a backend without, on one host, and a Service between them."""

    host: Host
    client: Container
    result: dict[str, Any]

    def asks(self) -> bool:
        """Whether the Service works, TCP and UDP, from the client."""
        gateway = service_gateway(self.result)
        return all(ask(self.client.name, proto, "10.96.0.1") == ("backend", gateway) for proto in PROTOCOLS)


@pytest.fixture
def pair(new_host: NewHost) -> Iterator[Pair]:
    host = new_host()
    host.start(**FEW)
    backend, client = host.container(), host.container()
    address = address_of(host.add(backend))
    result = host.add(client, conf=conf(host))
    host.wait_idle(2)
    kube_proxy(host.netns, {"backend": Service("10.96.0.1", 30001, address)})
    server = Server("backend", backend.name, address)
    yield Pair(host, client, result)
    server.close()


def test_after_a_kill_the_gateway_is_found_again(pair: Pair, sim: Sim) -> None:
    """The Service works while the agent is away and afterwards; nothing is created again."""
    host = pair.host
    assert pair.asks()
    before, nics, calls = state(host), host.cloud_nics("qingcni", "hostnic"), sim.status()["calls"]
    with connect(pair.client.name, "tcp", "10.96.0.1", 80) as connection:
        first = talk(connection)
        host.agent.kill()
        assert pair.asks()
        host.start(**FEW)
        wait_for(host, before)
        assert host.cloud_nics("qingcni", "hostnic") == nics
        assert pair.asks()
        another = host.add(host.container(), conf=conf(host))
        assert service_gateway(another) == service_gateway(pair.result)
        assert talk(connection) == first
    host.wait_idle(2)
    (gateway,) = host.cloud_nics("hostnic")
    assert gateway in nics
    assert sim.status()["calls"]["ModifyNicAttributes"] == calls["ModifyNicAttributes"]
    assert host.is_calm()


def test_the_next_start_restores_what_somebody_undid_on_the_host(pair: Pair) -> None:
    host = pair.host
    before = state(host)
    host.agent.kill()
    run(*host.command("nft", "delete", "table", "inet", "qingcni"))
    run("ip", "-n", host.netns, "rule", "del", "from", service_gateway(pair.result))
    run("ip", "-n", host.netns, "route", "flush", "table", TABLE)
    run("ip", "-n", host.netns, "link", "set", "hostnic", "down")
    host.start(**FEW)
    wait_for(host, before)
    assert pair.asks()


def test_a_gateway_that_is_detached_in_the_console_is_attached_again(pair: Pair, sim: Sim) -> None:
    """Without an ADD: containers have its address as their gateway."""
    host = pair.host
    before, gateway = state(host), gateway_of(host)["nic_id"]
    sim.wait_job(sim.call("DetachNics", nics=[gateway])["job_id"])
    eventually(lambda: host.agent.events("nic.missing"), "the loss seen")
    wait_for(host, before)
    assert pair.asks()
    assert gateway_of(host)["nic_id"] == gateway
    result = host.add(host.container(), conf=conf(host))
    assert service_gateway(result) == service_gateway(pair.result)
    eventually(host.is_calm, "table and cloud agree")


def test_a_gateway_deleted_in_the_console_is_replaced(pair: Pair, sim: Sim) -> None:
    """For the next ADD: a container that has its address keeps it for good."""
    host = pair.host
    lost = gateway_of(host)["nic_id"]
    assert host.agent.stop() == 0  # or it is quicker with its remedy
    sim.remove_nics(lost)
    host.start(**FEW)
    fresh = host.container()
    result = host.add(fresh, conf=conf(host))
    gateway = gateway_of(host)
    assert gateway["nic_id"] != lost
    assert service_gateway(result) == gateway["private_ip"]
    assert links(host.netns)[gateway["nic_id"]]["ifname"] == "hostnic"
    assert Pair(host, fresh, result).asks()
    eventually(host.is_calm, "table and cloud agree")


def test_a_gateway_whose_link_is_renamed_and_down_is_fixed_by_the_next_check(pair: Pair) -> None:
    host = pair.host
    before = state(host)
    for words in ("link set hostnic down", "link set hostnic name ens9"):
        run("ip", "-n", host.netns, *words.split())
    wait_for(host, before, seconds=40.0)
    assert pair.asks()


def test_drain_and_cleanup_leave_the_host_as_it_was(new_host: NewHost) -> None:
    """The gateway goes once nobody uses it; rules and tables with it, settings with cleanup."""
    host = new_host()
    before = state(host)
    agent = host.start(**FEW)
    container = host.container()
    host.add(container, conf=conf(host))
    assert host.qingagent("drain", "--timeout", "0s", check=False).returncode == 1
    eventually(lambda: len(host.nics()) == 2 and not host.status()["operations"], "all others gone")
    waiting = host.qingagent("drain", "--timeout", "1s", check=False)
    assert container.name in waiting.stdout
    assert "NICs left: 2, containers that have one: 1" in waiting.stderr
    assert sorted(nic["state"] for nic in host.nics()) == ["assigned", "gateway"]
    assert "hostnic" in state(host)["links"]
    host.delete(container)
    assert host.qingagent("drain").stdout.splitlines()[-1] == "drained: no NICs left"
    assert host.cloud_nics("qingcni", "hostnic") == {}
    after = state(host)
    assert {k: v for k, v in after.items() if k != "settings"} == {k: v for k, v in before.items() if k != "settings"}
    assert agent.stop() == 0
    host.cleanup(**FEW)
    assert state(host) == before


def test_cleanup_without_a_drain_leaves_the_host_as_it_was(new_host: NewHost) -> None:
    """By force while a container uses the gateway; after an agent that was killed."""
    host = new_host()

    def harden() -> None:
        for name, value in (("all/send_redirects", "1"), ("all/accept_redirects", "0"), ("eth0/forwarding", "1")):
            Path("/proc/sys/net/ipv4/conf", name).write_text(value)

    inside(host.netns, harden)
    before = state(host)
    agent = host.start(**FEW)
    host.add(host.container(), conf=conf(host))
    agent.kill()
    host.start(**FEW)
    host.agent.kill()
    refused = host.cleanup(check=False, **FEW)
    assert refused.returncode == 1
    host.cleanup("--force", **FEW)
    assert host.cloud_nics("qingcni", "hostnic") == {}
    assert state(host) == before


def added(host: Host, container: Container) -> Answer | None:
    """An ADD that may fail; the answer if it did not."""
    answer = host.cni("ADD", container, conf=conf(host))
    return None if answer.status else answer


# --- the host's own NIC --------------------------------------------------------------------------------


def test_the_hosts_own_nic_in_the_vxnet_serves_only_with_its_anti_spoofing_off(new_host: NewHost, sim: Sim) -> None:
    """Anti-spoofing on: code 7 and what to do. Off: it is used, and nothing of it is changed."""
    host = new_host()
    primary = sim.host(host.name)["nic_id"]
    own = "vxnet-hosts001"
    host.start(vxnet=own, **FEW)
    container = host.container()
    refused = host.cni("ADD", container, conf=conf(host))
    assert refused.code == 7, refused
    assert all(word in refused.message for word in (primary, own, "anti-spoofing", "turn it off")), refused
    assert host.cloud_nics("hostnic") == {}
    assert len(host.nics("idle")) == 2

    sim.call("ModifyNicAttributes", nic=primary, enable_aspoof=0)
    before = state(host)
    with ExitStack() as stack:
        backend = host.container()
        address = address_of(host.add(backend))
        stack.callback(Server("backend", backend.name, address).close)
        kube_proxy(host.netns, {"backend": Service("10.96.0.1", 30001, address)})
        answer: Answer = eventually(lambda: added(host, container), "an ADD that succeeds", seconds=60)
        result = answer.result
        assert service_gateway(result) == host.address
        assert Pair(host, container, result).asks()
    assert host.cloud_nics("hostnic") == {}
    now = state(host)
    assert {k: now[k] for k in ("links", "rules", "routes")} == {k: before[k] for k in ("links", "rules", "routes")}
    host.delete(container)
    eventually(lambda: "qingcni" not in nft(host), "our table gone")
