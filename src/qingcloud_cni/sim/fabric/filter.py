"""Anti-spoofing at the bridge ports: the nftables table of a router's namespace, as text."""

from collections.abc import Iterable

from qingcloud_cni.sim.fabric.layout import Port

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
