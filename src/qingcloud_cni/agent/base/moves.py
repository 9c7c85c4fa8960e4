"""NICs whose links are being moved: comparisons with the kernel, probes and the pool leave these alone."""

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from types import TracebackType


class Moves(Collection[str]):
    """The NIC ids of all moves that have not ended."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def of(self, nic_id: str) -> "Move":
        """Mark the NIC now; the mark ends with the block that enters the result.

        A task that shall carry out the move gets the result as an argument: the NIC is marked before the task runs.
        """
        self._counts[nic_id] += 1
        return Move(self, nic_id)

    def end(self, nic_id: str) -> None:
        self._counts[nic_id] -= 1
        if not self._counts[nic_id]:
            del self._counts[nic_id]

    def __contains__(self, nic_id: object) -> bool:
        return nic_id in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)


class Move(AbstractContextManager["Move"]):
    """One move, from `Moves.of` to the end of the block."""

    def __init__(self, moves: Moves, nic_id: str) -> None:
        self._moves = moves
        self.nic_id = nic_id

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._moves.end(self.nic_id)
