"""The addresses of one vxnet: which are reserved, taken or free, and which comes next."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network


@dataclass(frozen=True, slots=True)
class BookRecord:
    """What an address book knows besides the addresses that are taken."""

    fresh: int
    rested: tuple[str, ...]  # the longest ago first


class AddressBook:
    """Hands out the lowest address never used, then the one given back longest ago.

    The cloud's own order is not documented; this one keeps an address from coming back soon.
    """

    def __init__(self, network: IPv4Network, manager_ip: IPv4Address) -> None:
        """Reserve network, broadcast, the router's address and the last host address.

        The last one may be a border router's; with it a /24 has the documented 252 addresses for NICs.
        """
        self.network = network
        last = network.broadcast_address
        self.reserved = frozenset({network.network_address, manager_ip, last - 1, last})
        self._size = network.num_addresses - len(self.reserved)
        self._taken: set[IPv4Address] = set()
        self._rested: dict[IPv4Address, None] = {}  # given back, the longest ago first
        self._fresh = int(network.network_address)  # none below has never been looked at

    @property
    def free(self) -> int:
        return self._size - len(self._taken)

    def take(self) -> IPv4Address | None:
        """Take the next address; None if there is none left."""
        while self._fresh <= int(self.network.broadcast_address):
            address = IPv4Address(self._fresh)
            self._fresh += 1
            if self.is_free(address) and address not in self._rested:
                self._taken.add(address)
                return address
        if not self._rested:
            return None
        oldest = next(iter(self._rested))
        self.claim(oldest)
        return oldest

    def is_free(self, address: IPv4Address) -> bool:
        return address in self.network and address not in self.reserved and address not in self._taken

    def claim(self, address: IPv4Address) -> None:
        """Take this address, which is free."""
        assert self.is_free(address), address
        self._rested.pop(address, None)
        self._taken.add(address)

    def record(self) -> BookRecord:
        return BookRecord(self._fresh, tuple(map(str, self._rested)))

    def restore(self, record: BookRecord, taken: Iterable[IPv4Address]) -> None:
        """Go on from *record*, with exactly *taken* in use."""
        self._fresh = record.fresh
        self._rested = dict.fromkeys(map(IPv4Address, record.rested))
        self._taken = set(taken)

    def give_back(self, address: IPv4Address) -> None:
        self._taken.remove(address)
        self._rested[address] = None
