"""The addresses of one vxnet: reserved, taken or free."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True, slots=True)
class AddressPoolRecord:
    """The state of an address pool besides the taken addresses; its field names are those of cloud.json."""

    fresh: int
    rested: tuple[str, ...]  # released ones, longest ago first


class AddressPool:
    """Assigns the lowest address never used, then the one released longest ago.

    The cloud's own order is not documented; this one delays the reuse of an address.
    """

    def __init__(self, network: IPv4Network, manager_ip: IPv4Address) -> None:
        """Reserve network, broadcast, the router's address and the last host address.

        The last one may be a border router's; without it a /24 has the documented 252 addresses for NICs.
        """
        self.network = network
        last = network.broadcast_address
        self.reserved = frozenset({network.network_address, manager_ip, last - 1, last})
        self._size = network.num_addresses - len(self.reserved)
        self._taken: set[IPv4Address] = set()
        self._released: dict[IPv4Address, None] = {}  # longest ago first
        self._fresh = int(network.network_address)  # all addresses below were tried

    @property
    def free(self) -> int:
        return self._size - len(self._taken)

    def take(self) -> IPv4Address | None:
        """Take the next address; None if all are taken."""
        while self._fresh <= int(self.network.broadcast_address):
            address = IPv4Address(self._fresh)
            self._fresh += 1
            if self.is_free(address) and address not in self._released:
                self._taken.add(address)
                return address
        if not self._released:
            return None
        oldest = next(iter(self._released))
        self.claim(oldest)
        return oldest

    def is_free(self, address: IPv4Address) -> bool:
        return address in self.network and address not in self.reserved and address not in self._taken

    def claim(self, address: IPv4Address) -> None:
        """Take this free address."""
        assert self.is_free(address), address
        self._released.pop(address, None)
        self._taken.add(address)

    def record(self) -> AddressPoolRecord:
        return AddressPoolRecord(self._fresh, tuple(map(str, self._released)))

    def restore(self, record: AddressPoolRecord, taken: Iterable[IPv4Address]) -> None:
        """Continue from *record*, with exactly *taken* in use."""
        self._fresh = record.fresh
        self._released = dict.fromkeys(map(IPv4Address, record.rested))
        self._taken = set(taken)

    def release(self, address: IPv4Address) -> None:
        self._taken.remove(address)
        self._released[address] = None
