"""Survey, inspect, search and is_gone change nothing and keep no namespace open."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from machines.nics import ADDRESS, ROUTES, Lab, fd_count, ip, ip_json, kernel, lab, refusing, until
from qingcloud_cni.core.errors import InvalidNetns, LinkNotFound
from qingcloud_cni.core.nics.model import LINK_SCOPE, Netns, Route
from qingcloud_cni.core.seams.kernel import Inspection, NicRecord, PlacedLink
from qingcloud_cni.kernel import HostKernel

__all__ = ["kernel", "lab"]  # fixtures


@pytest.fixture
def pod(lab: Lab) -> str:
    return lab.make_netns("pod")


async def placed(lab: Lab, kernel: HostKernel, pod: str) -> tuple[str, Netns, PlacedLink]:
    mac = lab.plug()
    netns = await kernel.identify(lab.path(pod))
    return mac, netns, await kernel.attach(lab.order(mac, netns))


# --- inspect -----------------------------------------------------------------------------------------


async def test_what_attach_made_is_what_inspect_sees(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    files = fd_count()
    seen = await kernel.inspect(lab.path(pod), "eth0")
    assert fd_count() == files
    assert seen.netns == netns
    assert seen.link is not None
    assert (seen.link.mac, seen.link.name, seen.link.ifindex, seen.link.is_up) == (mac, "eth0", link.ifindex, True)
    assert seen.link.alias == lab.alias
    assert seen.addresses == (ADDRESS,)
    assert set(seen.routes) == {*ROUTES, Route("172.16.3.0/24", "", scope=LINK_SCOPE)}


async def test_changes_are_seen(lab: Lab, kernel: HostKernel, pod: str) -> None:
    await placed(lab, kernel, pod)
    ip("-n", pod, "link", "set", "eth0", "down")
    ip("-n", pod, "link", "set", "eth0", "address", "52:54:00:ff:ff:ff")
    ip("-n", pod, "addr", "replace", "10.1.1.1/24", "dev", "eth0")
    seen = await kernel.inspect(lab.path(pod), "eth0")
    assert seen.link is not None
    assert (seen.link.mac, seen.link.is_up) == ("52:54:00:ff:ff:ff", False)
    assert set(seen.addresses) == {ADDRESS, "10.1.1.1/24"}
    assert ROUTES[0] not in seen.routes  # the kernel takes routes away from a link that goes down
    ip("-n", pod, "addr", "flush", "dev", "eth0")
    assert (await kernel.inspect(lab.path(pod), "eth0")).addresses == ()


async def test_routes_of_every_table_are_seen_and_those_of_other_links_are_not(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    await placed(lab, kernel, pod)
    ip("-n", pod, "route", "del", "default")
    ip("-n", pod, "route", "add", "default", "via", "172.16.3.1", "dev", "eth0", "table", "100", "metric", "7")
    ip("-n", pod, "link", "add", "other", "type", "veth", "peer", "name", "other-end")
    ip("-n", pod, "addr", "add", "10.9.0.1/24", "dev", "other")
    ip("-n", pod, "link", "set", "other", "up")
    seen = await kernel.inspect(lab.path(pod), "eth0")
    assert {replace(ROUTES[0], table=100, priority=7), ROUTES[1]} <= set(seen.routes)
    assert "10.9.0.1/24" not in seen.addresses
    assert all(route.dst != "10.9.0.0/24" for route in seen.routes)


@pytest.mark.parametrize("change", ["moved", "renamed", "altname"])
async def test_a_link_that_is_not_there_under_its_name_is_not_seen(
    lab: Lab, kernel: HostKernel, pod: str, change: str
) -> None:
    _, netns, _ = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "set", "eth0", "down")
    if change == "moved":
        ip("-n", pod, "link", "set", "eth0", "netns", lab.make_netns("elsewhere"))
    else:
        ip("-n", pod, "link", "set", "eth0", "name", "net9")
    if change == "altname":
        ip("-n", pod, "link", "property", "add", "dev", "net9", "altname", "eth0")
    assert await kernel.inspect(lab.path(pod), "eth0") == Inspection(netns)


@pytest.mark.parametrize("path", ["/run/netns/not-there", "/etc/passwd", "host", "parking"])
async def test_no_container_is_no_namespace_to_inspect(lab: Lab, kernel: HostKernel, path: str) -> None:
    places = {"host": lab.path(lab.host), "parking": lab.path(lab.parking)}
    files = fd_count()
    with pytest.raises(InvalidNetns):
        await kernel.inspect(places.get(path, path), "lo")
    assert fd_count() == files


async def test_inspect_changes_nothing(lab: Lab, kernel: HostKernel, pod: str) -> None:
    await placed(lab, kernel, pod)

    def shown() -> tuple[object, ...]:
        return ip_json("-n", pod, "link"), ip_json("-n", pod, "-4", "addr"), ip_json("-n", pod, "-4", "route", "show")

    until(lambda: lab.links(pod)["eth0"]["operstate"] == "UP")  # the kernel gets there by and by
    before = shown()
    await kernel.inspect(lab.path(pod), "eth0")
    assert shown() == before


# --- search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["both", "mac", "alias"])
async def test_a_nic_is_found_in_whichever_container_it_is_by_mac_or_alias(
    lab: Lab, kernel: HostKernel, pod: str, sign: str
) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "set", "eth0", "down")
    ip("-n", pod, "link", "set", "eth0", "name", "renamed")
    if sign == "alias":
        ip("-n", pod, "link", "set", "renamed", "address", "52:54:00:ff:ff:ff")
    if sign == "mac":
        ip("-n", pod, "link", "set", "renamed", "alias", "mine")
    files = fd_count()
    found = await kernel.search([lab.record(mac), NicRecord("52:54:00:aa:aa:aa", "no alias of any")])
    assert fd_count() == files
    assert set(found) == {mac}
    seen = found[mac]
    assert seen == await kernel.inspect(lab.path(pod), "renamed")
    assert seen.netns == netns
    assert seen.link is not None
    assert (seen.link.name, seen.link.ifindex) == ("renamed", link.ifindex)
    assert seen.addresses == (ADDRESS,)


async def test_nics_of_several_containers_are_found_at_once_and_those_at_home_are_not(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    first, _, _ = await placed(lab, kernel, pod)
    other = lab.make_netns("other")
    second, parked, on_host = (lab.plug(number) for number in (2, 3, 4))
    await kernel.attach(lab.order(second, await kernel.identify(lab.path(other))))
    await kernel.park(lab.record(parked))
    files = fd_count()
    found = await kernel.search([NicRecord(mac, f"qingcni/i-1/{mac}") for mac in (first, second, on_host, parked)])
    assert fd_count() == files
    assert {mac: seen.netns.path for mac, seen in found.items()} == {first: lab.path(pod), second: lab.path(other)}
    assert await kernel.search([]) == {}


# --- is_gone -----------------------------------------------------------------------------------------


async def test_a_namespace_that_its_path_leads_to_is_not_gone_wherever_the_nic_is(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    mac, netns, _ = await placed(lab, kernel, pod)
    files = fd_count()
    assert not await kernel.is_gone(lab.record(mac), netns)
    ip("-n", pod, "link", "set", "eth0", "netns", lab.host)
    assert not await kernel.is_gone(lab.record(mac), netns)
    assert fd_count() == files


async def test_a_namespace_is_gone_with_its_path_once_the_nic_is_back(lab: Lab, kernel: HostKernel, pod: str) -> None:
    """Real hardware comes back to the host; a veth would go with its namespace, so it is brought home here."""
    mac, netns, _ = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "set", "eth0", "netns", lab.host)
    ip("netns", "del", pod)
    assert await kernel.is_gone(lab.record(mac), netns)


async def test_a_namespace_is_gone_with_its_path_where_the_nic_went_with_it(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    mac, netns, _ = await placed(lab, kernel, pod)
    peers = lab.links(lab.vxnet)
    assert peers
    ip("netns", "del", pod)
    until(lambda: not lab.links(lab.vxnet))
    assert await kernel.is_gone(lab.record(mac), netns)


async def test_a_new_namespace_with_the_number_of_a_dead_one_does_not_stand_for_it(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    mac, netns, _ = await placed(lab, kernel, pod)
    record, other = lab.record(mac), await kernel.identify(lab.path(lab.make_netns("other")))
    ip("netns", "del", pod)
    until(lambda: not lab.links(lab.vxnet))
    assert await kernel.is_gone(record, replace(netns, dev=other.dev, inode=other.inode))


@pytest.mark.parametrize("step", ["enter", "list"])
async def test_no_namespace_is_gone_while_another_one_refuses_a_look(
    lab: Lab, kernel: HostKernel, pod: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    mac, netns, _ = await placed(lab, kernel, pod)
    foreign = lab.make_netns("a-foreign")
    ip("netns", "del", pod)
    until(lambda: not lab.links(lab.vxnet))
    with monkeypatch.context() as patch:
        refusing(patch, lab.path(foreign), step)
        assert not await kernel.search([lab.record(mac)])
        assert not await kernel.is_gone(lab.record(mac), netns)
    assert await kernel.is_gone(lab.record(mac), netns)


@pytest.mark.parametrize("path", ["another path", "a link's path", "a stale path"])
async def test_a_path_that_fails_is_no_evidence_while_the_namespace_can_be_reached(
    lab: Lab, kernel: HostKernel, pod: str, path: str
) -> None:
    """Recorded by a path that leads nowhere, or to another namespace: the NIC is found in the living one."""
    mac, netns, _ = await placed(lab, kernel, pod)
    wrong = {
        "another path": lab.path("never-made"),
        "a link's path": "/etc/passwd",
        "a stale path": lab.path(lab.vxnet),
    }
    assert not await kernel.is_gone(lab.record(mac), replace(netns, path=wrong[path]))


async def test_a_nic_that_lost_every_sign_is_found_by_its_fingerprint(lab: Lab, kernel: HostKernel, pod: str) -> None:
    mac, netns, _ = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "set", "eth0", "down")
    ip("-n", pod, "link", "set", "eth0", "address", "52:54:00:ff:ff:ff", "alias", "mine")
    assert (await kernel.search([lab.record(mac)])).keys() == {mac}
    assert not await kernel.search([replace(lab.record(mac), fingerprint="")])
    assert not await kernel.is_gone(lab.record(mac), replace(netns, path=lab.path("never-made")))


# --- survey_all --------------------------------------------------------------------------------------


async def test_a_look_into_every_namespace_shows_each_link_where_it_is(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    mac, netns, link = await placed(lab, kernel, pod)
    on_host, parked = lab.plug(2), lab.plug(3)
    await kernel.park(lab.record(parked))
    files = fd_count()
    seen = await kernel.survey_all(())
    assert fd_count() == files
    assert seen.is_wide
    assert not seen.unseen
    assert [n.mac for n in seen.host] == [on_host]
    assert [n.mac for n in seen.parked] == [parked]
    (place,) = (p for p in seen.elsewhere if p.netns.is_same(netns))
    assert [(n.mac, n.name, n.ifindex, n.alias) for n in place.links] == [(mac, "eth0", link.ifindex, lab.alias)]
    own = {(await kernel.survey()).host, (await kernel.survey()).parked}
    assert own == {seen.host, seen.parked}
    identities = [(p.netns.dev, p.netns.inode) for p in seen.elsewhere]
    assert len(set(identities)) == len(identities)


async def test_a_namespace_that_only_a_process_or_a_recorded_path_leads_to_is_looked_into(
    lab: Lab, kernel: HostKernel, pod: str, tmp_path: Path
) -> None:
    _, netns, _ = await placed(lab, kernel, pod)
    elsewhere = tmp_path / "netns"
    elsewhere.touch()
    subprocess.run(("mount", "--bind", lab.path(pod), elsewhere), check=True)
    try:
        ip("netns", "del", pod)
        assert not any(p.netns.is_same(netns) for p in (await kernel.survey_all(())).elsewhere)
        wrong = (str(tmp_path / "none"), "/etc/passwd", lab.path(lab.host))
        seen = await kernel.survey_all((*wrong, str(elsewhere)))
        (place,) = (p for p in seen.elsewhere if p.netns.is_same(netns))
        assert place.netns.path == str(elsewhere)
        with subprocess.Popen(("nsenter", f"--net={elsewhere}", "sleep", "60")) as inside:
            try:
                until(lambda: Path(f"/proc/{inside.pid}/ns/net").stat().st_ino == netns.inode)
                assert any(p.netns.is_same(netns) for p in (await kernel.survey_all(())).elsewhere)
            finally:
                inside.kill()
    finally:
        subprocess.run(("umount", elsewhere), check=True)


async def test_a_namespace_that_cannot_be_looked_into_is_told(
    lab: Lab, kernel: HostKernel, pod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, netns, _ = await placed(lab, kernel, pod)
    refusing(monkeypatch, lab.path(pod), "enter")
    seen = await kernel.survey_all(())
    assert seen.unseen == (lab.path(pod),)
    assert not any(p.netns.is_same(netns) for p in seen.elsewhere)


async def test_a_link_whose_mac_was_changed_is_parked_by_its_fingerprint(
    lab: Lab, kernel: HostKernel, pod: str
) -> None:
    """As a container leaves it that changed its MAC and died: the kernel brings it to the host as it is."""
    mac, _, _ = await placed(lab, kernel, pod)
    ip("-n", pod, "link", "set", "eth0", "down")
    ip("-n", pod, "link", "set", "eth0", "address", "52:54:00:ff:ff:ff")
    ip("-n", pod, "link", "set", "eth0", "netns", lab.host)
    with pytest.raises(LinkNotFound):
        await kernel.park(NicRecord(mac))
    await kernel.park(lab.record(mac))
    assert lab.is_parked(mac)
