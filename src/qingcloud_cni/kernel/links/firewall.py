"""The agent's nftables table: replies leave by the gateway NIC of their flow, and translated flows are masqueraded.

``nft`` writes the whole table in one transaction; netlink tells whether that is needed.
"""

import errno
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Network, collapse_addresses
from typing import Final

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.seams.kernel import Gateway, ServicePath
from qingcloud_cni.kernel.namespaces.namespaces import ClosesOnExit
from qingcloud_cni.kernel.netlink.messages import (
    NETLINK_NETFILTER,
    NFGENMSG,
    Request,
    pack_attribute,
    parse_u32,
    unpack_attributes,
)
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused

TABLE: Final = "qingcni"
# The only bits of a packet's and a flow's mark that the agent reads or writes. Others use: kube-proxy and kubelet
# 0x4000 and 0x8000, Cilium 0x0f00, Calico 0xffff0000 (Tailscale, Weave and kube-router within), AWS 0x80, TPROXY
# set-ups 0x1.
MARK_MASK: Final = 0x7E
NFT_SECONDS: Final = 20.0  # nft takes milliseconds; this limits how long it blocks the kernel thread

NFNL_SUBSYS_NFTABLES: Final = 10
NFT_MSG_GETTABLE: Final = 1
NFT_MSG_GETGEN: Final = 16
NFTA_TABLE_NAME: Final = 1
NFTA_GEN_ID: Final = 1
NFPROTO_INET: Final = 1


def mark_of(gateway: Gateway) -> int:
    """The mark, under MARK_MASK, of flows that came in by this gateway; never 0."""
    return (gateway.index + 1) << 1


def ruleset(path: ServicePath) -> str:
    """The table for *path* as ``nft list table`` of nftables 1.0 prints it; "" if none is needed."""
    own = [gateway for gateway in path.gateways if gateway.link_name]
    pods, services = _merged(path.masquerade), _merged(path.services)
    parts = []
    if pods:
        parts += [_set("pods", pods), *([_set("services", services)] if services else [])]
    if own:
        returning = [_returning(gateway) for gateway in own]
        arriving = [_arriving(gateway) for gateway in own]
        parts += [
            _chain("arriving", "filter hook prerouting priority mangle", [*arriving, *returning]),
            # of type route: the kernel routes a packet again after a change of its mark
            _chain("answering", "route hook output priority mangle", returning),
        ]
    if pods:
        # After kube-proxy: the first verdict holds for the whole flow, and kube-proxy's masquerade clears its mark.
        parts.append(_chain("leaving", "nat hook postrouting priority srcnat + 10", _masquerading(bool(services))))
    return f"table inet {TABLE} {{\n" + "\n\n".join(parts) + "\n}\n" if parts else ""


class Firewall(ClosesOnExit):
    """Ensures the table in the namespace of the thread that makes and uses it."""

    def __init__(self) -> None:
        self._netfilter = Netlink(NETLINK_NETFILTER)
        self._text: str | None = None  # the latest ensured table
        self._listed = ""  # nft's listing of it
        self._generation: int | None = None  # of the rule set when the table was right

    def close(self) -> None:
        self._netfilter.close()

    def ensure(self, wanted: str) -> bool:
        """Make the table exactly *wanted*, "" for none; False if it was.

        Each change of any table changes the generation of the rule set; an unchanged one needs no listing.
        """
        generation = self._read_generation()
        text: str | None = wanted
        if text == self._text and generation is not None and generation == self._generation:
            return False
        listed = self._list()
        is_other = listed != _normalized(wanted) and not (text == self._text and listed == self._listed)
        if is_other:
            _run_nft(f"add table inet {TABLE}\ndelete table inet {TABLE}\n{wanted}", "-f", "-")
            generation = self._read_generation()
            listed = self._list()
            if self._read_generation() != generation:  # changed again before the listing
                generation = text = None
        self._text, self._listed, self._generation = text, listed, generation
        return is_other

    def _list(self) -> str:
        """The table, normalized; "" if it does not exist."""
        return _normalized(_run_nft("", "list", "table", "inet", TABLE)) if self._exists() else ""

    def _exists(self) -> bool:
        body = NFGENMSG.pack(NFPROTO_INET, 0, 0) + pack_attribute(NFTA_TABLE_NAME, TABLE.encode() + b"\0")
        try:
            self._netfilter.do(Request(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, body), f"find table {TABLE}")
        except NetlinkRefused as err:
            if err.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):  # no such table; no nftables
                return False
            raise
        return True

    def _read_generation(self) -> int | None:
        request = Request(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NFGENMSG.pack(0, 0, 0))
        with suppress(NetlinkRefused):
            for message in self._netfilter.do(request, "read the generation of the rule set"):
                fields = dict(unpack_attributes(message.body, NFGENMSG.size))
                return parse_u32(fields[NFTA_GEN_ID])
        return None


def _arriving(gateway: Gateway) -> str:
    return f'meta nfproto ipv4 iifname "{gateway.link_name}" ct state new {_marking("ct", gateway)}'


def _returning(gateway: Gateway) -> str:
    match = f"ct direction reply ct mark & {MARK_MASK:#010x} == {mark_of(gateway):#010x}"
    return f"{match} {_marking('meta', gateway)}"


def _marking(whose: str, gateway: Gateway) -> str:
    """Set the agent's bits of a mark and keep the others, in nft's own spelling."""
    mark = mark_of(gateway)
    mask = ~MARK_MASK & 0xFFFFFFFF | mark
    others = "" if mask == 0xFFFFFFFF else f" & {mask:#010x}"
    return f"{whose} mark set {whose} mark{others} | {mark:#010x}"


def _masquerading(has_services: bool) -> list[str]:
    translated = ["ct status dnat"]
    if has_services:  # ipvs does not set the status bit
        translated.append("ct original ip daddr @services")
    return [
        'oifname "lo" return',
        *(f"ip {end} @pods {how} masquerade" for how in translated for end in ("saddr", "daddr")),
    ]


def _chain(name: str, kind: str, rules: Iterable[str]) -> str:
    lines = [f"type {kind}; policy accept;", *rules]
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}"


def _set(name: str, networks: Iterable[str]) -> str:
    elements = ", ".join(networks)
    return f"\tset {name} {{\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = {{ {elements} }}\n\t}}"


def _merged(networks: Iterable[str]) -> list[str]:
    """*networks* in order without overlaps, which a set rejects."""
    merged = collapse_addresses(IPv4Network(network, strict=False) for network in networks)
    return [str(network).removesuffix("/32") for network in merged]


def _normalized(text: str) -> str:
    return " ".join(text.split())


def _run_nft(script: str, *args: str) -> str:
    action = f"nft {' '.join(args)}"
    try:
        done = subprocess.run(
            ("nft", *args),
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=NFT_SECONDS,
            start_new_session=True,  # Ctrl-C must reach the agent alone
        )
    except FileNotFoundError as err:
        raise KernelRefused(
            "nft: start failed: not found; install the package nftables for Services by a gateway NIC"
        ) from err
    except (OSError, subprocess.TimeoutExpired) as err:
        raise KernelRefused(f"{action} failed: {err}") from err
    if done.returncode:
        raise KernelRefused(f"{action} failed: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout
