"""The host is changed to serve Services, and back, from any state; ip, nft and /proc read it back."""

import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from machines.nics import Lab, fd_count, ip, ip_json, kernel, lab, until, within
from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.core.seams.kernel import Gateway, Served, ServicePath
from qingcloud_cni.kernel import HostKernel
from qingcloud_cni.kernel.links.firewall import ruleset
from qingcloud_cni.kernel.links.gateway import ALIAS, GATEWAYS
from qingcloud_cni.kernel.links.gateway_link import SETTINGS

__all__ = ["kernel", "lab"]  # fixtures

TABLE = "31080"
SHOWN = {"mtu", "master", "linkmode", "broadcast", "address"}  # of `ip -j link`
NETLINK_NETFILTER = 12
ROUTING_GROUPS = 0x1 | 0x10 | 0x40 | 1 << 7  # RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, RTNLGRP_IPV4_RULE
NFTABLES_GROUP = 1 << 6  # NFNLGRP_NFTABLES


def gateway(mac: str, index: int = 0) -> Gateway:
    name = f"hostnic{index or ''}"
    return Gateway(mac, name, f"172.16.{index + 1}.9/24", f"172.16.{index + 1}.1", index)


def path_of(*gateways: Gateway) -> ServicePath:
    return ServicePath(gateways, ("172.16.1.0/24", "172.16.2.0/24", "172.16.2.128/25"), ("10.96.0.0/12",))


def nft(lab: Lab, *args: str) -> str:
    inside = ("nsenter", f"--net={lab.path(lab.host)}", "nft", *args)
    return subprocess.run(inside, check=True, capture_output=True, text=True).stdout


def settings(lab: Lab) -> dict[str, str]:
    """All IPv4 settings of the host that can be read and belong to no NIC that comes and goes."""

    def read() -> dict[str, str]:
        found = {}
        for path in Path("/proc/sys/net/ipv4").rglob("*"):
            if (
                path.is_file()
                and path.stat().st_mode & 0o400
                and "hostnic" not in str(path)
                and "/q" not in str(path)
                and "/br0" not in str(path)
            ):
                try:
                    found[str(path)] = path.read_text()
                except OSError:
                    continue
        return found

    read_settings: dict[str, str] = within(lab, lab.host, read)
    return read_settings


def routing(lab: Lab) -> tuple[Any, Any]:
    rules, routes = ip_json("-n", lab.host, "rule"), ip_json("-n", lab.host, "route", "show", "table", "all")
    return rules, [route for route in routes if "172.16" in json.dumps(route) or route.get("table") == TABLE]


def state(lab: Lab) -> tuple[Any, ...]:
    """All a gateway is made of, as others see it."""
    names = [name for name in lab.links(lab.host) if name.startswith("hostnic")]
    return (
        *routing(lab),
        ip_json("-n", lab.host, "-4", "addr"),
        [set(lab.links(lab.host)[name]["flags"]) - {"NO-CARRIER"} for name in names],  # it comes by itself
        [{key: value for key, value in lab.links(lab.host)[name].items() if key in SHOWN} for name in names],
        [conf(lab, name) for name in names],
        nft(lab, "list", "ruleset"),
    )


def conf(lab: Lab, name: str) -> dict[str, str]:
    def read() -> dict[str, str]:
        return {key: Path(f"/proc/sys/net/ipv4/conf/{name}/{key}").read_text().strip() for key in SETTINGS}

    values: dict[str, str] = within(lab, lab.host, read)
    return values


async def test_a_nic_becomes_a_gateway(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    main = ip("-n", lab.host, "route", "show", "table", "main")
    await kernel.serve(path_of(gateway(mac)))
    link = lab.links(lab.host)["hostnic"]
    assert (link["address"], link["ifalias"]) == (mac, ALIAS)
    (shown,) = ip_json("-n", lab.host, "-4", "addr", "show", "hostnic")
    (address,) = shown["addr_info"]
    assert (address["local"], address["prefixlen"], address["broadcast"]) == ("172.16.1.9", 24, "172.16.1.255")
    assert address["noprefixroute"] is True
    assert "UP" in link["flags"]
    rules, _ = routing(lab)
    assert [(rule["priority"], rule["table"]) for rule in rules if rule.get("table") == TABLE] == [
        (1792, TABLE),
        (1856, TABLE),
        (1920, TABLE),
    ]
    by_preference = {rule["priority"]: rule for rule in rules}
    assert (by_preference[1792]["fwmark"], by_preference[1792]["fwmask"]) == ("0x2", "0x7e")
    assert by_preference[1856]["src"] == "172.16.1.9"
    assert by_preference[1920]["iif"] == "hostnic"
    routes = {r["dst"]: r for r in ip_json("-n", lab.host, "route", "show", "table", TABLE)}
    assert routes.keys() == {"172.16.1.0/24", "default"}
    assert (routes["172.16.1.0/24"]["scope"], routes["172.16.1.0/24"]["prefsrc"]) == ("link", "172.16.1.9")
    assert (routes["default"]["gateway"], routes["default"]["dev"]) == ("172.16.1.1", "hostnic")
    assert ip("-n", lab.host, "route", "show", "table", "main") == main
    assert conf(lab, "hostnic") == SETTINGS
    found = nft(lab, "list", "table", "inet", "qingcni")
    assert 'iifname "hostnic" ct state new ct mark set ct mark & 0xffffff83 | 0x00000002' in found
    assert "172.16.2.128" not in found, "networks within others are merged"


async def test_settings_are_told_as_they_were_and_restored(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    lab.plug(2)

    def prepare() -> None:
        for name, value in (("ip_forward", "0"), ("conf/eth2/forwarding", "1"), ("conf/all/accept_redirects", "0")):
            Path("/proc/sys/net/ipv4", name).write_text(value)

    within(lab, lab.host, prepare)
    ip("-n", lab.host, "link", "set", "eth1", "name", "hostnic")  # its own settings are not compared
    before = (settings(lab), routing(lab), nft(lab, "list", "ruleset"))
    changed = (await kernel.serve(path_of(gateway(mac)))).settings
    assert changed["net/ipv4/ip_forward"] == "0"
    assert changed["net/ipv4/conf/all/send_redirects"] == "1"
    now = settings(lab)
    assert now["/proc/sys/net/ipv4/ip_forward"] == "1\n"
    assert now["/proc/sys/net/ipv4/conf/all/send_redirects"] == "0\n"
    assert (await kernel.serve(path_of(gateway(mac)))).settings == {}
    assert (await kernel.serve(ServicePath())).settings == {}
    await kernel.restore({**changed, "net/ipv4/conf/gone0/send_redirects": "1"})
    assert (settings(lab), routing(lab), nft(lab, "list", "ruleset")) == before


async def test_nothing_is_left_of_a_gateway_but_its_link(lab: Lab, kernel: HostKernel) -> None:
    first, second = lab.plug(1), lab.plug(2)
    before = (*routing(lab), nft(lab, "list", "ruleset"))
    await kernel.serve(path_of(gateway(first), gateway(second, 1)))
    await kernel.serve(path_of(gateway(second, 1)))
    assert {name for name in lab.links(lab.host) if name != f"q{first.replace(':', '')}"} == {"hostnic1"}
    assert not ip_json("-n", lab.host, "rule", "show", "table", TABLE)
    assert ip_json("-n", lab.host, "rule", "show", "table", "31081")
    await kernel.serve(ServicePath())
    assert (*routing(lab), nft(lab, "list", "ruleset")) == before
    for link in lab.links(lab.host).values():
        assert "UP" not in link["flags"]
        assert "ifalias" not in link
    assert not [a for link in ip_json("-n", lab.host, "-4", "addr") for a in link.get("addr_info", [])]
    await kernel.park(lab.record(first))
    assert lab.is_parked(first)


async def test_an_index_and_a_name_pass_to_another_nic(lab: Lab, kernel: HostKernel) -> None:
    first, second = lab.plug(1), lab.plug(2)
    await kernel.serve(path_of(gateway(first)))
    await kernel.serve(path_of(gateway(second)))
    assert lab.links(lab.host)["hostnic"]["address"] == second
    assert len(ip_json("-n", lab.host, "rule", "show", "table", TABLE)) == 3
    await kernel.serve(path_of(gateway(second), gateway(first, 1)))
    await kernel.serve(path_of(gateway(first), gateway(second, 1)))
    assert lab.links(lab.host)["hostnic"]["address"] == first
    assert lab.links(lab.host)["hostnic1"]["address"] == second


def listener(protocol: int, groups: int) -> socket.socket:
    """Hears of changes in the namespace of the calling thread."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    made.bind((0, groups))
    return made


async def test_served_again_nothing_changes_and_no_program_runs(
    lab: Lab, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = path_of(gateway(lab.plug()), gateway(lab.plug(2), 1))
    await kernel.serve(wanted)
    before, ruleset_before = state(lab), nft(lab, "-a", "list", "ruleset")
    fds = fd_count()
    with (
        within(lab, lab.host, lambda: listener(socket.NETLINK_ROUTE, ROUTING_GROUPS)) as routes,
        within(lab, lab.host, lambda: listener(NETLINK_NETFILTER, NFTABLES_GROUP)) as rules,
        monkeypatch.context() as patch,
    ):
        patch.setenv("PATH", str(tmp_path))  # without nft
        assert (await kernel.serve(wanted)).settings == {}
        for heard in (routes, rules):
            with pytest.raises(BlockingIOError):
                heard.recv(65536)
        patch.undo()
        assert state(lab) == before
        assert nft(lab, "-a", "list", "ruleset") == ruleset_before
        await kernel.serve(ServicePath())
        assert routes.recv(65536)
        assert rules.recv(65536), "the listeners do hear"
    assert fd_count() == fds


async def test_another_agent_finds_all_in_place(lab: Lab, kernel: HostKernel) -> None:
    wanted = path_of(gateway(lab.plug()), gateway(lab.plug(2), 1))
    await kernel.serve(wanted)
    before = (state(lab), nft(lab, "-a", "list", "ruleset"))
    other = await lab.open_kernel()
    try:
        assert (await other.serve(wanted)).settings == {}
        assert (state(lab), nft(lab, "-a", "list", "ruleset")) == before, "the table was not rewritten"
        await other.serve(ServicePath())
        assert nft(lab, "list", "ruleset") == ""
        assert not ip_json("-n", lab.host, "rule", "show", "table", TABLE)
    finally:
        await other.close()


async def test_the_table_reads_as_nft_lists_it(lab: Lab) -> None:
    """Else an agent that has just started could not tell that all is right."""
    every = ServicePath(
        tuple(Gateway("", f"hostnic{n}", f"172.16.{n}.9/24", f"172.16.{n}.1", n) for n in range(GATEWAYS)),
        tuple(f"172.16.{n}.0/24" for n in range(0, GATEWAYS, 2)),
        ("10.96.0.0/12", "10.200.1.1/32"),
    )
    for path in (every, replace(every, services=()), replace(every, gateways=()), replace(every, masquerade=())):
        script = f"flush ruleset\n{ruleset(path)}"
        inside = ("nsenter", f"--net={lab.path(lab.host)}", "nft", "-f", "-")
        subprocess.run(inside, input=script, text=True, check=True)
        assert nft(lab, "list", "table", "inet", "qingcni").split() == ruleset(path).split()


def harm(*command: str) -> Callable[[Lab], None]:
    return lambda lab: print(ip("-n", lab.host, *command))


def put_setting(link: str, key: str, value: str) -> Callable[[Lab], None]:
    path = Path("/proc/sys/net/ipv4") / (key if link == "../.." else f"conf/{link}/{key}")
    return lambda lab: print(within(lab, lab.host, lambda: path.write_text(value)))


HARMS: dict[str, Callable[[Lab], None]] = {
    "link down": harm("link", "set", "hostnic", "down"),
    "address removed": harm("addr", "flush", "dev", "hostnic"),
    "address added": harm("addr", "add", "172.16.1.10/24", "dev", "hostnic"),
    "rule deleted": harm("rule", "del", "pref", "1856"),
    "rule falsified": lambda lab: print(
        ip("-n", lab.host, "rule", "del", "pref", "1920"),
        ip("-n", lab.host, "rule", "add", "pref", "1920", "iif", "eth2", "table", TABLE),
    ),
    "rule of a former gateway": harm("rule", "add", "pref", "1800", "fwmark", "0x12/0x7e", "table", "31088"),
    "table flushed": harm("route", "flush", "table", TABLE),
    "route falsified": harm("route", "replace", "default", "via", "172.16.1.77", "dev", "hostnic", "table", TABLE),
    "route added": harm("route", "add", "10.0.0.0/8", "via", "172.16.1.1", "dev", "hostnic", "table", TABLE),
    "route in the main table": harm("route", "add", "10.1.0.0/16", "via", "172.16.1.1", "dev", "hostnic", "onlink"),
    "renamed": lambda lab: print(
        ip("-n", lab.host, "link", "set", "hostnic", "down"),
        ip("-n", lab.host, "link", "set", "hostnic", "name", "ens7", "up"),
    ),
    "alias removed": harm("link", "set", "hostnic", "alias", ""),
    "rules flushed": lambda lab: print(nft(lab, "flush", "ruleset")),
    "chain flushed": lambda lab: print(nft(lab, "flush", "chain", "inet", "qingcni", "answering")),
    "rule put in": lambda lab: print(nft(lab, "insert", "rule", "inet", "qingcni", "leaving", "return")),
    "ARP off": harm("link", "set", "hostnic", "arp", "off"),
    "multicast off": harm("link", "set", "hostnic", "multicast", "off"),
    "all multicast": harm("link", "set", "hostnic", "allmulticast", "on"),
    "promiscuous": harm("link", "set", "hostnic", "promisc", "on"),
    "MTU": harm("link", "set", "hostnic", "mtu", "1300"),
    "dormant": harm("link", "set", "hostnic", "mode", "dormant"),
    "broadcast address": harm("link", "set", "hostnic", "broadcast", "ff:ff:ff:ff:ff:00"),
    "bridge port": lambda lab: print(
        ip("-n", lab.host, "link", "add", "br0", "type", "bridge"),
        ip("-n", lab.host, "link", "set", "hostnic", "master", "br0"),
    ),
    "blackhole before the default route": harm("route", "prepend", "blackhole", "default", "table", TABLE),
    "unreachable in place of the default route": lambda lab: print(
        ip("-n", lab.host, "route", "del", "default", "table", TABLE),
        ip("-n", lab.host, "route", "add", "unreachable", "default", "table", TABLE),
    ),
    "prohibited network": harm("route", "add", "prohibit", "10.0.0.0/8", "table", TABLE, "metric", "7"),
    "nothing but rules deleted": lambda lab: print(
        *(ip("-n", lab.host, "rule", "del", "pref", pref) for pref in ("1792", "1856", "1920"))
    ),
    **{
        f"{key} changed": put_setting("hostnic", key, "1" if value == "0" else "0") for key, value in SETTINGS.items()
    },
    "forwarding off on the host": put_setting("../..", "ip_forward", "0"),
}


@pytest.mark.parametrize("what", HARMS)
async def test_harm_is_mended(lab: Lab, kernel: HostKernel, what: str) -> None:
    mac = lab.plug()
    lab.plug(2)
    wanted = path_of(gateway(mac))
    await kernel.serve(wanted)
    before = (state(lab), settings(lab))
    HARMS[what](lab)
    assert (state(lab), settings(lab)) != before or what == "alias removed"
    served = await kernel.serve(wanted)
    assert served.changes, "the operator can be told"
    assert not served.faults
    until(lambda: (state(lab), settings(lab)) == before)  # a carrier comes a moment after up
    assert lab.links(lab.host)["hostnic"]["ifalias"] == ALIAS
    assert await kernel.serve(wanted) == Served()


async def test_what_a_dhcp_client_configured_goes(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    main = ip("-n", lab.host, "route")
    ip("-n", lab.host, "addr", "add", "172.16.1.9/24", "dev", "eth1", "valid_lft", "3600", "preferred_lft", "3600")
    ip("-n", lab.host, "route", "add", "default", "via", "172.16.1.1", "dev", "eth1", "proto", "dhcp")
    await kernel.serve(path_of(gateway(mac)))
    assert ip("-n", lab.host, "route") == main
    (shown,) = ip_json("-n", lab.host, "-4", "addr", "show", "hostnic")
    (address,) = shown["addr_info"]
    assert (address["local"], address["noprefixroute"]) == ("172.16.1.9", True)
    assert "dynamic" not in address


async def test_a_parked_nic_is_brought_back(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug(mtu=1400)
    await kernel.park(lab.record(mac))
    await kernel.serve(path_of(gateway(mac)))
    link = lab.links(lab.host)["hostnic"]
    assert (link["address"], link["mtu"], "UP" in link["flags"]) == (mac, 1400, True)
    assert not lab.links(lab.parking)
    before = state(lab)
    await kernel.serve(path_of(gateway(mac)))
    assert state(lab) == before
    await kernel.park(lab.record(mac))
    assert lab.is_parked(mac)
    assert lab.links(lab.parking)["q" + mac.replace(":", "")]["mtu"] == 1400


async def test_a_taken_name_is_told(lab: Lab, kernel: HostKernel) -> None:
    mac, other = lab.plug(), lab.plug(2, name="hostnic")
    before = state(lab)
    with pytest.raises(KernelRefused, match=f"nic {mac}: name hostnic failed: taken .* {other}"):
        await kernel.serve(path_of(gateway(mac)))
    assert state(lab) == before


async def test_an_absent_nic_is_told(lab: Lab, kernel: HostKernel) -> None:
    with pytest.raises(LinkNotFound, match="52:54:00:00:00:77"):
        await kernel.serve(path_of(gateway("52:54:00:00:00:77")))
    mac = lab.plug()
    as_is = Gateway(mac, "", "172.16.1.4/24", "172.16.1.1", 63)
    with pytest.raises(LinkNotFound, match=r"172\.16\.1\.4/24"):
        await kernel.serve(ServicePath((as_is,)))


async def test_an_unplugged_gateway_leaves_nothing(lab: Lab, kernel: HostKernel) -> None:
    before = (*routing(lab), nft(lab, "list", "ruleset"))
    await kernel.serve(path_of(gateway(lab.plug())))
    ip("-n", lab.host, "link", "del", "hostnic")
    await kernel.serve(ServicePath())
    assert (*routing(lab), nft(lab, "list", "ruleset")) == before


async def test_a_nic_that_was_there_is_used_as_it_is(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    ip("-n", lab.host, "addr", "add", "172.16.1.4/24", "dev", "eth1")
    before = (lab.links(lab.host)["eth1"], *routing(lab), ip_json("-n", lab.host, "addr"))
    as_is = Gateway(mac, "", "172.16.1.4/24", "172.16.1.1", 63)
    changed = (await kernel.serve(ServicePath((as_is,), ("172.16.1.0/24",)))).settings
    assert (lab.links(lab.host)["eth1"], *routing(lab), ip_json("-n", lab.host, "addr")) == before
    assert changed["net/ipv4/conf/eth1/send_redirects"] == "1"
    assert conf(lab, "eth1")["send_redirects"] == "0"
    found = nft(lab, "list", "table", "inet", "qingcni")
    assert "masquerade" in found
    assert "mark" not in found
    await kernel.serve(ServicePath())
    await kernel.restore(changed)
    assert conf(lab, "eth1")["send_redirects"] == "1"


async def test_addresses_of_links_that_are_up_are_told(lab: Lab, kernel: HostKernel) -> None:
    first, second, third = lab.plug(1), lab.plug(2), lab.plug(3)
    ip("-n", lab.host, "addr", "add", "172.16.1.4/24", "dev", "eth1")
    ip("-n", lab.host, "addr", "add", "172.16.9.4/32", "dev", "eth1")
    ip("-n", lab.host, "addr", "add", "172.16.2.4/24", "dev", "eth2")
    ip("-n", lab.host, "link", "set", "eth2", "down")
    assert await kernel.host_addresses() == {first: ("172.16.1.4/24", "172.16.9.4/32"), third: ()}
    assert second in lab.links(lab.host)["eth2"]["address"]


async def test_other_tables_and_rules_are_left_alone(lab: Lab, kernel: HostKernel) -> None:
    mac = lab.plug()
    nft(lab, "add", "table", "inet", "others")
    ip("-n", lab.host, "rule", "add", "pref", "1793", "from", "10.9.9.9", "table", "main")
    ip("-n", lab.host, "rule", "add", "pref", "900", "from", "10.9.9.9", "table", TABLE)
    await kernel.serve(path_of(gateway(mac)))
    await kernel.serve(ServicePath())
    assert nft(lab, "list", "tables") == "table inet others\n"
    assert {rule["priority"] for rule in ip_json("-n", lab.host, "rule")} == {0, 900, 1793, 32766, 32767}


async def test_settings_stay_when_one_is_refused(lab: Lab, kernel: HostKernel) -> None:
    """All or nothing: what was changed and not told could never be restored."""
    mac = lab.plug()
    ip("-n", lab.host, "addr", "add", "172.16.1.4/24", "dev", "eth1")
    before = settings(lab)
    broken = replace(gateway(lab.plug(2), 1), router="172.16.77.1")  # refused by the kernel: not on the link
    as_is = Gateway(mac, "", "172.16.1.4/24", "172.16.1.1", 63)
    with pytest.raises(KernelRefused, match=r"172\.16\.77\.1"):
        await kernel.serve(ServicePath((broken, as_is)))
    now = {name: value for name, value in settings(lab).items() if "/eth2/" not in name}
    assert now == {name: value for name, value in before.items() if "/eth2/" not in name and name in now}
