"""Which link is which NIC: the recorded fingerprint decides, and nothing that a container can write."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.drift.link_locations import LinkLocation, Where, hidden, locate, only
from qingcloud_cni.core.nics.model import Netns, Nic
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.core.seams.kernel import Link, NicRecord, OtherNamespace, Survey
from qingcloud_cni.kernel.links.recognition import fingerprint, shows_parents
from qingcloud_cni.kernel.netlink.messages import ARPHRD_ETHER, IFF_LOOPBACK, NO_NSID, LinkInfo

A, B, STRANGER = "52:54:00:00:00:01", "52:54:00:00:00:02", "02:00:00:00:00:01"
POD = Netns("/run/netns/pod", 4, 100)
ROUTER, ROUTERS = 3, {3: "4026532000"}  # its number in the namespaces of this module
LINK = Link(A, "eth1", 7, is_up=True, fingerprint="veth 4026532000/17")
BURNT_IN = replace(LINK, permanent_mac=A, fingerprint=f"virtio/virtio2 {A}")


def nics(**fingerprints: str) -> dict[str, Nic]:
    """NICs *a* and *b* with these records."""
    made = (make_nic(1, fingerprint=fingerprints.get("a", "")), make_nic(2, fingerprint=fingerprints.get("b", "")))
    return {nic.nic_id: nic for nic in made}


def seen(held: Mapping[str, Nic], *links: Link, where: Where = Where.HOST) -> dict[str, list[Link]]:
    surveys = {
        Where.HOST: Survey(links, ()),
        Where.PARKED: Survey((), links),
        Where.ELSEWHERE: Survey((), (), (OtherNamespace(POD, links),), is_wide=True),
    }
    return {nic_id: [s.link for s in locations] for nic_id, locations in locate(held, surveys[where]).items()}


@pytest.mark.parametrize("where", [Where.HOST, Where.PARKED])
def test_where_no_container_can_write_the_mac_tells_the_nic(where: Where) -> None:
    """Whatever is recorded: a NIC that was plugged in again has another fingerprint."""
    for held in (nics(), nics(a=LINK.fingerprint), nics(a="veth 1/1"), nics(b=LINK.fingerprint)):
        assert seen(held, LINK, where=where) == {A: [LINK]}
        assert seen(held, replace(LINK, fingerprint=""), where=where) == {}
    changed = replace(LINK, mac=STRANGER)
    assert seen(nics(a=LINK.fingerprint), changed, where=where) == {A: [changed]}
    assert seen(nics(), changed, where=where) == {}
    hardware = replace(BURNT_IN, mac=B)
    assert seen(nics(), hardware, where=where) == {A: [hardware]}


def test_in_a_container_the_record_tells_the_nic() -> None:
    other = replace(LINK, fingerprint="veth 4026532000/18")
    for changed in (LINK, replace(LINK, mac=STRANGER), replace(LINK, mac=B, alias="qingcni/i-1/x", ifindex=2)):
        assert seen(nics(a=LINK.fingerprint), changed, where=Where.ELSEWHERE) == {A: [changed]}
        assert seen(nics(a="veth 1/1", b="veth 1/2"), changed, where=Where.ELSEWHERE) == {}
    assert seen(nics(a=LINK.fingerprint), replace(LINK, fingerprint=""), where=Where.ELSEWHERE) == {}
    assert seen(nics(a=LINK.fingerprint), other, where=Where.ELSEWHERE) == {}


def test_without_a_record_a_nic_is_what_it_says_unless_two_say_so() -> None:
    held = nics(b="veth 4026532000/18")
    assert seen(held, LINK, where=Where.ELSEWHERE) == {A: [LINK]}
    assert seen(held, replace(LINK, fingerprint=""), where=Where.ELSEWHERE) == {}
    spoofed = replace(LINK, fingerprint="veth 4026532000/18")  # B with A's MAC
    assert seen(held, LINK, spoofed, where=Where.ELSEWHERE) == {A: [LINK], B: [spoofed]}
    unknown = replace(LINK, fingerprint="veth 4026532000/19")
    assert seen(held, LINK, unknown, where=Where.ELSEWHERE) == {A: [LINK, unknown]}
    hardware = replace(BURNT_IN, mac=B)
    assert seen(nics(), hardware, where=Where.ELSEWHERE) == {A: [hardware]}


def test_an_alias_is_a_reason_to_wait_for_a_nic_without_a_record_and_nothing_else() -> None:
    def alias_of(nic_id: str) -> str:
        return link_alias("i-here", nic_id)

    changed = replace(LINK, mac=STRANGER, alias=alias_of(A))
    survey = Survey((), (), (OtherNamespace(POD, (changed, replace(changed, fingerprint=""))),), is_wide=True)
    seen_now = locate(nics(), survey)
    assert seen_now == {}
    assert hidden(nics(), survey, seen_now, alias_of) == {A}
    assert hidden(nics(a="veth 1/1"), survey, {}, alias_of) == frozenset()
    posing = nics(b=LINK.fingerprint)  # it is B, with A's alias
    assert hidden(posing, survey, locate(posing, survey), alias_of) == frozenset()
    assert hidden(nics(), Survey((changed,), ()), {}, alias_of) == frozenset()


def test_where_it_is() -> None:
    elsewhere = LinkLocation(Where.ELSEWHERE, LINK, POD)
    host = LinkLocation(Where.HOST, LINK)
    assert [s.path for s in (host, LinkLocation(Where.PARKED, LINK), elsewhere)] == [
        "the host's namespace", "the parking namespace", POD.path,
    ]  # fmt: skip
    assert elsewhere.is_in(replace(POD, path="/proc/1/ns/net"))
    assert not host.is_in(POD)
    assert only((host,)) is host
    assert only(()) is only((host, elsewhere)) is None


# --- fingerprints ------------------------------------------------------------------------------------------------

HARDWARE = LinkInfo(4, "eth0", mac=A, permanent_mac=A, parent="virtio/virtio2")
VETH = LinkInfo(4, "eth0", mac=A, kind="veth", peer=17, peer_nsid=ROUTER)
NOT_NICS = {
    "another namespace's peer": replace(VETH, peer_nsid=0),
    "a peer in its own namespace": replace(VETH, peer_nsid=NO_NSID),
    "no MAC of six bytes": replace(HARDWARE, mac=""),
    "loopback": replace(HARDWARE, flags=IFF_LOOPBACK),
    "infiniband": replace(HARDWARE, hardware=32),
    "no parent": replace(HARDWARE, parent=""),
    "no burnt-in MAC": replace(HARDWARE, permanent_mac=""),
    "a virtual function below a vlan": replace(HARDWARE, kind="vlan"),
    **{
        kind: replace(VETH, kind=kind, permanent_mac=A, parent="virtio/virtio2")
        for kind in (
            "macvlan",
            "macvtap",
            "ipvlan",
            "bridge",
            "bond",
            "team",
            "dummy",
            "ifb",
            "tun",
            "vxlan",
            "netkit",
        )
    },
}


@pytest.mark.parametrize("case", NOT_NICS)
def test_links_that_are_no_nics_have_no_fingerprint(case: str) -> None:
    assert fingerprint(NOT_NICS[case], ROUTERS, has_parents=True) == ""


def test_a_fingerprint_is_made_of_what_only_the_kernel_decides() -> None:
    assert fingerprint(HARDWARE, {}, has_parents=True) == f"virtio/virtio2 {A}"
    assert fingerprint(replace(HARDWARE, parent=""), {}, has_parents=False) == A
    assert fingerprint(VETH, ROUTERS) == "veth 4026532000/17"
    assert fingerprint(VETH, {}) == ""  # on a host that is not the simulator's
    for link in (HARDWARE, VETH):
        written = replace(
            link, name="x", mac=B, alias="any", altnames=("y",), mtu=68, mtu_range=(1, 2), ifindex=99, flags=0x1003
        )
        assert fingerprint(written, ROUTERS) == fingerprint(link, ROUTERS)


@pytest.mark.parametrize(
    ("release", "shown"),
    [("4.18.0-553.el8", False), ("5.4.0-42-generic", False), ("5.13", False), ("5.14.0", True), ("6.18.44-fc", True)],
)
def test_linux_shows_parents_since_5_14(release: str, *, shown: bool) -> None:
    assert shows_parents(release) is shown


# --- a hostile container ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A namespace of a hostile container, and how the kernel numbers the router's there (NO_NSID: it does not)."""

    router: int
    links: tuple[LinkInfo, ...]


ifindexes = st.integers(1, 20)
written_by_containers = {
    "ifindex": ifindexes,
    "name": st.sampled_from(("eth0", "net1", "q525400000001")),
    "mac": st.sampled_from((A, B, STRANGER)),
    "alias": st.sampled_from(("", link_alias("i-here", A), link_alias("i-here", B), "mine")),
    "mtu": st.sampled_from((68, 1500, 9000)),
    "flags": st.sampled_from((0, 1, 0x1003)),
    "altnames": st.sampled_from(((), ("eth1",))),
}


@st.composite
def hostile_places(draw: st.DrawFn) -> tuple[Place, ...]:
    """Nested namespaces with any links that a container can make; its own NIC, the peer 18 of B, is in one of them.

    A veth's peer is in a namespace of the container's, whose number it chooses; the router's it cannot choose.
    """
    own = draw(st.integers(0, 2))
    made = []
    for n in range(3):
        router = draw(st.integers(0, 3)) if n == own else draw(st.sampled_from((NO_NSID, 0, 3)))
        peers = st.sampled_from([nsid for nsid in (NO_NSID, 0, 1, 2, 3) if nsid != router or nsid == NO_NSID])
        kinds = st.sampled_from(("veth", "macvlan", "ipvlan", "bridge", "dummy", "tun", "vxlan", "netkit"))
        fakes = st.builds(
            LinkInfo, **written_by_containers, hardware=st.just(ARPHRD_ETHER), kind=kinds, peer=ifindexes,
            peer_nsid=peers,
        )  # fmt: skip
        links = draw(st.lists(fakes, max_size=4))
        if n == own:
            links.append(draw(st.builds(LinkInfo, **written_by_containers, kind=st.just("veth"), peer=st.just(18),
                                        peer_nsid=st.just(router))))  # fmt: skip
        made.append(Place(router, tuple(draw(st.permutations(links)))))
    return tuple(made)


def shown(place: Place) -> tuple[Link, ...]:
    routers = {place.router: "4026532000"} if place.router != NO_NSID else {}
    return tuple(
        Link(
            n.mac, n.name, n.ifindex, n.is_up, n.alias, n.mtu, n.permanent_mac,
            fingerprint(n, routers, has_parents=True),
        )
        for n in place.links
    )  # fmt: skip


@given(places=hostile_places(), is_victim_here=st.booleans())
def test_nothing_that_a_container_makes_changes_which_link_is_taken(
    places: tuple[Place, ...], *, is_victim_here: bool
) -> None:
    """For one NIC and for all: the container's own link is B, the victim's is A, and every other is none."""
    victim = replace(LINK, mac=STRANGER, name="eth0")
    held = nics(a=LINK.fingerprint, b="veth 4026532000/18")
    others = [shown(place) for place in places] + ([(victim,)] if is_victim_here else [])
    for nic in held.values():
        record = NicRecord(nic.nic_id, link_alias("i-here", nic.nic_id), nic.fingerprint)
        taken = [link for links in others for link in links if record.matches(link)]
        assert taken == ([victim] * is_victim_here if nic.nic_id == A else [own_link(places)])
    elsewhere = tuple(OtherNamespace(replace(POD, inode=n), links) for n, links in enumerate(others))
    found = locate(held, Survey((), (), elsewhere, is_wide=True))
    assert {nic_id: [s.link for s in locations] for nic_id, locations in found.items()} == {
        B: [own_link(places)], **({A: [victim]} if is_victim_here else {}),
    }  # fmt: skip
    without = locate(
        nics(), Survey((), (), elsewhere, is_wide=True)
    )  # at most the two NICs, whatever claims to be one
    assert {s.link for locations in without.values() for s in locations} <= {own_link(places), victim}


def own_link(places: tuple[Place, ...]) -> Link:
    return next(link for place in places for link in shown(place) if link.fingerprint)


hardware_places = st.lists(
    st.builds(LinkInfo, **written_by_containers, kind=st.sampled_from(("veth", "macvlan", "dummy")), peer=ifindexes,
              peer_nsid=st.integers(-1, 3)),
    max_size=6,
)  # fmt: skip


@given(fakes=hardware_places, own=st.builds(LinkInfo, **written_by_containers), is_recorded=st.booleans())
def test_hardware_is_known_even_without_a_record(fakes: list[LinkInfo], own: LinkInfo, *, is_recorded: bool) -> None:
    own = replace(own, permanent_mac=B, parent="virtio/virtio5")
    links = shown(Place(NO_NSID, (*fakes, own)))
    held = nics(a=BURNT_IN.fingerprint, b=f"virtio/virtio5 {B}") if is_recorded else nics()
    assert seen(held, *links, where=Where.ELSEWHERE) == {B: [links[-1]]}
