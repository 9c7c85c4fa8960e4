"""Recognizes the links of NICs by fingerprints: what the kernel alone decides, never what a container can write.

Hardware has no kind, but a parent device and a permanent MAC. A NIC of the simulator is a veth whose peer is in a
router's namespace: the index of that peer is its fingerprint, and no container can put a peer there.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from qingcloud_cni.core.errors import InvalidNetns, KernelRefused, StartRefused
from qingcloud_cni.core.seams.kernel import Link, NicRecord
from qingcloud_cni.kernel.links.nic import is_ethernet, parse_alias
from qingcloud_cni.kernel.namespaces.namespaces import Namespace
from qingcloud_cni.kernel.netlink.messages import NO_NSID, LinkInfo
from qingcloud_cni.kernel.netlink.socket import Netlink

PARENTS_SINCE: Final = (5, 14)  # the Linux that shows parent devices


def shows_parents(release: str) -> bool:
    return tuple(map(int, re.findall(r"\d+", release)[:2])) >= PARENTS_SINCE


HAS_PARENTS: Final = shows_parents(os.uname().release)


def fingerprint(link: LinkInfo, routers: Mapping[int, str], *, has_parents: bool = HAS_PARENTS) -> str:
    """Return what identifies a NIC; "" for any other link.

    *routers* are identities of the simulator's routers by their namespaces' numbers in the link's namespace;
    *has_parents*: the kernel shows parent devices.
    """
    if not is_ethernet(link):
        return ""
    if link.kind == "veth" and link.peer_nsid in routers:
        return f"veth {routers[link.peer_nsid]}/{link.peer}"
    if not link.kind and link.permanent_mac and (link.parent or not has_parents):
        return f"{link.parent} {link.permanent_mac}".lstrip()
    return ""


class Recognition:
    """Finds NICs among the links of a namespace; *routers* are the paths of the simulator's routers, if it is one."""

    def __init__(self, routers: Sequence[str]) -> None:
        """StartRefused if a router's namespace cannot be opened."""
        self._routers = tuple(routers)
        self._open: tuple[Namespace, ...] = ()  # those of `routers_open`
        for path in routers:
            try:
                Namespace.open(path).close()
            except InvalidNetns as err:
                raise StartRefused(f"simulator-netns: {err}; start qingcloud-sim, or correct the path") from err

    @contextmanager
    def routers_open(self) -> Iterator[None]:
        """Open the routers' namespaces once for the block, which then needs no free descriptor to find a NIC."""
        with ExitStack() as stack:
            self._open = tuple(stack.enter_context(_router(path)) for path in self._routers)
            try:
                yield
            finally:
                self._open = ()

    def shown(self, netlink: Netlink) -> tuple[Link, ...]:
        """The links of a namespace that are NICs or look like them."""
        return self._links(netlink, netlink.links())

    def link(self, netlink: Netlink, link: LinkInfo) -> Link:
        return _shown(link, netlink, self._numbers(netlink, (link,)))

    def find(self, netlink: Netlink, nic: NicRecord, ifindex: int = 0) -> LinkInfo | None:
        """Return the NIC's link, which is probably at *ifindex*; None if it is not there, or twice."""
        if ifindex and (link := netlink.link(ifindex=ifindex)) and nic.matches(self.link(netlink, link)):
            return link
        return self.find_among(netlink, nic, netlink.links())

    def find_among(self, netlink: Netlink, nic: NicRecord, links: Sequence[LinkInfo]) -> LinkInfo | None:
        found = {link.ifindex for link in self._links(netlink, links) if nic.matches(link)}
        return next((link for link in links if found == {link.ifindex}), None)

    def _links(self, netlink: Netlink, links: Iterable[LinkInfo]) -> tuple[Link, ...]:
        candidates = [link for link in links if is_ethernet(link)]
        numbers = self._numbers(netlink, candidates)
        return tuple(_shown(link, netlink, numbers) for link in candidates)

    def _numbers(self, netlink: Netlink, links: Iterable[LinkInfo]) -> Mapping[int, str]:
        """Identities of the routers by number. They are asked after *links*: a namespace keeps its number."""
        if not self._routers or all(link.kind != "veth" or link.peer_nsid == NO_NSID for link in links):
            return {}
        if not self._open:
            with self.routers_open():
                return self._numbers(netlink, links)
        numbers = {netlink.nsid_of(router.fd): str(router.identity[1]) for router in self._open}
        numbers.pop(NO_NSID, None)
        return numbers


def _router(path: str) -> Namespace:
    try:
        return Namespace.open(path)
    except InvalidNetns as err:
        raise KernelRefused(f"simulator-netns: {err}") from err


def spoofs(links: Iterable[LinkInfo], nic: NicRecord, ifindex: int) -> list[LinkInfo]:
    """Return links that look like a NIC that is not among them; *ifindex* is recorded for this namespace, or 0."""
    return [
        link
        for link in links
        if is_ethernet(link)
        and (
            link.mac == nic.mac
            or link.ifindex == ifindex
            or (nic.alias != "" and parse_alias(link.alias)[0] == nic.alias)
        )
    ]


def _shown(link: LinkInfo, netlink: Netlink, routers: Mapping[int, str]) -> Link:
    if not link.kind and not link.permanent_mac:
        link = replace(link, permanent_mac=netlink.permanent_mac(link.name))
    alias, _ = parse_alias(link.alias)
    mark = fingerprint(link, routers)
    return Link(link.mac, link.name, link.ifindex, link.is_up, alias, link.mtu, link.permanent_mac, mark)
