"""`make bench`: the cost of the program, beside well-known plugins, on the simulator's real interfaces.

One run measures everything it compares in turn: machines differ, and so do their hours.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import against, measures, report
from bench.crowded import crowded
from bench.environment import BenchFailed, Environment, install, peers_directory
from bench.measures import Record, Size
from machines.simulator import running_sim

ROOT = Path(__file__).parents[1]
MEASURES: dict[str, Callable[[Environment, Size, Record], None]] = {
    "serial": measures.serial,
    "burst": measures.burst,
    "rest": measures.rest,
    "crowded": crowded,
}
QUICK = Size(rounds=5, parallel=4, volleys=1, burst=8, nics=10, pairs=20, idle=1.0, starts=1)
USUAL = Size(rounds=100, parallel=20, volleys=7, burst=50, nics=60, pairs=1000, idle=10.0, starts=3)
FULL = Size(rounds=300, parallel=20, volleys=15, burst=50, nics=60, pairs=10_000, idle=65.0, starts=5)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__, usage='make bench ARGS="[options]"')
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few samples, to see that it works")
    size.add_argument("--full", action="store_true", help="many samples: 10,000 ADD/DEL for memory, a minute idle")
    parser.add_argument("--only", choices=tuple(MEASURES), help="one of the measurements")
    parser.add_argument("--against", type=Path, help="another checkout, set up: only compare this one with it")
    parser.add_argument("--python", type=Path, help="interpreter of the plugin, as in install-plugin")
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/last.json", help="file for the figures")
    parser.add_argument("--write", action="store_true", help="write the run into docs/performance.md")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    options = parse(words)
    size, latency = (QUICK, "500ms") if options.quick else (FULL if options.full else USUAL, "3s")
    console, record = Console(), Record()
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        if options.against:
            return _against(options.against, against.QUICK if options.quick else against.USUAL, console)
        if options.only in (None, "serial"):
            peers_directory()  # before it builds anything
        with tempfile.TemporaryDirectory(prefix="b") as scratch:
            directory = Path(scratch)
            plugin, empty = install(directory, options.python)
            with running_sim("--hosts", "5", "--attach-latency", latency) as sim:
                environment = Environment(sim, directory, plugin, empty)
                for name, measure in MEASURES.items():
                    if options.only in (None, name):
                        console.print(f"measuring: {name}", style="dim")
                        measure(environment, size, record)
            python = _version(empty)
    except BenchFailed as err:
        console.print(f"bench: {err}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("bench: interrupted; everything is removed")
        return 130
    command = shlex.join(["make", "bench", *([f"ARGS={shlex.join(words)}"] if words else [])])
    facts = report.machine(python, command)
    report.show(record, console)
    report.save_json(options.json, report.as_json(record, facts))
    console.print(f"figures: {options.json}", style="dim", soft_wrap=True)
    if options.write:
        report.write_page(ROOT / "docs/performance.md", record, facts)
    return 0


def _against(tree: Path, extent: against.Extent, console: Console) -> int:
    with tempfile.TemporaryDirectory(prefix="b") as scratch, running_sim("--hosts", "2") as sim:
        records = against.compare(sim, Path(scratch), tree, extent)
    against.show(records, console)
    return 0


def _version(empty: Path) -> str:
    """The version of the plugin's interpreter."""
    interpreter = empty.read_text().split()[0][2:]
    return subprocess.run([interpreter, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
