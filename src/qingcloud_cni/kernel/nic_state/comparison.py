"""The thorough comparison of parked NICs: their whole state, and links above them in any namespace."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.kernel.namespaces.namespaces import ClosesOnExit, Namespace, NetnsSwitcher, open_if, reachable
from qingcloud_cni.kernel.netlink.messages import LinkInfo
from qingcloud_cni.kernel.netlink.socket import Netlink
from qingcloud_cni.kernel.nic_state.description import Description
from qingcloud_cni.kernel.nic_state.states import LinkStates, Settled
from qingcloud_cni.kernel.nic_state.uppers import delete_from_afar, is_occupied

OCCUPIED = "a link in a namespace out of reach is above it"


@dataclass(frozen=True, slots=True)
class Parked:
    """A link in the parking namespace, and the description of its state when the cloud plugged it in."""

    link: LinkInfo
    plugged: str


class Comparison(ClosesOnExit):
    """Made and used in one thread, that of *switcher*."""

    def __init__(self, switcher: NetnsSwitcher, parking: Namespace, netns_dir: Path) -> None:
        self._switcher = switcher
        self._parking = parking
        self._netns_dir = netns_dir
        with ExitStack() as undo:
            self._netlink = undo.enter_context(Netlink.inside(switcher, parking))
            self._states = undo.enter_context(LinkStates(self._netlink, lambda: switcher.inside(parking)))
            self._held = undo.pop_all()

    def close(self) -> None:
        self._held.close()

    @property
    def lacks(self) -> tuple[str, ...]:
        return self._states.lacks

    def settle(self, parked: Mapping[str, Parked]) -> dict[str, Settled]:
        """Restore links as they are described; return the outcome of those that are still there, by MAC."""
        indexes = [nic.link.ifindex for nic in parked.values()]
        for netlink in self._others():
            with suppress(KernelRefused):
                delete_from_afar(netlink, self._parking, indexes)
        found = {}
        for mac, nic in parked.items():
            with suppress(LinkNotFound):
                found[mac] = self._settle(nic)
        return found

    def _settle(self, nic: Parked) -> Settled:
        described = Description.parse(nic.plugged)
        if described is None:
            settled = self._states.arrive(nic.link, "")
        else:
            settled = self._states.settle(nic.link, described, is_thorough=True)
        if is_occupied(self._netlink, nic.link):
            return replace(settled, soil="; ".join(filter(None, (settled.soil, OCCUPIED))))
        return settled

    def _others(self) -> Iterator[Netlink]:
        """Sockets to every reachable namespace but the host's and the parking one."""
        own = {self._switcher.home.identity, self._parking.identity}
        for identity, path in reachable(self._netns_dir):
            namespace = None if identity in own else open_if(path, identity)
            if namespace is not None:
                with suppress(KernelRefused), namespace, Netlink.inside(self._switcher, namespace) as netlink:
                    yield netlink
