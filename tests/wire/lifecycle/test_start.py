"""What the agent says when it cannot start, and what it does while the cloud is silent."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from machines.agents import AgentProcess
from machines.hosts import Host, NewHost
from machines.simulator import QINGCLOUD_SIM, Sim, eventually, needs_root, run, running_sim

pytestmark = needs_root

API_PORT, OTHER_PORT = 7777, 7999
OWN = "vxnet-own"


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sim]:
    """Two VPCs, a vxnet that is joined to none, and every second host a node of an AppCenter cluster."""
    topology = {
        "routers": [
            {"router_id": "rtr-one", "vpc_network": "172.23.0.0/16"},
            {"router_id": "rtr-two", "vpc_network": "172.24.0.0/16"},
        ],
        "vxnets": [
            {"vxnet_id": OWN, "network": "172.23.1.0/24", "router_id": "rtr-one"},
            {"vxnet_id": "vxnet-other", "network": "172.24.1.0/24", "router_id": "rtr-two"},
            {"vxnet_id": "vxnet-loose", "vxnet_type": 0},
        ],
        "hosts": [{"name": f"host{n}", "vxnet_id": OWN, "is_cluster_node": n % 2 == 0} for n in range(1, 40)],
    }
    file = tmp_path_factory.mktemp("topology") / "start.yaml"
    file.write_text(yaml.safe_dump(topology))
    with running_sim("--topology", str(file)) as running:
        yield running


def access_file(host: Host, **changes: object) -> Path:
    """A copy of the host's client.yaml with some keys changed."""
    keys = yaml.safe_load(Path(host.sim.host(host.name)["client_yaml"]).read_text()) | changes
    path = host.directory / "client.yaml"
    path.write_text(yaml.safe_dump(keys))
    path.chmod(0o600)
    return path


def refusal(agent: AgentProcess) -> str:
    """The one sentence on stderr of an agent that ended with status 2."""
    assert agent.wait() == 2, agent.stderr
    assert agent.stderr.startswith("qingagent: "), agent.stderr
    assert agent.stderr.count("\n") == 1, agent.stderr
    assert "Traceback" not in agent.log.read_text()
    return agent.stderr


# --- refused -------------------------------------------------------------------------------------------


SETTINGS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "no vxnet": ({"vxnet": None}, ("vxnet-xxxxxxx", "placeholder", "--vxnet")),
    "placeholder": ({"vxnet": f"{OWN},vxnet-xxxxxxx"}, ("vxnet-xxxxxxx", "placeholder")),
    "no vxnet id": ({"vxnet": "pods"}, ("pods",)),
    "unknown vxnet": ({"vxnet": f"{OWN},vxnet-nowhere"}, ("vxnet-nowhere", "unknown")),
    "vxnet of another VPC": ({"vxnet": "vxnet-other"}, ("vxnet-other", "rtr-two", "rtr-one")),
    "unmanaged vxnet": ({"vxnet": "vxnet-loose"}, ("vxnet-loose", "unmanaged")),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_setting_that_cannot_be_is_refused_in_one_sentence_with_status_2(new_host: NewHost, case: str) -> None:
    host = new_host()
    settings, words = SETTINGS[case]
    said = refusal(host.launch(**{"vxnet": OWN} | settings))
    assert all(word in said for word in words), said
    assert host.cloud_nics() == {}


def test_an_instance_the_cloud_does_not_know_is_refused_with_status_2(new_host: NewHost) -> None:
    """And nothing is left of it, the parking namespace of that id included."""
    host = new_host()
    nobody = f"i-{host.sim.name}nobody"
    parking = Path(f"/run/netns/qingcni-{nobody}")
    try:
        said = refusal(host.launch(vxnet=OWN, instance_id=nobody))
        assert all(word in said for word in (nobody, "unknown", "--instance-id")), said
        assert not parking.exists()
    finally:
        run("ip", "netns", "delete", parking.name, check=False)


# --- the cloud is silent ---------------------------------------------------------------------------------


FORWARD = f"""
import asyncio

async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def forward(reader, writer):
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", {API_PORT})
    await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)

async def main():
    async with await asyncio.start_server(forward, "127.0.0.1", {OTHER_PORT}) as server:
        print("ready", flush=True)
        await server.serve_forever()

asyncio.run(main())
"""


class Forwarder:
    """Answers at OTHER_PORT on a host's loopback by way of the API there, while it is open."""

    def __init__(self, host: Host) -> None:
        self._command = host.command(sys.executable, "-c", FORWARD)
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


Detour = tuple[Host, Forwarder, dict[str, Any]]


@pytest.fixture
def detour(new_host: NewHost) -> Iterator[Detour]:
    """A host, its way to the API still closed, and the settings that lead that way."""
    host = new_host()
    forwarder = Forwarder(host)
    try:
        settings = {
            "vxnet": OWN,
            "min_idle": 1,
            "max_idle": 1,
            "QYAccessFilePath": access_file(host, port=OTHER_PORT),
        }
        yield host, forwarder, settings
    finally:
        forwarder.close()


@pytest.mark.defect("hostnic-2", "ancestor-7")
def test_an_unreachable_api_never_ends_the_agent_which_becomes_ready_when_it_answers(detour: Detour) -> None:
    """Meanwhile it is alive, not ready, says why, and refuses ADDs with code 11 and that cause."""
    host, forwarder, settings = detour
    agent = host.launch(**settings)
    eventually(lambda: agent.events("cloud.unanswered"), "a call without an answer")
    assert host.ask("GET", "/healthz").status == 200
    ready = host.ask("GET", "/readyz")
    assert ready.status == 503
    assert b"127.0.0.1" in ready.body
    assert str(OTHER_PORT).encode() in ready.body
    answer = host.cni("ADD", host.container())
    assert answer.code == 11, answer
    assert str(OTHER_PORT) in answer.message
    assert host.status()["ready"] is False
    assert "no" in host.qingagent("status").stdout.split("ready:")[1].splitlines()[0]
    host.delete("never-added")  # DELs are served: the table and the kernel say all they need
    forwarder.open()
    eventually(host.is_ready, "the agent ready")
    host.wait_idle(1)
    host.add(host.container())
    assert agent.is_running


@pytest.mark.defect("hostnic-13")
def test_nics_on_disk_and_in_the_kernel_are_served_while_the_cloud_is_silent(detour: Detour) -> None:
    """After a restart with the API away: DELs and ADDs from the pool; cloud writes wait until it has answered."""
    host, forwarder, settings = detour
    forwarder.open()
    settings |= {"min_idle": 2, "max_idle": 2, "max_nics": 2}
    host.start(**settings)
    first, second = host.container(), host.container()
    host.add(first)
    assert host.agent.stop() == 0
    forwarder.close()
    host.start(**settings, idle=1)
    assert host.status()["cloud_compared"] is False
    mac = host.add(second)["interfaces"][0]["mac"]
    assert second.link()["address"] == mac
    host.delete(first)
    assert len(host.cloud_nics()) == 2
    forwarder.open()
    eventually(lambda: host.status()["cloud_compared"], "the comparison with the cloud")
    assert [attachment["nic_id"] for attachment in host.attachments()] == [mac]


@contextmanager
def fault(sim: Sim, effect: str) -> Iterator[None]:
    """While it lasts, this is what every call gets."""
    faults = yaml.safe_dump([{"action": "*", "effect": effect, "times": 10_000}])
    run(QINGCLOUD_SIM, "faults", "set", "-", "--name", sim.name, input=faults)
    try:
        yield
    finally:
        run(QINGCLOUD_SIM, "faults", "clear", "--name", sim.name)


@pytest.mark.parametrize(
    ("routers", "words"),
    [
        (None, "links: start failed: this network namespace has no NIC of an instance; "),
        (
            "/run/netns/no-router",
            "simulator-netns: netns /run/netns/no-router: open failed: No such file or directory; ",
        ),
    ],
)
def test_a_simulated_host_without_its_routers_ends_a_start(
    new_host: NewHost, routers: str | None, words: str
) -> None:
    host = new_host()
    said = refusal(host.launch(vxnet=OWN, simulator_netns=routers))
    assert words in said
    assert "--simulator-netns" in said or "qingcloud-sim" in said
    assert not host.parking.exists()
    host.start(vxnet=OWN, min_idle=1, max_idle=1)


def test_wrong_keys_end_a_first_start_and_leave_nothing(new_host: NewHost) -> None:
    """The sentence names the file, the call and the code, never the key."""
    host = new_host()
    path = access_file(host, qy_secret_access_key="wrong-but-secret")
    agent = host.launch(vxnet=OWN, QYAccessFilePath=path)
    said = refusal(agent)
    assert f"the cloud does not accept the keys in {path}: DescribeInstances" in said
    assert "(1200); check qy_access_key_id and qy_secret_access_key" in said
    assert "wrong-but-secret" not in said + agent.log.read_text()
    assert not host.parking.exists()
    assert not host.socket.exists()
    host.start(vxnet=OWN, min_idle=1, max_idle=1)  # and the next start is none the worse for it


def test_keys_that_are_not_accepted_any_more_do_not_end_an_agent_that_serves(new_host: NewHost, sim: Sim) -> None:
    """A restart while the keys are exchanged: containers come and go from the pool, and the cause is shown."""
    host = new_host()
    settings: dict[str, Any] = {"vxnet": OWN, "min_idle": 1, "max_idle": 1}
    host.start(**settings)
    first = host.container()
    host.add(first)
    host.wait_idle(1)
    assert host.agent.stop() == 0
    with fault(sim, "wrong-keys"):
        host.start(**settings)
        eventually(lambda: host.agent.events("cloud.unanswered"), "a refused call")
        assert "(1200)" in host.status()["cloud_error"]
        host.add(host.container())
        host.delete(first)
        assert host.status()["cloud_compared"] is False
    eventually(lambda: host.status()["cloud_compared"], "the comparison with the cloud")
    assert len(host.attachments()) == 1


def test_the_agent_reports_a_skewed_clock_and_waits(new_host: NewHost, sim: Sim) -> None:
    """NTP may fix it: alive, not ready, and the cause in /readyz, log and ADD; ready once stamps are accepted."""
    host = new_host()
    with fault(sim, "clock-skew"):
        agent = host.launch(vxnet=OWN, min_idle=1, max_idle=1)
        eventually(lambda: agent.events("cloud.unanswered"), "a refused call")
        ready = host.ask("GET", "/readyz")
        answer = host.cni("ADD", host.container())
        told = (ready.body.decode(), answer.message, agent.events("cloud.unanswered")[0]["detail"])
        assert (ready.status, answer.code) == (503, 11)
        assert [text for text in told if "(1300)" in text and "check the clock" in text] == list(told)
        assert host.ask("GET", "/healthz").status == 200
    eventually(host.is_ready, "the agent ready")
    host.wait_idle(1)
    assert agent.is_running


def test_unknown_keys_of_the_access_file_are_logged_once_and_ignored(new_host: NewHost) -> None:
    """By name, without what they hold; those of the official clients not at all."""
    host = new_host()
    path = access_file(host, nickname="blue", log_level="debug")
    agent = host.start(QYAccessFilePath=path, vxnet=OWN, min_idle=1, max_idle=1)
    (told,) = agent.events("access-file.unknown-keys")
    assert (told["level"], told["keys"]) == ("warning", "nickname")
    assert "blue" not in agent.log.read_text()


def test_an_agent_that_has_not_heard_of_the_cloud_is_not_drained(new_host: NewHost, sim: Sim) -> None:
    """Its table is empty, but the cloud may have NICs of ours: the drain waits, and says for what."""
    host = new_host()
    with fault(sim, "clock-skew"):
        agent = host.launch(vxnet=OWN, min_idle=1, max_idle=1)
        eventually(lambda: agent.events("cloud.unanswered"), "a refused call")
        waiting = host.qingagent("drain", "--timeout", "1s", check=False)
        assert waiting.returncode == 1, waiting
        assert "NICs left: 0, containers that have one: 0; DescribeInstances" in waiting.stdout
        assert "check the clock" in waiting.stdout
        assert not host.status()["drained"]
    assert host.qingagent("drain").stdout.splitlines()[-1] == "drained: no NICs left"


def test_a_node_of_an_appcenter_cluster_is_found(new_host: NewHost, sim: Sim) -> None:
    """DescribeInstances returns it only when asked with is_cluster_node=1."""

    def is_hidden(host: Host) -> bool:
        return not sim.call("DescribeInstances", instances=[host.instance_id])["total_count"]

    host = next(host for host in iter(new_host, None) if is_hidden(host))
    host.start(vxnet=OWN, min_idle=1, max_idle=1)
    host.add(host.container())


def test_the_config_file_in_the_working_directory_is_read(new_host: NewHost) -> None:
    """The seed's way: YAML named QingAgent; flags come before it."""
    host = new_host()
    (host.directory / "QingAgent.yaml").write_text(f"vxnet: '{OWN}'\niface: 'eth0'\nloglevel: 'debug'\nmin-idle: 2\n")
    host.start(vxnet=None, loglevel=None, idle=2)
    assert {nic["vxnet_id"] for nic in host.nics()} == {OWN}
    assert host.agent.events("cloud.call")
    assert host.agent.stop() == 0
    (host.directory / "QingAgent.yaml").write_text("vxnets: 'vxnet-own'\n")
    said = refusal(host.launch(vxnet=None))
    assert "QingAgent.yaml" in said
    assert "vxnets" in said
