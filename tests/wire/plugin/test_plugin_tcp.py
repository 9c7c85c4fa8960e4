"""The plugin over TCP, where any program of the host may listen: whom it prefers, and whom it believes."""

import json
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni.plugin_process import ADD, DEL, RESULT, VERBS, PlayedAgent, Run, answer, config, played
from cni.signing import SigningAgent

# --- the agent over TCP --------------------------------------------------------------------------------


def test_request_and_answer_are_signed(run: Run, tcp_agent: PlayedAgent, token: Path) -> None:
    """As `SigningAgent` verifies; the token itself stays at home."""
    assert run(ADD, config(tcp_agent.address, TokenFile=str(token))).stdout == RESULT
    assert tcp_agent.bodies[0]["command"] == "ADD"
    tcp_agent.reply = answer(503, b'{"code":11,"msg":"later"}')
    assert run(DEL, config(tcp_agent.address, TokenFile=str(token))).error["msg"] == "later"
    assert b"some-token" not in b"".join(tcp_agent.heads)


def test_the_imports_for_tcp_are_few(plugin_file: Path, tcp_agent: PlayedAgent, token: Path) -> None:
    """Above all not `hashlib`, which loads OpenSSL."""
    stdin = json.dumps(config(tcp_agent.address, TokenFile=str(token))).encode()
    python = plugin_file.read_text().split("\n", 1)[0].removeprefix("#!").removesuffix(" -IS")
    done = subprocess.run(
        [python, "-IS", "-X", "importtime", plugin_file], env=ADD, input=stdin, capture_output=True, check=True
    )
    assert done.stdout == RESULT
    imported = {line.split("|")[-1].strip() for line in done.stderr.decode().splitlines()[1:]}
    assert not {"hashlib", "hmac", "_hashlib", "json", "socket", "re"} & imported
    assert imported & {"_sha2", "_sha256"}


@pytest.mark.parametrize("host", ["0.0.0.0", "localhost", ""])
def test_every_name_of_this_host_is_reached(run: Run, tcp_agent: PlayedAgent, token: Path, host: str) -> None:
    address = host + ":" + tcp_agent.address.rpartition(":")[2]
    assert run(ADD, config(address, TokenFile=str(token))).stdout == RESULT


@pytest.mark.parametrize("host", ["[::1]", "[::]"])
def test_ipv6_is_reached(run: Run, token: Path, host: str) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    for agent in played(listener, f"{host}:{listener.getsockname()[1]}"):
        assert run(ADD, config(agent.address, TokenFile=str(token))).stdout == RESULT


def refuse_mode(path: Path) -> None:
    path.chmod(0o640)


def refuse_owner(path: Path) -> None:
    os.chown(path, 1, 0)


def refuse_emptiness(path: Path) -> None:
    path.write_text(" \n")


def refuse_lines(path: Path) -> None:
    path.write_text("a\r\nX: b")


def refuse_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


def refuse_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def refuse_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def refuse_device(path: Path) -> None:
    path.unlink()
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # as /dev/zero


@pytest.mark.skipif(os.geteuid() != 0, reason="the token belongs to root")
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (refuse_mode, "other users than root may use it (mode 0640)"),
        (refuse_owner, "belongs to user 1"),
        (refuse_emptiness, "does not hold a token"),
        (refuse_lines, "does not hold a token"),
        (refuse_directory, "does not hold a token"),
        (refuse_fifo, "does not hold a token"),
        (refuse_device, "does not hold a token"),
        (refuse_link, "read failed"),
    ],
)
def test_a_token_that_cannot_be_trusted_is_code_7(
    run: Run, tcp_agent: PlayedAgent, token: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(token)
    done = run(ADD, config(tcp_agent.address, TokenFile=str(token)))
    error = done.error
    assert done.seconds < 5
    assert error["code"] == 7
    assert str(token) in error["msg"]
    assert says in error["msg"]
    assert tcp_agent.heads == []
    assert "some-token" not in str(error)


def test_a_reset_connection_is_code_11(run: Run, tcp_agent: PlayedAgent, token: Path) -> None:
    tcp_agent.resets = True
    error = run(ADD, config(tcp_agent.address, TokenFile=str(token))).error
    assert error["code"] == 11
    assert "broke off" in error["msg"]


def test_without_a_token_there_is_no_agent_yet(run: Run, tcp_agent: PlayedAgent, token: Path, tmp_path: Path) -> None:
    """After a boot, with any holder of the port: a DEL is spooled, and the rest may be tried again."""
    token.unlink()
    document = config(tcp_agent.address, TokenFile=str(token), SpoolDir=str(tmp_path / "spool"))
    error = run(ADD, document).error
    assert error["code"] == 11
    assert error["msg"].endswith(f"token file {token}: read failed: it does not exist; is qingagent running?")
    assert run(DEL, document).status == 0
    assert len(list((tmp_path / "spool").iterdir())) == 1
    assert tcp_agent.heads == []


# --- the unix socket is preferred ----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "0.0.0.0", "localhost", "", "[::1]", "[::]"])
def test_an_address_of_this_host_means_the_socket_beside_the_token(
    run: Run, agent: PlayedAgent, token: Path, host: str
) -> None:
    """For any listener at that port, and any token."""
    token.unlink()
    assert run(ADD, config(f"{host}:31080", TokenFile=str(token))).stdout == RESULT
    agent.reply = answer(503, b'{"code":11,"msg":"later"}')
    assert run(DEL, config(f"{host}:31080", TokenFile=str(token))).error["msg"] == "later"


def test_every_own_address_is_of_this_host(agent: PlayedAgent, token: Path, plugin_file: Path) -> None:
    """Tried in a namespace whose loopback has one of its own."""
    script = 'ip link set lo up; ip address add 192.0.2.7/32 dev lo; exec "$0"'
    for address, is_served in (("192.0.2.7", True), ("192.0.2.8", False)):
        done = subprocess.run(
            ["unshare", "--net", "sh", "-c", script, plugin_file],
            env=ADD | {"PATH": os.environ["PATH"]},
            input=json.dumps(config(f"{address}:31080", TokenFile=str(token))).encode(),
            capture_output=True, check=False,
        )  # fmt: skip
        assert (done.stdout == RESULT) == is_served, done
    assert len(agent.bodies) == 1


def test_a_socket_without_listener_is_passed_over(run: Run, tcp_agent: PlayedAgent, token: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(token.with_name("agent.sock")))
    assert run(ADD, config(tcp_agent.address, TokenFile=str(token))).stdout == RESULT


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[PlayedAgent]:
    """Plays an agent on a unix socket, as another user."""
    path = tmp_path / "agent.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    os.seteuid(65534)
    try:
        listener.listen()  # the kernel notes who listens
    finally:
        os.seteuid(0)
    yield from played(listener, f"unix://{path}", is_listening=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_a_socket_of_another_user_is_not_the_agents(
    run: Run, theirs: PlayedAgent, tcp_agent: PlayedAgent, token: Path
) -> None:
    assert run(ADD, config(tcp_agent.address, TokenFile=str(token))).stdout == RESULT
    error = run(ADD, config(theirs.address)).error
    assert (error["code"], error["msg"]) == (
        11,
        f"agent at {theirs.address}: connect failed: user 65534 listens there, not root",
    )
    assert theirs.bodies == []


# --- strangers -----------------------------------------------------------------------------------------


class Stranger:
    """Listens on TCP without the token; *play* is what it does with a connection. Keeps all it gets."""

    def __init__(self, play: "Callable[[Stranger, socket.socket], None]") -> None:
        self._play = play
        self.got = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Stranger":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)

    def read(self, connection: socket.socket) -> bytes:
        connection.settimeout(20)
        chunk = connection.recv(65536)
        self.got += chunk
        return chunk

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._play(self, connection)


def older(stranger: Stranger, connection: socket.socket) -> None:
    """Claims to be an agent without challenges."""
    while stranger.read(connection):
        connection.sendall(answer(404, b"404: Not Found", "keep-alive"))


def trusting(stranger: Stranger, connection: socket.socket) -> None:
    """Answers the result at once."""
    while stranger.read(connection):
        connection.sendall(answer(200, RESULT, "keep-alive"))


def asking(stranger: Stranger, connection: socket.socket) -> None:
    """Asks for the token as HTTP does."""
    while stranger.read(connection):
        connection.sendall(b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n\r\n")


def redirecting(stranger: Stranger, connection: socket.socket) -> None:
    while stranger.read(connection):
        connection.sendall(b"HTTP/1.1 307 No\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")


def guessing(stranger: Stranger, connection: socket.socket) -> None:
    """Knows the exchange, but not the token."""
    signing = SigningAgent(connection, "other-token")
    target = stranger.read(connection).split()[1].decode()
    connection.sendall(answer(200, signing.challenge(target), "keep-alive"))
    stranger.read(connection)


def reflecting(stranger: Stranger, connection: socket.socket) -> None:
    """Hands the plugin's own words back."""
    nonce = stranger.read(connection).split()[1].decode()[-64:]
    body = json.dumps({"nonce": nonce, "proofs": [nonce, "é", 7, "", None]}).encode()
    connection.sendall(answer(200, body, "keep-alive"))
    stranger.read(connection)


@pytest.mark.parametrize("play", [older, trusting, asking, redirecting, guessing, reflecting])
def test_a_stranger_learns_and_changes_nothing(
    run: Run, token: Path, play: Callable[[Stranger, socket.socket], None], tmp_path: Path
) -> None:
    """While the agent is away. DELs wait for it; other requests fail as without an agent."""
    with Stranger(play) as stranger:
        for verb, (environment, _) in VERBS.items():
            document = config(stranger.address, "1.1.0", TokenFile=str(token), SpoolDir=str(tmp_path / "spool"))
            done = run(environment, document | {"prevResult": {}})
            if verb == "DEL":
                assert (done.status, done.stdout) == (0, b"")
            else:
                assert done.error["code"] == (50 if verb == "STATUS" else 11)
                assert done.error["msg"].startswith(f"agent at {stranger.address}: challenge failed: ")
    assert len(list((tmp_path / "spool").iterdir())) == 1
    assert stranger.got.count(b"GET /v1/challenge?nonce=") == len(VERBS)
    for secret in (b"some-token", b"Authorization", b"mynet", b"netns"):
        assert secret not in stranger.got


def test_a_relay_to_the_agent_gets_no_request(run: Run, tcp_agent: PlayedAgent, token: Path) -> None:
    """The agent proves that it knows the token, but for another connection."""
    host, _, port = tcp_agent.address.rpartition(":")

    def relay(stranger: Stranger, connection: socket.socket) -> None:
        with socket.create_connection((host, int(port)), timeout=20) as far:
            while chunk := stranger.read(connection):
                far.sendall(chunk)
                connection.sendall(far.recv(65536))

    with Stranger(relay) as stranger:
        error = run(ADD, config(stranger.address, TokenFile=str(token))).error
    assert error["msg"].startswith(f"agent at {stranger.address}: challenge failed: the answer is not proved with")
    assert (tcp_agent.bodies, b"mynet" in stranger.got) == ([], False)


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole.replace(b'"ips":[]', b'"ips":[{}]').replace(b"Length: 48", b"Length: 50"),
        lambda whole: whole.replace(b"HTTP/1.1 200", b"HTTP/1.1 201"),
        lambda whole: whole.replace(b"Authentication-Info", b"X"),
        lambda whole: whole.replace(b"Authentication-Info: ", b"Authentication-Info: 0"),
    ],
)
def test_an_answer_that_was_changed_is_not_believed(
    run: Run, tcp_agent: PlayedAgent, token: Path, change: Callable[[bytes], bytes]
) -> None:
    tcp_agent.change = change
    error = run(ADD, config(tcp_agent.address, TokenFile=str(token))).error
    assert (error["code"], "not signed with the token in" in error["msg"]) == (11, True)


def test_the_answer_to_another_request_is_not_believed(run: Run, tcp_agent: PlayedAgent, token: Path) -> None:
    """Even of the same agent: each is bound to its request."""
    kept: list[bytes] = []

    def repeat(whole: bytes) -> bytes:
        kept.append(whole)
        return kept[0]

    tcp_agent.change = repeat
    assert run(ADD, config(tcp_agent.address, TokenFile=str(token))).stdout == RESULT
    assert "not signed" in run(ADD, config(tcp_agent.address, TokenFile=str(token))).error["msg"]
