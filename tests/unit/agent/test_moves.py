"""The marks of NICs whose links are being moved."""

import asyncio
from contextlib import suppress

from qingcloud_cni.agent.base.context import Move, Moves


def test_a_nic_is_marked_at_once_and_until_the_block_ends() -> None:
    moves = Moves()
    move = moves.of("nic1")
    assert set(moves) == {"nic1"}
    with suppress(KeyError), move:
        raise KeyError
    assert not moves


def test_a_nic_stays_marked_until_its_last_move_ends() -> None:
    moves = Moves()
    with moves.of("nic1"):
        with moves.of("nic1"), moves.of("nic2"):
            pass
        assert set(moves) == {"nic1"}
    assert not moves


def test_a_task_takes_over_the_mark_and_ends_it_even_if_it_is_cancelled() -> None:
    moves = Moves()

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
