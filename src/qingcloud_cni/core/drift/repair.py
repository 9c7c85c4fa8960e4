"""How often a NIC whose link is nowhere may be detached and attached again, in the hope that the link comes. Pure.

Each time costs three calls, one of them a look, and two jobs, which hold up the attaches of containers that wait;
and where hot-plug itself is broken no number of them helps.
"""

from collections.abc import Sequence
from math import inf

from qingcloud_cni.core.nics.model import Nic

PER_NIC = 3  # times in a row
PER_HOUR = 6  # times for the host, however many NICs at once
PAUSES = (0.0, 240.0, 960.0)  # seconds since the time before; an attach is given 30 to show its link
MEMORY = 6 * 3600.0  # seconds after which a NIC's times are forgotten: it is given up no longer than that
HOUR = 3600.0


def tried(nic: Nic, now: float) -> int:
    """Times in a row, lately."""
    return nic.repairs if 0.0 <= now - nic.repaired < MEMORY else 0


def is_given_up(nic: Nic, now: float) -> bool:
    return tried(nic, now) >= PER_NIC


def due_at(nic: Nic, times: Sequence[float], now: float) -> float:
    """When it may be done to *nic* next, in seconds since the epoch; not after *now*: at once.

    *times* are those at which it was done to any NIC of the host.
    """
    count = tried(nic, now)
    if count >= PER_NIC:
        return nic.repaired + MEMORY
    latest = sorted((t for t in times if 0.0 <= now - t < HOUR), reverse=True)
    room_at = latest[PER_HOUR - 1] + HOUR if len(latest) >= PER_HOUR else -inf
    return max(nic.repaired + PAUSES[count] if count else -inf, room_at)
