"""The routes that a container gets: completed for its NIC, or refused."""

from dataclasses import replace

import pytest

from inprocess.rows import make_nic
from qingcloud_cni.core.cni.routes import read_routes, routes_for
from qingcloud_cni.core.errors import InvalidConfig
from qingcloud_cni.core.nics.model import NicState, Route

NIC = make_nic(state=NicState.ASSIGNED, nic_id="52:54:9e:01:02:03")
DEFAULT = Route("0.0.0.0/0", "172.16.3.1")


@pytest.mark.parametrize(
    ("asked", "installed"),
    [
        ((), (DEFAULT,)),
        (({"dst": "10.96.0.0/12", "gw": "172.16.3.253"},), (DEFAULT, Route("10.96.0.0/12", "172.16.3.253"))),
        (({"dst": "10.96.0.0/12"},), (DEFAULT, Route("10.96.0.0/12", "172.16.3.1"))),
        (({"dst": "0.0.0.0/0", "gw": "172.16.3.253"},), (Route("0.0.0.0/0", "172.16.3.253"),)),
        (({"dst": "0.0.0.0/0"},), (DEFAULT,)),
        (({"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0"}), (DEFAULT,)),
        (({"dst": "0.0.0.0/0", "priority": 7},), (replace(DEFAULT, priority=7),)),
        (({"dst": "0.0.0.0/0", "table": 0},), (replace(DEFAULT, table=0),)),
        (({"dst": "0.0.0.0/0", "table": 100},), (DEFAULT, replace(DEFAULT, table=100))),
        (({"dst": "169.254.0.0/16", "scope": 253},), (DEFAULT, Route("169.254.0.0/16", "", scope=253))),
        (
            ({"dst": "10.0.0.0/8", "priority": 1}, {"dst": "10.0.0.0/8", "gw": "172.16.3.9", "priority": 2}),
            (
                DEFAULT,
                Route("10.0.0.0/8", "172.16.3.1", priority=1),
                Route("10.0.0.0/8", "172.16.3.9", priority=2),
            ),
        ),
    ],
)
def test_routes_to_install(asked: tuple[object, ...], installed: tuple[Route, ...]) -> None:
    assert routes_for(NIC, read_routes({"routes": [*asked]})) == installed


@pytest.mark.parametrize("gateway", ["172.16.4.1", "10.0.0.1", "172.16.3.7", "172.16.3.0", "172.16.3.255"])
def test_a_gateway_must_be_a_neighbour_in_the_vxnet(gateway: str) -> None:
    asked = read_routes({"routes": [{"dst": "10.96.0.0/12", "gw": gateway}]})
    with pytest.raises(InvalidConfig) as refusal:
        routes_for(NIC, asked)
    for word in ("10.96.0.0/12", gateway, "vxnet-1", "172.16.3.0/24"):
        assert word in str(refusal.value)


@pytest.mark.parametrize("gateway", ["0.0.0.0", "172.16.3.1", "172.16.3.9"])
@pytest.mark.parametrize("details", [{}, {"table": 254}, {"table": 0}, {"priority": 7}], ids=str)
def test_the_vxnets_own_network_is_reached_through_no_gateway(gateway: str, details: dict[str, int]) -> None:
    """The NIC's connected route leads there already, so the kernel layer would leave the asked one out."""
    asked = read_routes({"routes": [{"dst": "172.16.3.0/24", "gw": gateway, **details}]})
    with pytest.raises(InvalidConfig, match=f"route to 172.16.3.0/24: gateway {gateway} is not possible") as refusal:
        routes_for(NIC, asked, "172.16.3.253")
    assert "vxnet-1" in str(refusal.value)


@pytest.mark.parametrize(
    "route",
    [
        {"dst": "172.16.3.0/24"},
        {"dst": "172.16.3.0/24", "scope": 253},
        {"dst": "172.16.3.0/24", "gw": "0.0.0.0", "table": 100},
        {"dst": "172.16.3.0/25", "gw": "0.0.0.0"},
        {"dst": "172.16.0.0/16", "gw": "0.0.0.0"},
    ],
    ids=str,
)
def test_other_routes_near_the_vxnets_network_are_taken(route: dict[str, object]) -> None:
    assert len(routes_for(NIC, read_routes({"routes": [route]}), "172.16.3.253")) == 2
