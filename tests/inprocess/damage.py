"""Damages of a state file, as disks and people cause them."""

import random
from collections.abc import Callable

PAGE = 4096  # bytes of one of SQLite's pages
Damage = Callable[[random.Random, bytearray], None]


def truncated(rng: random.Random, raw: bytearray) -> None:
    del raw[rng.randrange(len(raw)) :]


def emptied(_rng: random.Random, raw: bytearray) -> None:
    raw.clear()


def zeroed(rng: random.Random, raw: bytearray) -> None:
    start = rng.choice((0, rng.randrange(len(raw))))
    end = min(start + rng.choice((16, 512, PAGE, len(raw))), len(raw))
    raw[start:end] = bytes(end - start)


def overwritten(rng: random.Random, raw: bytearray) -> None:
    start = rng.choice((0, rng.randrange(len(raw))))
    end = min(start + rng.choice((4, 512, PAGE, len(raw))), len(raw))
    raw[start:end] = rng.randbytes(end - start)


def flipped(rng: random.Random, raw: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 20))):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)


def swapped(rng: random.Random, raw: bytearray) -> None:
    """Two pages are exchanged, or one replaces the other."""
    pages = max(len(raw) // PAGE, 1)
    one, two = rng.randrange(pages) * PAGE, rng.randrange(pages) * PAGE
    first, second = raw[one : one + PAGE], raw[two : two + PAGE]
    raw[two : two + PAGE] = first
    if rng.random() < 0.5:
        raw[one : one + PAGE] = second


DAMAGES: tuple[Damage, ...] = (truncated, emptied, zeroed, overwritten, flipped, swapped)
