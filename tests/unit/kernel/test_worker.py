"""A worker's thread: one method after another, those of requests before those of the pool."""

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.kernel.namespaces.worker import Worker


class Held:
    """Records its calls; `wait` blocks the thread until the test opens it."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.is_open = threading.Event()
        self.is_closed = False

    def wait(self) -> None:
        self.is_open.wait()

    def call(self, number: int) -> int:
        self.calls.append(number)
        return number

    def fail(self) -> None:
        raise LookupError("on purpose")

    def close(self) -> None:
        self.is_closed = True


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_methods_of_requests_run_first_and_cancelled_ones_not_at_all(submitted: list[tuple[bool, bool]]) -> None:
    """While one runs, others come: of the pool or not, to be cancelled or not."""

    async def check() -> None:
        held = Held()
        worker = await Worker.start("test", lambda: held)
        blocked = asyncio.create_task(worker.do(Held.wait))
        await asyncio.sleep(0)
        tasks = []
        for number, (is_late, _) in enumerate(submitted):
            tasks.append(asyncio.create_task((worker.do_later if is_late else worker.do)(Held.call, number)))
        await asyncio.sleep(0)
        for task, (_, is_cancelled) in zip(tasks, submitted, strict=True):
            if is_cancelled:
                task.cancel()
        await asyncio.sleep(0)
        held.is_open.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await blocked
        await worker.close()
        wanted = [n for n, (_, is_cancelled) in enumerate(submitted) if not is_cancelled]
        assert held.calls == sorted(wanted, key=lambda n: submitted[n][0])
        assert [r for r in results if isinstance(r, int)] == wanted
        assert held.is_closed

    asyncio.run(check())


async def test_an_error_reaches_the_caller_and_the_thread_goes_on() -> None:
    held = Held()
    worker = await Worker.start("test", lambda: held)
    failed = await asyncio.gather(worker.do(Held.fail), worker.do_later(Held.fail), return_exceptions=True)
    assert [type(err) for err in failed] == [LookupError] * 2
    assert await worker.do(Held.call, 7) == 7
    await worker.close()
    await worker.close()
