"""STATUS: refused only by an agent that is absent or not initialised, for a refusal makes the node NotReady."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from cni.answers import Answer
from cni.results import VERSIONS
from machines.hosts import PORT, Host, NewHost
from machines.simulator import Sim, eventually, needs_root

pytestmark = needs_root
HOSTS = 6

IN_TIME = 3.0 + 2.0  # seconds that a runtime waits, and what a busy machine may add
WAYS: dict[str, Callable[[Host], str]] = {
    "TCP": lambda _: f"127.0.0.1:{PORT}",
    "unix socket": lambda host: f"unix://{host.socket}",
}
ODD: tuple[dict[str, Any], ...] = (
    {"ipam": 5}, {"dns": "x"}, {"runtimeConfig": {"ips": ["x"]}}, {"isGateway": "maybe"}, {"prevResult": 5},
)  # fmt: skip


def status(host: Host) -> Answer:
    """As libcni asks: the variables of attachments are there, and empty."""
    return host.cni("STATUS", "", "", host.conf("1.1.0"), CNI_NETNS="", CNI_ARGS="")


def add(host: Host, seconds: float = 30) -> Answer:
    return host.cni("ADD", host.container(), conf=host.conf("1.1.0", TimeoutSeconds=seconds))


def everything(host: Host) -> list[Any]:
    return [host.nics(), host.attachments(), host.sim.status()["nics"], host.sim.status()["calls"]]


@pytest.mark.cni(63)
@pytest.mark.parametrize("way", WAYS)
def test_status_of_a_ready_agent_succeeds_and_changes_nothing(host: Host, way: str) -> None:
    """However it is asked: with the variables left out, or with those of an attachment."""
    conf = host.conf("1.1.0", BindAddr=WAYS[way](host))
    before = everything(host)
    host.cni("STATUS", "", "", conf, CNI_NETNS=None, CNI_CONTAINERID=None, CNI_IFNAME=None, CNI_PATH=None).succeeded()
    host.cni("STATUS", "c1", "eth0", conf, CNI_NETNS="/nowhere", CNI_ARGS="a=b").succeeded()
    assert everything(host) == before


@pytest.mark.cni(63, 64)
def test_an_empty_pool_is_no_reason_to_refuse(host: Host) -> None:
    """Not while an ADD waits in vain, either."""
    add(host).succeeded()
    add(host).succeeded()
    status(host).succeeded()
    add(host, seconds=1).refused(11, "max-nics 2")
    status(host).succeeded()


@pytest.mark.cni(65)
@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_a_version_without_status_is_code_1(host: Host, version: str) -> None:
    host.cni("STATUS", "", "", host.conf(version), CNI_NETNS="").refused(1, "STATUS", version)


@pytest.mark.cni(63)
@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_configuration_that_add_refuses_is_no_matter_of_status(host: Host, odd: dict[str, Any]) -> None:
    """A fault of one network must not change the state of the node."""
    host.cni("STATUS", "", "", host.conf("1.1.0") | odd, CNI_NETNS="").succeeded()


@pytest.mark.cni(64)
def test_an_exhausted_quota_is_no_reason_to_refuse(new_host: NewHost, sim: Sim) -> None:
    host = new_host()
    host.start(min_idle=1, max_idle=1)
    add(host).succeeded()
    host.wait_idle(1)
    with sim.fault("CreateNics", "nic-quota"):
        add(host).succeeded()
        eventually(lambda: "2500" in host.status()["cloud_error"], "the quota exhausted")
        add(host, seconds=1).refused(11, "2500")
        status(host).succeeded()


@pytest.mark.cni(64, 66)
@pytest.mark.parametrize("way", WAYS)
def test_without_an_agent_status_is_code_50_at_once_and_add_works_when_it_is_there(
    new_host: NewHost, way: str
) -> None:
    host = new_host()
    conf = host.conf("1.1.0", BindAddr=WAYS[way](host))
    refused = host.cni("STATUS", "", "", conf, CNI_NETNS="").refused(
        50, "is qingagent running?", conf["args"]["BindAddr"]
    )
    assert refused.seconds < IN_TIME
    host.cni("ADD", host.container(), conf=conf).refused(11, "is qingagent running?")
    host.start(min_idle=1, max_idle=1)
    host.cni("STATUS", "", "", conf, CNI_NETNS="").succeeded()
    host.cni("ADD", host.container(), conf=conf).succeeded()
    assert host.agent.stop() == 0
    host.cni("STATUS", "", "", conf, CNI_NETNS="").refused(50)


@pytest.mark.cni(64, 66, 77)
def test_status_reports_a_stopped_agent_in_time(host: Host) -> None:
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        refused = status(host).refused(50, "no answer")
    finally:
        host.agent.process.send_signal(signal.SIGCONT)
    assert refused.seconds < IN_TIME
    status(host).succeeded()
    add(host).succeeded()


@pytest.mark.cni(64, 66)
def test_an_agent_that_never_saw_the_cloud_is_code_50_until_it_did(new_host: NewHost) -> None:
    """It has no NICs to serve with. An ADD is refused by itself, then the same one succeeds."""
    host = new_host()
    container = host.container()
    with host.cut_off("reject"):
        agent = host.launch(min_idle=1, max_idle=1)
        eventually(lambda: agent.is_running and host.socket.exists(), "the agent's socket")
        refused = eventually(lambda: answered(host), "an answer of the agent's own")
        refused.refused(50, "not ready")
        assert host.ask("GET", "/readyz").status == 503
        host.cni("ADD", container, conf=host.conf("1.1.0")).refused(11, "not ready")
    eventually(lambda: status(host).status == 0, "the agent ready")
    host.cni("ADD", container, conf=host.conf("1.1.0")).succeeded()

    with host.cut_off("reject"):
        agent.kill()
        host.start(min_idle=1, max_idle=1, idle=0)
        status(host).succeeded()
        assert not host.status()["cloud_compared"]


def answered(host: Host) -> Answer | None:
    """What STATUS says, once it is the agent that says it."""
    answer = status(host)
    return None if "running?" in answer.message else answer


@pytest.mark.cni(63, 64)
def test_an_agent_that_is_being_drained_is_no_reason_to_refuse(new_host: NewHost) -> None:
    host = new_host()
    host.start(min_idle=1, max_idle=1)
    host.qingagent("drain", "--timeout", "30s")
    add(host).refused(11, "drain")
    status(host).succeeded()
