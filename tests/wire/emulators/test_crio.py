"""Under CRI-O: CHECK straight after ADD, one DEL from its cache while processes run, GC at its start."""

import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cni.chains import call_of, libcni_of, ours, wait_until_all_is_back
from cni.libcni import Call, Libcni
from cni.networks import Failed, Network
from machines.containers import Container
from machines.hosts import Host, NewHost
from machines.simulator import eventually, needs_root, run
from pages import ROOT
from runtimes.crio import Crio, Pod

pytestmark = needs_root
HOSTS = 5

EXAMPLE = ROOT / "examples" / "crio" / "10-mynet.conflist"
SERVICES = {"dst": "10.96.0.0/12", "gw": "0.0.0.0"}


def example(host: Host, **keys: Any) -> dict[str, Any]:
    """As shipped, with *keys* over those of the list; agents of tests have places of their own."""
    document: dict[str, Any] = json.loads(EXAMPLE.read_text())
    document["plugins"][0]["args"] |= {"TokenFile": str(host.token_file), "SpoolDir": str(host.spool)}
    return document | keys


def crio_on(host: Host, *documents: dict[str, Any]) -> Crio:
    """Newly started; *documents* are in the files of its directory, in this order."""
    directory = host.directory / "net.d"
    directory.mkdir(exist_ok=True)
    for number, document in enumerate(documents, 10):
        (directory / f"{number}-net.conflist").write_text(json.dumps(document))
    return Crio(libcni_of(host), directory)


@pytest.fixture(params=["1.0.0", "1.1.0"])
def crio(request: pytest.FixtureRequest, host: Host) -> Iterator[Crio]:
    """With the network of the example, but for its route to Services, as an old CRI-O takes it and as a new one."""
    yield crio_on(host, without_services(example(host, cniVersion=request.param, cniVersions=[])))
    for file in (host.directory / "net.d").iterdir():
        file.unlink()


def without_services(document: dict[str, Any]) -> dict[str, Any]:
    del document["plugins"][0]["ipam"]
    return document


def pod_in(container: Container) -> Pod:
    return Pod(container.name, container.path)


def verbs(crio: Crio) -> list[str]:
    """What was asked of our plugin."""
    return [execution.verb for execution in crio.library.executions if execution.plugin == "qingcni"]


@pytest.mark.cni(51, 55)
def test_a_pod_is_checked_as_it_starts_and_stopped_while_it_runs(host: Host, crio: Crio) -> None:
    pod = pod_in(container := host.container())
    assert crio.run_pod(pod) == [a["local"] for a in container.link()["addr_info"] if a["family"] == "inet"]
    with subprocess.Popen(("nsenter", f"--net={pod.netns}", "sleep", "600")) as process:
        crio.stop_pod(pod)
        assert process.poll() is None
        process.kill()
    assert (crio.complaints, verbs(crio)) == ([], ["VERSION", "ADD", "CHECK", "DEL"])
    wait_until_all_is_back(host)


def test_the_example_works_as_it_is_shipped(new_host: NewHost) -> None:
    """It takes 1.1.0, the newest that both know, and leads Services to a gateway NIC."""
    host = new_host()
    host.start(min_idle=1, max_idle=1)
    crio = crio_on(host, example(host))
    assert crio.network.version == "1.1.0"
    crio.start()
    crio.status()
    pod = pod_in(container := host.container())
    crio.run_pod(pod)
    (gateway,) = host.nics("gateway")
    assert container.routes()[SERVICES["dst"]] == gateway["address"].partition("/")[0]
    crio.stop_pod(pod)
    assert (crio.complaints, host.attachments()) == ([], [])
    assert verbs(crio) == ["VERSION", "GC", "STATUS", "ADD", "CHECK", "DEL"]
    states = {"idle", "gateway"}  # the gateway NIC stays for the next pod
    eventually(lambda: host.is_calm() and {nic["state"] for nic in host.nics()} == states, "all NICs at rest")


@pytest.mark.cni(63, 64, 66)
def test_status_is_asked_again_and_again(new_host: NewHost) -> None:
    """It fails with 50 until the agent is there, whatever the pool has; ADD is tried all the same."""
    host = new_host()
    crio = crio_on(host, example(host))
    pod = pod_in(host.container())
    for _ in range(3):
        with pytest.raises(Failed) as failure:
            crio.status()
        assert failure.value.code == 50
    with pytest.raises(Failed):
        crio.run_pod(pod)
    host.start(min_idle=1, max_idle=1, max_nics=1)
    crio = crio_on(host, without_services(example(host)))
    crio.run_pod(pod)
    assert host.nics("idle") == []
    crio.status()
    crio.stop_pod(pod)
    wait_until_all_is_back(host)


@pytest.mark.cni(53)
def test_the_one_del_is_kept_while_the_agent_is_away(new_host: NewHost) -> None:
    host = new_host()
    host.start(min_idle=1, max_idle=1, max_nics=1)
    crio = crio_on(host, without_services(example(host)))
    pod = pod_in(host.container())
    crio.run_pod(pod)
    host.agent.stop()
    crio.stop_pod(pod)
    assert crio.complaints == []
    host.start(idle=0, min_idle=1, max_idle=1, max_nics=1)
    assert (host.attachments(), [*host.spool.iterdir()]) == ([], [])
    wait_until_all_is_back(host)


def test_del_goes_by_the_cache_however_the_file_has_changed(host: Host, crio: Crio) -> None:
    pod = pod_in(host.container())
    crio.run_pod(pod)
    (file,) = (host.directory / "net.d").iterdir()
    file.write_text("{")
    network, changed = crio.network, Crio(crio.library, file.parent, crio.pods)
    assert changed.networks == {}
    changed.networks = {network.name: replace(network, plugins=({"type": "host-device"},))}
    changed.stop_pod(pod)
    assert changed.library.executions[-1].plugin == "qingcni"
    wait_until_all_is_back(host)


def test_a_start_deletes_what_the_last_run_had_and_does_not_know_any_more(host: Host, crio: Crio) -> None:
    """DEL of what its cache has and it does not, then GC with those it knows, then a CHECK of each."""
    kept, lost = pod_in(host.container()), pod_in(host.container())
    for pod in (kept, lost):
        crio.run_pod(pod)
    next_run = Crio(crio.library, host.directory / "net.d", {kept.sandbox: kept})
    crio.library.executions.clear()
    next_run.start()
    is_new = next_run.network.allows("1.1.0")
    assert (next_run.complaints, verbs(next_run)) == ([], ["DEL", *(["GC"] if is_new else []), "CHECK"])
    assert [held["container_id"] for held in host.attachments()] == [kept.sandbox]
    next_run.stop_pod(kept)
    wait_until_all_is_back(host)


@pytest.mark.cni(71)
def test_a_start_spares_what_another_runtime_has_in_a_network_of_the_same_name(host: Host, crio: Crio) -> None:
    """Its cache is its own, so CRI-O neither lists nor deletes it; a live attachment stays, and an event says so."""
    other, container = replace(crio.library, cache=host.directory / "another"), host.container()
    other.add(crio.network, call_of(container))
    crio.start()
    assert crio.complaints == []
    assert [held["container_id"] for held in host.attachments()] == [container.name]
    told = [event["subject"] for event in host.agent.events("attachment.kept")]
    assert (f"mynet/{container.name}/eth0" in told) == crio.network.allows("1.1.0")
    other.delete(crio.network, call_of(container))
    wait_until_all_is_back(host)


class Breaking(Libcni):
    """Something takes the link down between ADD and CHECK."""

    def check(self, network: Network, call: Call) -> None:
        run("ip", "-n", Path(call.netns).name, "link", "set", call.ifname, "down")
        super().check(network, call)


@pytest.mark.cni(58)
def test_a_pod_whose_check_fails_is_stopped_at_once(host: Host, crio: Crio) -> None:
    library = crio.library = Breaking(crio.library.path, crio.library.cache, crio.library.netns)
    with pytest.raises(Failed, match="eth0 is down"):
        crio.run_pod(pod_in(host.container()))
    assert [execution.verb for execution in library.executions] == ["ADD", "CHECK", "DEL"]
    wait_until_all_is_back(host)


def test_a_del_that_is_killed_is_never_repeated_and_nothing_is_lost(
    new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute, here a second, CRI-O kills it, removes the namespace and forgets the pod."""
    host = new_host()
    agent = host.start(min_idle=1, max_idle=1, max_nics=1)
    crio = crio_on(host, without_services(example(host)))
    pod = pod_in(container := host.container())
    crio.run_pod(pod)
    monkeypatch.setattr("runtimes.crio.DEL_SECONDS", 1.0)
    agent.process.send_signal(signal.SIGSTOP)
    crio.stop_pod(pod)
    container.delete()
    agent.process.send_signal(signal.SIGCONT)
    (complaint,) = crio.complaints
    assert "signal: killed" in complaint
    assert (crio.pods, [*crio.library.remembered()]) == ({}, [])
    wait_until_all_is_back(host)


def test_a_network_whose_plugins_do_not_speak_its_version_is_skipped(host: Host) -> None:
    """The next one is that of all pods then."""
    second = {"name": "second", "cniVersion": "1.0.0", "plugins": [ours(host)]}
    crio = crio_on(host, second | {"name": "first", "cniVersion": "9.0.0"}, second)
    assert crio.network.name == "second"
    (complaint,) = crio.complaints
    assert "qingcni does not support config version '9.0.0'" in complaint
