"""The namespaces, bridges, addresses and anti-spoofing filters that a topology becomes; pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from qingcloud_cni.sim.fabric.names import PORT_GROUP, Mark, port_mac, port_name
from qingcloud_cni.sim.topology import HostSpec, PlugNic, RouterSpec, Topology, VxnetSpec

# A new namespace inherits the settings of the machine's first one. Hosts get the kernel's defaults, as an image with
# an empty sysctl.conf has; the router forwards, and drops no packet for its source address.
HOST_SYSCTLS = {
    "net/ipv4/ip_forward": "0",
    **{
        f"net/ipv4/conf/{scope}/{name}": "0"
        for scope in ("all", "default")
        for name in ("rp_filter", "arp_ignore", "arp_announce", "arp_filter", "arp_notify", "arp_accept")
    },
}
ROUTER_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    **{
        f"net/ipv4/conf/{scope}/{name}": "0"
        for scope in ("all", "default")
        for name in ("rp_filter", "send_redirects")
    },
    **{f"net/bridge/bridge-nf-call-{family}": "0" for family in ("iptables", "ip6tables", "arptables")},
}

# At priority -300 these rules come before all else that the bridge does with a frame, whether it goes to another port
# or to the router itself. For IPv6 they check the source MAC only: the cloud gives NICs no IPv6 address.
RULESET = """\
table bridge aspoof {
  set guarded { typeof iifname; }
  set macs { typeof iifname . ether saddr; }
  set addresses { typeof iifname . ip saddr; }

  chain check_ip {
    ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
    iifname . ip saddr != @addresses drop
  }
  chain check_arp {
    iifname . arp saddr ether != @macs drop
    arp saddr ip 0.0.0.0 accept
    iifname . arp saddr ip != @addresses drop
  }
  chain ports {
    type filter hook prerouting priority -300; policy accept;
    iifname != @guarded accept
    iifname . ether saddr != @macs drop
    ether type vmap { ip : jump check_ip, arp : jump check_arp }
  }
}
"""


def manager_address(spec: VxnetSpec) -> IPv4Interface | None:
    """The router's address in a vxnet, with the prefix length; None in one without a network."""
    if not spec.network:
        return None
    network = IPv4Network(spec.network)
    address = IPv4Address(spec.manager_ip) if spec.manager_ip else network.network_address + 1
    return IPv4Interface((address, network.prefixlen))


@dataclass(frozen=True, slots=True)
class RouterLayout:
    """A router's namespace, and the vxnets whose bridges are in it."""

    router_id: str  # "" for the one that holds the vxnets joined to no router
    namespace: str
    vxnets: tuple[VxnetSpec, ...]

    def lines(self, mark: Mark) -> list[str]:
        """The batch that builds it in its new namespace; the mark comes first."""
        lines = [f'link set lo alias "{mark}"', "link set lo up"]
        for number, vxnet in enumerate(self.vxnets):
            bridge, mac = f"br{number}", f"06:00:00:00:{number >> 8:02x}:{number & 255:02x}"
            lines += [
                f"link add {bridge} address {mac} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                f"link set {bridge} alias {vxnet.vxnet_id} up",
            ]
            if address := manager_address(vxnet):
                lines.append(f"address add {address} brd + dev {bridge}")
        return lines

    def bridge_of(self, vxnet_id: str) -> str:
        return f"br{next(n for n, vxnet in enumerate(self.vxnets) if vxnet.vxnet_id == vxnet_id)}"


@dataclass(frozen=True, slots=True)
class HostLayout:
    spec: HostSpec
    namespace: str
    vxnet: VxnetSpec

    def lines(self, mark: Mark, primary_ip: str) -> list[str]:
        """The batch that configures it once it has its eth0, as an image's boot does."""
        lines = [f'link set lo alias "{mark}"', "link set lo up"]
        gateway = manager_address(self.vxnet)
        if gateway and primary_ip:
            lines += [
                f"address add {primary_ip}/{gateway.network.prefixlen} brd + dev eth0",
                f"route add default via {gateway.ip} dev eth0",
            ]
        return lines


@dataclass(frozen=True, slots=True)
class Layout:
    routers: tuple[RouterLayout, ...]
    hosts: dict[str, HostLayout]  # by instance id

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (*(r.namespace for r in self.routers), *(h.namespace for h in self.hosts.values()))

    def router_of(self, vxnet_id: str) -> RouterLayout:
        return next(r for r in self.routers if any(vxnet.vxnet_id == vxnet_id for vxnet in r.vxnets))


def make_layout(sim: str, topology: Topology) -> Layout:
    """Give each router and each host a namespace, so that VPCs are separate and may use the same networks."""
    known = {vxnet.vxnet_id: vxnet for vxnet in topology.vxnets}
    routers = [*topology.routers]
    if not routers or any(not vxnet.router_id for vxnet in topology.vxnets):
        routers.append(RouterSpec("", ""))
    places = tuple(
        RouterLayout(
            router.router_id,
            f"{sim}-router{number + 1 if number else ''}",
            tuple(vxnet for vxnet in topology.vxnets if vxnet.router_id == router.router_id),
        )
        for number, router in enumerate(routers)
    )
    hosts = {
        host.instance_id: HostLayout(host, f"{sim}-{host.name}", known[host.vxnet_id]) for host in topology.hosts
    }
    return Layout(places, hosts)


@dataclass(frozen=True, slots=True)
class Port:
    """A plugged NIC, and the namespaces of its two ends."""

    nic: PlugNic
    router: str  # namespace of the bridge
    bridge: str
    host: str  # namespace in which the NIC appears

    @property
    def name(self) -> str:
        return port_name(self.nic.nic_id)

    def add_from_router(self, ifname: str) -> str:
        """The line for the router's namespace that makes the pair: port on its bridge, NIC on the host, down."""
        return (
            f"link add {self.name} address {port_mac(self.nic.nic_id)} group {PORT_GROUP} master {self.bridge} up"
            f" type veth peer name {ifname} address {self.nic.nic_id} netns {self.host}"
        )

    def add_from_host(self, ifindex: int, ifname: str) -> str:
        """The line for the host's namespace that makes the pair with the NIC under this index and name.

        `ip link add` gives an ifindex only to the first end; the caller then puts the port on its bridge.
        """
        return (
            f"link add {ifname} index {ifindex} address {self.nic.nic_id} type veth"
            f" peer name {self.name} address {port_mac(self.nic.nic_id)} group {PORT_GROUP} netns {self.router}"
        )


def port_of(layout: Layout, nic: PlugNic) -> Port:
    router = layout.router_of(nic.vxnet_id)
    return Port(nic, router.namespace, router.bridge_of(nic.vxnet_id), layout.hosts[nic.instance_id].namespace)


def filter_script(ports: Iterable[Port]) -> str:
    """One transaction after which exactly *ports* are guarded; it rewrites the sets, which are small."""
    lines = [f"flush set bridge aspoof {name}\n" for name in ("guarded", "macs", "addresses")]
    for port in ports:
        lines += (
            f"add element bridge aspoof guarded {{ {port.name} }}\n",
            f"add element bridge aspoof macs {{ {port.name} . {port.nic.nic_id} }}\n",
            f"add element bridge aspoof addresses {{ {port.name} . {port.nic.private_ip} }}\n",
        )
    return "".join(lines)
