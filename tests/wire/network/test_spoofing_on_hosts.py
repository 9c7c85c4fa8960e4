"""A hostile container on a real host: NET_ADMIN in its own namespace. The agent takes none of its links."""

import json
from typing import Any

import pytest

from machines.containers import Container
from machines.hosts import Host, NewHost
from machines.simulator import eventually, links, run

HOSTS = 2
SOON = 60.0  # two comparisons confirm that a namespace is gone


@pytest.fixture
def host(new_host: NewHost) -> Host:
    made = new_host()
    made.start(min_idle=2, max_idle=4)
    return made


def forge(host: Host, hostile: Container, victim: Container, nic_id: str) -> dict[str, Any]:
    """Links with the MAC, the alias and the index of the victim's NIC, and the victim's signs on its own NIC."""
    shown = victim.link()
    inner = host.container()
    forged = {"as-index": f"index {shown['ifindex']}", "as-mac": f"address {nic_id}", "as-alias": ""}
    for name, words in forged.items():
        run(
            "ip",
            "-n",
            hostile.name,
            *f"link add {name} {words} type veth peer name p{name} netns {inner.name}".split(),
        )
    for name in ("as-mac", "as-alias", "as-index", "eth0"):
        run("ip", "-n", hostile.name, "link", "set", name, "alias", shown["ifalias"], "up")
    run("ip", "-n", hostile.name, "link", "set", "eth0", "address", nic_id)
    return seen(hostile)


def seen(container: Container) -> dict[str, Any]:
    rows = json.loads(run("ip", "-n", container.name, "-j", "link", "show").stdout)
    return {row["ifname"]: (row["ifindex"], row["address"], row.get("ifalias")) for row in rows}


@pytest.mark.parametrize("has_del", [True, False])
def test_a_hostile_container_gets_neither_the_nic_nor_the_address_of_another(host: Host, *, has_del: bool) -> None:
    victim, hostile, later = host.container(), host.container(), host.container()
    nic_id = host.add(victim)["interfaces"][0]["mac"]
    host.add(hostile)
    assert victim.link()["address"] == nic_id
    forged = forge(host, hostile, victim, nic_id)
    run("ip", "netns", "delete", victim.name)
    if has_del:
        host.delete(victim)
    eventually(lambda: nic_id in links(host.parking.name), "the NIC is home", SOON)
    eventually(lambda: [a["nic_id"] for a in host.attachments()].count(nic_id) == 0, "and serves nobody", SOON)
    assert seen(hostile) == forged
    if has_del:
        spoofed = [e for e in host.get(f"/v1/events?nic={nic_id}") if e["name"] == "nic.spoofed"]
        assert any(hostile.name in event["detail"] for event in spoofed)
    for container in (later, host.container()):
        result = host.add(container)
        assert container.link()["address"] == result["interfaces"][0]["mac"]
        assert container.reaches(result["ips"][0]["gateway"])
    host.delete(hostile)
    assert "eth0" not in seen(hostile)
    assert {"as-mac", "as-alias", "as-index"} <= seen(hostile).keys()
