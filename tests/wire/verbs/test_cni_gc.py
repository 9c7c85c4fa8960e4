"""GC: what a runtime has no more and has no namespace is freed at once; what lives is never taken away."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cni.answers import Answer
from cni.results import VERSIONS
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import eventually, links, needs_root

pytestmark = needs_root
NICS = 4

KEY, OLD_KEY = "cni.dev/valid-attachments", "cni.dev/attachments"
VERSION = VERSIONS[-1]


def added(host: Host, network: str = "mynet") -> Container:
    container = host.container()
    host.add(container, conf=host.conf(VERSION) | {"name": network})
    return container


def listed(*containers: Container, ifname: str = "eth0") -> list[dict[str, str]]:
    return [{"containerID": container.name, "ifname": ifname} for container in containers]


def gc(host: Host, network: str = "mynet", *, keys: Mapping[str, Any], is_off: object = False) -> Answer:
    """As libcni asks: the variables of attachments are there, and empty."""
    conf = {**host.conf(VERSION, DisableGC=is_off), "name": network, **keys}
    return host.cni("GC", "", "", conf, CNI_NETNS="", CNI_ARGS="")


def held(host: Host) -> set[str]:
    return {attachment["container_id"] for attachment in host.attachments()}


@contextmanager
def gone(containers: Sequence[Container]) -> Iterator[None]:
    """Their namespaces are in nobody's reach any more, while what we hold keeps their links from coming home.

    So nothing but GC frees them as long as this lasts.
    """
    files = [os.open(container.path, os.O_RDONLY) for container in containers]
    try:
        for container in containers:
            container.delete()
        yield
    finally:
        for file in files:
            os.close(file)


def test_without_gc_such_an_attachment_stays(host: Host) -> None:
    """The other tests of this module stand on that."""
    container = added(host)
    with gone([container]):
        host.cni("STATUS", "", "", host.conf(VERSION)).succeeded()
        assert held(host) == {container.name}
    eventually(lambda: not held(host), "the attachment released when its link came home")


@pytest.mark.cni(67)
@pytest.mark.parametrize("key", [KEY, OLD_KEY])
def test_what_is_not_listed_and_has_no_namespace_is_freed_at_once(host: Host, key: str) -> None:
    """What is listed goes on as it was: its CHECK succeeds."""
    valid, lost = added(host), added(host)
    conf = host.conf(VERSION)
    result = host.add(valid, conf=conf)
    (nic_id,) = (a["nic_id"] for a in host.attachments() if a["container_id"] == lost.name)
    before = valid.picture()
    with gone([lost]):
        gc(host, keys={key: listed(valid)}).succeeded()
        assert held(host) == {valid.name}
        assert [nic["state"] for nic in host.nics() if nic["nic_id"] == nic_id] == ["arriving"]
    assert valid.picture() == before
    host.cni("CHECK", valid, conf=conf | {"prevResult": result}).succeeded()
    eventually(lambda: nic_id in links(host.parking.name), "the NIC at home")


@pytest.mark.cni(68)
@pytest.mark.parametrize("nothing", [None, []], ids=str)
@pytest.mark.parametrize("key", [KEY, OLD_KEY])
def test_an_empty_list_frees_all_such_of_this_network_and_none_of_another(
    host: Host, key: str, nothing: list[object] | None
) -> None:
    first, second, other = added(host), added(host), added(host, "another")
    with gone([first, second, other]):
        gc(host, keys={key: nothing}).succeeded()
        assert held(host) == {other.name}
        gc(host, "another", keys={key: nothing}).succeeded()
        assert held(host) == set()


@pytest.mark.cni(71)
@pytest.mark.parametrize("nothing", [None, []], ids=str)
def test_what_is_not_listed_but_lives_keeps_its_nic_until_its_end(host: Host, nothing: list[object] | None) -> None:
    """Another runtime's list may not have it. An event says so; DEL frees it as ever."""
    alive, lost = added(host), added(host)
    before = alive.picture()
    with gone([lost]):
        for _ in range(3):
            gc(host, keys={KEY: nothing}).succeeded()
        assert held(host) == {alive.name}
    assert alive.picture() == before
    events = [e for e in host.agent.events("attachment.kept") if alive.name in e["subject"]]
    assert len(events) >= 1
    assert alive.path in events[0]["detail"]
    host.delete(alive, conf=host.conf(VERSION))
    assert alive.names == ["lo"]


@pytest.mark.cni(71)
def test_a_namespace_that_only_lost_its_path_lives(host: Host) -> None:
    """A process is in it: a path that cannot be opened proves nothing."""
    container = added(host)
    with container.process("sleep", "60"):
        container.delete()
        gc(host, keys={KEY: []}).succeeded()
        assert held(host) == {container.name}


@pytest.mark.cni(67)
def test_the_interface_counts_as_well_as_the_container(host: Host) -> None:
    """One of a container's two interfaces is listed: the other one is not."""
    container = added(host)
    host.add(container, "net1", host.conf(VERSION))
    with gone([container]):
        gc(host, keys={KEY: listed(container, ifname="net1")}).succeeded()
        assert [a["ifname"] for a in host.attachments()] == ["net1"]


@pytest.mark.cni(65)
@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_a_version_without_gc_is_code_1_and_nothing_is_freed(host: Host, version: str) -> None:
    container = added(host)
    conf = host.conf(version) | {KEY: []}
    with gone([container]):
        host.cni("GC", "", "", conf, CNI_NETNS="").refused(1, "GC", version)
        assert held(host) == {container.name}


@pytest.mark.cni(69)
def test_without_a_list_gc_succeeds_and_nothing_is_freed(host: Host) -> None:
    """As `cnitool gc` asks: an error would end the GC of the plugins after ours. An event says so."""
    container = added(host)
    with gone([container]):
        gc(host, "unlisted", keys={}).succeeded()
        gc(host, keys={}).succeeded()
        assert held(host) == {container.name}
    assert [e["subject"] for e in host.agent.events("gc.without-list")] == ["unlisted", "mynet"]


BAD_LISTS: dict[str, object] = {
    "a text": "all",
    "an object": {"containerID": "c1", "ifname": "eth0"},
    "a number in it": [5],
    "no ifname": [{"containerID": "c1"}],
    "no container id": [{"ifname": "eth0"}],
    "empty texts": [{"containerID": "", "ifname": ""}],
    "numbers": [{"containerID": 1, "ifname": 0}],
    "null in it": [None],
}


@pytest.mark.cni(69)
@pytest.mark.parametrize("bad", BAD_LISTS)
def test_with_a_list_that_cannot_be_read_nothing_is_freed(host: Host, bad: str) -> None:
    container = added(host)
    with gone([container]):
        gc(host, keys={KEY: BAD_LISTS[bad]}).refused(7, KEY)
        assert held(host) == {container.name}


@pytest.mark.cni(69)
def test_the_new_key_goes_before_the_old_one(host: Host) -> None:
    container, other = added(host), added(host)
    with gone([container, other]):
        gc(host, keys={OLD_KEY: [], KEY: listed(container)}).succeeded()
        assert held(host) == {container.name}


@pytest.mark.cni(68)
@pytest.mark.parametrize("value", [True, "true"])
def test_gc_can_be_turned_off_in_the_configuration(host: Host, value: object) -> None:
    """By a key of our own: what a list says of it reaches no plugin."""
    container = added(host)
    with gone([container]):
        gc(host, keys={KEY: []}, is_off=value).succeeded()
        gc(host, keys={}, is_off=value).succeeded()
        assert held(host) == {container.name}


@pytest.mark.cni(67)
def test_entries_nobody_knows_and_more_keys_are_no_obstacle(host: Host) -> None:
    container = added(host)
    more = {"ContainerID": container.name, "IfName": "eth0", "netns": "/x"}
    unknown = {"containerID": "x" * 300, "ifname": "eth0"}
    gc(host, keys={KEY: [more, unknown, unknown]}).succeeded()
    gc(host, "never-seen", keys={KEY: []}).succeeded()
    assert held(host) == {container.name}


@pytest.mark.cni(71)
def test_an_add_that_waits_is_nothing_to_collect(host: Host) -> None:
    """GC and ADD at once, as where two runtimes know nothing of each other."""
    busy = [added(host) for _ in range(4)]
    late = host.container()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(host.cni, "ADD", late, "eth0", host.conf(VERSION))
        eventually(lambda: host.status()["waiting"] == 1, "an ADD that waits")
        gc(host, keys={KEY: []}).succeeded()
        host.delete(busy[0], conf=host.conf(VERSION))
        waiting.result(timeout=20).succeeded()
    assert held(host) == {late.name, *(container.name for container in busy[1:])}
