"""What a container with NET_ADMIN may do to the state of its NIC, `eth0`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from machines.bpf_programs import ATTACH_XDP, left_on
from machines.nics import Lab, ip, within
from qingcloud_cni.kernel.netlink import messages as nl
from qingcloud_cni.kernel.netlink.socket import Netlink
from qingcloud_cni.kernel.nic_state import ethtool
from qingcloud_cni.kernel.nic_state.bpf import Hook
from qingcloud_cni.kernel.nic_state.sysfs import Sysfs

Soil = Callable[[Lab, str], AbstractContextManager[None]]


def by_ip(*command: str) -> Soil:
    def soil(_lab: Lab, netns: str) -> AbstractContextManager[None]:
        ip("-n", netns, *command)
        return nullcontext()

    return soil


def by_netlink(number: int, value: bytes) -> Soil:
    def soil(lab: Lab, netns: str) -> AbstractContextManager[None]:
        def change() -> None:
            with Netlink() as netlink:
                link = netlink.link(name="eth0")
                assert link is not None
                change = nl.LinkChange(attributes=((number, value),))
                netlink.do(nl.set_link(link.ifindex, change), "soil")

        within(lab, netns, change)
        return nullcontext()

    return soil


def by_program(hook: int, *, is_link: bool) -> Soil:
    return lambda lab, netns: left_on(lab, netns, "eth0", hook, is_link=is_link)


def by_sysfs(file: str, value: str) -> Soil:
    def soil(lab: Lab, netns: str) -> AbstractContextManager[None]:
        def write() -> None:
            with Sysfs.mount() as sysfs:
                sysfs.restore("eth0", file, value)

        within(lab, netns, write)
        return nullcontext()

    return soil


def offloads_off(lab: Lab, netns: str) -> AbstractContextManager[None]:
    def off() -> None:
        with Netlink() as netlink:
            wanted = ethtool.wanted_features(netlink, "eth0")
            ethtool.restore_features(netlink, "eth0", "0" * len(wanted))

    within(lab, netns, off)
    return nullcontext()


def more_channels(lab: Lab, netns: str) -> AbstractContextManager[None]:
    def change() -> None:
        with Netlink() as netlink:
            now = ethtool.settings(netlink, "eth0")["channels"]
            words = [now[n : n + 8] for n in range(0, len(now), 8)]
            words[4:6] = words[0:2]  # rx_count and tx_count to their most
            ethtool.restore_setting(netlink, "eth0", "channels", "".join(words))

    within(lab, netns, change)
    return nullcontext()


def threaded(*, has_gro_after: bool) -> Soil:
    """A veth has a NAPI, which the setting needs, while it is up with GRO; the setting outlives the NAPI."""

    def soil(lab: Lab, netns: str) -> AbstractContextManager[None]:
        def change() -> None:
            with Netlink() as netlink, Sysfs.mount() as sysfs:
                wanted = ethtool.wanted_features(netlink, "eth0")
                ethtool.switch_gro_on(netlink, "eth0")
                sysfs.restore("eth0", "threaded", "1")
                if not has_gro_after:
                    ethtool.restore_features(netlink, "eth0", wanted)

        within(lab, netns, change)
        return nullcontext()

    return soil


SOILS: dict[str, Soil] = {
    "nothing": lambda _lab, _netns: nullcontext(),
    "NOARP": by_ip("link", "set", "eth0", "arp", "off"),
    "no multicast": by_ip("link", "set", "eth0", "multicast", "off"),
    "dynamic": by_ip("link", "set", "eth0", "dynamic", "on"),
    "promiscuous": by_ip("link", "set", "eth0", "promisc", "on", "allmulticast", "on"),
    "dormant": by_ip("link", "set", "eth0", "mode", "dormant"),
    "mtu": by_ip("link", "set", "eth0", "mtu", "1280"),
    "txqlen": by_ip("link", "set", "eth0", "txqlen", "7"),
    "group": by_ip("link", "set", "eth0", "group", "77"),
    "gso size": by_ip("link", "set", "eth0", "gso_max_size", "2000"),
    "gso segments": by_ip("link", "set", "eth0", "gso_max_segs", "3"),
    "gro size": by_ip("link", "set", "eth0", "gro_max_size", "3000"),
    "gso size of IPv4": by_netlink(63, nl.U32.pack(4000)),
    "gro size of IPv4": by_netlink(64, nl.U32.pack(4000)),
    "broadcast": by_ip("link", "set", "eth0", "broadcast", "ff:ff:ff:00:00:00"),
    "offloads": offloads_off,
    "channels": more_channels,
    "rps": by_sysfs("queues/rx-0/rps_cpus", "1"),
    "flow steering": by_sysfs("queues/rx-0/rps_flow_cnt", "64"),
    "gro timeout": by_sysfs("gro_flush_timeout", "20000"),
    "deferred interrupts": by_sysfs("napi_defer_hard_irqs", "9"),
    "threaded NAPI": threaded(has_gro_after=True),
    "threaded NAPI without GRO": threaded(has_gro_after=False),
    "xdp": by_program(ATTACH_XDP, is_link=False),
    "xdp link": by_program(ATTACH_XDP, is_link=True),
    "tcx ingress": by_program(Hook.TCX_INGRESS, is_link=False),
    "tcx ingress link": by_program(Hook.TCX_INGRESS, is_link=True),
    "tcx egress": by_program(Hook.TCX_EGRESS, is_link=False),
    "tcx egress link": by_program(Hook.TCX_EGRESS, is_link=True),
}
UPPERS = ("macvlan mode bridge", "macvlan mode passthru", "macvlan mode source", "macvtap mode private")
