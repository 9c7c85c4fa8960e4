"""`make chaos`: agents, plugins and the cloud's API die, links and namespaces are disturbed, and nothing is lost.

It exits with 0 if all claims held, with 1 if one did not (then logs stay), with 130 after an interrupt.
"""

import argparse
import random
import sys
from pathlib import Path

from chaos.run import Size, run_chaos
from machines.interrupts import run_to_the_end

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
    size = Size(seconds=options.minutes * 60, containers=options.containers, hosts=options.hosts)
    logs = options.logs / str(options.seed)
    return run_to_the_end("chaos", lambda: run_chaos(options.seed, size, sys.stdout, logs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
