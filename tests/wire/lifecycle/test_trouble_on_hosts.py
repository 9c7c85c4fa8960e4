"""Trouble while an agent serves, over real sockets: what the runtime, the operator and the metrics see."""

import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from machines.agents import open_files
from machines.containers import address_of, pings
from machines.hosts import Host, NewHost, hosts_of
from machines.simulator import Sim, eventually, needs_root, running_sim, unique_name

pytestmark = needs_root
HOSTS = 12

ONE: dict[str, Any] = {"min_idle": 1, "max_idle": 1}


def calls_with(host: Host, outcome: str) -> list[str]:
    """Lines of the metrics that count calls of the cloud with this outcome."""
    lines = host.metrics().splitlines()
    return [
        line for line in lines if line.startswith("qingagent_cloud_calls_total") and f'outcome="{outcome}"' in line
    ]


def assert_told(host: Host, outcome: str, *words: str) -> None:
    """The pool serves; an ADD beyond it, status, metrics and log say what is wrong, in one sentence."""
    first, second = host.container(), host.container()
    host.add(first)
    refused = host.cni("ADD", second, conf=host.conf(TimeoutSeconds=5))
    assert refused.code == 11, refused
    assert refused.seconds < 5.5
    assert "\n" not in refused.message
    assert all(word in refused.message for word in words), refused
    status = host.status()
    assert status["ready"]
    assert all(word in status["cloud_error"] for word in words), status
    shown = " ".join(host.qingagent("status").stdout.split())  # wrapped as the terminal is wide
    assert words[0] in shown
    assert calls_with(host, outcome)
    assert [e for e in host.agent.events() if all(word in e.get("detail", "") for word in words)]
    assert (host.ask("GET", "/readyz").status, host.ask("GET", "/healthz").status) == (200, 200)
    assert second.names == ["lo"]
    host.delete(first)


def assert_over(host: Host) -> None:
    """Containers get new NICs again, no error is shown any more, and nothing was lost."""
    for _ in range(2):
        host.add(host.container())
    host.wait_idle(1)
    eventually(host.is_calm, "table and cloud agree")
    assert host.status()["cloud_error"] == ""
    assert len(host.agents) == 1
    assert host.agent.is_running


UNREACHABLE = {
    "refused": ("reject with tcp reset", ("cannot be reached", "Connection refused")),
    "dropped": ("drop", ("cannot be reached", "no connection in time")),
}


@pytest.mark.defect("hostnic-2")
@pytest.mark.parametrize("how", UNREACHABLE)
def test_an_unreachable_api_is_reported_while_the_pool_serves(new_host: NewHost, how: str) -> None:
    host = new_host()
    path = host.directory / "client.yaml"
    keys = yaml.safe_load(Path(host.sim.host(host.name)["client_yaml"]).read_text())
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(keys | {"connection_timeout": 1}))
    host.start(QYAccessFilePath=path, **ONE)
    verdict, words = UNREACHABLE[how]
    with host.cut_off(verdict):
        assert_told(host, "unreachable", *words)
    assert_over(host)


FAULTS = {
    "502 with HTML": ("*", "bad-gateway", "lost", ("HTTP 502", "text/html", "not a reply of the API")),
    "no JSON": ("*", "not-json", "lost", ("HTTP 200", "it is not JSON")),
    "call quota": ("*", "call-quota", "quota", ("API calls", "(2500)")),
    "NIC quota": ("CreateNics", "nic-quota", "quota", ("nics of this account", "(2500)")),
}


@pytest.mark.defect("hostnic-1", "hostnic-3", "ancestor-2")
@pytest.mark.parametrize("name", FAULTS)
def test_an_error_of_the_cloud_is_reported_while_the_pool_serves(new_host: NewHost, sim: Sim, name: str) -> None:
    host = new_host()
    host.start(**ONE, api_budget=2000)  # halved by a refusal it still brings a call every few seconds
    action, effect, outcome, words = FAULTS[name]
    with sim.fault(action, effect):
        assert_told(host, outcome, *words)
    assert_over(host)


def test_agent_and_containers_live_through_a_kill_of_the_cloud(plugin_file: Path, tmp_path: Path) -> None:
    """Containers notice nothing; the agent serves from its pool and continues when the cloud is back."""
    name = unique_name()
    with tempfile.TemporaryDirectory(prefix="qs", dir="/run") as directory:
        args = ("--state-dir", f"{directory}/s")
        with (
            running_sim(*args, "--hosts", "1", name=name) as first,
            hosts_of(first, iter(["host1"]), tmp_path, plugin_file) as new_host,
        ):
            host = new_host()
            agent = host.start(min_idle=2, max_idle=2)
            container, meanwhile = host.container(), host.container()
            address = address_of(host.add(container))
            host.wait_idle(2)
            first.process.kill()
            first.process.wait()
            assert container.reaches("172.20.1.1")
            other = address_of(host.add(meanwhile))
            with running_sim(*args, name=name) as second:
                goes_on = Host(second, "host1", host.directory, host.plugin, agents=host.agents)
                assert container.reaches(other)
                assert pings(goes_on.netns, address)
                assert pings(goes_on.netns, other)
                goes_on.wait_idle(2)
                held = {nic["nic_id"] for nic in goes_on.nics()}
                assert held == set(goes_on.cloud_nics())
                assert len(held) >= 4
                host.delete(container)
                host.delete(meanwhile)
                eventually(lambda: not goes_on.attachments() and goes_on.is_ready(agent), "an agent at rest")


# --- the plugin and the agent ----------------------------------------------------------------------------


def test_a_wrong_token_is_refused_with_one_sentence(new_host: NewHost) -> None:
    """Beside it there is no socket, so the plugin uses TCP; what it cannot verify is no answer, so a DEL waits."""
    host = new_host()
    host.start(**ONE)
    wrong = host.directory / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("0" * 64)
    refused = host.cni("ADD", host.container(), conf=host.conf(TokenFile=str(wrong)))
    assert refused.code == 11, refused
    assert f"challenge failed: the answer is not proved with the token in {wrong}" in refused.message
    assert "0" * 64 not in refused.message
    host.cni("DEL", host.container(), conf=host.conf(TokenFile=str(wrong)))
    eventually(lambda: not list(host.spool.iterdir()), "the agent has carried out the DEL")
    wrong.chmod(0o644)
    refused = host.cni("ADD", host.container(), conf=host.conf(TokenFile=str(wrong)))
    assert refused.code == 7, refused
    assert str(wrong) in refused.message
    assert (host.attachments(), len(host.nics("idle"))) == ([], 1)


def test_a_silent_agent_is_reported_in_time_and_an_abandoned_add_leaves_nothing(new_host: NewHost) -> None:
    """The agent stops, then continues: the DEL releases what the agent did for a caller that had gone."""
    host = new_host()
    host.start(**ONE)
    container = host.container()
    files = open_files(host.agent.pid)
    host.agent.process.send_signal(signal.SIGSTOP)
    try:
        refused = host.cni("ADD", container, conf=host.conf(TimeoutSeconds=2))
    finally:
        host.agent.process.send_signal(signal.SIGCONT)
    assert refused.code == 11, refused
    assert "no answer" in refused.message
    assert refused.seconds < 2.5
    host.delete(container)
    assert container.names == ["lo"]
    eventually(lambda: host.is_calm() and not host.attachments(), "table and cloud agree")
    eventually(lambda: open_files(host.agent.pid) == files, "no file left open")
    host.add(container)
