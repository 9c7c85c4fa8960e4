"""ADD, DEL and plugin start of this checkout beside another one, in turn: `make bench AGAINST=…`."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.environment import VXNETS, BenchFailed, HostThreads, ended, execute, install
from bench.figures import MS
from bench.measures import VERBS, Record, held
from bench.plugins import Qingcni
from machines.containers import Container
from machines.hosts import QINGAGENT, Host
from machines.simulator import Sim, run

START = "plugin start"
MEASURED = (START, *VERBS)
NEW, OLD = "this checkout", "the other"
IDLE = 3  # NICs of each agent


@dataclass(frozen=True)
class Extent:
    """The bounds of a comparison."""

    runs: int  # each with new agents
    seconds: float  # of each run, beside the agents' starts
    least: int = 3  # rounds of a run, however long they take


QUICK = Extent(runs=1, seconds=0.0)
USUAL = Extent(runs=3, seconds=30.0)


@dataclass
class TreeHost(Host):
    """A host whose agent may be of a version without some of the tests' flags."""

    known: frozenset[str] = frozenset()

    def flags(self, **settings: object) -> list[str]:
        words = super().flags(**settings)
        return [word for pair in zip(words[::2], words[1::2], strict=True) if pair[0] in self.known for word in pair]


@dataclass(frozen=True)
class Tree:
    """A checkout on a host of its own."""

    name: str
    plugin: Qingcni
    host: Host
    container: Container

    @contextmanager
    def agent(self) -> Iterator[None]:
        """Run its agent for the block."""
        self.host.start(idle=IDLE, **held(IDLE, IDLE))
        yield
        if self.host.agent.stop():
            raise BenchFailed(f"agent of {self.name}: failed: {self.host.agent.stderr}")

    def measure(self, record: Record) -> None:
        """A start of the plugin, then a container from ADD to DEL."""
        program, threads = self.plugin.program, self.plugin.host_threads
        record.add(f"{START}, {self.name}", threads.do(execute, program, {"CNI_COMMAND": "VERSION"}, b""))
        for verb in VERBS:
            record.add(f"{verb}, {self.name}", self.plugin.timed(verb, self.container))


def program_of(tree: Path) -> str:
    """The installed `qingagent` of a checkout."""
    program = tree.absolute() / ".venv/bin/qingagent"
    if not program.exists():
        raise BenchFailed(f"{program}: not found; run `make bench AGAINST={tree}`, which sets that checkout up")
    return str(program)


@contextmanager
def _tree(sim: Sim, directory: Path, name: str, program: str, number: int) -> Iterator[Tree]:
    """The checkout with *program*, on the host of this *number*."""
    home = directory / f"host{number}"
    home.mkdir(mode=0o700)
    plugin, _ = install(home, None, program)
    known = frozenset(re.findall(r"--[A-Za-z-]+", run(program, "start", "--help").stdout))
    host = TreeHost(sim, home.name, home, plugin, VXNETS[number - 1], program=program, known=known)
    threads = HostThreads(sim.host(host.name)["netns"], 1)
    try:
        with ended(host):
            yield Tree(name, Qingcni(host, threads), host, host.container())
    finally:
        threads.close()


def compare(sim: Sim, directory: Path, other: Path, extent: Extent) -> list[Record]:
    """A Record of each run."""
    programs = {NEW: QINGAGENT, OLD: program_of(other)}
    with ExitStack() as stack:
        trees = [
            stack.enter_context(_tree(sim, directory, name, program, number))
            for number, (name, program) in enumerate(programs.items(), 1)
        ]
        return [_run(trees, extent) for _ in range(extent.runs)]


def _run(trees: list[Tree], extent: Extent) -> Record:
    """Measure both in turn; which one comes first changes from round to round."""
    record = Record()
    with ExitStack() as stack:
        for tree in trees:
            stack.enter_context(tree.agent())
            tree.measure(Record())  # warms caches and one-time work
        end = time.monotonic() + extent.seconds
        rounds = 0
        while rounds < extent.least or time.monotonic() < end:
            for tree in trees if rounds % 2 else reversed(trees):
                tree.measure(record)
            rounds += 1
    return record


def ratio(record: Record, what: str) -> float:
    """Median of this checkout by that of the other."""
    return record.sample(f"{what}, {NEW}").p50 / record.sample(f"{what}, {OLD}").p50


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Of each measured thing: both medians over all runs, the ratio of each run, and the median of these."""
    found = []
    for what in MEASURED:
        both = [median(second for r in records for second in r.samples[f"{what}, {name}"]) for name in (NEW, OLD)]
        ratios = [ratio(record, what) for record in records]
        texts = (*(f"{seconds * MS:.2f}" for seconds in both), *(f"{each:.3f}" for each in ratios))
        found.append((what, *texts, f"{median(ratios):.3f}"))
    return found


def show(records: Sequence[Record], console: Console) -> None:
    count = sum(len(record.samples[f"{START}, {NEW}"]) for record in records)
    runs = [f"run {number}" for number in range(1, len(records) + 1)]
    title = f"Medians of {count} samples each, and ratios {NEW} / {OLD}"
    table = Table("what", f"{NEW}, ms", f"{OLD}, ms", *runs, "median ratio", title=title)
    for row in rows(records):
        table.add_row(*row)
    console.print(table)
