"""Where calls wait for the budget: on a virtual clock, with the real client before it."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from inprocess import virtual_time
from inprocess.budgets import make_limiter, waiting
from inprocess.virtual_time import VirtualClock
from qingcloud_cni.cloud import Access, Caller, CallSeen, Client, Limiter
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.errors import CloudError, CloudUnreachable, OutcomeUnknown

Answer = tuple[int, str, bytes]
OK = (200, "application/json", b'{"action": "DeleteNicsResponse", "ret_code": 0}')
EMPTY = (
    200,
    "application/json",
    b'{"action": "DescribeNicsResponse", "ret_code": 0, "nic_set": [], "total_count": 0}',
)


def refill() -> Urgency:
    return Urgency.REFILL


def release() -> Urgency:
    return Urgency.RELEASE


def refused(code: int) -> Answer:
    return 200, "application/json", b'{"message": "no", "ret_code": %d}' % code


class Line:
    """A transport that always answers alike."""

    def __init__(self, answer: Answer | Exception = OK) -> None:
        self.answer = answer
        self.sent: list[float] = []

    async def send(self, method: str, target: str, body: bytes, timeout: float) -> Answer:
        self.sent.append(VirtualClock().now())
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def close(self) -> None:
        self.sent.clear()


class Place:
    """A client with a budget of its own."""

    def __init__(self, per_hour: int = 10, answer: Answer | Exception = OK) -> None:
        self.clock = VirtualClock()
        self.rates: list[float] = []
        self.budget = Budget(per_hour, self.clock.now())
        self.limiter = Limiter(self.budget, clock=self.clock, rng=random.Random(1), on_rate=self.rates.append)
        self.line = Line(answer)
        self.seen: list[CallSeen] = []
        self.client = Client(Caller(
            Access("K", "S", zone="pek3a", connection_retries=0), self.line, self.limiter, clock=self.clock,
            rng=random.Random(2), observe=self.seen.append,
        ))  # fmt: skip

    def empty(self) -> None:
        while self.client.permit_now(waiting) is not None:
            pass


def on_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        virtual_time.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@on_virtual_time
async def test_calls_go_at_once_while_there_are_tokens_and_then_one_by_one() -> None:
    place = Place(10)
    begun = place.clock.now()
    for _ in range(13):
        await (await place.client.permit(waiting)).delete_nics(["a"])
    gaps = [round(at - begun) for at in place.line.sent]
    assert gaps[:10] == [0] * 10
    assert gaps[10:] == sorted(gaps[10:])
    assert 350 <= gaps[10] <= 410  # a token in 400 s for urgent calls; one for background calls may be borrowed


@on_virtual_time
async def test_the_more_urgent_goes_first_whoever_came_first() -> None:
    place = Place(10)
    place.empty()
    went: list[str] = []

    async def go(name: str, urgency: Callable[[], Urgency]) -> None:
        await place.client.permit(urgency)
        went.append(name)

    tasks = [asyncio.create_task(go(name, urgency)) for name, urgency in
             (("release", release), ("refill 1", refill), ("refill 2", refill), ("waiting", waiting))]  # fmt: skip
    await asyncio.gather(*tasks)
    assert [name for name in went if name != "release"] == ["waiting", "refill 1", "refill 2"]


@on_virtual_time
async def test_a_call_that_becomes_urgent_while_it_waits_overtakes() -> None:
    place = Place(10)
    place.empty()
    went: list[str] = []
    is_urgent = False

    async def go(name: str, urgency: Callable[[], Urgency]) -> None:
        await place.client.permit(urgency)
        went.append(name)

    first = asyncio.create_task(go("first", refill))
    second = asyncio.create_task(go("second", lambda: Urgency.WAITING if is_urgent else Urgency.REFILL))
    await place.clock.sleep(10.0)
    is_urgent = True
    place.client.reconsider()
    await asyncio.gather(first, second)
    assert went == ["second", "first"]


@on_virtual_time
async def test_nobody_overtakes_by_asking_again_and_again() -> None:
    place = Place(10)
    place.empty()
    first = asyncio.create_task(place.client.permit(refill))
    got = 0
    while not first.done():
        got += place.client.permit_now(refill) is not None
        await place.clock.sleep(1.0)
    assert got == 0


@on_virtual_time
async def test_who_gives_up_leaves_the_queue_and_costs_nothing() -> None:
    place = Place(10)
    place.empty()
    first, second = (asyncio.create_task(place.client.permit(refill)) for _ in range(2))
    await place.clock.sleep(1.0)
    assert place.client.spending().queued == (Urgency.REFILL, Urgency.REFILL)
    first.cancel()
    await second
    assert round(place.clock.now() - virtual_time.EPOCH) == 400
    assert place.client.spending().queued == ()


@on_virtual_time
async def test_a_permit_that_comes_as_its_owner_gives_up_goes_to_the_next() -> None:
    place = Place(10)
    place.empty()
    first, second = (asyncio.create_task(place.client.permit(refill)) for _ in range(2))
    await place.clock.sleep(1.0)
    place.limiter.return_permit(Urgency.REFILL)  # both wake for it, the first gets it …
    first.cancel()  # … and is gone before it knows
    await second
    assert place.clock.now() - virtual_time.EPOCH < 2.0


@on_virtual_time
async def test_each_page_and_each_try_is_a_call_of_its_own() -> None:
    place = Place(10, EMPTY)
    place.empty()
    calls = asyncio.create_task(place.client.permit(refill))
    nics = (await calls).nics
    assert await nics() == ()  # the first goes with the permit
    before = place.clock.now()
    assert await nics() == ()
    assert place.clock.now() - before > 300.0


@pytest.mark.parametrize(
    ("code", "rate"), [(5100, 60.0), (2500, 60.0), (5000, 120.0), (1400, 120.0), (5200, 120.0), (2400, 120.0)]
)
def test_the_cloud_slows_the_client_down_by_what_it_answers(code: int, rate: float) -> None:
    async def main() -> None:
        place = Place(120, refused(code))
        with pytest.raises(CloudError):
            await (await place.client.permit(waiting)).delete_nics(["a"])
        assert place.budget.rate == rate
        assert place.rates == ([rate] if rate < 120 else [])

    virtual_time.run(main())


@on_virtual_time
async def test_a_quota_that_a_create_meets_may_be_another_one() -> None:
    place = Place(120, refused(2500))
    with pytest.raises(CloudError):
        await (await place.client.permit(waiting)).create_nics("vxnet-1", 1, "n")
    assert place.budget.rate == 120.0
    place.client.slow_down()
    assert place.budget.rate == 60.0


@pytest.mark.parametrize(
    ("failure", "costs"), [(CloudUnreachable("refused", action=""), 0), (OutcomeUnknown("cut", action=""), 3)]
)
def test_only_what_was_sent_is_counted(failure: Exception, costs: int) -> None:
    async def main() -> None:
        place = Place(10, failure)
        before = place.client.spending().tokens
        for _ in range(3):
            with pytest.raises(CloudUnreachable):
                await (await place.client.permit(waiting)).delete_nics(["a"])
        assert round(before - place.client.spending().tokens) == costs
        assert place.budget.rate == 10.0

    virtual_time.run(main())


@on_virtual_time
async def test_what_is_seen_of_a_call_tells_what_it_was_for() -> None:
    place = Place(120)
    await (await place.client.permit(release)).delete_nics(["a"])
    assert [seen.urgency for seen in place.seen] == [Urgency.RELEASE]


@on_virtual_time
async def test_calls_that_work_wake_those_that_wait_for_a_lowered_rate() -> None:
    place = Place(120)
    for n in range(6):
        place.limiter.throttled(place.clock.now() + n, is_used_up=True)
    task = asyncio.create_task(place.client.permit(refill))
    await place.clock.sleep(1.0)
    late = place.budget.next_at([Urgency.REFILL], place.clock.now())
    for _ in range(20):
        place.limiter.succeeded()
    await task
    assert place.clock.now() < late


def test_a_gate_of_tests_has_plenty() -> None:
    async def main() -> None:
        limiter = make_limiter(VirtualClock())
        for _ in range(1000):
            await limiter.acquire(release)

    virtual_time.run(main())
