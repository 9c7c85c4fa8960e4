"""B: links that a container makes to be taken for another's NIC."""

from attack.registry import case
from attack.scene import Scene, assert_reaches_gateway
from machines.simulator import eventually, links, run


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
