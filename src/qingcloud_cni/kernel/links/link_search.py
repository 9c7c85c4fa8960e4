"""Where the link of a NIC is, of all namespaces that the host can reach."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext

from qingcloud_cni.core.nics.model import Netns
from qingcloud_cni.core.seams.kernel import Inspection, Link, NicRecord
from qingcloud_cni.kernel.links.namespace_handles import NamespaceHandles, Unseen
from qingcloud_cni.kernel.namespaces.namespaces import find, leads_to
from qingcloud_cni.kernel.netlink.routing import RTN_UNICAST, seen_route
from qingcloud_cni.kernel.netlink.socket import Netlink


class LinkSearch:
    """Made and used in the thread of its *namespaces*."""

    def __init__(self, namespaces: NamespaceHandles) -> None:
        self._namespaces = namespaces
        self._nics = namespaces.nics
        self._own = (namespaces.host, namespaces.parking)

    def search(self, sought: Collection[NicRecord], unseen: Unseen) -> Mapping[str, Inspection]:
        """Skip namespaces that refuse; without a fingerprint, nothing is found then."""
        found: dict[str, list[Inspection]] = {nic.mac: [] for nic in sought}
        are_recorded = all(nic.fingerprint for nic in sought)  # else another link may claim to be the same NIC
        with closing(self._namespaces.others(set(), unseen)) as visits:
            for netns, netlink in visits:
                if are_recorded and all(found.values()):
                    break
                with unseen.skipping(netns.path):
                    for link in self._nics.shown(netlink):
                        for nic in (nic for nic in sought if nic.matches(link)):
                            found[nic.mac].append(inspection(netns, netlink, link))
        usable = [nic.mac for nic in sought if nic.fingerprint or not unseen]
        return {mac: found[mac][0] for mac in usable if len(found[mac]) == 1}

    def is_gone(self, nic: NicRecord, netns: Netns) -> bool:
        recorded = (netns.dev, netns.inode)
        if leads_to(netns.path, recorded):
            return False
        # A link that came back may have another fingerprint, and nobody else can put one there.
        if any(self._nics.find(netlink, NicRecord(nic.mac)) for netlink in self._own):
            return True
        unseen = Unseen()
        if self.search([nic], unseen) or unseen:
            return False
        if nic.fingerprint:  # the kernel reuses inodes, so a namespace without the link is probably another one
            return True
        if found := find(recorded, self._namespaces.netns_dir):
            found.close()
            return False
        return True

    def places(
        self, nic: NicRecord, netns: Netns, ifindex: int, stack: ExitStack
    ) -> Iterator[tuple[str, Netlink, int, AbstractContextManager[None]]]:
        """The namespaces in which a NIC may be: path, socket, its index there if it is recorded, and a context.

        A look into the namespace belongs into the context: others than the recorded one and the agent's may refuse.
        """
        if not self._is_known(nic):
            return
        known = set()
        if recorded := self._namespaces.find_recorded(netns):
            known.add(recorded.identity)
            stack.enter_context(recorded)
            yield netns.path, stack.enter_context(self._namespaces.netlink_in(recorded)), ifindex, nullcontext()
        yield "the host's namespace", self._own[0], 0, nullcontext()
        yield "the parking namespace", self._own[1], 0, nullcontext()
        unseen = Unseen()
        for other, netlink in stack.enter_context(closing(self._namespaces.others(known, unseen))):
            yield other.path, netlink, 0, unseen.skipping(other.path)

    def _is_known(self, nic: NicRecord) -> bool:
        """Whether its link is recorded, or only one link of all namespaces claims to be it."""
        if nic.fingerprint:
            return True
        unseen = Unseen()
        claims = [link for netlink in self._own for link in self._nics.shown(netlink)]
        with closing(self._namespaces.others(set(), unseen)) as visits:
            for netns, netlink in visits:
                with unseen.skipping(netns.path):
                    claims += self._nics.shown(netlink)
        return not unseen and sum(nic.matches(link) for link in claims) == 1


def inspection(netns: Netns, netlink: Netlink, link: Link) -> Inspection:
    return Inspection(
        netns,
        link,
        tuple(a.address for a in netlink.addresses() if a.ifindex == link.ifindex),
        tuple(seen_route(r) for r in netlink.routes() if r.ifindex == link.ifindex and r.kind == RTN_UNICAST),
    )
