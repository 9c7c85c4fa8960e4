"""Requests that come twice, at once, too late or wrong: the answers, and that nothing is left of what was refused."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from machines.containers import Container
from machines.hosts import Host, NewHost
from machines.simulator import Sim, eventually, links, needs_root, run

pytestmark = needs_root
HOSTS = 6

SERVICES = "10.96.0.0/12"


# --- again ---------------------------------------------------------------------------------------------


@pytest.mark.defect("hostnic-12")
def test_add_repeated_gives_the_same_answer_byte_for_byte(host: Host) -> None:
    container = host.container()
    conf = host.conf(routes=[{"dst": SERVICES, "gw": "172.20.1.1"}])
    first, second = (host.cni("ADD", container, conf=conf).succeeded() for _ in range(2))
    assert second.stdout == first.stdout
    assert len(host.attachments()) == 1
    assert container.link()["address"] == first.json["interfaces"][0]["mac"]


@pytest.mark.defect("hostnic-12")
def test_two_adds_at_once_for_one_attachment_get_one_answer_and_one_nic(host: Host) -> None:
    container = host.container()
    with ThreadPoolExecutor(2) as pool:
        answers = {answer.succeeded().stdout for answer in pool.map(host.cni, ("ADD", "ADD"), (container, container))}
    assert len(answers) == 1
    assert len(host.attachments()) == 1
    assert container.names == ["lo", "eth0"]


def test_add_in_a_new_namespace_under_a_known_id_moves_the_nic_there(host: Host) -> None:
    """The same container id, network and ifname elsewhere: the first attachment is over."""
    first, second = host.container(), host.container()
    host.add(first)
    answer = host.cni("ADD", first, CNI_NETNS=second.path)
    assert answer.result["interfaces"][0]["sandbox"] == second.path
    assert first.names == ["lo"]
    assert len(host.attachments()) == 1


@pytest.mark.cni(42)
@pytest.mark.defect("hostnic-9", "ancestor-3")
def test_del_succeeds_however_often_it_comes(host: Host) -> None:
    container = host.container()
    host.add(container)
    for _ in range(10):
        host.delete(container)
    assert host.is_untouched()


@pytest.mark.cni(43)
def test_del_of_an_unknown_container_succeeds(host: Host) -> None:
    host.delete("never-seen")
    assert host.is_untouched()


def test_del_of_another_ifname_or_network_leaves_the_attachment_alone(host: Host) -> None:
    container = host.container()
    host.add(container)
    host.delete(container, "eth1")
    host.cni("DEL", container, conf=host.conf() | {"name": "another"}).succeeded()
    assert len(host.attachments()) == 1
    assert "UP" in container.link()["flags"]


@pytest.mark.cni(6, 7, 44)
@pytest.mark.defect("hostnic-10", "ancestor-3", "others-14")
@pytest.mark.parametrize("netns", [None, "", "/run/netns/not-there"])
def test_del_needs_no_namespace(host: Host, netns: str | None) -> None:
    """Left out, empty or gone: the NIC comes back from where it was recorded to be."""
    container = host.container()
    host.add(container)
    host.cni("DEL", container, CNI_NETNS=netns).succeeded()
    assert container.names == ["lo"]
    assert host.is_untouched()


@pytest.mark.cni(44, 47)
@pytest.mark.defect("hostnic-9")
def test_del_after_the_namespace_is_gone_gives_the_nic_back(host: Host) -> None:
    container = host.container()
    host.add(container)
    container.delete()
    host.delete(container)
    assert host.attachments() == []
    assert host.is_untouched()


@pytest.mark.defect("hostnic-10", "slow-3", "others-13")
def test_a_namespace_that_dies_without_del_gives_its_nic_back_to_rest(new_host: NewHost, sim: Sim) -> None:
    """The attachment is released, the NIC parked and cooling; it never left the cloud's list for this instance."""
    host = new_host()
    host.start(min_idle=1, max_idle=1, max_nics=1, cooldown="60s", cooldown_min="60s")
    nics, calls = host.cloud_nics(), sim.status()["calls"]
    container = host.container()
    nic_id = host.add(container)["interfaces"][0]["mac"]
    container.delete()
    eventually(lambda: [n["nic_id"] for n in host.nics("cooling")] == [nic_id], "the NIC cooling")
    assert host.attachments() == []
    assert nic_id in links(host.parking.name)
    assert nic_id not in links(host.netns)
    assert set(host.cloud_nics()) == set(nics) == {nic_id}
    assert sim.status()["calls"] == calls


# --- refused -------------------------------------------------------------------------------------------


@pytest.mark.defect("ancestor-6")
@pytest.mark.parametrize("place", ["tcp", "unix"])
def test_without_an_agent_add_fails_fast_with_code_11_and_del_is_kept(new_host: NewHost, place: str) -> None:
    host = new_host()
    container = host.container()
    conf = host.conf(BindAddr=f"unix://{host.socket}") if place == "unix" else host.conf()
    answer = host.cni("ADD", container, conf=conf)
    assert answer.code == 11, answer
    assert "is qingagent running?" in answer.message
    assert answer.seconds < 2.0
    assert "is qingagent running?" in host.cni("DEL", container, conf=conf).succeeded().note
    assert len(list(host.spool.iterdir())) == 1


@pytest.mark.cni(35)
def test_add_into_the_hosts_own_namespace_is_refused_with_code_8(host: Host) -> None:
    before = links(host.netns)
    answer = host.cni("ADD", "c1", CNI_NETNS=f"/run/netns/{host.netns}")
    assert answer.code == 8, answer
    assert "belongs to the host" in answer.message
    assert links(host.netns).keys() == before.keys()
    assert host.is_untouched()


@pytest.mark.cni(34)
@pytest.mark.parametrize("netns", ["/run/netns/not-there", "/etc/passwd", "relative"])
def test_add_into_no_namespace_is_refused_with_code_8(host: Host, netns: str) -> None:
    answer = host.cni("ADD", "c1", CNI_NETNS=netns)
    assert answer.code == 8, answer
    assert netns in answer.message
    assert host.is_untouched()


@pytest.mark.cni(31)
def test_add_where_the_ifname_is_taken_leaves_that_link_alone(host: Host) -> None:
    container = host.container()
    run("ip", "-n", container.name, "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    run("ip", "-n", container.name, "addr", "add", "10.1.1.1/24", "dev", "eth0")
    before = container.link()
    answer = host.cni("ADD", container)
    assert answer.code == 7, answer
    assert "eth0" in answer.message
    assert container.link() == before
    assert {row["ifname"] for row in container.ip("link", "show")} == {"lo", "eth0", "other"}
    assert host.is_untouched()


ROUTES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "gateway elsewhere": ({"dst": SERVICES, "gw": "172.20.9.1"}, ("vxnet-pods001", "172.20.1.0/24", "172.20.9.1")),
    "placeholder dst": ({"dst": "kubernetes service cidr", "gw": "172.20.1.1"}, ("dst", "kubernetes service cidr")),
    "placeholder gw": ({"dst": SERVICES, "gw": "hostip or 0.0.0.0"}, ("gw", "hostip or 0.0.0.0")),
    "dst of a host": ({"dst": "10.96.0.1/12", "gw": "172.20.1.1"}, ("10.96.0.1/12",)),
}


@pytest.mark.parametrize("case", ROUTES)
def test_a_route_that_cannot_be_had_is_refused_with_code_7_naming_what_is_wrong(host: Host, case: str) -> None:
    route, words = ROUTES[case]
    container = host.container()
    answer = host.cni("ADD", container, conf=host.conf(routes=[route]))
    assert answer.code == 7, answer
    assert all(word in answer.message for word in words), answer
    assert container.names == ["lo"]
    assert host.is_untouched()


def test_a_gateway_of_0_0_0_0_is_refused_with_code_7_where_is_gateway_forbids_it(host: Host) -> None:
    container = host.container()
    conf = host.conf(routes=[{"dst": SERVICES, "gw": "0.0.0.0"}]) | {"isGateway": False}
    answer = host.cni("ADD", container, conf=conf)
    assert answer.code == 7, answer
    assert "0.0.0.0" in answer.message
    assert "isGateway" in answer.message
    assert container.names == ["lo"]
    assert host.is_untouched()


@pytest.mark.defect("others-7")
def test_a_refused_add_succeeds_once_its_cause_is_fixed(host: Host) -> None:
    container = host.container()
    assert host.cni("ADD", container, conf=host.conf(routes=[{"dst": SERVICES, "gw": "9.9.9.9"}])).code == 7
    host.add(container, conf=host.conf(routes=[{"dst": SERVICES, "gw": "172.20.1.1"}]))
    assert container.routes()[SERVICES] == "172.20.1.1"


@pytest.mark.cni(32)
@pytest.mark.defect("hostnic-8")
def test_an_add_that_gets_no_nic_in_time_says_why_with_code_11(host: Host) -> None:
    """The cause is the limit; the ADD's place in the queue is given up."""
    for container in (host.container(), host.container()):
        host.add(container)
    third = host.container()
    answer = host.cni("ADD", third, conf=host.conf(TimeoutSeconds=3))
    assert answer.code == 11, answer
    assert "max-nics 2" in answer.message
    assert answer.seconds < 3.5
    assert host.status()["waiting"] == 0
    assert third.names == ["lo"]


def test_adds_are_served_in_the_order_they_came(host: Host) -> None:
    """Of two that wait, the NIC that comes free goes to the first."""
    first, second = host.container(), host.container()
    host.add(first)
    host.add(second)
    late: list[Container] = [host.container(), host.container()]
    with ThreadPoolExecutor(2) as pool:
        waiting: list[Any] = []
        for number, container in enumerate(late, 1):
            waiting.append(pool.submit(host.cni, "ADD", container))
            eventually(partial(has_waiting, host, number), f"{number} ADDs that wait")
        host.delete(first)
        assert waiting[0].result(timeout=20).status == 0
        assert not waiting[1].done()
        host.delete(second)
        assert waiting[1].result(timeout=20).status == 0


def has_waiting(host: Host, count: int) -> bool:
    return bool(host.status()["waiting"] == count)
