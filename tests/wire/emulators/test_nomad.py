"""Under Nomad: an ADD repeated without a DEL between, a DEL with a stale path and no arguments, STATUS first."""

import json
from typing import Any
from uuid import uuid4

import pytest

from cni.chains import libcni_of, wait_until_all_is_back
from cni.networks import Failed
from machines.hosts import Host, NewHost
from machines.simulator import needs_root, run
from pages import ROOT
from runtimes.nomad import Nomad

pytestmark = needs_root
HOSTS = 3

EXAMPLE = ROOT / "examples" / "nomad" / "mynet.conflist"


def example(host: Host, version: str = "") -> dict[str, Any]:
    """As shipped, or in another *version*; agents of tests have places of their own."""
    document: dict[str, Any] = json.loads(EXAMPLE.read_text())
    document["plugins"][0]["args"] |= {"TokenFile": str(host.token_file), "SpoolDir": str(host.spool)}
    return document | ({"cniVersion": version} if version else {})


def nomad_on(host: Host, document: dict[str, Any]) -> Nomad:
    directory = host.directory / "config"
    directory.mkdir(exist_ok=True)
    (directory / EXAMPLE.name).write_text(json.dumps(document))
    return Nomad(libcni_of(host), directory, document["name"])


def verbs(nomad: Nomad) -> list[str]:
    return [execution.verb for execution in nomad.library.executions]


@pytest.mark.cni(54)
@pytest.mark.parametrize(
    ("version", "asked"),
    [
        ("0.3.1", ["ADD", "DEL"]),
        ("", ["ADD", "CHECK", "DEL"]),
        ("1.1.0", ["STATUS", "ADD", "STATUS", "CHECK", "STATUS", "DEL"]),
    ],
)
def test_an_allocation_has_an_address_and_gives_it_back(host: Host, version: str, asked: list[str]) -> None:
    """The client may restart meanwhile. DEL comes without CNI_ARGS, while the namespace is still there."""
    nomad, container, alloc = nomad_on(host, example(host, version)), host.container(), str(uuid4())
    address = nomad.setup(alloc, container.path)
    assert container.link()["addr_info"][0]["local"] == address
    if version != "0.3.1":
        nomad.restore(alloc, container.path)
    nomad.teardown(alloc, container.path)
    last = nomad.library.executions[-1]
    assert (last.environment["CNI_ARGS"], last.stdout) == ("", b"")
    assert (verbs(nomad), nomad.complaints) == (asked, [])
    wait_until_all_is_back(host)


@pytest.mark.cni(32)
def test_an_add_that_failed_is_repeated_as_it_is(host: Host) -> None:
    """Something else has the interface's name at first; nothing of the first try is in the way of the second."""
    nomad, container = nomad_on(host, example(host)), host.container()
    run("ip", "-n", container.name, "link", "add", "eth0", "type", "bridge")

    def make_room(_seconds: float) -> None:
        run("ip", "-n", container.name, "link", "delete", "eth0")

    nomad.wait = make_room
    address = nomad.setup("a1", container.path)
    assert container.link()["addr_info"][0]["local"] == address
    assert verbs(nomad) == ["ADD", "ADD"]
    nomad.teardown("a1", container.path)
    wait_until_all_is_back(host)


@pytest.mark.cni(32)
@pytest.mark.parametrize("version", ["", "1.1.0"])
def test_an_add_that_never_succeeds_holds_nothing(host: Host, version: str) -> None:
    document = example(host, version)
    document["plugins"][0]["ipam"] = {"routes": [{"dst": "10.96.0.0/12", "gw": "192.0.2.1"}]}
    nomad, container = nomad_on(host, document), host.container()
    nomad.wait = lambda _seconds: None
    with pytest.raises(Failed, match=r"192\.0\.2\.1"):
        nomad.setup("a1", container.path)
    assert verbs(nomad)[-3:] == ["ADD"] * 3
    assert host.attachments() == []
    wait_until_all_is_back(host)


@pytest.mark.cni(44)
def test_a_stale_path_is_no_obstacle_to_del(host: Host) -> None:
    nomad, container, alloc = nomad_on(host, example(host)), host.container(), str(uuid4())
    nomad.setup(alloc, container.path)
    container.delete()
    nomad.teardown(alloc, container.path)
    assert (nomad.complaints, host.attachments()) == ([], [])
    wait_until_all_is_back(host)


@pytest.mark.cni(53)
def test_an_allocation_may_end_while_the_agent_is_away(new_host: NewHost) -> None:
    """Nomad takes the DEL for done, and the namespace may go; the agent does it when it is back."""
    host = new_host()
    host.start(min_idle=1, max_idle=1, max_nics=1)
    nomad, container = nomad_on(host, example(host)), host.container()
    nomad.setup("a1", container.path)
    host.agent.stop()
    nomad.teardown("a1", container.path)
    assert nomad.complaints == []
    host.start(idle=0, min_idle=1, max_idle=1, max_nics=1)
    assert (host.attachments(), [*host.spool.iterdir()]) == ([], [])
    wait_until_all_is_back(host)


def test_with_1_1_0_an_absent_agent_keeps_del_from_being_sent(new_host: NewHost) -> None:
    """Why the example stays with 1.0.0. The agent frees what was held when it sees that the namespace is gone."""
    host = new_host()
    host.start(min_idle=1, max_idle=1, max_nics=1)
    nomad, container = nomad_on(host, example(host, "1.1.0")), host.container()
    nomad.setup("a1", container.path)
    host.agent.stop()
    nomad.teardown("a1", container.path)
    container.delete()
    assert verbs(nomad) == ["STATUS", "ADD", "STATUS"]
    assert len(nomad.complaints) == 1
    host.start(idle=0, min_idle=1, max_idle=1, max_nics=1)
    wait_until_all_is_back(host)
