"""The gateway's link has a wanted state, whatever a host's defaults are; the agent names what is an operator's."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from machines.bpf_programs import ATTACH_XDP, left_on
from machines.nics import Lab, ip, ip_json, kernel, lab, until, within
from qingcloud_cni.core.seams.kernel import Gateway, Served, ServicePath
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.links import gateway_link
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.nic_state.bpf import Hook
from qingcloud_cni.kernel.nic_state.link_attributes import LISTED, RESET, RESTORED

__all__ = ["kernel", "lab"]  # fixtures

HARDENED = {
    "forwarding": "0", "rp_filter": "1", "arp_ignore": "2", "arp_announce": "0", "arp_filter": "1", "proxy_arp": "1",
    "accept_redirects": "1", "send_redirects": "1", "arp_notify": "0", "proxy_arp_pvlan": "1",
}  # fmt: skip
LEFT = {  # settings of a link that do not decide whether packets of pods come through, or that the kernel sets
    "accept_local": "of packets with the host's own addresses as source",
    "accept_source_route": "packets with the option come from nobody",
    "arp_accept": "adds neighbours, and takes none away",
    "arp_evict_nocarrier": "neighbours come back with the carrier",
    "bc_forwarding": "of broadcasts",
    "bootp_relay": "of DHCP",
    "disable_policy": "of IPsec",
    "disable_xfrm": "of IPsec",
    "drop_gratuitous_arp": "neighbours are asked then",
    "drop_unicast_in_l2_multicast": "of frames that no switch makes of a unicast packet",
    "force_igmp_version": "of multicast",
    "igmpv2_unsolicited_report_interval": "of multicast",
    "igmpv3_unsolicited_report_interval": "of multicast",
    "ignore_routes_with_linkdown": "a link without carrier is a fault anyhow",
    "log_martians": "of logs",
    "mc_forwarding": "of multicast; read-only",
    "medium_id": "of proxy ARP, which is off",
    "promote_secondaries": "the link has one address",
    "route_localnet": "of 127.0.0.0/8",
    "secure_redirects": "redirects are not accepted",
    "shared_media": "redirects are not accepted",
    "src_valid_mark": "a loose rp_filter accepts every source that has a route",
    "tag": "of programs that read it",
}
# Attributes of GETLINK: what the agent puts back, names to an operator, or leaves.
PUT_BACK = {
    nl.IFLA_ADDRESS, nl.IFLA_IFNAME, nl.IFLA_MTU, nl.IFLA_IFALIAS, gateway_link.IFLA_MASTER, *gateway_link.ATTRIBUTES,
}  # fmt: skip
TOLD = {nl.IFLA_XDP, 33}  # 33: carrier
LEFT_ATTRIBUTES = {
    13: "txqlen tunes", 14: "map is the driver's", 27: "group names", 40: "tunes", 41: "tunes", 58: "tunes",
    63: "tunes", 64: "tunes", nl.IFLA_PROP_LIST: "altnames name", 55: "the reason of proto_down",
}  # fmt: skip


def path_of(mac: str) -> ServicePath:
    return ServicePath((Gateway(mac, "hostnic", "172.16.1.9/24", "172.16.1.1", 0),))


def put(lab: Lab, scope: str, values: dict[str, str]) -> None:
    def write() -> None:
        for key, value in values.items():
            Path(f"/proc/sys/net/ipv4/conf/{scope}/{key}").write_text(value)

    within(lab, lab.host, write)


def conf(lab: Lab) -> dict[str, str]:
    def read() -> dict[str, str]:
        folder = Path("/proc/sys/net/ipv4/conf/hostnic")
        return {path.name: path.read_text().strip() for path in folder.iterdir()}

    found: dict[str, str] = within(lab, lab.host, read)
    return found


async def test_a_hardened_hosts_defaults_do_not_decide(lab: Lab, kernel: HostKernel) -> None:
    """Also where ip_forward is on already, so that nobody sets it for the new link."""
    within(lab, lab.host, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    put(lab, "default", HARDENED)
    mac = lab.plug()
    assert {key: value for key, value in conf_of(lab, "eth1").items() if key in HARDENED} == HARDENED
    await kernel.serve(path_of(mac))
    now = conf(lab)
    assert {key: now[key] for key in gateway_link.SETTINGS} == gateway_link.SETTINGS


def conf_of(lab: Lab, name: str) -> dict[str, str]:
    keys = HARDENED.keys()

    def read() -> dict[str, str]:
        return {key: Path(f"/proc/sys/net/ipv4/conf/{name}/{key}").read_text().strip() for key in keys}

    found: dict[str, str] = within(lab, lab.host, read)
    return found


async def test_every_setting_of_a_link_is_set_or_left_for_a_reason(lab: Lab, kernel: HostKernel) -> None:
    await kernel.serve(path_of(lab.plug()))
    assert not gateway_link.SETTINGS.keys() & LEFT.keys()
    assert conf(lab).keys() <= gateway_link.SETTINGS.keys() | LEFT.keys()


def test_every_attribute_of_a_link_is_put_back_told_or_left_for_a_reason() -> None:
    """`nic_state` lists the others, which nobody can set."""
    settable = RESTORED.keys() | RESET.keys() | {gateway_link.IFLA_MASTER, 33}
    assert settable == PUT_BACK | TOLD | LEFT_ATTRIBUTES.keys()
    assert not settable & LISTED.keys() - {gateway_link.IFLA_MASTER, 33}


# --- what the agent leaves to an operator ----------------------------------------------------------------


@contextmanager
def macvlan(lab: Lab) -> Iterator[None]:
    ip("-n", lab.host, "link", "add", "mv0", "link", "hostnic", "type", "macvlan", "mode", "passthru")
    yield
    ip("-n", lab.host, "link", "del", "mv0")


@contextmanager
def no_carrier(lab: Lab) -> Iterator[None]:
    ip("-n", lab.vxnet, "link", "set", "p1", "down")
    yield
    ip("-n", lab.vxnet, "link", "set", "p1", "up")
    until(lambda: "LOWER_UP" in lab.links(lab.host)["hostnic"]["flags"])


def everywhere(key: str, value: str) -> Callable[[Lab], AbstractContextManager[None]]:
    @contextmanager
    def changed(lab: Lab) -> Iterator[None]:
        put(lab, "all", {key: value})
        yield
        put(lab, "all", {key: "0"})

    return changed


FAULTS: dict[str, tuple[Callable[[Lab], AbstractContextManager[None]], str]] = {
    "a macvlan that takes the packets": (macvlan, "hostnic: macvlan mv0 is on it"),
    "no carrier": (no_carrier, "hostnic: it has no carrier"),
    "no ARP answers": (everywhere("arp_ignore", "8"), "net/ipv4/conf/all/arp_ignore is 8"),
    "ARP answers for others": (everywhere("proxy_arp", "1"), "net/ipv4/conf/all/proxy_arp is 1"),
    "XDP": (lambda lab: left_on(lab, lab.host, "hostnic", ATTACH_XDP, is_link=True), "hostnic: XDP program"),
    "TCX": (
        lambda lab: left_on(lab, lab.host, "hostnic", Hook.TCX_INGRESS, is_link=True),
        "hostnic: a TCX program is on it",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
async def test_what_is_an_operators_is_named_and_left(lab: Lab, kernel: HostKernel, what: str) -> None:
    harmed, words = FAULTS[what]
    path = path_of(lab.plug())
    await kernel.serve(path)
    assert await kernel.serve(path) == Served()
    with harmed(lab):
        for _ in range(2):
            served = await kernel.serve(path)
            (fault,) = served.faults
            assert fault.startswith(words)
            assert not served.changes
    assert await kernel.serve(path) == Served()


async def test_a_shared_nic_forwards_and_is_told_if_arp_is_off(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    ip("-n", lab.host, "addr", "add", "172.16.1.4/24", "dev", "eth1")
    within(lab, lab.host, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    put(lab, "eth1", {"forwarding": "0"})
    path = ServicePath((Gateway(mac, "", "172.16.1.4/24", "172.16.1.1", 63),))
    assert (await kernel.settings_before(path))["net/ipv4/conf/eth1/forwarding"] == "0"
    served = await kernel.serve(path)
    assert served.settings["net/ipv4/conf/eth1/forwarding"] == "0"
    assert not served.faults
    ip("-n", lab.host, "link", "set", "eth1", "arp", "off")
    assert (await kernel.serve(path)).faults == ("eth1: ARP is off on it",)
    assert "NOARP" in ip_json("-n", lab.host, "link", "show", "eth1")[0]["flags"]
    await kernel.serve(ServicePath())
    await kernel.restore(served.settings)
    assert conf_of(lab, "eth1")["forwarding"] == "0"
