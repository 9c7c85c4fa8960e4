"""A: what a container leaves on its NIC, or above it."""

from collections.abc import Callable, Mapping
from typing import Any

from attack.registry import case
from attack.scene import Scene, assert_lives, assert_reaches_gateway, hostile, inside, wait_idle, within
from machines.containers import Container
from machines.simulator import run

CHANGING = {"address", "ifindex", "stats", "stats64", "link_index", "link_netnsid", "ifalias", "operstate"}


def as_plugged(container: Container) -> Mapping[str, Any]:
    """All that `ip` shows of a NIC, but what differs from container to container."""
    (link,) = container.ip("-d", "link", "show", "dev", "eth0")
    flags = sorted(set(link["flags"]) - {"LOWER_UP", "NO-CARRIER"})
    return {key: value for key, value in link.items() if key not in CHANGING} | {"flags": flags}


def assert_next_is_clean(scene: Scene, soil: Callable[[Container], object], *, dies: bool = False) -> None:
    """A container soils its NIC and ends; the next one, on the same NIC or a new one, has it as plugged."""
    host = scene.host()
    first = host.container()
    host.add(first)
    before = as_plugged(first)
    soil(first)
    if dies:
        run("ip", "netns", "delete", first.name)
        wait_idle(host)
    else:
        host.delete(first)
    second = host.container()
    host.add(second)
    after = as_plugged(second)
    differing = {key: (value, after.get(key)) for key, value in before.items() if value != after.get(key)}
    assert not differing, f"the next container's NIC differs: {differing}"
    assert_reaches_gateway(second)
    assert_lives(host)


@case("A", is_short=True)
def no_arp(scene: Scene) -> None:
    """A container turns ARP off on its NIC. The next one reaches its gateway."""
    assert_next_is_clean(scene, lambda container: inside(container, "link set eth0 arp off"))


@case("A")
def no_arp_without_del(scene: Scene) -> None:
    """A container turns ARP off and dies without DEL. The next one reaches its gateway."""
    assert_next_is_clean(scene, lambda container: inside(container, "link set eth0 arp off"), dies=True)


@case("A")
def flags(scene: Scene) -> None:
    """A container sets every flag that it can set. The next one has the NIC as plugged."""
    change = "promisc on allmulticast on multicast off dynamic on"
    assert_next_is_clean(scene, lambda container: inside(container, f"link set eth0 {change}"))


@case("A")
def numbers(scene: Scene) -> None:
    """A container changes MTU, queue, group, sizes and mode of its NIC. The next one has the NIC as plugged."""

    def soil(container: Container) -> None:
        inside(
            container,
            "link set eth0 mtu 1280 txqueuelen 7 group 77",
            "link set eth0 gso_max_size 2000 gso_max_segs 3",
        )
        inside(container, "link set eth0 gro_max_size 3000", "link set eth0 mode dormant")

    assert_next_is_clean(scene, soil)


@case("A")
def names(scene: Scene) -> None:
    """A container changes MAC, name, alias and further names of its NIC. The next one has the NIC as plugged."""

    def soil(container: Container) -> None:
        inside(
            container,
            "link set eth0 address 02:00:00:00:00:07 alias 172.20.1.1",
            "link property add dev eth0 altname qc0",
        )
        inside(
            container, "link set eth0 broadcast ff:ff:ff:00:00:00", "link set eth0 down", "link set eth0 name wan0"
        )

    assert_next_is_clean(scene, soil)


@case("A")
def addresses_and_routes(scene: Scene) -> None:
    """A container adds addresses, routes, rules, neighbours and a queue. The next one has none of them."""
    host = scene.host()
    first = host.container()
    host.add(first)
    inside(
        first,
        "addr add 172.20.1.250/24 dev eth0",
        "addr add fd00::7/64 dev eth0",
        "route add 198.51.100.0/24 dev eth0",
        "neigh add 172.20.1.1 lladdr 02:00:00:00:00:07 nud permanent dev eth0",
    )
    run(*within(first, "tc", "qdisc", "add", "dev", "eth0", "root", "netem", "loss", "100%"), check=False)
    host.delete(first)
    second = host.container()
    result = host.add(second)
    held = [(row["local"], row["scope"]) for row in second.link()["addr_info"] if row["scope"] == "global"]
    assert held == [(result["ips"][0]["address"].partition("/")[0], "global")], held
    assert {row["dst"] for row in second.ip("route", "show", "dev", "eth0")} == {"default", "172.20.1.0/24"}
    assert_reaches_gateway(second)


def assert_program_is_gone(scene: Scene, hook: str, kind: str) -> None:
    """A program that drops every packet."""
    command = hostile("leave_program", hook, kind)
    assert_next_is_clean(scene, lambda container: scene.attacker(*within(container, *command)))


@case("A", is_short=True)
def xdp(scene: Scene) -> None:
    """A container leaves an XDP program that drops everything. The next one reaches its gateway."""
    assert_program_is_gone(scene, "xdp", "program")


@case("A")
def xdp_link(scene: Scene) -> None:
    """A process of a container holds an XDP link that drops everything. The next container reaches its gateway."""
    assert_program_is_gone(scene, "xdp", "link")


@case("A")
def tcx(scene: Scene) -> None:
    """A container leaves a TCX program that drops what comes in. The next one reaches its gateway."""
    assert_program_is_gone(scene, "tcx-ingress", "program")


@case("A")
def tcx_link(scene: Scene) -> None:
    """A process of a container holds a TCX link that drops what goes out. The next container reaches its gateway."""
    assert_program_is_gone(scene, "tcx-egress", "link")


def assert_upper_is_gone(scene: Scene, mode: str) -> None:
    """A link above the NIC, in a namespace that stays after DEL, with the address that the container had."""
    host = scene.host()
    first, accomplice = host.container(), host.container()
    address = host.add(first)["ips"][0]["address"]
    inside(first, f"link add link eth0 name above netns {accomplice.name} type macvlan mode {mode}")
    host.delete(first)
    second = host.container()
    host.add(second)
    assert_reaches_gateway(second)
    if "above" in accomplice.names:
        inside(accomplice, "link set above up", f"addr add {address} dev above")
        gateway = second.routes()["default"]
        assert not accomplice.reaches(gateway), "the old container talks by a link above the NIC of another"


@case("A", is_short=True)
def macvlan(scene: Scene) -> None:
    """A macvlan above the NIC lives on in another namespace. It carries no packet once the NIC serves the next."""
    assert_upper_is_gone(scene, "bridge")


@case("A")
def macvlan_passthru(scene: Scene) -> None:
    """A macvlan that takes the whole NIC lives on in another namespace. The next container has its NIC alone."""
    assert_upper_is_gone(scene, "passthru")
