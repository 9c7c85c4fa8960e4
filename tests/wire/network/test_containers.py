"""A container with a NIC of its own, on real interfaces: what it sees, whom it reaches, what the runtime gets."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from machines.containers import address_of, pings, speaks_tcp
from machines.hosts import Host, NewHost
from machines.simulator import Sim, links, needs_root, run
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root
HOSTS = 12
NICS = 1  # so that the next container gets the NIC of the one before

ETH_P_ALL = 0x0003
SERVICES = "10.96.0.0/12"
DNS = {"nameservers": ["10.96.0.10"], "domain": "cluster.local", "search": ["svc.cluster.local"]}
PODS_1, PODS_2 = "vxnet-pods001", "vxnet-pods002"
FEW = {"min_idle": 2, "max_idle": 4}


def gateway_of(sim: Sim, vxnet_id: str) -> str:
    (found,) = (v["manager_ip"] for v in sim.info["vxnets"] if v["vxnet_id"] == vxnet_id)
    return str(found)


def cloud_address(host: Host, nic_id: str) -> str:
    """The NIC's address as the cloud has it."""
    return str(host.cloud_nics()[nic_id]["private_ip"])


def host_view(host: Host) -> list[dict[str, Any]]:
    """The host's own interface, addresses and routes, without what merely counts down."""
    rows = []
    for what in ("-4 addr show dev eth0", "route show", "rule show"):
        rows += json.loads(run("ip", "-n", host.netns, "-j", *what.split()).stdout or "[]")
    return rows


@pytest.mark.cni(27)
@pytest.mark.defect("ancestor-4")
def test_a_container_has_the_nic_itself_with_address_and_routes_and_the_host_has_it_no_more(
    new_host: NewHost, sim: Sim
) -> None:
    """MAC = NIC id, the cloud's address, default and given routes, up, MTU, alias; the host's eth0 is untouched."""
    host = new_host()
    before = host_view(host)
    host.start(**FEW)
    container = host.container()
    gateway = gateway_of(sim, PODS_1)
    host.add(container, conf=host.conf(routes=[{"dst": SERVICES, "gw": gateway}]))

    (attachment,) = host.attachments()
    nic_id = attachment["nic_id"]
    link = container.link()
    assert link["address"] == nic_id
    assert {"UP", "LOWER_UP"} <= set(link["flags"])
    assert (link["mtu"], link["ifalias"]) == (1500, f"qingcni/{host.instance_id}/{nic_id}")
    inet = [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["family"] == "inet"]
    assert inet == [(cloud_address(host, nic_id), 24)]
    assert container.routes() == {"default": gateway, SERVICES: gateway}
    assert container.names == ["lo", "eth0"]
    host.wait_idle(2)
    assert set(links(host.netns)) & set(host.cloud_nics()) == set()
    assert links(host.netns)[sim.host(host.name)["nic_id"]]["ifname"] == "eth0"
    assert host_view(host) == before


def test_a_given_default_route_replaces_the_vxnets_own(new_host: NewHost) -> None:
    host = new_host()
    host.start(**FEW)
    neighbour = str(host.nics("idle")[-1]["address"]).partition("/")[0]
    container = host.container()
    result = host.add(container, conf=host.conf(routes=[{"dst": "0.0.0.0/0", "gw": neighbour}]))
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": neighbour}]
    assert container.routes() == {"default": neighbour}


def test_containers_reach_each_other_on_the_same_host_on_others_and_across_vxnets(new_host: NewHost) -> None:
    """Ping and TCP, by the address the runtime was told; the hosts' primary NICs are reached as well."""
    here, there = new_host(), new_host()
    here.start(vxnet=PODS_1, **FEW)
    there.start(vxnet=f"{PODS_1},{PODS_2}", policy="RoundRotate", **FEW)
    near, peer, far, other = here.container(), here.container(), there.container(), there.container()
    results = {c: h.add(c) for c, h in ((near, here), (peer, here), (far, there), (other, there))}
    addresses = {container: address_of(result) for container, result in results.items()}
    networks = {address.rsplit(".", 1)[0] for address in addresses.values()}
    assert networks == {"172.20.1", "172.20.2"}
    pairs = [(near, peer), (near, far), (near, other), (far, other), (other, peer)]
    for one, two in pairs:
        assert one.reaches(addresses[two]), (one, two)
        assert speaks_tcp(one.name, two.name, addresses[two]), (one, two)
        assert speaks_tcp(two.name, one.name, addresses[one]), (two, one)
    assert near.reaches(here.address)
    assert near.reaches(there.address)
    assert pings(there.netns, addresses[near])


def test_a_new_address_is_announced_by_arp(new_host: NewHost, sim: Sim) -> None:
    """Neighbours may remember the address with another MAC: the vxnet's port hears whose it is before anyone asks."""
    host = new_host()
    host.start(**FEW)
    container = host.container()
    with inside(Path(sim.info["namespaces"]["router"]).name, all_frames) as ear:
        ear.settimeout(5)
        result = host.add(container)
        mac = bytes.fromhex(result["interfaces"][0]["mac"].replace(":", ""))
        address = socket.inet_aton(address_of(result))
        frame = next(frame for frame in iter(lambda: ear.recv(128), b"") if is_arp_of(frame, address))
    assert frame[:6] == b"\xff" * 6
    assert (frame[22:28], frame[38:42]) == (mac, address)


def all_frames() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))


def is_arp_of(frame: bytes, sender: bytes) -> bool:
    return frame[12:14] == b"\x08\x06" and frame[28:32] == sender


def test_a_containers_traces_on_its_nic_are_gone_for_the_next_one(host: Host) -> None:
    """MTU, alias, extra addresses and promiscuity that a container set do not reach the next container."""
    first, second = host.container(), host.container()
    host.add(first)
    nic_id = first.link()["address"]
    for words in ("link set eth0 mtu 1400 promisc on alias mine", "addr add 10.9.9.9/24 dev eth0"):
        run("ip", "-n", first.name, *words.split())
    host.delete(first)
    host.add(second)
    link = second.link()
    assert link["address"] == nic_id
    assert (link["mtu"], link["promiscuity"], "PROMISC" in link["flags"]) == (1500, 0, False)
    assert link["ifalias"] == f"qingcni/{host.instance_id}/{nic_id}"
    assert [a["local"] for a in link["addr_info"] if a["family"] == "inet"] == [cloud_address(host, nic_id)]
    host.delete(second)


@pytest.mark.cni(37)
def test_a_container_may_have_several_nics_and_keeps_its_first_default_route(new_host: NewHost) -> None:
    """Attachments that differ in ifname or network are different ones; where a route is taken the first one wins."""
    host = new_host()
    host.start(**FEW)
    container = host.container()
    first, second = host.add(container, "eth0"), host.add(container, "net1")
    other = host.conf() | {"name": "another"}
    assert host.cni("ADD", container, "net2", other).status == 0
    macs = {a["ifname"]: a["nic_id"] for a in host.attachments()}
    assert len(set(macs.values())) == 3
    assert (macs["eth0"], macs["net1"]) == (first["interfaces"][0]["mac"], second["interfaces"][0]["mac"])
    assert {name: container.link(name)["address"] for name in macs} == macs
    assert [row["dev"] for row in container.ip("route", "show", "default")] == ["eth0"]
    host.delete(container, "net1")
    assert host.cni("DEL", container, "net2", other).status == 0
    assert container.names == ["lo", "eth0"]
    assert [row["dev"] for row in container.ip("route", "show", "default")] == ["eth0"]
