"""Gateways that are lost, changed, drained or not needed: Services work again, or the host is as it was."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.answers import Answer
from machines.containers import Container, address_of
from machines.hosts import Host, NewHost
from machines.services import (
    FEW,
    PROTOCOLS,
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
from machines.simulator import Sim, eventually, links, needs_root, run
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root
HOSTS = 12

TABLE = "31080"  # the first gateway's routing table


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
    result = host.add(client, conf=services_conf(host))
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
        another = host.add(host.container(), conf=services_conf(host))
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
    result = host.add(host.container(), conf=services_conf(host))
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
    result = host.add(fresh, conf=services_conf(host))
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


def test_a_gateway_whose_link_somebody_changed_is_fixed_by_the_next_check_and_told(pair: Pair) -> None:
    host = pair.host
    ip = ("ip", "-n", host.netns)
    run(*ip, "link", "add", "br0", "type", "bridge")
    for words in ("arp off", "promisc on", "mtu 1300", "mode dormant", "master br0"):
        run(*ip, "link", "set", "hostnic", *words.split())
    run(*host.command("sysctl", "-qw", "net.ipv4.conf.hostnic.forwarding=0", "net.ipv4.conf.all.proxy_arp=1"))
    eventually(lambda: host.agent.events("gateway.impaired"), "the next check", 45.0)
    (told,) = host.agent.events("gateway.restored")
    for word in ("NOARP", "mtu 1300 instead of 1500", "linkmode", "member of link", "conf/hostnic/forwarding"):
        assert word in told["detail"]
    assert "Services:    net/ipv4/conf/all/proxy_arp is 1" in host.qingagent("status").stdout
    run(*host.command("sysctl", "-qw", "net.ipv4.conf.all.proxy_arp=0"))
    assert pair.asks()


def test_services_work_on_a_hardened_host(new_host: NewHost) -> None:
    """Its defaults for new links: no forwarding, a strict rp_filter. Forwarding is on for the host already."""
    host = new_host()
    hardened = ("ip_forward=1", "conf.default.forwarding=0", "conf.default.rp_filter=1", "conf.default.arp_ignore=2")
    run(*host.command("sysctl", "-qw", *(f"net.ipv4.{setting}" for setting in hardened)))
    host.start(**FEW)
    backend, client = host.container(), host.container()
    address = address_of(host.add(backend))
    result = host.add(client, conf=services_conf(host))
    kube_proxy(host.netns, {"backend": Service("10.96.0.1", 30001, address)})
    server = Server("backend", backend.name, address)
    try:
        assert Pair(host, client, result).asks()
    finally:
        server.close()


def test_drain_and_cleanup_leave_the_host_as_it_was(new_host: NewHost) -> None:
    """The gateway goes once nobody uses it; rules and tables with it, settings with cleanup."""
    host = new_host()
    before = state(host)
    agent = host.start(**FEW)
    container = host.container()
    host.add(container, conf=services_conf(host))
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
    host.add(host.container(), conf=services_conf(host))
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
    answer = host.cni("ADD", container, conf=services_conf(host))
    return None if answer.status else answer


# --- the host's own NIC --------------------------------------------------------------------------------


def test_the_hosts_own_nic_in_the_vxnet_serves_only_with_its_anti_spoofing_off(new_host: NewHost, sim: Sim) -> None:
    """Anti-spoofing on: code 7 and what to do. Off: it is used, and nothing of it is changed."""
    host = new_host()
    primary = sim.host(host.name)["nic_id"]
    own = "vxnet-hosts001"
    host.start(vxnet=own, **FEW)
    container = host.container()
    refused = host.cni("ADD", container, conf=services_conf(host))
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
    host.wait_idle(2)
    now = state(host)
    assert {k: now[k] for k in ("links", "rules", "routes")} == {k: before[k] for k in ("links", "rules", "routes")}
    host.delete(container)
    host.delete(backend)  # it has ipMasq, so flows to it are masqueraded
    eventually(lambda: "qingcni" not in nft(host), "our table gone")
