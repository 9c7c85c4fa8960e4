"""How `make chaos` and `make attack` end: whatever happens, everything they made is removed."""

import signal
from collections.abc import Callable
from types import FrameType


def run_to_the_end(name: str, work: Callable[[], bool]) -> int:
    """Carry out *work*, and return the exit status: 0 if it returns True, else 1, and 130 after an interrupt."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    try:
        return 0 if work() else 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; everything is removed")
        return 130


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    """The first signal ends the run; later ones must not interrupt the removal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # a function and not SIG_IGN, which children would inherit
    raise KeyboardInterrupt
