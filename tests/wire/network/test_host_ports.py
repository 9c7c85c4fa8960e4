"""hostPort by `portmap` after `qingcni`, for clients on another host: anti-spoofing drops their own addresses."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cni.chains import call_of, libcni_of
from cni.networks import Network, parse
from machines.containers import Container, address_of
from machines.hosts import Host, NewHost
from machines.services import FEW, PORT, PROTOCOLS, Server, ask, nft
from machines.simulator import eventually, needs_root

pytestmark = needs_root
HOSTS = 2
DOCUMENT = Path(__file__).parents[3] / "docs" / "chaining.md"
HOST_PORTS = {proto: 8000 + n for n, proto in enumerate(PROTOCOLS)}


def documented(host: Host, **keys: object) -> Network:
    """The list that docs/chaining.md shows, with this host's places; *keys* go over those of our plugin."""
    document = json.loads(DOCUMENT.read_text().split("```json")[1].split("```")[0])
    document["plugins"][0] |= {"args": host.conf()["args"]} | keys
    return parse(json.dumps(document | {"plugins": document["plugins"][:2]}).encode())


@pytest.fixture(scope="module")
def hosts(lasting_host: NewHost) -> tuple[Host, Host]:
    """Two hosts; the first has an agent."""
    here, there = lasting_host(), lasting_host()
    here.start(**FEW)
    return here, there


@contextmanager
def served(host: Host, network: Network) -> Iterator[Container]:
    """A container with its ports mapped, and a server in it."""
    container, library = host.container(), libcni_of(host)
    mappings = [{"hostPort": at, "containerPort": PORT, "protocol": proto} for proto, at in HOST_PORTS.items()]
    call = call_of(container, portMappings=mappings)
    with ExitStack() as stack:
        address = address_of(library.add(network, call))
        stack.callback(library.delete, network, call)
        stack.callback(Server("pod", container.name, address).close)
        yield container


def is_answered(client: Host, server: Host) -> bool:
    try:
        seen = [ask(client.netns, proto, server.address, at, seconds=0.5) for proto, at in HOST_PORTS.items()]
    except OSError:
        return False
    return seen == [("pod", server.address)] * len(HOST_PORTS)


def masquerades(host: Host) -> bool:
    return "ct status dnat masquerade" in nft(host)


def test_a_host_port_answers_another_host_without_services(hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    with served(here, documented(here)):
        eventually(lambda: is_answered(there, here), "the port answers another host")
        assert here.cloud_nics("hostnic") == {}
    eventually(lambda: not masquerades(here), "the rule gone", seconds=5.0)


def test_without_ip_masq_nothing_is_masqueraded(hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    with served(here, documented(here, ipMasq=False)):
        assert not masquerades(here)
        assert not is_answered(there, here)


def test_one_that_asks_serves_every_container_of_the_vxnet(hosts: tuple[Host, Host]) -> None:
    here, there = hosts
    asking = here.container()
    here.add(asking)
    with served(here, documented(here, ipMasq=False)):
        eventually(lambda: is_answered(there, here), "the port answers another host")
    here.delete(asking)


def test_the_rule_goes_with_a_container_that_ended_without_del(hosts: tuple[Host, Host]) -> None:
    here, _ = hosts
    container = here.container()
    here.add(container)
    eventually(lambda: masquerades(here), "the rule", seconds=5.0)
    container.delete()
    eventually(lambda: not masquerades(here), "the rule gone", seconds=5.0)
