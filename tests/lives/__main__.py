#!/usr/bin/env python3
"""Simulated lives of a host and its agent: `make sim SEEDS=1000 START=0`, or one of them, `make sim SEED=7`.

In scripted lives the agent is killed at every step as well. A failing life is reduced as far as possible, and printed
with the command that repeats it.
"""

import argparse
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from lives.life import Life, live
from lives.scenario import CONDITIONS, SCRIPTS, Plan, plan
from lives.shrink import shrunk

LINES = 40  # last lines of the story of a failing life
BATCH = 20  # lives
MOST = 5  # failures that are reduced


def main() -> int:
    options = _options()
    if options.seed is not None or options.script:
        chosen = _chosen(options)
        life = live(chosen, crash_after=options.crash)
        print("\n".join(life.story))
        return _told(chosen, options.crash, life)
    began = time.monotonic()
    with ProcessPoolExecutor(options.jobs) as processes:
        seeds = range(options.start, options.start + options.seeds)
        lives = [f for found in processes.map(failed_lives, batches(seeds)) for f in found]
        points = {name: range(1, live(script).steps) for name, script in SCRIPTS.items() if not options.no_crashes}
        jobs = [(name, batch) for name, every in points.items() for batch in batches(every)]
        crashes = [f for found in processes.map(_failed_crashes, jobs) for f in found]
    for seed in lives[:MOST]:
        small = shrunk(plan(seed), lambda smaller: live(smaller).failure)
        _told(small, 0, live(small))
    for name, point in crashes[:MOST]:
        _told(SCRIPTS[name], point, live(SCRIPTS[name], crash_after=point))
    print(
        f"{len(seeds)} lives from seed {options.start}, {len(lives)} failed{': ' if lives else ''}"
        f"{' '.join(map(str, lives))}; {sum(map(len, points.values()))} crash points, {len(crashes)} failed; "
        f"{time.monotonic() - began:.0f} s in {options.jobs} processes"
    )
    return bool(lives or crashes)


def batches(numbers: range) -> Iterator[range]:
    for start in range(numbers.start, numbers.stop, BATCH):
        yield range(start, min(start + BATCH, numbers.stop))


def failed_lives(seeds: range) -> list[int]:
    return [seed for seed in seeds if live(plan(seed)).error is not None]


def failed_crashes(name: str, points: range) -> list[int]:
    """Return the steps of a scripted life at which a death of the agent broke an invariant."""
    return [point for point in points if live(SCRIPTS[name], crash_after=point).error is not None]


def _failed_crashes(job: tuple[str, range]) -> list[tuple[str, int]]:
    return [(job[0], point) for point in failed_crashes(*job)]


def command(of: Plan, crash: int = 0) -> str:
    """Return the command that repeats a life."""
    name = next((name for name, script in SCRIPTS.items() if script == of), "")
    if name:
        return f"make sim SCRIPT={name} CRASH={crash}"
    whole = plan(of.seed)
    words = [f"make sim SEED={of.seed}"]
    if of.steps != whole.steps:
        words.append(f"KEEP={','.join(str(step.number) for step in of.steps) or '-'}")
    if left_out := sorted(whole.conditions - of.conditions):
        words.append(f"WITHOUT={','.join(left_out)}")
    return " ".join(words + ([f"CRASH={crash}"] if crash else []))


def report(of: Plan, crash: int, life: Life) -> str:
    return "\n".join((*life.story[-LINES:], life.failure, f"repeat it with: {command(of, crash)}"))


def _told(of: Plan, crash: int, life: Life) -> int:
    if life.error is None:
        print(f"no invariant broken: {life.steps} steps, digest {life.digest[:16]}")
        return 0
    print(report(of, crash, life) + "\n")
    return 1


def _chosen(options: argparse.Namespace) -> Plan:
    if options.script:
        return SCRIPTS[options.script]
    whole = plan(options.seed)
    steps = whole.steps
    if options.keep:
        kept = {int(number) for number in options.keep.split(",") if number != "-"}
        steps = tuple(step for step in steps if step.number in kept)
    return replace(whole, steps=steps, conditions=whole.conditions - set(filter(None, options.without.split(","))))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many lives")
    parser.add_argument("--start", type=int, default=0, help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--no-crashes", action="store_true", help="skip the scripted lives")
    parser.add_argument("--seed", type=int, help="print only this life")
    parser.add_argument("--keep", default="", help="only these of its steps")
    parser.add_argument("--without", default="", help=f"without some of its conditions ({', '.join(CONDITIONS)})")
    parser.add_argument("--script", choices=SCRIPTS, help="a scripted life")
    parser.add_argument("--crash", type=int, default=0, help="the agent dies after this number of steps")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
