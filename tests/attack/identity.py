"""B: links that a container makes to be taken for another's NIC."""

from attack.registry import case
from attack.scene import NOBODY, Scene, assert_lives, assert_reaches_gateway, assert_works, inside, wait_idle
from machines.containers import Container
from machines.hosts import Host
from machines.simulator import eventually, links, run


def victim_and_attacker(scene: Scene) -> tuple[Host, Container, Container, str, str]:
    """A host with two containers that have NICs: MAC and alias of the victim's."""
    host = scene.host(max_nics=2)
    victim, attacker = host.container(), host.container()
    host.add(victim)
    host.add(attacker)
    link = victim.link()
    return host, victim, attacker, str(link["address"]), str(link.get("ifalias", ""))


@case("B")
def long_altnames_in_a_strangers_namespace(scene: Scene) -> None:
    """A user without rights gives a link in an own namespace 600 long names. A dead container's NIC is released."""
    host, victim, _attacker, _mac, _alias = victim_and_attacker(scene)
    names = "for i in $(seq 10000 10600); do printf 'link property add dev f0 altname %s%0122d\\n' $i 0; done"
    flood = f"ip link add f0 type veth peer name f1; {names} | ip -force -batch - >/dev/null 2>&1"
    stay = "echo ready; exec sleep 600 >/dev/null 2>&1"
    stranger = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", f"{flood}; {stay}")
    scene.attacker(*host.command(*NOBODY, *stranger))
    run("ip", "netns", "delete", victim.name)
    host.delete(victim)
    assert_works(host)


def assert_next_gets_a_nic(host: Host, attacker: Container, fake: str) -> None:
    """A new container gets a real NIC, and the attacker keeps the fake."""
    container = host.container()
    host.add(container)
    assert_reaches_gateway(container)
    assert "link_netnsid" in container.link()
    assert fake in attacker.names, "the agent took the fake"
    assert_lives(host)


@case("B", is_short=True)
def mac_of_a_victim(scene: Scene) -> None:
    """A container makes a veth with the MAC of another's NIC, whose namespace ends with DEL. The next gets a NIC."""
    host, victim, attacker, mac, _ = victim_and_attacker(scene)
    inside(attacker, f"link add fake address {mac} type veth peer name other")
    run("ip", "netns", "delete", victim.name)
    host.delete(victim)
    assert_next_gets_a_nic(host, attacker, "fake")


@case("B")
def alias_of_a_victim(scene: Scene) -> None:
    """A container makes a veth with the alias and MAC of another's NIC. The next container gets a NIC."""
    host, victim, attacker, mac, alias = victim_and_attacker(scene)
    inside(attacker, f"link add fake address {mac} type veth peer name other", f"link set fake alias {alias}")
    run("ip", "netns", "delete", victim.name)
    host.delete(victim)
    assert_next_gets_a_nic(host, attacker, "fake")


@case("B")
def fake_without_del(scene: Scene) -> None:
    """A fake is there when the victim's namespace ends without DEL. The victim's NIC is free again all the same."""
    host, victim, attacker, mac, alias = victim_and_attacker(scene)
    inside(attacker, f"link add fake address {mac} type veth peer name other", f"link set fake alias {alias}")
    run("ip", "netns", "delete", victim.name)
    wait_idle(host)
    assert_next_gets_a_nic(host, attacker, "fake")


@case("B")
def index_and_name(scene: Scene) -> None:
    """A container replaces its NIC by a veth with its index, name and MAC. The NIC comes back, not the veth."""
    host = scene.host(max_nics=1)
    attacker, hideout = host.container(), host.container()
    host.add(attacker)
    link = attacker.link()
    alias = f"link set eth0 alias {link['ifalias']}" if link.get("ifalias") else "link set lo up"
    inside(attacker, f"link set eth0 netns {hideout.name}")
    inside(
        attacker,
        f"link add eth0 index {link['ifindex']} address {link['address']} type veth peer name other",
        alias,
    )
    host.delete(attacker)
    run("ip", "netns", "delete", hideout.name)
    wait_idle(host)
    assert_next_gets_a_nic(host, attacker, "eth0")


@case("B")
def fake_in_the_host(scene: Scene) -> None:
    """A link with a parked NIC's MAC appears in the host's namespace. The agent does not hand it out."""
    host = scene.host()
    (nic,) = host.nics("idle")
    run(
        "ip",
        "-n",
        host.netns,
        "link",
        "add",
        "fake",
        "address",
        nic["nic_id"],
        "type",
        "veth",
        "peer",
        "name",
        "other",
    )
    container = host.container()
    host.add(container)
    assert_reaches_gateway(container)
    eventually(lambda: any(row["ifname"] == "fake" for row in links(host.netns).values()), "the fake on the host")


@case("B")
def user_namespace(scene: Scene) -> None:
    """A user without rights makes a fake in namespaces of its own. The victim's NIC comes back, not the fake."""
    host, victim, attacker, mac, alias = victim_and_attacker(scene)
    fake = f"ip link add fake address {mac} type veth peer name other && ip link set fake alias '{alias}'"
    shell = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", f"{fake} && echo ready && exec sleep 600")
    scene.attacker(*host.command(*NOBODY, *shell))
    host.delete(victim)
    wait_idle(host)
    container = host.container()
    host.add(container)
    assert_reaches_gateway(container)
    assert_reaches_gateway(attacker)


@case("B")
def exchanged_macs(scene: Scene) -> None:
    """Two containers exchange the MACs of their NICs. After both ended, each NIC has its own again."""
    host, first, second, mac, _ = victim_and_attacker(scene)
    other = str(second.link()["address"])
    for container, taken in ((first, other), (second, mac)):
        inside(container, "link set eth0 down", f"link set eth0 address {taken}", "link set eth0 up")
    host.delete(first)
    host.delete(second)
    eventually(lambda: {nic["nic_id"] for nic in host.nics("idle")} == {mac, other}, "both NICs idle")
    for _ in range(2):
        container = host.container()
        host.add(container)
        assert_reaches_gateway(container)


@case("B")
def hideout(scene: Scene) -> None:
    """A container moves its NIC into another namespace, under another name and MAC. DEL finds it there."""
    host = scene.host()
    container, place = host.container(), host.container()
    host.add(container)
    mac = str(container.link()["address"])
    inside(container, "link set eth0 down", "link set eth0 address 02:00:00:00:00:07 name wan0 alias x")
    inside(container, f"link set wan0 netns {place.name}")
    host.delete(container)
    wait_idle(host)
    assert place.names == ["lo"]
    assert [nic["nic_id"] for nic in host.nics()] == [mac]
    second = host.container()
    host.add(second)
    assert_reaches_gateway(second)
