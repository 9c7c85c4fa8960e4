"""The marks of NICs whose links are being moved."""

import asyncio
from contextlib import suppress

from qingcloud_cni.agent.base.context import Move, Moves
from qingcloud_cni.agent.base.signals import Signal


def test_a_nic_is_marked_at_once_and_until_the_block_ends() -> None:
    moves = Moves(Signal())
    move = moves.of("nic1")
    assert set(moves) == {"nic1"}
    with suppress(KeyError), move:
        raise KeyError
    assert not moves


def test_a_nic_stays_marked_until_its_last_move_ends() -> None:
    moves = Moves(Signal())
    with moves.of("nic1"):
        with moves.of("nic1"), moves.of("nic2"):
            pass
        assert set(moves) == {"nic1"}
    assert not moves


def test_a_task_takes_over_the_mark_and_ends_it_even_if_it_is_cancelled() -> None:
    moves = Moves(Signal())

    async def hold(move: Move) -> None:
        with move:
            await asyncio.Future()

    async def main() -> None:
        task = asyncio.create_task(hold(moves.of("nic1")))
        assert "nic1" in moves
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert not moves

    asyncio.run(main())


def test_a_skipped_nic_makes_a_comparison_due_when_its_last_move_ends() -> None:
    async def main() -> None:
        due = Signal()
        moves = Moves(due)
        with moves.of("nic1"):
            with moves.of("nic1"), moves.of("nic2"):
                moves.skip({"nic1"})
            assert not await due.wait(0)
        assert await due.wait(0)
        with moves.of("nic1"):
            pass
        assert not await due.wait(0), "once"
        moves.skip({"nic1"})
        assert await due.wait(0), "it is at rest already"

    asyncio.run(main())


def test_a_failed_move_makes_no_comparison_due_at_once() -> None:
    """Else a park that keeps failing and the comparison after it would follow each other without a pause."""

    async def main() -> None:
        due = Signal()
        moves = Moves(due)
        with moves.of("nic1"):
            moves.skip({"nic1"})
            moves.leave("nic1")
        assert not await due.wait(0)

    asyncio.run(main())
