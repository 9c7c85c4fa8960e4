"""NICs whose links are being moved: comparisons with the kernel, probes and the pool leave these alone."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

Move = AbstractContextManager[str]  # its block, which gets the NIC's id, ends the move


class Moves(Collection[str]):
    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def of(self, nic_id: str) -> Move:
        """Mark the NIC now; the mark ends with the block that enters the result.

        A task that shall carry out the move gets the result as an argument: the NIC is marked before the task runs.
        """
        self._counts[nic_id] += 1
        return self._until_end(nic_id)

    @contextmanager
    def _until_end(self, nic_id: str) -> Iterator[str]:
        try:
            yield nic_id
        finally:
            self._counts -= Counter((nic_id,))

    def __contains__(self, nic_id: object) -> bool:
        return nic_id in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)
