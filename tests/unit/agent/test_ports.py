"""TCP addresses that other programs hold: waited for, and said."""

import dataclasses
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from qingcloud_cni.agent.api.connections import Serves
from qingcloud_cni.agent.process.listeners import Ports
from qingcloud_cni.agent.settings.resolution import resolve
from qingcloud_cni.agent.settings.values import Address


@pytest.fixture
def taken() -> Iterator[socket.socket]:
    """A port that another program holds."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other


def ports(address: Address, **changes: Any) -> Ports:
    settings = resolve({}, {}, {}, "").settings
    return Ports(dataclasses.replace(settings, bindaddr=address, **changes))


def test_a_taken_port_is_an_obstacle_until_it_is_free(taken: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    address = Address("127.0.0.1", taken.getsockname()[1])
    with ports(address) as tcp:
        for _ in range(3):
            assert tcp.take() == []
        assert tcp.obstacle == (
            f"bindaddr {address}: bind failed: Address already in use; free it, or choose another --bindaddr;"
            " the agent retries"
        )
        taken.close()
        ((listener, serves),) = tcp.take()
        assert (tcp.obstacle, tcp.take()) == ("", [])
    with listener:
        assert (listener.getsockname(), serves) == ((address.host, address.port), Serves.API | Serves.METRICS)
    assert [line.message for line in caplog.records] == ["port.missing", "port.recovered"]


def test_an_address_that_the_host_does_not_have_yet_is_waited_for() -> None:
    with ports(Address("192.0.2.1", 31080)) as tcp:
        assert tcp.take() == []
        assert "bindaddr 192.0.2.1:31080: bind failed: Cannot assign requested address; " in tcp.obstacle


def test_each_address_is_waited_for_alone(taken: socket.socket) -> None:
    metrics = Address("127.0.0.1", taken.getsockname()[1])
    with ports(Address("127.0.0.1", 0), metrics_bind=metrics) as tcp:
        ((listener, serves),) = tcp.take()
        assert serves is Serves.API
        listener.close()
        assert tcp.obstacle.startswith(f"metrics-bind {metrics}: bind failed: Address already in use; free it")
        taken.close()
        ((listener, serves),) = tcp.take()
        assert serves is Serves.METRICS
        listener.close()


def test_a_client_that_is_early_waits_and_a_start_that_fails_closes_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        name = probe.getsockname()
    with ports(Address(*name)):
        socket.create_connection(name).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(name)
