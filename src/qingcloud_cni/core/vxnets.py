"""Which vxnet the next NIC is created in: the three policies of `--policy`, and rest for vxnets without addresses."""

import random
from collections.abc import Sequence
from enum import StrEnum

REST_FIRST = (
    60.0  # seconds a vxnet without addresses is skipped at first; doubled each time, as terway does from 10 min
)
REST_LONGEST = 1800.0


class VxnetPolicy(StrEnum):
    FAIL_ROTATE = "FailRotate"  # stay until a create fails, then move to the next
    ROUND_ROTATE = "RoundRotate"  # move on with every NIC
    RANDOM = "Random"


class VxnetChooser:
    """Chooses a vxnet per NIC and remembers which ones failed or are full. Its memory does not outlive the agent."""

    def __init__(self, policy: VxnetPolicy, vxnet_ids: Sequence[str], rng: random.Random) -> None:
        if not vxnet_ids:
            raise ValueError("at least one vxnet is needed")
        self._policy = policy
        self._vxnet_ids = tuple(vxnet_ids)
        self._rng = rng
        self._next = 0  # index of the vxnet that FailRotate stays on and RoundRotate takes next
        self._rests_until: dict[str, float] = {}
        self._rest_length: dict[str, float] = {}
        self._room: dict[str, int] = {}  # addresses left, where a refused create made us ask

    def __repr__(self) -> str:
        return f"VxnetChooser({self._policy}, next={self._vxnet_ids[self._next]}, resting={self._rests_until})"

    def choose(self, count: int, now: float) -> tuple[str, ...]:
        """A vxnet for each of *count* NICs, in order; fewer, or none, where all others rest."""
        room = dict(self._room)
        chosen: list[str] = []
        for _ in range(count):
            vxnet_id = self._choose_one(now, room)
            if vxnet_id is None:
                break
            chosen.append(vxnet_id)
            if vxnet_id in room:
                room[vxnet_id] -= 1
        return tuple(chosen)

    def _choose_one(self, now: float, room: dict[str, int]) -> str | None:
        size = len(self._vxnet_ids)
        start = self._rng.randrange(size) if self._policy is VxnetPolicy.RANDOM else self._next
        for step in range(size):
            index = (start + step) % size
            vxnet_id = self._vxnet_ids[index]
            if now < self._rests_until.get(vxnet_id, 0.0) or room.get(vxnet_id, 1) <= 0:
                continue
            if self._policy is VxnetPolicy.ROUND_ROTATE:
                self._next = (index + 1) % size
            elif self._policy is VxnetPolicy.FAIL_ROTATE:
                self._next = index
            return vxnet_id
        return None

    def worked(self, vxnet_id: str, count: int) -> None:
        """*count* NICs were created there."""
        self._rest_length.pop(vxnet_id, None)
        if vxnet_id in self._room:
            self._room[vxnet_id] -= count
            if self._room[vxnet_id] <= 0:
                del self._room[vxnet_id]  # only the cloud knows what came free meanwhile

    def failed(self, vxnet_id: str) -> None:
        """A create there was refused: FailRotate moves on, unless it has done so already."""
        if self._policy is VxnetPolicy.FAIL_ROTATE and self._vxnet_ids[self._next] == vxnet_id:
            self._next = (self._next + 1) % len(self._vxnet_ids)

    def has_room(self, vxnet_id: str, addresses: int, now: float) -> None:
        """The cloud says how many addresses are left; with none the vxnet rests, each time for longer."""
        if addresses > 0:
            self._room[vxnet_id] = addresses
            return
        self._room.pop(vxnet_id, None)
        length = self._rest_length.get(vxnet_id, REST_FIRST)
        self._rest_length[vxnet_id] = min(length * 2, REST_LONGEST)
        self._rests_until[vxnet_id] = now + length

    def next_choice_at(self, now: float) -> float:
        """When *choose* can name a vxnet again: *now*, or the end of the shortest rest."""
        return min(max(now, self._rests_until.get(vxnet_id, now)) for vxnet_id in self._vxnet_ids)

    def resting(self, now: float) -> tuple[str, ...]:
        return tuple(v for v in self._vxnet_ids if now < self._rests_until.get(v, 0.0))
