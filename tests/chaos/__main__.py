"""`make chaos`: agents, plugins and the cloud's API die, links and namespaces are disturbed, and nothing is lost.

It exits with 0 if all claims held, with 1 if one did not (then logs stay), with 130 after an interrupt.
"""

import argparse
import random
import signal
import sys
from pathlib import Path
from types import FrameType

from chaos.run import Size, run_chaos

ROOT = Path(__file__).parents[2]


def parse(words: list[str]) -> argparse.Namespace:
    usage = 'make chaos MINUTES=3 SEED=7 ARGS="[options]"'
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__, usage=usage)
    parser.add_argument("--minutes", type=float, default=3.0, help="duration of the disturbances")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of all random choices")
    parser.add_argument("--containers", type=int, default=30)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--logs", type=Path, default=ROOT / ".build/chaos", help="directory for logs of a failed run")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    options = parse(words)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    size = Size(seconds=options.minutes * 60, containers=options.containers, hosts=options.hosts)
    try:
        return 0 if run_chaos(options.seed, size, sys.stdout, options.logs / str(options.seed)) else 1
    except KeyboardInterrupt:
        print("chaos: interrupted; everything is removed")
        return 130


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    """The first signal ends the run; later ones must not interrupt the removal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # a function and not SIG_IGN, which children would inherit
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
