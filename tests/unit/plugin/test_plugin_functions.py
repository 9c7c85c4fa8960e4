"""The plugin's main() in this process, with any stdin, environment and answer of the agent."""

import errno
import json
import posix
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from enum import Enum, auto
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.plugin_inputs import ENVIRONMENTS, JSON, check_answer, documents
from cni.plugin_process import ADD, RESULT, answer, config
from cni.signing import SigningAgent
from qingcloud_cni.agent.attachments.spool_files import Oddity, SpoolFiles
from qingcloud_cni.agent.settings.values import Address
from qingcloud_cni.core.text import escaped
from qingcloud_cni.plugin import qingcni


class Ended(BaseException):
    """The process would be gone."""


class Process:
    """The module `posix` as the plugin uses it, with standard streams and an end of its own."""

    def __init__(self, environment: dict[bytes, bytes], stdin: bytes) -> None:
        self.environ = environment
        self.stdin = stdin
        self.written = {1: b"", 2: b""}
        self.status: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(posix, name)

    def read(self, file: int, size: int) -> bytes:
        if file != 0:
            return posix.read(file, size)
        chunk, self.stdin = self.stdin[:size], self.stdin[size:]
        return chunk

    def write(self, file: int, content: bytes) -> int:
        if file > 2:
            return posix.write(file, content)
        if self.status is None:
            self.written[file] += content
        return len(content)

    def _exit(self, status: int) -> NoReturn:
        if self.status is None:
            self.status = status
        raise Ended


class Peer(Enum):
    SOCKET = auto()  # listens on the unix socket
    AGENT = auto()  # listens on TCP alone, and so does a
    STRANGER = auto()


class Connection:
    """A socket whose other side answers with *chunks*, whatever it is sent."""

    def __init__(self, chunks: list[bytes], peer: Peer, family: int) -> None:
        self._is_refused = peer is not Peer.SOCKET and family == socket.AF_UNIX
        self._is_agent = peer is Peer.AGENT  # then it knows the token
        self._given = chunks
        self._chunks = iter(chunks)
        self._signing = SigningAgent(self, "some-token")

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 110

    def connect(self, place: object) -> None:
        assert place
        if self._is_refused:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 40000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 31080

    def getsockopt(self, *_option: int) -> bytes:
        return struct.pack("3i", 1, 0, 0)

    def sendall(self, message: bytes) -> None:
        assert b"some-token" not in message
        head, _, body = message.partition(b"\r\n\r\n")
        if head.startswith(b"GET /v1/challenge?nonce="):
            if self._is_agent:
                self._chunks = iter([answer(200, self._signing.challenge(head.split()[1].decode()))])
            return
        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
        assert json.loads(body)["config"] is not None
        if self._is_agent:
            whole = self._signing.sign(self._signing.check(head, body), b"".join(self._given[:-1]))
            self._chunks = iter([whole, self._given[-1]])

    def recv(self, size: int) -> bytes:
        chunk = next(self._chunks, b"")
        if chunk == b"timeout":
            raise TimeoutError
        if chunk == b"reset":
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        return chunk[:size]


BODIES = st.sampled_from([b"", RESULT, b"{}", b"[]", b'{"code":11,"msg":"busy"}']) | JSON.map(
    lambda value: json.dumps(value).encode()
)
ANSWERS = st.builds(answer, st.sampled_from([200, 400, 503, 999]), BODIES) | st.binary(max_size=40)


def chunks_of(whole: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in pairwise(places)]


TALKS = st.builds(
    lambda whole, cuts, last: [*chunks_of(whole, cuts), last],
    ANSWERS, st.lists(st.integers(0, 200), max_size=3), st.sampled_from([b"", b"timeout", b"reset"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Stands for the agent's run directory, with a token in it."""
    with tempfile.TemporaryDirectory() as directory:
        token = Path(directory) / "token"
        token.touch(mode=0o600)
        token.write_text("some-token")
        yield Path(directory)


def run_to_its_end(process: Process, chunks: list[bytes], run_dir: Path, peer: Peer) -> None:
    names = ("AF_UNIX", "AF_INET", "AF_INET6", "SOL_SOCKET", "SO_PEERCRED", "SOCK_STREAM", "SOCK_DGRAM", "inet_pton")

    sockets = SimpleNamespace(
        **{name: getattr(socket, name) for name in names},
        SOCK_CLOEXEC=0, socket=lambda family, _kind: Connection(chunks, peer, family),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qingcni, "posix", process)
        patch.setattr(qingcni, "net", sockets)
        patch.setattr(qingcni, "RUN_DIR", str(run_dir))
        with pytest.raises(Ended):
            qingcni.main()


@settings(max_examples=1000, deadline=None)
@given(data=st.data(), environment=ENVIRONMENTS, chunks=TALKS, peer=st.sampled_from(Peer))
def test_whatever_comes_ends_in_one_document(
    place: Path, data: st.DataObject, environment: dict[bytes, bytes], chunks: list[bytes], peer: Peer
) -> None:
    addresses = st.sampled_from(["127.0.0.1:31080", "[::1]:1", f"unix://{place}/agent.sock"])
    stdin = data.draw(documents(addresses, st.just(str(place / "spool"))))
    process = Process(environment, stdin)
    run_to_its_end(process, chunks, place, peer)
    assert process.status is not None
    check_answer(environment[b"CNI_COMMAND"], process.status, process.written[1], process.written[2])


@settings(max_examples=300, deadline=None)
@given(environment=ENVIRONMENTS, chunks=TALKS)
def test_a_stranger_on_tcp_is_never_believed(
    place: Path, environment: dict[bytes, bytes], chunks: list[bytes]
) -> None:
    """Whatever it answers: DELs are spooled, and the rest fails as without an agent."""
    stdin = json.dumps(config("127.0.0.1:31080", SpoolDir=str(place / "spool")) | {"prevResult": {}}).encode()
    process = Process(environment, stdin)
    run_to_its_end(process, chunks, place, Peer.STRANGER)
    verb = environment[b"CNI_COMMAND"]
    if verb != b"VERSION" and (process.status or verb != b"DEL"):
        assert process.status == 1
        assert json.loads(process.written[1])["code"] in {1, 4, 11}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), environment=ENVIRONMENTS)
def test_every_del_that_is_kept_can_be_read_by_the_agent(
    place: Path, data: st.DataObject, environment: dict[bytes, bytes]
) -> None:
    directory = place / "kept"
    for path in directory.glob("*"):
        path.unlink()
    stdin = data.draw(documents(st.just("localhost:1"), st.just(str(directory))))
    process = Process(environment | {b"CNI_COMMAND": b"DEL"}, stdin)
    run_to_its_end(process, [b""], place, Peer.STRANGER)
    spool = SpoolFiles(directory, "i-1", place / "agent.sock", Address("127.0.0.1", 1))
    found = list(spool.scan())
    assert len(found) == (process.status == 0)
    for item in found:
        if isinstance(item, Oddity):
            assert item.event == "spool.left"
        else:
            assert item.spooled.key.container_id.encode() == environment[b"CNI_CONTAINERID"]
            assert item.spooled.key.ifname.encode() == environment[b"CNI_IFNAME"]
            assert item.spooled.uptime == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=30)


@given(text=st.text(st.characters(categories=None)))
def test_the_plugin_escapes_texts_by_the_agents_rule(text: str) -> None:
    shown = json.loads(qingcni.error_object("1.1.0", qingcni.CniError(7, text, text)))
    assert shown["msg"] == escaped(text)
    assert shown.get("details", "") == escaped(text)


@pytest.mark.parametrize("key", ["BindAddr", "SpoolDir", "TokenFile", "InstanceID", "TimeoutSeconds"])
@pytest.mark.parametrize("control", ["\x1b[2J", "\a", "\x9b", "\u202e", "\n", "\x7f"], ids=ascii)
@pytest.mark.parametrize("verb", [b"ADD", b"DEL", b"STATUS"])
def test_nothing_that_the_plugin_prints_moves_a_terminal(place: Path, verb: bytes, key: str, control: str) -> None:
    conf = config("127.0.0.1:31080")
    conf["args"][key] = f"{place}/{control}/not-there"
    process = Process(
        {k.encode(): v.encode() for k, v in ADD.items()} | {b"CNI_COMMAND": verb}, json.dumps(conf).encode()
    )
    run_to_its_end(process, [b""], place, Peer.STRANGER)
    for shown in (*json.loads(process.written[1] or "{}").values(), process.written[2].decode().rstrip("\n")):
        assert str(shown).isprintable()
