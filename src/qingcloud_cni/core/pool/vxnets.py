"""Which vxnet the next NIC is created in: the three policies of `--policy`, and rest for vxnets without addresses."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

REST_FIRST = 60.0  # seconds a vxnet without addresses is skipped at first; doubled each time
REST_LONGEST = 1800.0
ROOM_BELIEVED = 300.0  # seconds for which a number of free addresses is believed: all hosts take from the same ones

_NONE_ASKED: Mapping[str, int] = MappingProxyType({})


class VxnetPolicy(StrEnum):
    FAIL_ROTATE = "FailRotate"  # stay until a create fails, then move to the next
    ROUND_ROTATE = "RoundRotate"  # move on with every NIC
    RANDOM = "Random"


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with one vxnet."""

    vxnet_id: str
    room: int | None = None  # NICs that still fit, those asked for counted; None where the cloud has not told lately
    rests_until: float = 0.0  # seconds since the epoch; 0 where it does not rest
    is_next: bool = False  # the policy's first choice; for Random none is


@dataclass(slots=True)
class _Record:
    room: int | None = None
    told: float = 0.0  # when the cloud told of *room*
    rests_until: float = 0.0
    next_rest: float = REST_FIRST


class VxnetChooser:
    """Chooses a vxnet per NIC and remembers which ones failed or are full. Its memory does not outlive the agent.

    *asked*, where it is an argument, are NICs by vxnet that were asked of the cloud and are not answered yet.
    """

    def __init__(self, policy: VxnetPolicy, vxnet_ids: Sequence[str], rng: random.Random) -> None:
        if not vxnet_ids:
            raise ValueError("at least one vxnet is needed")
        self.policy = policy
        self._vxnet_ids = tuple(dict.fromkeys(vxnet_ids))
        self._rng = rng
        self._next = 0  # index of the vxnet that FailRotate stays on and RoundRotate takes next
        self._records = {vxnet_id: _Record() for vxnet_id in self._vxnet_ids}

    def __repr__(self) -> str:
        resting = {v: r.rests_until for v, r in self._records.items() if r.rests_until}
        return f"VxnetChooser({self.policy}, next={self._vxnet_ids[self._next]}, resting={resting})"

    # --- choosing ------------------------------------------------------------------------------------

    def choose(self, count: int, now: float, asked: Mapping[str, int] = _NONE_ASKED) -> tuple[str, ...]:
        """A vxnet for each of *count* NICs, in order; fewer, or none, where all others rest or are full."""
        rooms = self._rooms(now, asked)
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

    def preview(self, count: int, now: float, asked: Mapping[str, int] = _NONE_ASKED) -> tuple[str, ...]:
        """What `choose` would answer now; nothing where chance decides."""
        if self.policy is VxnetPolicy.RANDOM:
            return ()
        before = self._next
        chosen = self.choose(count, now, asked)
        self._next = before
        return chosen

    def _pick(self, free: Sequence[int]) -> int:
        """One of the indexes *free*, as the policy has it."""
        if self.policy is VxnetPolicy.RANDOM:
            return self._rng.choice(free)
        index = next((n for n in free if n >= self._next), free[0])
        self._next = index if self.policy is VxnetPolicy.FAIL_ROTATE else (index + 1) % len(self._vxnet_ids)
        return index

    # --- what the cloud says -------------------------------------------------------------------------

    def worked(self, vxnet_id: str, count: int, now: float) -> None:
        """*count* NICs were created there; with them the last addresses may be gone."""
        if (record := self._records.get(vxnet_id)) is None:
            return  # a gateway's, in a vxnet that is configured no more
        record.next_rest = REST_FIRST
        if record.room is not None and record.told + ROOM_BELIEVED > now:
            left = record.room - count
            if left > 0:
                record.room = left
            else:
                self.has_room(vxnet_id, 0, now)

    def failed(self, vxnet_id: str) -> None:
        """A create there was refused: FailRotate moves on, unless it has done so already."""
        if self.policy is VxnetPolicy.FAIL_ROTATE and self._vxnet_ids[self._next] == vxnet_id:
            self._next = (self._next + 1) % len(self._vxnet_ids)

    def has_room(self, vxnet_id: str, addresses: int, now: float) -> None:
        """The cloud says how many addresses are left; with none the vxnet rests, each time for longer.

        The length is spread: all hosts of a cluster find the same vxnet full.
        """
        if (record := self._records.get(vxnet_id)) is None:
            return
        if addresses > 0:
            record.room, record.told, record.rests_until = addresses, now, 0.0
            return
        record.room = None
        record.rests_until = now + record.next_rest * self._rng.uniform(0.75, 1.25)
        record.next_rest = min(record.next_rest * 2, REST_LONGEST)

    # --- how it stands -------------------------------------------------------------------------------

    def room(self, now: float, asked: Mapping[str, int] = _NONE_ASKED) -> int | None:
        """NICs that fit into all of them together; None where for one of them there is no telling."""
        total = 0
        for room in self._rooms(now, asked).values():
            if room is None:
                return None
            total += room
        return total

    def standings(self, now: float, asked: Mapping[str, int] = _NONE_ASKED) -> tuple[Standing, ...]:
        rooms = self._rooms(now, asked)
        (first,) = self.preview(1, now, asked) or ("",)
        return tuple(
            Standing(v, rooms[v], r.rests_until if r.rests_until > now else 0.0, v == first)
            for v, r in self._records.items()
        )

    def next_choice_at(self, now: float) -> float:
        """When one of them does not rest: *now*, or the end of the shortest rest."""
        return min(max(now, record.rests_until) for record in self._records.values())

    def next_change_at(self, now: float) -> float | None:
        """When `room` may grow by the passing of time alone; None if it cannot."""
        times = [r.rests_until for r in self._records.values()]
        times += [r.told + ROOM_BELIEVED for r in self._records.values() if r.room is not None]
        return min((t for t in times if t > now), default=None)

    def _rooms(self, now: float, asked: Mapping[str, int]) -> dict[str, int | None]:
        """What fits into each; None where nothing is known."""
        rooms: dict[str, int | None] = {}
        for vxnet_id, record in self._records.items():
            if now < record.rests_until:
                rooms[vxnet_id] = 0
            elif record.room is None or record.told + ROOM_BELIEVED <= now:
                rooms[vxnet_id] = None
            else:
                rooms[vxnet_id] = max(record.room - asked.get(vxnet_id, 0), 0)
        return rooms


def explain_rest(standings: Sequence[Standing], now: float) -> str:
    """Which vxnets are skipped and for how long; "" where none is."""
    resting = [f"{s.vxnet_id} for {s.rests_until - now:.0f} s more" for s in standings if s.rests_until > now]
    return f"no addresses left, so not asked again: {', '.join(resting)}" if resting else ""
