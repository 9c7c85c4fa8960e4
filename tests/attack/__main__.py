"""`make attack`: hostile containers, processes, replies and removals, end to end, and a table of what held.

It exits with 0 if everything held, with 1 if something did not (then logs stay), with 130 after an interrupt.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from attack.registry import CASES
from attack.run import run_cases
from machines.interrupts import run_to_the_end

ROOT = Path(__file__).parents[2]


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__, usage='make attack ARGS="[options]"')
    parser.add_argument("--short", action="store_true", help="only the cases that are part of `make test`")
    parser.add_argument("--only", action="append", default=[], help="a group (A to E) or a case; may be repeated")
    parser.add_argument("--minutes", type=float, default=3.0, help="no case begins later (default 3)")
    parser.add_argument("--list", action="store_true", help="print the cases, and run none")
    parser.add_argument(
        "--logs", type=Path, default=ROOT / ".build/attack", help="directory for logs of broken cases"
    )
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    options = parse(words)
    chosen = [
        case
        for case in CASES
        if (case.is_short or not options.short) and (not options.only or {case.group, case.name} & set(options.only))
    ]
    if options.list or not chosen:
        for case in chosen:
            print(f"{case.group}  {case.name}: {case.sentence}")
        return 0 if chosen else 2
    return run_to_the_end("attack", lambda: run_cases(chosen, options.minutes * 60, Console(), options.logs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
