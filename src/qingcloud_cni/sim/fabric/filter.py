"""Anti-spoofing at the bridge ports: the nftables table of a router's namespace, as text."""

from collections.abc import Iterable
from dataclasses import dataclass

# At priority -300 a frame meets these rules before anything else the bridge does with it, whether it goes to another
# port or to the router itself. IPv6 is held to the source MAC only: the cloud gives NICs no IPv6 address.
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


@dataclass(frozen=True, slots=True)
class PortFilter:
    """What may come in at a bridge port."""

    port: str
    mac: str
    address: str


def filter_script(guards: Iterable[PortFilter]) -> str:
    """The one transaction after which exactly *guards* are in force; the sets are small, so they are written anew."""
    lines = [f"flush set bridge aspoof {name}\n" for name in ("guarded", "macs", "addresses")]
    for guard in guards:
        lines += (
            f"add element bridge aspoof guarded {{ {guard.port} }}\n",
            f"add element bridge aspoof macs {{ {guard.port} . {guard.mac} }}\n",
            f"add element bridge aspoof addresses {{ {guard.port} . {guard.address} }}\n",
        )
    return "".join(lines)
