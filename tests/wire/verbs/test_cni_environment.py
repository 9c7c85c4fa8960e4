"""What a runtime puts into the environment: what is allowed works as it is, the rest is refused and touches nothing.

Refusals that need no agent are proved in test_plugin.py.
"""

from typing import Any

import pytest

from machines.hosts import Host
from machines.simulator import links, needs_root

pytestmark = needs_root

BAD_IFNAMES = (
    "a" * 16, "é" * 8, ".", "..", "a/b", "../eth0", "a:b", "eth0:1", "a b", " ", "a\tb", "a\n", "a\u00a0b", "eth%d",
    "%",
)  # fmt: skip
GOOD_IFNAMES = (
    "e" * 15,
    "é" * 7 + "x",
    "-",
    "...",
    "net1.100",
    "-help",
    "a@b",
    "$(id)",
    "0",
    "'\"\\&;|*?#~",
    "中中中中中",
)


@pytest.mark.cni(10)
@pytest.mark.parametrize("container_id", ["a.b_c-D9", "0", "a..", "x" * 200, "x" * 255, "x" * 4096])
def test_every_allowed_container_id_works(host: Host, container_id: str) -> None:
    """From ADD to DEL, and it is recorded as it is."""
    container = host.container()
    first = host.cni("ADD", container_id, CNI_NETNS=container.path).succeeded()
    (attachment,) = host.attachments()
    assert attachment["container_id"] == container_id
    assert container.link()["address"] == attachment["nic_id"]
    assert host.cni("ADD", container_id, CNI_NETNS=container.path).stdout == first.stdout
    host.cni("DEL", container_id, CNI_NETNS=container.path).succeeded()
    assert container.names == ["lo"]
    assert host.is_untouched()


@pytest.mark.cni(9)
@pytest.mark.parametrize("container_id", ["-a", "a/b", "../a", "a b", "é", "a\n", ".a", "_a", "a%"])
def test_a_bad_container_id_is_refused_and_nothing_is_held(host: Host, container_id: str) -> None:
    container = host.container()
    for verb in ("ADD", "DEL"):
        answer = host.cni(verb, container_id, CNI_NETNS=container.path)
        answer.refused(4, "containerID", f"CNI_CONTAINERID={container_id!r}")
    assert container.names == ["lo"]
    assert host.is_untouched()


@pytest.mark.cni(11)
@pytest.mark.parametrize("ifname", BAD_IFNAMES)
def test_a_bad_ifname_is_refused_and_no_link_changes(host: Host, ifname: str) -> None:
    container = host.container()
    before = links(container.name), links(host.netns), links(host.parking.name)
    for verb in ("ADD", "DEL"):
        host.cni(verb, container, ifname).refused(4, "interface name", f"CNI_IFNAME={ifname!r}")
    assert (links(container.name), links(host.netns), links(host.parking.name)) == before
    assert host.is_untouched()


@pytest.mark.parametrize("char", ["\x01", "\x1b", "\x7f", "\x9b", "\u202e"])
def test_control_characters_are_rejected_by_add_alone(host: Host, char: str) -> None:
    """In every name of the container; one that an earlier version added can go."""
    container = host.container()
    pod = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{char}"
    places: tuple[dict[str, Any], ...] = (
        {"CNI_IFNAME": f"a{char}"},
        {"CNI_NETNS": f"{container.path}{char}"},
        {"CNI_ARGS": pod},
    )
    for variables in places:
        answer = host.cni("ADD", container, **variables)
        answer.refused(4, "control characters are not supported")
        assert char not in answer.message
        host.cni("DEL", container, **variables).succeeded()
    assert host.is_untouched()


@pytest.mark.cni(12)
@pytest.mark.parametrize("ifname", GOOD_IFNAMES)
def test_every_allowed_ifname_is_the_interfaces_name(host: Host, ifname: str) -> None:
    """In the kernel and in the result, to the byte; DEL finds it by that."""
    container = host.container()
    result = host.add(container, ifname)
    assert container.names == ["lo", ifname]
    assert [interface["name"] for interface in result["interfaces"]] == [ifname]
    assert container.reaches(result["ips"][0]["gateway"])
    host.delete(container, ifname)
    assert container.names == ["lo"]
    assert host.is_untouched()


@pytest.mark.cni(5, 6, 8)
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize("value", [None, ""])
def test_what_a_verb_needs_and_has_not_is_named_all_at_once(host: Host, verb: str, value: str | None) -> None:
    """Left out or empty, one or all of them."""
    all_three = {"CNI_CONTAINERID": value, "CNI_NETNS": value, "CNI_IFNAME": value}
    conf = host.conf("1.0.0")
    host.cni(verb, "c1", "eth0", conf, **all_three).refused(4, *all_three)
    for name in all_three:
        said = host.cni(verb, "c1", "eth0", conf, **{name: value}).refused(4, name).message
        assert not any(other in said for other in all_three if other != name)
    assert host.is_untouched()
