"""The netlink socket, against the kernel, and against written answers for rare errors."""

import errno
import struct
import subprocess
from collections.abc import Iterable, Sequence

import pytest

from machines.nics import Lab, flood_altnames, ip_json, lab, within
from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.messages import LinkChange, Request
from qingcloud_cni.kernel.netlink.socket import DUMP_TRIES, Netlink, NetlinkRefused

__all__ = ["lab"]  # fixtures


class WrittenSocket:
    """Answers as it was told to; "%" stands for the sequence number of the latest request."""

    def __init__(self, answers: Iterable[bytes | Exception], port: int = 0) -> None:
        self.answers = list(answers)
        self.port = port
        self.seq = 0

    def send(self, request: bytes) -> None:
        (self.seq,) = struct.unpack_from("=I", request, 8)

    def recvmsg_into(self, buffers: Sequence[memoryview]) -> tuple[int, list[object], int, tuple[int, int]]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        port, self.port = self.port, 0
        answer = answer.replace(b"%%%%", struct.pack("=I", self.seq))
        buffers[0][: len(answer)] = answer
        return len(answer), [], 0, (port, 0)

    def close(self) -> None:
        pass


def message(kind: int, body: bytes = b"", flags: int = 0, seq: bytes = b"%%%%") -> bytes:
    return struct.pack("=IHH", 16 + len(body), kind, flags) + seq + bytes(4) + body


def link(ifindex: int, flags: int = 0) -> bytes:
    return message(nl.RTM_NEWLINK, struct.pack("=BxHiII", 0, 1, ifindex, 0, 0), flags)


DONE = message(nl.NLMSG_DONE, bytes(4))
ACK = message(nl.NLMSG_ERROR, bytes(20))


def written(*answers: bytes | Exception, port: int = 0) -> Netlink:
    netlink = Netlink()
    netlink.close()
    netlink._socket = WrittenSocket(answers, port)  # type: ignore[assignment]
    return netlink


def test_long_listing_is_complete(lab: Lab) -> None:
    adds = "".join(f"link add a{n} type veth peer name b{n}\n" for n in range(100))
    subprocess.run(("ip", "-n", lab.host, "-batch", "-"), input=adds.encode(), check=True)
    with within(lab, lab.host, Netlink) as netlink:
        told = {(found.ifindex, found.name, found.mac, found.mtu, found.kind) for found in netlink.links()}
    expected = {
        (item["ifindex"], item["ifname"], item["address"], item["mtu"], item.get("linkinfo", {}).get("info_kind", ""))
        for item in ip_json("-n", lab.host, "link")
    }
    assert told == expected
    assert len(told) == 201


def test_a_link_with_a_description_above_64_kib_is_read(lab: Lab) -> None:
    lab.plug()
    flood_altnames(lab.host, "eth1")
    with within(lab, lab.host, Netlink) as netlink:
        index = lab.links(lab.host)["eth1"]["ifindex"]
        assert len(netlink.do(nl.get_link(ifindex=index), "ask")[0].body) > 1 << 16
        for found in (netlink.link(ifindex=index), netlink.link(name="eth1"), netlink.links()[1]):
            assert found is not None
            assert (found.ifindex, found.name) == (index, "eth1")


def test_refusal_tells_wish_words_and_number(lab: Lab) -> None:
    with within(lab, lab.host, Netlink) as netlink:
        assert netlink.link(name="nobody") is None
        assert netlink.link(ifindex=12345) is None
        with pytest.raises(NetlinkRefused, match=r"^set up failed: No such device \(ENODEV\)$") as caught:
            netlink.do(nl.set_link(12345, LinkChange(is_up=True)), "set up")
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(NetlinkRefused, match=r"^try failed: .+ \(E(OP)?NOTSUPP?\)$"):
            netlink.do(Request(999, b""), "try")
        loopback = netlink.link(name="lo")
        assert loopback
        assert loopback.ifindex == 1


def test_socket_belongs_to_where_it_was_opened(lab: Lab) -> None:
    lab.plug()
    with within(lab, lab.host, Netlink) as netlink:
        assert [found.name for found in netlink.links()] == ["lo", "eth1"]


def test_interrupted_listing_is_asked_again() -> None:
    interrupted = [link(1, nl.NLM_F_DUMP_INTR), link(2) + DONE]
    netlink = written(*interrupted, link(3) + link(4), DONE)
    assert [found.ifindex for found in netlink.links()] == [3, 4]


def test_interruption_at_the_end_counts() -> None:
    netlink = written(link(1) + message(nl.NLMSG_DONE, bytes(4), nl.NLM_F_DUMP_INTR), link(2) + DONE)
    assert [found.ifindex for found in netlink.links()] == [2]


def test_listing_is_not_asked_for_ever() -> None:
    netlink = written(*[link(1, nl.NLM_F_DUMP_INTR) + DONE] * DUMP_TRIES)
    with pytest.raises(KernelRefused, match="changes interrupted each of"):
        netlink.links()


def test_late_answer_to_another_request_is_ignored() -> None:
    stale = message(nl.NLMSG_ERROR, struct.pack("=i", -errno.EPERM) + bytes(16), seq=struct.pack("=I", 4711))
    netlink = written(stale, stale + ACK)
    netlink.do(nl.get_link(), "ask")


def test_message_of_another_process_is_ignored() -> None:
    forged = message(nl.NLMSG_ERROR, struct.pack("=i", -errno.EPERM) + bytes(16))
    written(forged, ACK, port=4711).do(nl.get_link(), "ask")


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (TimeoutError("timed out"), errno.ETIMEDOUT),
        (OSError(errno.ENOBUFS, "No buffer space available"), errno.ENOBUFS),
        (message(nl.NLMSG_OVERRUN), errno.ENOBUFS),
        (message(nl.NLMSG_DONE, struct.pack("=i", -errno.EMSGSIZE)), errno.EMSGSIZE),
    ],
)
def test_broken_conversation_is_a_refusal(answer: bytes | Exception, number: int) -> None:
    with pytest.raises(NetlinkRefused, match=f"^list links failed: .*{errno.errorcode[number]}") as caught:
        written(answer).links()
    assert caught.value.errno == number


def test_cut_answer_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qingcloud_cni.kernel.netlink.socket._BUFFER.view", memoryview(bytearray(64)))
    with Netlink() as netlink, pytest.raises(NetlinkRefused, match="longer than 64 bytes"):
        netlink.links()
