"""A Service's rules in the demo: what `kube-proxy --proxy-mode nftables` writes for one, on every host."""

from collections.abc import Mapping

PODS = "172.20.0.0/16"  # the simulator's VPC: kube-proxy's --cluster-cidr
RULES = """\
table ip kube-proxy {{
  map service-ips {{
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {{ {services} }}
  }}
{chains}
  chain mark-for-masquerade {{ mark set mark or 0x4000; }}
  chain masquerading {{ mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random; }}
  chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
"""
SERVICE_CHAIN = """\
  chain service-{proto} {{
    ip daddr {address} {proto} dport 80 ip saddr != {pods} jump mark-for-masquerade
    numgen random mod {count} vmap {{ {choice} }}
  }}
"""
ENDPOINT_CHAIN = """\
  chain endpoint-{name}-{proto} {{
    ip saddr {backend} jump mark-for-masquerade
    meta l4proto {proto} dnat to {backend}:8080
  }}
"""


def service_rules(address: str, backends: Mapping[str, str]) -> str:
    """Port 80 of *address*, TCP and UDP, is port 8080 of one of *backends* (name and address), chosen at random."""
    services, chains = [], []
    for proto in ("tcp", "udp"):
        services.append(f"{address} . {proto} . 80 : goto service-{proto}")
        choice = ", ".join(f"{number} : goto endpoint-{name}-{proto}" for number, name in enumerate(backends))
        for name, backend in backends.items():
            chains.append(ENDPOINT_CHAIN.format(name=name, proto=proto, backend=backend))
        chains.append(
            SERVICE_CHAIN.format(proto=proto, address=address, pods=PODS, count=len(backends), choice=choice)
        )
    return RULES.format(services=", ".join(services), chains="".join(chains).rstrip())
