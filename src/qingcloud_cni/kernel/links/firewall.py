"""Our nftables table: what came in at a gateway NIC goes back there, and translated flows are masqueraded.

The table is written as a whole, in one transaction, by ``nft``; whether that is needed is asked of the kernel itself.
"""

import errno
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Network, collapse_addresses
from types import TracebackType
from typing import Final, Self

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.core.seams.kernel import Gateway, ServicePath
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
# The bits of a packet's and a flow's mark that are ours, and the only ones we read or write. Taken by others: 0x4000
# and 0x8000 kube-proxy and kubelet, 0x0f00 Cilium, 0xffff0000 Calico (Tailscale, Weave and kube-router within), 0x80
# AWS; 0x1 is what TPROXY set-ups by hand take.
MARK_MASK: Final = 0x7E
NFT_SECONDS: Final = 20.0  # it takes some milliseconds; the kernel thread must not wait for ever

NFNL_SUBSYS_NFTABLES: Final = 10
NFT_MSG_GETTABLE: Final = 1
NFT_MSG_GETGEN: Final = 16
NFTA_TABLE_NAME: Final = 1
NFTA_GEN_ID: Final = 1
NFPROTO_INET: Final = 1


def mark_of(gateway: Gateway) -> int:
    """The mark, under MARK_MASK, of what came in by this gateway; never 0."""
    return (gateway.index + 1) << 1


def ruleset(path: ServicePath) -> str:
    """The table for *path* as ``nft list table`` of nftables 1.0 shows it; "" where none is needed."""
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
            # of the type that routes a packet again once its mark has changed
            _chain("answering", "route hook output priority mangle", returning),
        ]
    if pods:
        # After kube-proxy: the first rule that decides decides for the whole flow, and its own masquerade takes its
        # mark off the packet.
        parts.append(_chain("leaving", "nat hook postrouting priority srcnat + 10", _masquerading(bool(services))))
    return f"table inet {TABLE} {{\n" + "\n\n".join(parts) + "\n}\n" if parts else ""


class Firewall:
    """Keeps the table of the namespace of the thread that makes it; to be used in that thread."""

    def __init__(self) -> None:
        self._netfilter = Netlink(NETLINK_NETFILTER)
        self._text: str | None = None  # as last ensured
        self._listed = ""  # what nft made of it
        self._generation: int | None = None  # of the rule set when it was last seen to be right

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._netfilter.close()

    def ensure(self, wanted: str) -> None:
        """Have exactly *wanted* as our table, "" for none.

        Every change of any table gives the rule set another generation, so as long as that is the same there is
        nothing to look at.
        """
        generation = self._read_generation()
        text: str | None = wanted
        if text == self._text and generation is not None and generation == self._generation:
            return
        listed = self._list()
        if listed != _plain(wanted) and not (text == self._text and listed == self._listed):
            _nft(f"add table inet {TABLE}\ndelete table inet {TABLE}\n{wanted}", "-f", "-")
            generation = self._read_generation()
            listed = self._list()
            if self._read_generation() != generation:  # changed again before we saw what nft made of it
                generation = text = None
        self._text, self._listed, self._generation = text, listed, generation

    def _list(self) -> str:
        """Our table in plain words, "" if there is none."""
        return _plain(_nft("", "list", "table", "inet", TABLE)) if self._exists() else ""

    def _exists(self) -> bool:
        body = NFGENMSG.pack(NFPROTO_INET, 0, 0) + pack_attribute(NFTA_TABLE_NAME, TABLE.encode() + b"\0")
        try:
            self._netfilter.ask(Request(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE, body), f"find table {TABLE}")
        except NetlinkRefused as err:
            if err.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):  # no such table; no tables at all
                return False
            raise
        return True

    def _read_generation(self) -> int | None:
        request = Request(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NFGENMSG.pack(0, 0, 0))
        with suppress(NetlinkRefused):
            for message in self._netfilter.ask(request, "read the generation of the rule set"):
                fields = dict(unpack_attributes(message.body, NFGENMSG.size))
                return parse_u32(fields[NFTA_GEN_ID])
        return None


# --- the rules ---------------------------------------------------------------------------------------


def _arriving(gateway: Gateway) -> str:
    return f'meta nfproto ipv4 iifname "{gateway.link_name}" ct state new {_marking("ct", gateway)}'


def _returning(gateway: Gateway) -> str:
    match = f"ct direction reply ct mark & {MARK_MASK:#010x} == {mark_of(gateway):#010x}"
    return f"{match} {_marking('meta', gateway)}"


def _marking(whose: str, gateway: Gateway) -> str:
    """Set our bits of a mark and leave the others as they are, in nft's own spelling."""
    mark = mark_of(gateway)
    kept = ~MARK_MASK & 0xFFFFFFFF | mark
    others = "" if kept == 0xFFFFFFFF else f" & {kept:#010x}"
    return f"{whose} mark set {whose} mark{others} | {mark:#010x}"


def _masquerading(has_services: bool) -> list[str]:
    translated = ["ct status dnat"]
    if has_services:  # ipvs translates without saying so in the status
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
    """*networks* in order, none within another: a set refuses overlaps."""
    merged = collapse_addresses(IPv4Network(network, strict=False) for network in networks)
    return [str(network).removesuffix("/32") for network in merged]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _nft(script: str, *args: str) -> str:
    wish = f"nft {' '.join(args)}"
    try:
        done = subprocess.run(
            ("nft", *args),
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=NFT_SECONDS,
            start_new_session=True,  # a Ctrl-C is meant for the agent
        )
    except FileNotFoundError as err:
        raise KernelRefused("nft: not found; Services by a gateway NIC need the package nftables") from err
    except (OSError, subprocess.TimeoutExpired) as err:
        raise KernelRefused(f"{wish}: {err}") from err
    if done.returncode:
        raise KernelRefused(f"{wish}: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout
