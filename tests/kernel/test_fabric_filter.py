"""Anti-spoofing at the bridge port, with handmade frames."""

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from machines.simulator import Sim, links, needs_root, running_sim
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root

ALIEN_MAC = bytes.fromhex("5254deadbeef")
ALIEN_IP = "172.20.1.200"
BROADCAST = b"\xff" * 6
ETH_P_ALL = 3


def ethernet(source: bytes, kind: int, payload: bytes) -> bytes:
    return BROADCAST + source + struct.pack("!H", kind) + payload


def udp(source_mac: bytes, source_ip: str, ports: tuple[int, int], tag: str) -> bytes:
    data = tag.encode()
    head = struct.pack("!HHHH", *ports, 8 + len(data), 0)
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28 + len(data), 0, 0, 64, 17, 0, socket.inet_aton(source_ip), b"\xff" * 4
    )
    total = sum(struct.unpack("!10H", ip))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return ethernet(source_mac, 0x0800, ip[:10] + struct.pack("!H", checksum) + ip[12:] + head + data)


def arp(frame_mac: bytes, sender_mac: bytes, sender_ip: str, tag: str) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + sender_mac + socket.inet_aton(sender_ip)
    return ethernet(frame_mac, 0x0806, body + bytes(6) + socket.inet_aton("172.20.1.250") + tag.encode())


def ipv6(source_mac: bytes, tag: str) -> bytes:
    data = tag.encode()
    addresses = socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(socket.AF_INET6, "ff02::1")
    return ethernet(source_mac, 0x86DD, struct.pack("!IHBB", 6 << 28, len(data), 59, 64) + addresses + data)


class Wire:
    """Sends frames from a NIC on one host and tells which of them arrive at a NIC of the same vxnet on the other."""

    def __init__(self, sim: Sim, sockets: ExitStack) -> None:
        self.sim = sim
        (self.sender,) = sim.new_nics("host1", "vxnet-pods001")
        (receiver,) = sim.new_nics("host2", "vxnet-pods001")
        self.mac = bytes.fromhex(self.sender["nic_id"].replace(":", ""))
        self.ip = self.sender["private_ip"]
        self._out = sockets.enter_context(self._open("host1", self.sender["nic_id"]))
        self._in = sockets.enter_context(self._open("host2", receiver["nic_id"]))
        self._round = 0

    def _open(self, host: str, nic_id: str) -> socket.socket:
        name = links(self.sim.netns(host))[nic_id]["ifname"]

        def bind() -> socket.socket:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            opened.bind((name, ETH_P_ALL))
            opened.settimeout(10)
            return opened

        return inside(self.sim.netns(host), bind)

    def arriving(self) -> set[str]:
        """Send one frame of each kind; the kinds that arrive, in one go: the last frame is always let through."""
        self._round += 1
        frames = {
            "own address": udp(self.mac, self.ip, (9, 9), "own address"),
            "alien address": udp(self.mac, ALIEN_IP, (9, 9), "alien address"),
            "alien mac": udp(ALIEN_MAC, self.ip, (9, 9), "alien mac"),
            "arp": arp(self.mac, self.mac, self.ip, "arp"),
            "arp alien address": arp(self.mac, self.mac, ALIEN_IP, "arp alien address"),
            "arp alien mac": arp(self.mac, ALIEN_MAC, self.ip, "arp alien mac"),
            "arp probe": arp(self.mac, self.mac, "0.0.0.0", "arp probe"),
            "dhcp": udp(self.mac, "0.0.0.0", (68, 67), "dhcp"),
            "no address": udp(self.mac, "0.0.0.0", (9, 9), "no address"),
            "ipv6": ipv6(self.mac, "ipv6"),
            "ipv6 alien mac": ipv6(ALIEN_MAC, "ipv6 alien mac"),
        }
        last = f"last of round {self._round}"
        for frame in (*frames.values(), udp(self.mac, self.ip, (9, 9), last)):
            self._out.send(frame.ljust(60, b"\0"))
        seen: set[str] = set()
        while True:
            frame = self._in.recv(2048).rstrip(b"\0")
            if frame.endswith(last.encode()):
                return seen
            seen |= {kind for kind, sent in frames.items() if frame == sent.rstrip(b"\0")}


HONEST = {"own address", "arp", "arp probe", "dhcp", "ipv6"}
SPOOFED = {"alien address", "alien mac", "arp alien address", "arp alien mac", "no address", "ipv6 alien mac"}


@pytest.fixture
def wire() -> Iterator[Wire]:
    with running_sim() as sim, ExitStack() as sockets:
        yield Wire(sim, sockets)


def test_only_what_is_the_nics_own_passes_and_the_attribute_turns_that_off_and_on(wire: Wire) -> None:
    nic_id = wire.sender["nic_id"]
    assert wire.arriving() == HONEST
    wire.sim.call("ModifyNicAttributes", nic=nic_id, enable_aspoof=0)
    assert wire.arriving() == HONEST | SPOOFED
    wire.sim.call("ModifyNicAttributes", nic=nic_id, enable_aspoof=1)
    assert wire.arriving() == HONEST


def test_other_nics_keep_their_guard_when_one_loses_it(wire: Wire) -> None:
    (other,) = wire.sim.new_nics("host2", "vxnet-pods001")
    wire.sim.call("ModifyNicAttributes", nic=other["nic_id"], enable_aspoof=0)
    assert wire.arriving() == HONEST
    wire.sim.remove_nics(other["nic_id"])
    assert wire.arriving() == HONEST
