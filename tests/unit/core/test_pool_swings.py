"""The planner over time: containers come and go, attaches take their time, and the pool does not swing."""

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool.plan import plan, serving_order
from qingcloud_cni.core.pool.pool_state import (
    AttachNics,
    CreateNics,
    DeleteNics,
    DetachNics,
    PoolPolicy,
    PoolState,
    Rest,
)

S = NicState


@dataclass
class Host:
    """A pool with a slow cloud that never fails. A step is a second."""

    policy: PoolPolicy
    attach_seconds: int = 3
    now: float = 1_700_000_000.0
    nics: dict[str, Nic] = field(default_factory=dict)
    waiting: int = 0
    created: int = 0
    released: list[float] = field(default_factory=list)  # seconds for which each had been idle
    turns: int = 0  # times it began to grow after it had shrunk
    has_shrunk: bool = False
    used: list[int] = field(default_factory=list)  # in use, resting or waited for, at each second

    def in_state(self, state: NicState) -> list[Nic]:
        return [n for n in self.nics.values() if n.state is state]

    def move(self, nic: Nic, state: NicState, released: float = 0.0) -> None:
        self.nics[nic.nic_id] = replace(nic, state=state, since=self.now, released=released)

    def step(self, arrivals: int, departures: int) -> None:
        for nic in self.in_state(S.ATTACHING):
            if self.now - nic.since >= self.attach_seconds:
                self.move(nic, S.IDLE)
        for nic in self.in_state(S.DETACHING):
            if self.now - nic.since >= self.attach_seconds:
                del self.nics[nic.nic_id]
        for nic in self.in_state(S.ASSIGNED)[:departures]:
            self.move(nic, S.COOLING, released=self.now)
        self.waiting += arrivals
        self.plan()
        self.used.append(self.waiting + len(self.in_state(S.ASSIGNED)) + len(self.in_state(S.COOLING)))
        self.now += 1.0

    def plan(self) -> None:
        actions = None
        while actions != ():
            self.hand_out()
            busy = frozenset(n.nic_id for n in self.nics.values() if n.state in {S.ATTACHING, S.DETACHING})
            state = PoolState(
                tuple(self.nics.values()), waiting=self.waiting, busy=busy, attach_seconds=self.attach_seconds
            )
            actions = plan(state, self.policy, self.now)
            for action in actions:
                match action:
                    case Rest(nic_id):
                        self.move(self.nics[nic_id], S.IDLE)
                    case CreateNics(count):
                        self.create(count)
                    case DetachNics(nic_ids):
                        self.detach(nic_ids)
                    case AttachNics() | DeleteNics():
                        raise AssertionError(f"nothing is attached nowhere here: {action}")

    def hand_out(self) -> None:
        for nic in serving_order(self.in_state(S.IDLE), self.policy)[: self.waiting]:
            self.move(nic, S.ASSIGNED)
            self.waiting -= 1

    def create(self, count: int) -> None:
        for _ in range(count):
            self.created += 1
            nic = make_nic(self.created, S.ATTACHING, self.now)
            self.nics[nic.nic_id] = nic
        self.turns += self.has_shrunk
        self.has_shrunk = False

    def detach(self, nic_ids: tuple[str, ...]) -> None:
        for nic_id in nic_ids:
            self.released.append(self.now - self.nics[nic_id].since)
            self.move(self.nics[nic_id], S.DETACHING)
        self.has_shrunk = True


@st.composite
def pools(draw: st.DrawFn) -> PoolPolicy:
    min_idle = draw(st.integers(0, 3))
    return PoolPolicy(
        min_idle=min_idle,
        max_idle=min_idle + draw(st.integers(0, 4)),
        max_nics=draw(st.integers(10, 40)),
        idle_ttl=float(draw(st.integers(0, 20))),
        cooldown=float(draw(st.integers(0, 10))),
        cooldown_min=float(draw(st.integers(0, 5))),
    )


traces = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=80)


@given(pools(), traces)
def test_a_pool_that_has_shrunk_grows_again_only_for_more_adds_than_lie_between_its_marks(
    policy: PoolPolicy, trace: list[tuple[int, int]]
) -> None:
    host = Host(policy)
    for arrivals, departures in trace:
        host.step(arrivals, departures)
        assert len(host.nics) <= policy.max_nics
    assert host.turns <= sum(arrivals for arrivals, _ in trace) / (policy.max_idle - policy.min_idle + 1)


@given(pools(), traces)
def test_what_is_created_and_released_is_bounded_by_what_was_used(
    policy: PoolPolicy, trace: list[tuple[int, int]]
) -> None:
    """Above the peak of use, a NIC is created only for one that was released after idle-ttl."""
    host = Host(policy)
    for arrivals, departures in trace:
        host.step(arrivals, departures)
    assert host.created <= max([0, *host.used]) + policy.min_idle + len(host.released)
    assert all(seconds >= policy.idle_ttl for seconds in host.released)


@given(pools(), st.integers(0, 6), st.data())
def test_nothing_is_created_or_released_while_use_swings_by_no_more_than_the_marks_are_apart(
    policy: PoolPolicy, base: int, data: st.DataObject
) -> None:
    policy = replace(policy, cooldown=0.0, cooldown_min=0.0)
    host = Host(policy)
    host.step(base, 0)
    levels = data.draw(st.lists(st.integers(base, base + policy.max_idle - policy.min_idle), max_size=40))
    level = base
    for wanted in levels:
        for _ in range(1 + host.attach_seconds):  # all that come get their NIC before the next ones go
            host.step(max(wanted - level, 0), max(level - wanted, 0))
            level = wanted
    assert host.released == []
    assert host.created <= max([base, *levels]) + policy.min_idle


def test_what_is_unused_is_released_though_containers_come_and_go_all_the_time() -> None:
    """Thirty ran at once; then one at a time, for ten seconds each."""
    policy = PoolPolicy(min_idle=3, max_idle=8, idle_ttl=600.0, cooldown=0.0, cooldown_min=0.0)
    host = Host(policy)
    host.step(30, 0)
    for _ in range(5):
        host.step(0, 0)
    host.step(0, 30)
    assert len(host.in_state(S.IDLE)) == 33
    for second in range(700):
        host.step(second % 10 == 0, second % 10 == 9)
    assert len(host.nics) <= 9
    assert (host.created, len(host.released)) == (33, 33 - len(host.nics))
