"""Flows on a test's host, made by real packets or written into the kernel's table, and read back by pyroute2."""

import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from machines.simulator import run
from qingcloud_cni.sim.fabric.shell import inside

# Anything that asks for a flow's state has the kernel track flows in that namespace.
TRACKING = """
table inet tracking {
  chain into { type filter hook prerouting priority 0; ct state invalid counter; }
  chain out { type filter hook output priority 0; ct state invalid counter; }
}
"""

NETLINK_NETFILTER = 12

Flow = tuple[int, tuple[str, str], tuple[str, str]]  # protocol; source and target of both directions


def track(netns: str, rules: str = "") -> None:
    """Have the namespace called *netns* track its flows, and obey *rules* of nftables."""
    run("nsenter", f"--net=/run/netns/{netns}", "nft", "-f", "-", input=TRACKING + rules)


def flows(netns: str) -> list[Flow]:
    """All that is tracked there."""

    def read() -> list[Flow]:
        with NFCTSocket() as conntrack:
            return [_flow(message) for message in conntrack.dump()]

    return sorted(inside(netns, read))


def addresses(netns: str) -> set[str]:
    """Those that any tracked flow has, in whichever place."""
    return {address for _, *ways in flows(netns) for way in ways for address in way}


def _flow(message: Any) -> Flow:
    ways = [message.get_attr(name) for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")]
    ends = [way.get_attr("CTA_TUPLE_IP") for way in ways]
    there, back = [(end.get_attr("CTA_IP_V4_SRC"), end.get_attr("CTA_IP_V4_DST")) for end in ends]
    return ways[0].get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM"), there, back


def send_syn(netns: str, target: str, port: int = 80, source: str = "") -> socket.socket:
    """Begin a connection that nobody answers; while the socket is open the kernel goes on trying."""

    def begin() -> socket.socket:
        caller = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if source:
            caller.bind((source, 0))
        with suppress(BlockingIOError):
            caller.connect((target, port))
        return caller

    return inside(netns, begin)


def send_udp(netns: str, target: str, port: int = 53) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"?", (target, port))

    inside(netns, send)


def write_flows(netns: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Have the kernel track a UDP flow for each pair of source and target, without a packet."""
    messages = [_new_flow(number, source, target) for number, (source, target) in enumerate(pairs)]

    def write() -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as ctnetlink:
            for start in range(0, len(messages), 200):
                ctnetlink.send(b"".join(messages[start : start + 200]))

    inside(netns, write)


def _new_flow(number: int, source: str, target: str) -> bytes:
    def attribute(kind: int, *values: bytes) -> bytes:
        value = b"".join(values)
        return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)

    def way(kind: int, ends: tuple[str, str], ports: tuple[int, int]) -> bytes:
        ip = attribute(0x8001, *(attribute(n, socket.inet_aton(end)) for n, end in enumerate(ends, 1)))
        numbers = (attribute(n, struct.pack("!H", port)) for n, port in enumerate(ports, 2))
        return attribute(0x8000 | kind, ip, attribute(0x8002, attribute(1, b"\x11"), *numbers))

    port = 1024 + number % 60_000
    body = way(1, (source, target), (port, 53)) + way(2, (target, source), (53, port))
    body += attribute(7, struct.pack("!I", 600)) + attribute(3, struct.pack("!I", 8))  # timeout, confirmed
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + body
    return struct.pack("=IHHII", 16 + len(body), 0x100, 0x1 | 0x400, number, 0) + body
