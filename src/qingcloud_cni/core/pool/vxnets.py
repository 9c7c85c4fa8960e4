"""Which vxnet the next NIC is created in: the policies of `--policy`, without vxnets that are full."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

REST_FIRST = 60.0  # seconds for which a full vxnet is skipped at first; doubled each time
REST_LONGEST = 1800.0
ROOM_BELIEVED = 300.0  # seconds for which a count of free addresses is used: other hosts take them as well

_NONE: Mapping[str, int] = MappingProxyType({})


class VxnetPolicy(StrEnum):
    FAIL_ROTATE = "FailRotate"  # stay until a create fails, then move to the next
    ROUND_ROTATE = "RoundRotate"  # move on with every NIC
    RANDOM = "Random"


@dataclass(frozen=True, slots=True)
class VxnetStatus:
    vxnet_id: str
    room: int | None = None  # NICs that still fit; None if unknown
    rests_until: float = 0.0  # skipped until then, in seconds since the epoch; 0 if it is not
    is_next: bool = False  # the policy's next choice; none with Random


@dataclass(slots=True)
class _Record:
    room: int | None = None
    room_at: float = 0.0  # the time of *room*
    rests_until: float = 0.0
    next_rest: float = REST_FIRST


class VxnetChooser:
    """Chooses a vxnet per NIC, from what earlier creates showed. Nothing of it is persisted.

    Arguments *creating* are the NICs being created, by vxnet.
    """

    def __init__(self, policy: VxnetPolicy, vxnet_ids: Sequence[str], rng: random.Random) -> None:
        if not vxnet_ids:
            raise ValueError("at least one vxnet is needed")
        self.policy = policy
        self._vxnet_ids = tuple(dict.fromkeys(vxnet_ids))
        self._rng = rng
        self._next = 0  # index of the vxnet that FailRotate stays on, and RoundRotate uses next
        self._records = {vxnet_id: _Record() for vxnet_id in self._vxnet_ids}

    def __repr__(self) -> str:
        skipped = {v: r.rests_until for v, r in self._records.items() if r.rests_until}
        return f"VxnetChooser({self.policy}, next={self._vxnet_ids[self._next]}, skipped={skipped})"

    # --- choosing ------------------------------------------------------------------------------------

    def choose(self, count: int, now: float, creating: Mapping[str, int] = _NONE) -> tuple[str, ...]:
        """Return a vxnet for each of *count* NICs; fewer if all vxnets are full."""
        rooms = self._rooms(now, creating)
        chosen: list[str] = []
        for _ in range(count):
            free = [n for n, v in enumerate(self._vxnet_ids) if rooms[v] is None or rooms[v]]
            if not free:
                break
            index = self._pick(free)
            vxnet_id = self._vxnet_ids[index]
            chosen.append(vxnet_id)
            if (left := rooms[vxnet_id]) is not None:
                rooms[vxnet_id] = left - 1
        return tuple(chosen)

    def preview(self, count: int, now: float, creating: Mapping[str, int] = _NONE) -> tuple[str, ...]:
        """Return what `choose` would return now; nothing with Random."""
        if self.policy is VxnetPolicy.RANDOM:
            return ()
        before = self._next
        chosen = self.choose(count, now, creating)
        self._next = before
        return chosen

    def _pick(self, free: Sequence[int]) -> int:
        """Return one of the indexes *free* by the policy."""
        if self.policy is VxnetPolicy.RANDOM:
            return self._rng.choice(free)
        index = next((n for n in free if n >= self._next), free[0])
        self._next = index if self.policy is VxnetPolicy.FAIL_ROTATE else (index + 1) % len(self._vxnet_ids)
        return index

    # --- outcomes ------------------------------------------------------------------------------------

    def created(self, vxnet_id: str, count: int, now: float) -> None:
        """*count* NICs were created there."""
        if (record := self._records.get(vxnet_id)) is None:
            return  # of a gateway, in a vxnet that is no longer configured
        record.next_rest = REST_FIRST
        if record.room is not None and record.room_at + ROOM_BELIEVED > now:
            left = record.room - count
            if left > 0:
                record.room = left
            else:
                self.set_room(vxnet_id, 0, now)

    def failed(self, vxnet_id: str) -> None:
        """A create there was refused: FailRotate moves on, unless it already did."""
        if self.policy is VxnetPolicy.FAIL_ROTATE and self._vxnet_ids[self._next] == vxnet_id:
            self._next = (self._next + 1) % len(self._vxnet_ids)

    def set_room(self, vxnet_id: str, addresses: int, now: float) -> None:
        """Record the number of free addresses. A full vxnet is skipped, each time for longer.

        Jitter spreads the hosts of a cluster, which find the same vxnet full.
        """
        if (record := self._records.get(vxnet_id)) is None:
            return
        if addresses > 0:
            record.room, record.room_at, record.rests_until = addresses, now, 0.0
            return
        record.room = None
        record.rests_until = now + record.next_rest * self._rng.uniform(0.75, 1.25)
        record.next_rest = min(record.next_rest * 2, REST_LONGEST)

    # --- status --------------------------------------------------------------------------------------

    def room(self, now: float, creating: Mapping[str, int] = _NONE) -> int | None:
        """Return how many NICs fit into all vxnets; None if unknown for one."""
        rooms = self._rooms(now, creating).values()
        return None if None in rooms else sum(filter(None, rooms))

    def statuses(self, now: float, creating: Mapping[str, int] = _NONE) -> tuple[VxnetStatus, ...]:
        rooms = self._rooms(now, creating)
        (first,) = self.preview(1, now, creating) or ("",)
        return tuple(
            VxnetStatus(v, rooms[v], r.rests_until if r.rests_until > now else 0.0, v == first)
            for v, r in self._records.items()
        )

    def next_choice_at(self, now: float) -> float:
        """Return when the first vxnet may be chosen again; *now* if one may be already."""
        return min(max(now, record.rests_until) for record in self._records.values())

    def next_change_at(self, now: float) -> float | None:
        """Return when time alone may raise `room`; None if it cannot."""
        times = [r.rests_until for r in self._records.values()]
        times += [r.room_at + ROOM_BELIEVED for r in self._records.values() if r.room is not None]
        return min((t for t in times if t > now), default=None)

    def _rooms(self, now: float, creating: Mapping[str, int]) -> dict[str, int | None]:
        """Return what fits into each; None if unknown."""
        rooms: dict[str, int | None] = {}
        for vxnet_id, record in self._records.items():
            if now < record.rests_until:
                rooms[vxnet_id] = 0
            elif record.room is None or record.room_at + ROOM_BELIEVED <= now:
                rooms[vxnet_id] = None
            else:
                rooms[vxnet_id] = max(record.room - creating.get(vxnet_id, 0), 0)
        return rooms


def explain_skipped(statuses: Sequence[VxnetStatus], now: float) -> str:
    """Name the vxnets that are skipped, and for how long; "" if none is."""
    skipped = [f"{s.vxnet_id} for {s.rests_until - now:.0f} s more" for s in statuses if s.rests_until > now]
    return f"no free addresses, so skipped: {', '.join(skipped)}" if skipped else ""
