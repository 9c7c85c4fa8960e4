"""Starts that are refused before the cloud is asked: the real command, exit status, one sentence, nothing changed."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from machines.containers import new_namespace
from machines.hosts import QINGAGENT
from machines.simulator import eventually, needs_root, run
from qingcloud_cni.agent.process.lock import LOCKS
from qingcloud_cni.agent.settings.config_formats import FORMATS
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root

SECRET = "never-to-be-shown"
KEYS = f"qy_access_key_id: KEYID\nqy_secret_access_key: {SECRET}\n"
ACCESS = f"{KEYS}host: 127.0.0.1\nport: 9\nprotocol: http\nconnection_retries: 0\n"
AS_NOBODY = f"""
import importlib, os, pkgutil, sys
import qingcloud_cni
for module in pkgutil.walk_packages(qingcloud_cni.__path__, "qingcloud_cni."):
    importlib.import_module(module.name)  # nobody may not be allowed to read the checkout
from qingcloud_cni.cli.qingagent import main
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.argv[0] = {QINGAGENT!r}
main()
"""
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


@dataclass
class Place:
    """A network namespace with a NIC, its router's, and a directory with all that a start needs."""

    netns: str
    directory: Path

    @property
    def access(self) -> Path:
        return self.directory / "client.yaml"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    def argv(self, *program: str, **settings: object) -> list[str]:
        chosen: dict[str, object] = {
            "QYAccessFilePath": self.access,
            "instance_id_file": self.directory / "instance-id",
            "state_dir": self.state_dir,
            "run_dir": self.run_dir,
            "vxnet": "vxnet-1",
            "iface": "lo",
            "simulator_netns": f"/run/netns/{self.netns}-router",
        }
        pairs = ((f"--{k.replace('_', '-')}", str(v)) for k, v in (chosen | settings).items() if v is not None)
        words = [word for pair in pairs for word in pair]
        return ["nsenter", f"--net=/run/netns/{self.netns}", *(program or (QINGAGENT,)), "start", *words]

    def start(self, *program: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run `qingagent start` to its end."""
        return run(*self.argv(*program, **settings), check=False, cwd=self.directory)

    def files(self) -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in self.directory.rglob("*") if p.is_file()}

    def parking(self) -> list[str]:
        return [path.name for path in Path("/run/netns").glob(f"qingcni-{self.instance_id}*")]

    @property
    def instance_id(self) -> str:
        return f"i-{self.netns.replace('-', '')}"


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    with new_namespace("refused") as name:
        run("ip", "-n", name, "link", "set", "lo", "up")
        router = f"{name}-router"
        run("ip", "netns", "add", router)
        try:
            run("ip", "link", "add", "nic0", "netns", name, "type", "veth", "peer", "name", "nic0", "netns", router)
            yield name
        finally:
            run("ip", "netns", "delete", router)


@pytest.fixture
def place(netns: str, tmp_path: Path) -> Place:
    here = Place(netns, tmp_path)
    here.access.touch(mode=0o600)
    here.access.write_text(ACCESS)
    (tmp_path / "instance-id").write_text(here.instance_id)
    return here


def sentence(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """The one thing that a refused start says."""
    assert done.returncode == status, done
    assert done.stderr.startswith("qingagent: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith("\n")
    assert "Traceback" not in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done.stderr


def assert_refused(place: Place, words: tuple[str, ...], **settings: object) -> None:
    before = place.files()
    said = sentence(place.start(**settings))
    assert all(word in said for word in words), said
    assert place.files() == before
    assert not place.parking()
    assert not place.state_dir.exists()
    assert not place.run_dir.exists()


# --- settings ------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "policy": ({"policy": "Best"}, ("--policy 'Best'", "one of FailRotate, RoundRotate, Random")),
    "zone": ({"zone": "PEK3A"}, ("--zone 'PEK3A'", "such as pek3a")),
    "address": ({"bindaddr": "localhost:31080"}, ("--bindaddr 'localhost:31080'", "ADDRESS:PORT", "0.0.0.0:31080")),
    "port": ({"bindaddr": "0.0.0.0:70000"}, ("--bindaddr '0.0.0.0:70000'", "ADDRESS:PORT")),
    "duration": ({"cooldown": "1:30"}, ("--cooldown '1:30'", "30s, 10m, 500ms")),
    "gateway prefix": (
        {"gatewayns": "qingcni"},
        ("gatewayns qingcni (--gatewayns)", "nic-name-prefix qingcni (default)", "change one"),
    ),
    "run-dir too long": ({"run_dir": "/run/" + "x" * 100}, ("run-dir", "too long", "shorter --run-dir")),
    "config file": ({"config": "nowhere.yaml"}, ("config file nowhere.yaml", "No such file", "--config")),
    "config format": ({"config": "QingAgent.txt"}, ("QingAgent.txt", "must end in .yaml, .yml, .json, .toml, .xml")),
    "instance id": ({"instance_id": "x"}, ("--instance-id 'x'", "such as i-1234abcd")),
    "instance id file": ({"instance_id_file": "/nowhere/id"}, ("/nowhere/id", "No such file", "--instance-id")),
    "no instance id": ({"instance_id_file": "client.yaml"}, ("client.yaml holds ", "such as i-1234abcd")),
    "access file missing": (
        {"QYAccessFilePath": "/nowhere/c"},
        ("/nowhere/c does not exist", "write qy_access_key_id"),
    ),
    "access file a directory": ({"QYAccessFilePath": "/run"}, ("access file /run cannot be read: Is a directory",)),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_rejected(case: str, place: Place) -> None:
    settings, words = SETTINGS[case]
    if case == "no instance id":
        place.access.rename(place.directory / "other.yaml")
        (place.directory / "client.yaml").write_text("<html>")
        settings = settings | {"QYAccessFilePath": "other.yaml"}
    if case == "run-dir too long":
        assert not Path(str(settings["run_dir"])).exists()
    before = place.files()
    said = sentence(place.start(**settings))
    assert all(word in said for word in words), said
    assert place.files() == before
    assert not place.parking()


ACCESS_FILES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "world-readable": (ACCESS, 0o644, ("mode 0644", "chmod 600", "--allow-readable-access-file")),
    "readable by a group": (ACCESS, 0o640, ("mode 0640", "chmod 600")),
    "without a key": (f"qy_secret_access_key: {SECRET}\n", 0o600, ("qy_access_key_id is missing", "IAM roles")),
    "with empty keys": ("qy_access_key_id: ''\nqy_secret_access_key: ''\n", 0o600, ("missing or empty",)),
    "not YAML": (ACCESS + "zone: [", 0o600, ("is not YAML: line 7, column ",)),
    "deeply nested": ("[" * 60_000, 0o600, ("is not YAML",)),
    "with a port of no number": (ACCESS.replace("9", "https"), 0o600, ("port must be a whole number",)),
}


@pytest.mark.parametrize("case", ACCESS_FILES)
def test_a_wrong_access_file_is_rejected(case: str, place: Place) -> None:
    content, mode, words = ACCESS_FILES[case]
    place.access.write_text(content)
    place.access.chmod(mode)
    assert_refused(place, (f"access file {place.access}", *words))


# --- the config file -----------------------------------------------------------------------------------

BROKEN = {
    ".yaml": ("zone: a\niface: [\n", "line 3, column 1"),
    ".yml": ("zone: 'a\n", "line 2, column 1"),
    ".json": ('{"zone": }', "line 1, column 10"),
    ".toml": ("zone = a\n", "line 1, column 8"),
    ".xml": ("<!DOCTYPE a [<!ENTITY e 'x'>]><a><zone>&e;</zone></a>", "DOCTYPE and entity declarations are rejected"),
    ".ini": ("[QingAgent]\nzone\n", "line 2 is not `key = value`"),
    ".properties": ("zone = \\u12\n", "line 1: \\u needs four"),
}
UNKNOWN = {".yaml": "vxnets: a", ".xml": "<a><vxnets>a</vxnets></a>", ".properties": "vxnets a"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_broken_config_file_of_each_format_is_refused(suffix: str, place: Place) -> None:
    """Found in the working directory, as the seed has it."""
    content, where = BROKEN[suffix]
    path = place.directory / f"QingAgent{suffix}"
    path.write_text(content)
    assert_refused(place, (f"config file {path.name}: invalid: ", where))


@pytest.mark.parametrize("suffix", UNKNOWN)
def test_an_unknown_key_is_refused_in_every_format(suffix: str, place: Place) -> None:
    path = place.directory / f"other{suffix}"
    path.write_text(UNKNOWN[suffix])
    assert_refused(place, (str(path), "unknown key 'vxnets'", "known keys: QYAccessFilePath, bindaddr,"), config=path)


def test_a_bad_value_in_the_file_names_file_key_and_what_is_wanted(place: Place) -> None:
    path = place.directory / "QingAgent.yaml"
    path.write_text("max-idle: lots\n")
    assert_refused(place, (f"{path}: max-idle 'lots': rejected: expected a whole number",))


def test_a_bad_variable_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QINGAGENT_IDLE_TTL", "soon")
    assert_refused(place, ("QINGAGENT_IDLE_TTL 'soon': rejected: expected a duration",))


# --- what is taken, or may not be written --------------------------------------------------------------


def test_a_link_that_is_not_there_is_told_with_status_1(place: Place) -> None:
    """At a boot it may come later, so the unit tries again."""
    said = sentence(place.start(iface="eth9"), status=1)
    assert all(word in said for word in ("iface eth9", "not found", "which has lo, nic0;", "--iface")), said
    assert not place.run_dir.exists()
    assert not place.state_dir.exists()
    assert not place.parking()


@pytest.mark.parametrize("setting", ["state_dir", "run_dir"])
def test_a_file_in_the_place_of_a_directory_is_refused_and_kept(setting: str, place: Place) -> None:
    path = place.directory / "taken"
    path.write_text("mine")
    said = sentence(place.start(**{setting: path}))
    assert f"directory {path}: creation failed: File exists" in said
    assert path.read_text() == "mine"
    assert not place.parking()
    assert not (place.run_dir / "agent.sock").exists()


@pytest.mark.parametrize("setting", ["state_dir", "run_dir"])
def test_a_link_or_an_open_directory_in_the_place_of_ours_is_refused(setting: str, place: Place) -> None:
    flag = "--" + setting.replace("_", "-")
    real, link = place.directory / "real", place.directory / "link"
    real.mkdir(0o700)
    link.symlink_to(real)
    said = sentence(place.start(**{setting: link}))
    assert f"directory {link}: creation failed: it is a link; choose another {flag}" in said
    real.chmod(0o777)
    said = sentence(place.start(**{setting: real}))
    assert f"directory {real}: rejected: other users may change {real} (owner 0, mode 0777)" in said
    assert list(real.iterdir()) == []


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_a_token_that_is_no_file_is_refused_at_once(place: Place, put: Callable[[Path], object]) -> None:
    place.run_dir.mkdir(mode=0o700)
    put(place.run_dir / "token")
    said = sentence(place.start())
    assert f"token file {place.run_dir}/token: re" in said
    assert said.endswith("; remove it, the agent writes a new one\n")


@pytest.mark.parametrize("setting", ["state_dir", "run_dir"])
def test_a_directory_on_a_read_only_file_system_is_refused(setting: str, place: Place) -> None:
    path = place.directory / "read-only"
    path.mkdir(mode=0o700)
    program = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(path), QINGAGENT)
    said = sentence(place.start(*program, **{setting: path}))
    flag = "--" + setting.replace("_", "-")
    assert f"directory {path}: not writable; choose another {flag}, or correct its permissions" in said
    said = sentence(place.start(*program, **{setting: path / "below"}))
    assert f"directory {path / 'below'}: creation failed: Read-only file system; choose another {flag}" in said
    assert not place.parking()
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_token_file_that_others_may_read_is_refused_and_kept(mode: int, place: Place) -> None:
    place.run_dir.mkdir(mode=0o700)
    token = place.run_dir / "token"
    token.write_text("mine\n")
    token.chmod(mode)
    said = sentence(place.start())
    assert f"token file {token}: rejected: others can read it; remove it, and the agent writes a new one" in said
    assert (token.read_text(), token.stat().st_mode & 0o777) == ("mine\n", mode)
    assert not place.parking()
    assert not place.state_dir.exists()


def test_something_else_in_the_place_of_the_socket_is_refused_and_kept(place: Place) -> None:
    place.run_dir.mkdir(mode=0o700)
    path = place.run_dir / "agent.sock"
    path.write_text("mine")
    assert f"socket {path}: bind failed: Address already in use; remove" in sentence(place.start())
    assert path.read_text() == "mine"


def test_without_root_it_is_refused_with_status_4(place: Place) -> None:
    said = sentence(place.start(sys.executable, "-c", AS_NOBODY), status=4)
    assert "needs root" in said
    assert not place.run_dir.exists()
    assert not place.state_dir.exists()


# --- beside an agent that runs -------------------------------------------------------------------------


@pytest.fixture
def agent(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """One whose cloud never answers: it serves its API, and is not ready."""
    with (place.directory / "log").open("wb") as log:
        process = subprocess.Popen(
            place.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place.directory
        )
    try:
        eventually(lambda: "cloud.unanswered" in (place.directory / "log").read_text(), "a call without an answer")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
        run("ip", "netns", "delete", f"qingcni-{place.instance_id}", check=False)


def others(place: Place) -> Mapping[str, object]:
    """Places of its own for a second agent."""
    return {"state_dir": place.directory / "state2", "run_dir": place.directory / "run2", "bindaddr": "0.0.0.0:31081"}


SQUAT = """
import os, socket, sys
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
port, name = socket.create_server(("127.0.0.1", 31080)), socket.socket(socket.AF_UNIX)
name.bind("\\0qingcloud-cni/agent")
name.listen()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("umask", ["000", "022", "777"])
def test_every_file_is_for_root_alone_whatever_the_umask(place: Place, umask: str) -> None:
    log = place.directory / "log"
    command = place.argv("sh", "-c", f'umask {umask}; exec {QINGAGENT} "$@"', "sh")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        eventually(lambda: "cloud.unanswered" in log.read_text(), "a call without an answer")
        made = [path for top in (place.run_dir, place.state_dir, LOCKS) for path in (top, *top.rglob("*"))]
        modes = {path.name: path.lstat().st_mode for path in made}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        run("ip", "netns", "delete", f"qingcni-{place.instance_id}", check=False)
    assert {"agent.db", "agent.db-wal", "agent.seal", "agent.sock", "token", "boot-time"} <= set(modes)
    wanted = {name: 0o700 if stat.S_ISDIR(mode) else 0o600 for name, mode in modes.items()}
    assert {name: stat.S_IMODE(mode) for name, mode in modes.items()} == wanted


# A start that waits: without a reader the open of a FIFO would hang in a thread, and this in the loop.
SLOW = """
import sys
from contextlib import asynccontextmanager
from qingcloud_cni.agent.process import main
from qingcloud_cni.cli.qingagent import main as command

@asynccontextmanager
async def opened(host):
    print("starting", file=sys.stderr, flush=True)
    await main.asyncio.Event().wait()
    yield

main.opened = opened
command()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_that_waits(place: Place, number: signal.Signals) -> None:
    """At once, with status 0, and nothing of it is left."""
    command = place.argv(sys.executable, "-c", SLOW)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "starting\n"
        process.send_signal(number)
        said, complaints = process.communicate(timeout=20)
        assert process.returncode == 0, complaints
    assert [json.loads(line)["event"] for line in said.splitlines()] == ["agent.stopped"]
    assert [path.name for path in place.run_dir.iterdir()] == ["token"]


@pytest.fixture
def squatter(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A process without rights that holds the agent's port and its abstract name."""
    command = ["nsenter", f"--net=/run/netns/{place.netns}", sys.executable, "-c", SQUAT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_squatter_does_not_stop_the_agent_which_serves_its_socket_and_says_so(
    squatter: subprocess.Popen[str], place: Place, agent: subprocess.Popen[bytes]
) -> None:
    """And listens at the port as soon as that is free."""
    cause = "bindaddr 0.0.0.0:31080: bind failed: Address already in use; free it, or choose another --bindaddr"

    def shown() -> str:
        return run(QINGAGENT, "status", "--run-dir", str(place.run_dir)).stdout

    curl = ("curl", "-s", "--unix-socket", str(place.run_dir / "agent.sock"), "http://agent/readyz")
    assert f"port:        {cause}" in shown()
    assert cause in run(*curl).stdout
    assert agent.poll() is None
    squatter.kill()
    squatter.wait()
    eventually(lambda: "port:" not in shown(), "the agent at its port")
    assert cause not in run(*curl).stdout
    log = (place.directory / "log").read_text()
    assert [event for event in ("lock.name-taken", "port.missing", "port.recovered") if log.count(event) != 1] == []
    inside(place.netns, lambda: socket.create_connection(("127.0.0.1", 31080)).close())


def test_a_second_agent_is_refused_with_status_3_and_the_first_one_goes_on(
    place: Place, agent: subprocess.Popen[bytes]
) -> None:
    for settings in ({}, others(place)):
        said = sentence(place.start(**settings), status=3)
        assert "another agent runs in this network namespace; `qingagent status` shows it, `qingagent stop`" in said
    assert agent.poll() is None
    shown = run(QINGAGENT, "status", "--run-dir", str(place.run_dir), "-o", "json")
    assert json.loads(shown.stdout)["pid"] == agent.pid
    assert not (place.directory / "run2").exists()
    assert place.parking() == [f"qingcni-{place.instance_id}"]


def test_a_command_without_root_reports_that_it_needs_root(place: Place, agent: subprocess.Popen[bytes]) -> None:
    """And does not ask whether the agent runs."""
    done = run(sys.executable, "-c", AS_NOBODY, "status", "--run-dir", str(place.run_dir), check=False)
    assert sentence(done, status=4).endswith("agent.sock: connect failed: only root may connect; run this as root\n")
    assert agent.poll() is None


def test_an_agent_of_another_namespace_with_the_same_run_dir_is_refused(
    place: Place, agent: subprocess.Popen[bytes]
) -> None:
    """Its socket would have replaced the first one's."""
    elsewhere = place.argv()
    elsewhere[:2] = ["unshare", "--net"]
    done = run(*elsewhere, check=False, cwd=place.directory)
    said = sentence(done)
    assert f"socket {place.run_dir / 'agent.sock'}: another agent serves it; give this one its own --run-dir" in said
    assert agent.poll() is None
    assert run(QINGAGENT, "status", "--run-dir", str(place.run_dir)).stdout.startswith("instance:")


def test_the_running_agent_shows_its_settings_and_no_secret(place: Place, agent: subprocess.Popen[bytes]) -> None:
    """As `config check` does that is given the same."""
    assert agent.poll() is None
    flags = place.argv()[place.argv().index("start") + 1 :]
    checked = run(QINGAGENT, "config", "check", *flags, "-o", "json", cwd=place.directory).stdout
    curl = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with curl:
        curl.settimeout(10)
        curl.connect(str(place.run_dir / "agent.sock"))
        curl.sendall(b"GET /v1/config HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: curl.recv(65536), b"")).decode()
    told = json.loads(answer.partition("\r\n\r\n")[2])
    assert {key: value for key, value in json.loads(checked).items() if key != "checked_at_start"} == told
    found = {row["name"]: (row["value"], row["source"]) for row in told["settings"]}
    assert found["vxnet"] == (["vxnet-1"], "--vxnet")
    assert found["max-nics"] == (60, "default")
    assert found["instance-id"] == (place.instance_id, str(place.directory / "instance-id"))
    token = (place.run_dir / "token").read_text().strip()
    assert not [text for text in (SECRET, "KEYID", token) if text in answer + checked]


def test_config_check_needs_neither_root_nor_agent_and_refuses_as_a_start_does(place: Place) -> None:
    flags = place.argv()[place.argv().index("start") + 1 :]
    (place.directory / "QingAgent.toml").write_text('zone = "sh1a"\ncooldown = "2m"\n')
    environment = {**os.environ, "QINGAGENT_MAX_IDLE": "9"}
    shown = run(QINGAGENT, "config", "check", *flags, cwd=place.directory, env=environment).stdout
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}
    assert rows["zone"] == ["sh1a", str(place.directory / "QingAgent.toml")]
    assert rows["cooldown"] == ["120s", str(place.directory / "QingAgent.toml")]
    assert rows["max-idle"] == ["9", "QINGAGENT_MAX_IDLE"]
    assert rows["iface"] == ["lo", "--iface"]
    assert "Checked only by a start:" in shown
    assert "every vxnet is managed and of that VPC" in shown
    for wrong in (("--vxnet", "vxnet-xxxxxxx"), ("--cooldown", "x"), ("--config", "none.ini")):
        done = run(QINGAGENT, "config", "check", *flags, *wrong, cwd=place.directory, check=False)
        sentence(done)
        assert done.stdout == ""
    assert not place.run_dir.exists()
