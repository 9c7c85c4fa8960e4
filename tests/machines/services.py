"""A bed for Services: pods on two simulated hosts, servers in them, DNAT as kube-proxy's nftables mode writes it."""

import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machines.containers import new_namespace
from machines.hosts import Host
from machines.simulator import Sim, eventually, links, run
from qingcloud_cni.core.seams.kernel import Gateway, ServicePath
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.sim.fabric.shell import inside

PORT = 8080
SERVICES = "10.96.0.0/12"
ROUTES = ({"dst": SERVICES, "gw": "0.0.0.0"},)
PROTOCOLS = ("tcp", "udp")
FEW: dict[str, Any] = {"min_idle": 2, "max_idle": 2, "idle_ttl": "0s"}
SECONDS = 3.0  # to wait for an answer; on the bed one takes less than 10 ms

# The chains that `kube-proxy --proxy-mode nftables` writes for ClusterIP and NodePort (its pkg/proxy/nftables),
# less those for firewalls, session affinity and Services without endpoints.
KUBE_PROXY = """\
add table ip kube-proxy
delete table ip kube-proxy
table ip kube-proxy {{
  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {by_address} }}; }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{ {by_port} }}; }}
{chains}
  chain mark-for-masquerade {{ mark set mark or 0x4000; }}
  chain masquerading {{
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @service-nodeports
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
  chain nat-output {{ type nat hook output priority -100; policy accept; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; jump masquerading; }}
}}
"""
CHAINS = """\
  chain endpoint-{chain} {{
    ip saddr {backend} jump mark-for-masquerade
    meta l4proto {proto} dnat to {backend}:8080
  }}
  chain service-{chain} {{
    ip daddr {address} {proto} dport 80 ip saddr != 172.20.0.0/16 jump mark-for-masquerade
    numgen random mod 1 vmap {{ 0 : goto endpoint-{chain} }}
  }}
  chain external-{chain} {{
    jump mark-for-masquerade
    goto service-{chain}
  }}
  chain local-{chain} {{
    goto service-{chain}
  }}
"""
LOCAL = 2000  # above a Service's node port: the same port under externalTrafficPolicy: Local, which keeps the source


@dataclass(frozen=True)
class Service:
    """One Service with one endpoint, for TCP and UDP."""

    address: str
    node_port: int
    backend: str


def kube_proxy(host: str, services: Mapping[str, Service]) -> None:
    """Write the rules for *services* in a host's namespace."""
    by_address, by_port, chains = [], [], []
    for name, service in services.items():
        for proto in ("tcp", "udp"):
            chain = f"{name}-{proto}"
            by_address.append(f"{service.address} . {proto} . 80 : goto service-{chain}")
            by_port.append(f"{proto} . {service.node_port} : goto external-{chain}")
            by_port.append(f"{proto} . {service.node_port + LOCAL} : goto local-{chain}")
            chains.append(CHAINS.format(chain=chain, proto=proto, backend=service.backend, address=service.address))
    script = KUBE_PROXY.format(by_address=", ".join(by_address), by_port=", ".join(by_port), chains="".join(chains))
    run("nsenter", f"--net=/run/netns/{host}", "nft", "-f", "-", input=script)


class Server:
    """Answers each line over TCP, and each datagram, with its own name and the address it sees; until closed."""

    def __init__(self, name: str, netns: str, address: str) -> None:
        self.name = name.encode()
        self._udp = inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._tcp = inside(netns, lambda: socket.create_server((address, PORT), backlog=16))
        self._udp.bind((address, PORT))
        self._open: list[socket.socket] = []
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def close(self) -> None:
        """End its threads as well."""
        for made in (self._udp, self._tcp, *self._open):
            with suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()

    def _serve_udp(self) -> None:
        with suppress(OSError):
            while True:
                data, peer = self._udp.recvfrom(100)
                if data:
                    self._udp.sendto(self.name + b" " + peer[0].encode(), peer)

    def _serve_tcp(self) -> None:
        with suppress(OSError):
            while True:
                connection, peer = self._tcp.accept()
                self._open.append(connection)
                threading.Thread(target=self._answer, args=(connection, peer[0]), daemon=True).start()

    def _answer(self, connection: socket.socket, peer: str) -> None:
        with suppress(OSError):
            while connection.recv(100):
                connection.sendall(self.name + b" " + peer.encode())


_ports = itertools.count(10_000)  # below those that the kernel chooses and those of Services


def connect(
    netns: str, proto: str, address: str, port: int, *, source: str = "", seconds: float = SECONDS
) -> socket.socket:
    """A socket of *netns* that is connected, from the address *source* if given; the caller's to close.

    Each has a port that none had before: the kernel would carry on the flow of an earlier one, rules or not.
    """
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    made = inside(netns, lambda: socket.socket(socket.AF_INET, kind))
    try:
        made.settimeout(seconds)
        made.bind((source, next(_ports)))
        made.connect((address, port))
    except BaseException:
        made.close()
        raise
    return made


def talk(connection: socket.socket) -> tuple[str, str]:
    """The name of the server at the other end, and the address it sees."""
    connection.send(b"who?")
    name, _, seen = connection.recv(100).decode().partition(" ")
    return name, seen


def ask(netns: str, proto: str, address: str, port: int = 80, *, seconds: float = SECONDS) -> tuple[str, str]:
    with connect(netns, proto, address, port, seconds=seconds) as connection:
        return talk(connection)


def is_reached(netns: str, address: str) -> bool:
    """Whether a Service answers; what gets through on the bed does so within some 10 ms."""
    try:
        return bool(ask(netns, "udp", address, seconds=0.5))
    except OSError:
        return False


def redirects(netns: str) -> int:
    """ICMP redirects that arrived in a namespace."""
    lines = inside(netns, lambda: Path("/proc/thread-self/net/snmp").read_text()).splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(dict(zip(names, values, strict=True))["InRedirects"])


@dataclass
class Pod:
    name: str
    netns: str
    nic_id: str
    address: str


@dataclass
class Bed:
    """Two hosts, pods and a server in each; gateways are NICs on host1 without anti-spoofing."""

    sim: Sim
    stack: ExitStack
    pods: dict[str, Pod] = field(default_factory=dict)

    @property
    def host1(self) -> str:
        return self.sim.netns("host1")

    @property
    def host2(self) -> str:
        return self.sim.netns("host2")

    def address(self, host: str) -> str:
        return self.sim.host(host)["address"]

    def add_pod(self, name: str, host: str, vxnet: int) -> Pod:
        """A container with a NIC of its own, and a server in it."""
        (nic,) = self.sim.new_nics(host, f"vxnet-pods00{vxnet}")
        netns = self.stack.enter_context(new_namespace())
        link = eventually(lambda: links(self.sim.netns(host)).get(nic["nic_id"]), "the NIC's link")["ifname"]
        run("ip", "-n", self.sim.netns(host), "link", "set", link, "netns", netns, "name", "eth0")
        batch = (
            f"link set lo up\naddr add {nic['private_ip']}/24 dev eth0\nlink set eth0 up\n"
            f"route add default via 172.20.{vxnet}.1\n"
        )
        run("ip", "-n", netns, "-batch", "-", input=batch)
        pod = self.pods[name] = Pod(name, netns, nic["nic_id"], nic["private_ip"])
        self.serve(name, netns, pod.address)
        return pod

    def add_inner(self, name: str, address: str) -> str:
        """A container without a NIC of the cloud: it is reached through host1 only."""
        netns = self.stack.enter_context(new_namespace())
        run("ip", "-n", self.host1, "link", "add", "inner0", "type", "veth", "peer", "name", "eth0", "netns", netns)
        self.stack.callback(run, "ip", "-n", self.host1, "link", "delete", "inner0", check=False)
        batch = f"link set inner0 up\naddr add 10.88.0.1/32 dev inner0\nroute add {address} dev inner0\n"
        run("ip", "-n", self.host1, "-batch", "-", input=batch)
        batch = f"link set eth0 up\naddr add {address}/32 dev eth0\nroute add default dev eth0 via 10.88.0.1 onlink\n"
        run("ip", "-n", netns, "-batch", "-", input=batch)
        self.serve(name, netns, address)
        return address

    def serve(self, name: str, netns: str, address: str = "0.0.0.0") -> None:
        self.stack.callback(Server(name, netns, address).close)

    def add_gateway(self, vxnet: int, index: int) -> Gateway:
        """A NIC on host1 that may send in the name of Services, as the agent makes one."""
        (nic,) = self.sim.new_nics("host1", f"vxnet-pods00{vxnet}")
        self.sim.call("ModifyNicAttributes", nic=nic["nic_id"], enable_aspoof=0)
        router = f"172.20.{vxnet}.1"
        return Gateway(nic["nic_id"], f"hostnic{index or ''}", f"{nic['private_ip']}/24", router, index)

    def route_services(self, pod: Pod, gateway: Gateway) -> None:
        """What ADD does with `"routes": [{"dst": "10.96.0.0/12", "gw": "0.0.0.0"}]`."""
        address = gateway.address.partition("/")[0]
        run("ip", "-n", pod.netns, "route", "replace", SERVICES, "via", address, "dev", "eth0")

    @asynccontextmanager
    async def serving(self, *gateways: Gateway) -> AsyncIterator[HostKernel]:
        """Host1 with these gateways for the time of the block."""
        host = self.sim.host("host1")
        kernel = await HostKernel.open(
            host["instance_id"], host_netns=host["netns"], routers=host["simulator_netns"].split(",")
        )
        try:
            before = await kernel.serve(path_of(*gateways))
            yield kernel
            await kernel.serve(ServicePath())
            await kernel.restore(before.settings)
        finally:
            await kernel.close()


def path_of(*gateways: Gateway) -> ServicePath:
    networks = tuple(f"172.20.{gateway.router.split('.')[2]}.0/24" for gateway in gateways)
    return ServicePath(gateways, networks, (SERVICES,))


@contextmanager
def bed_on(sim: Sim) -> Iterator[Bed]:
    with ExitStack() as stack:
        yield Bed(sim, stack)


def services_conf(host: Host, **keys: object) -> dict[str, Any]:
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
