"""Gateway NICs on the host: link, address, table, rules and settings are changed to those wanted.

No state lasts from one call to the next: a gateway's link is known by its alias, tables and rules by their numbers,
so an agent finds what a killed one left.
"""

import errno
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Final

from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.core.seams.kernel import Gateway, NicRecord, Served, ServicePath
from qingcloud_cni.kernel.links import gateway_link
from qingcloud_cni.kernel.links.firewall import MARK_MASK, TABLE, Firewall, mark_of, ruleset
from qingcloud_cni.kernel.links.nic import is_ethernet, make_alias, parked_name, parse_alias, reset_change
from qingcloud_cni.kernel.links.recognition import Recognition
from qingcloud_cni.kernel.links.reserved import HostNetlink
from qingcloud_cni.kernel.namespaces import sysctl
from qingcloud_cni.kernel.namespaces.namespaces import ClosesOnExit, Namespace
from qingcloud_cni.kernel.netlink import routing
from qingcloud_cni.kernel.netlink.messages import IFF_LOOPBACK, IFF_UP, LinkChange, LinkInfo, Request, set_link
from qingcloud_cni.kernel.netlink.routing import RT_SCOPE_LINK, Address, Rule, TableRoute
from qingcloud_cni.kernel.netlink.socket import Netlink, NetlinkRefused
from qingcloud_cni.kernel.nic_state import bpf

ALIAS: Final = "qingcni-gateway"  # identifies a gateway's link without the agent's database
GATEWAYS: Final = 63  # indexes
FIRST_TABLE: Final = 31080  # far from the numbers that people and programs use
TABLES: Final = range(FIRST_TABLE, FIRST_TABLE + GATEWAYS)
# Below 2048 (Terway) and above 1536 (AWS); the mark of a packet comes before its source.
MARK_RULES: Final = 1792
SOURCE_RULES: Final = MARK_RULES + 64
LINK_RULES: Final = SOURCE_RULES + 64
PREFERENCES: Final = range(MARK_RULES, LINK_RULES + 64)
RT_TABLE_LOCAL: Final = 255

HOST_SETTINGS: Final = {sysctl.IP_FORWARD: "1", f"{sysctl.CONF}/all/send_redirects": "0"}


class GatewayLinks(ClosesOnExit):
    """The gateway NICs of a host; made and used in a thread in the host's namespace."""

    def __init__(self, host: HostNetlink, parking: Netlink, home: Namespace, nics: Recognition) -> None:
        self._nics = nics
        self._host = host
        self._parking = parking
        self._home = home
        self._firewall = Firewall()
        self._changes: list[str] = []  # of the present call of `serve`

    def close(self) -> None:
        self._firewall.close()

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Addresses of the host's links that are up, by MAC; a bridge may have the address of its NIC."""
        up = {link.ifindex: link.mac for link in self._host.links() if _is_up(link)}
        found: dict[str, list[str]] = {mac: [] for mac in up.values()}
        for address in self._host.addresses():
            if address.ifindex in up:
                found[up[address.ifindex]].append(address.address)
        return {mac: tuple(addresses) for mac, addresses in found.items()}

    def serve(self, path: ServicePath) -> Served:
        self._changes = []
        own = {gateway.mac: gateway for gateway in path.gateways if gateway.link_name}
        _check_indexes(own.values())
        for mac in own:
            self._host.check(mac, "serve")
        self._undo_others(own)
        links = {mac: self._ensure_link(gateway, own) for mac, gateway in own.items()}
        used = [self._shared_link(gateway) for gateway in path.gateways if not gateway.link_name]
        for mac, gateway in own.items():
            self._restore(gateway, links[mac])
            self._configure(gateway, links[mac])
        self._route(own, links)
        self._rule(own.values())
        if self._firewall.ensure(ruleset(path)):
            self._changes.append(f"write table {TABLE} of nftables")
        before = sysctl.change(_host_settings(link.name for link in used)) if path.forwards else {}
        self._changes += (f"set {name}" for name in before)
        return Served(before, tuple(self._changes), tuple(self._faults(links.values(), used)))

    def settings_before(self, path: ServicePath) -> dict[str, str]:
        if not path.forwards:
            return {}
        macs = {gateway.mac for gateway in path.gateways if not gateway.link_name}
        return sysctl.before(_host_settings(link.name for link in self._host.links() if link.mac in macs))

    def restore(self, settings: Mapping[str, str]) -> None:
        sysctl.restore(settings)

    def _ensure_link(self, gateway: Gateway, own: Mapping[str, Gateway]) -> LinkInfo:
        """Bring the gateway's link to the host under its name."""
        links = self._host.links()
        self._release_name(gateway, links, own)
        nic, name = f"nic {gateway.mac}", gateway.link_name
        if link := self._nics.find_among(self._host, NicRecord(gateway.mac), links):
            change = LinkChange(
                mac=gateway.mac if link.mac != gateway.mac else None,
                name=name if link.name != name else None,
                alias=make_alias(ALIAS, link.mtu) if not _is_gateway(link) else None,
            )
            self._change(link, change, f"{nic}: name {name}")
            return replace(link, name=name, flags=link.flags & ~IFF_UP) if change.mac or change.name else link
        if link := self._nics.find(self._parking, NicRecord(gateway.mac)):
            reset = reset_change(link, gateway.mac)
            alias = make_alias(ALIAS, link.mtu if reset.mtu is None else reset.mtu)
            change = replace(reset, netns_fd=self._home.fd, name=name, alias=alias)
            self._do(set_link(link.ifindex, change), f"{nic}: move to the host as {name}", netlink=self._parking)
            if placed := self._host.link(name=name):
                return placed
        raise LinkNotFound(f"{nic}: find link failed: neither on the host nor parked")

    def _release_name(self, gateway: Gateway, links: Iterable[LinkInfo], own: Mapping[str, Gateway]) -> None:
        """Rename another gateway that has this name; KernelRefused if the link is not a gateway's."""
        name = gateway.link_name
        for link in links:
            if name not in (link.name, *link.altnames) or gateway.mac in (link.mac, link.permanent_mac):
                continue
            if link.mac not in own or link.name != name:
                raise KernelRefused(
                    f"nic {gateway.mac}: name {name} failed: taken on this host by link {link.mac or name}"
                )
            spare = LinkChange(name=parked_name(link.mac))
            self._change(link, spare, f"nic {link.mac}: rename from {name}")

    def _undo_others(self, own: Mapping[str, Gateway]) -> None:
        """Set the links of former gateways down and reset them, without address."""
        for link in self._host.links():
            if not (is_ethernet(link) and _is_gateway(link)) or own.keys() & {link.mac, link.permanent_mac}:
                continue
            mac = link.permanent_mac or link.mac
            self._change(link, reset_change(link, mac), f"nic {mac}: undo gateway {link.name}")
            self._drop_addresses(link, f"nic {mac}")

    def _change(self, link: LinkInfo, change: LinkChange, action: str) -> None:
        if (change.name or change.mac) and link.is_up:  # names change only while it is down, before Linux 6.2
            self._host.do(set_link(link.ifindex, LinkChange(is_up=False)), action)
        if change:
            self._do(set_link(link.ifindex, change), action)

    def _do(self, request: Request, action: str, *, netlink: Netlink | None = None) -> None:
        (netlink or self._host).do(request, action)
        self._changes.append(action)

    def _shared_link(self, gateway: Gateway) -> LinkInfo:
        """The link of a NIC that the agent did not make, with its address."""
        holders = {a.ifindex for a in self._host.addresses() if a.address == gateway.address}
        for link in self._host.links():
            if link.ifindex in holders and link.mac == gateway.mac and _is_up(link):
                return link
        raise LinkNotFound(f"nic {gateway.mac}: find link failed: not up on the host with address {gateway.address}")

    def _restore(self, gateway: Gateway, link: LinkInfo) -> None:
        nic, change = f"nic {gateway.mac}", gateway_link.restoring(link)
        words = ", ".join(gateway_link.described(link, change))
        self._change(link, change, f"{nic}: restore {gateway.link_name}: {words}")

    def _faults(self, links: Collection[LinkInfo], used: Iterable[LinkInfo]) -> Iterator[str]:
        """What is not as wanted of links that were up before, and of settings that win over theirs."""
        everything = self._host.links() if links else ()
        for link in (link for link in links if link.is_up):
            now = next((found for found in everything if found.ifindex == link.ifindex), link)
            with suppress(OSError):  # without the right to ask, or on old kernels, the hooks stay unseen
                has_tcx = bpf.has_tcx(link.ifindex)
                yield from (f"{link.name}: {f}" for f in gateway_link.faults(now, everything, has_tcx=has_tcx))
        for link in used:
            yield from (f"{link.name}: {fault}" for fault in gateway_link.shared_faults(link))
        for name, values in gateway_link.ALL_FAULTS.items() if links else ():
            if (value := sysctl.read(f"{sysctl.CONF}/all/{name}")) in values:
                yield f"{sysctl.CONF}/all/{name} is {value}"

    def _configure(self, gateway: Gateway, link: LinkInfo) -> None:
        """Set settings and address, then the link up: the kernel announces the address at that moment."""
        nic, folder = f"nic {gateway.mac}", f"{sysctl.CONF}/{gateway.link_name}"
        changed = sysctl.ensure({f"{folder}/{name}": value for name, value in gateway_link.SETTINGS.items()})
        self._changes += (f"set {name}" for name in changed)
        wanted = [Address(link.ifindex, gateway.address, is_bare=True)]
        if [address for address in self._host.addresses() if address.ifindex == link.ifindex] != wanted:
            self._drop_addresses(link, nic)
            self._do(
                routing.add_address(link.ifindex, gateway.address, is_bare=True),
                f"{nic}: add address {gateway.address}",
            )
        if not link.is_up:
            self._do(set_link(link.ifindex, LinkChange(is_up=True)), f"{nic}: set {gateway.link_name} up")

    def _drop_addresses(self, link: LinkInfo, nic: str) -> None:
        for address in self._host.addresses():
            if address.ifindex == link.ifindex:
                action = f"{nic}: remove address {address.address}"
                self._remove(routing.delete_address(address), action, errno.EADDRNOTAVAIL)

    def _route(self, own: Mapping[str, Gateway], links: Mapping[str, LinkInfo]) -> None:
        """Make the routes of the agent's tables exactly those wanted; delete all others over a gateway's link.

        A DHCP client may have put some into the main table before.
        """
        wanted = [route for mac, gateway in own.items() for route in _routes(gateway, links[mac].ifindex)]
        indexes = {link.ifindex for link in links.values()}
        present = set()
        for route in self._host.routes():
            if route.table == RT_TABLE_LOCAL:
                continue
            if route in wanted:
                present.add(route)
            elif route.table in TABLES or route.ifindex in indexes:
                action = f"remove route {route.dst} from table {route.table}"
                self._remove(routing.delete_route(route), action, errno.ESRCH)
        for route in wanted:
            if route not in present:
                action = (
                    f"add route {route.dst} {f'via {route.gateway} ' if route.gateway else ''}to table {route.table}"
                )
                self._do(routing.add_route(route), action)

    def _rule(self, gateways: Iterable[Gateway]) -> None:
        """Make the rules with the agent's tables and preferences exactly those wanted."""
        wanted = [rule for gateway in gateways for rule in _rules(gateway)]
        present = set()
        for message in self._host.dump(routing.get_rules(), "list rules"):
            rule = routing.parse_rule(message.body)
            if rule in wanted and rule not in present:
                present.add(rule)
            elif rule.preference in PREFERENCES and rule.table in TABLES:
                self._remove(routing.delete_rule(rule), f"remove rule {rule.preference}", errno.ENOENT)
        for rule in wanted:
            if rule not in present:
                self._do(routing.add_rule(rule), f"add rule {rule.preference} to table {rule.table}")

    def _remove(self, request: Request, action: str, gone: int) -> None:
        try:
            self._do(request, action)
        except NetlinkRefused as err:
            if err.errno != gone:
                raise


def _check_indexes(gateways: Iterable[Gateway]) -> None:
    indexes = [gateway.index for gateway in gateways]
    if len(set(indexes)) != len(indexes) or any(index not in range(GATEWAYS) for index in indexes):
        raise ValueError(f"gateways: indexes {indexes} are not distinct numbers below {GATEWAYS}")


def _is_up(link: LinkInfo) -> bool:
    return link.is_up and bool(link.mac) and not link.flags & IFF_LOOPBACK


def _host_settings(used: Iterable[str]) -> dict[str, str]:
    """Settings beyond the gateways' own links; *used* are the names of links that the agent does not configure."""
    settings = ((name, setting) for name in used for setting in ("forwarding", "send_redirects"))
    return HOST_SETTINGS | {f"{sysctl.CONF}/{n}/{s}": gateway_link.SETTINGS[s] for n, s in settings}


def _is_gateway(link: LinkInfo) -> bool:
    return parse_alias(link.alias)[0] == ALIAS


def _routes(gateway: Gateway, ifindex: int) -> tuple[TableRoute, TableRoute]:
    interface, table = IPv4Interface(gateway.address), TABLES[gateway.index]
    connected = TableRoute(table, ifindex, str(interface.network), source=str(interface.ip), scope=RT_SCOPE_LINK)
    return connected, TableRoute(table, ifindex, "0.0.0.0/0", gateway.router)


def _rules(gateway: Gateway) -> tuple[Rule, Rule, Rule]:
    index, table = gateway.index, TABLES[gateway.index]
    return (
        Rule(MARK_RULES + index, table, mark=mark_of(gateway), mask=MARK_MASK),
        Rule(SOURCE_RULES + index, table, source=f"{IPv4Interface(gateway.address).ip}/32"),
        Rule(LINK_RULES + index, table, iif=gateway.link_name),
    )
