"""Runs cases, some at once, and prints the table of what was tried and what held."""

import queue
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attack import identity, inheritance, removals, replies, strangers
from attack.registry import GROUPS, Case
from attack.scene import Scene
from machines.hosts import Host, NewHost, install
from machines.simulator import Sim, running_sim

MODULES = (inheritance, identity, replies, strangers, removals)  # each registers its cases
WORKERS = 3
MOST_HOSTS = 100  # of a simulator; a case takes one or two


@dataclass(frozen=True)
class Outcome:
    """How a case ended; *broken* is what did not hold, "" if all did."""

    case: Case
    seconds: float
    broken: str


class AttackRun:
    """Attempts all cases that begin before *end*, a time of the monotonic clock; copies logs of broken ones."""

    def __init__(self, cases: Sequence[Case], end: float, console: Console, logs: Path) -> None:
        self.outcomes: list[Outcome] = []
        self._waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
        for each in cases:
            self._waiting.put(each)
        self._end = end
        self._console = console
        self._logs = logs
        self._lock = threading.Lock()
        self._numbers = count(1)

    @property
    def left(self) -> int:
        return self._waiting.qsize()

    def stop(self) -> None:
        """Begin no more cases."""
        self._end = 0.0

    def run(self, sim: Sim, directory: Path) -> None:
        plugin = install(directory)

        def take() -> Host:
            with self._lock:
                name = f"host{next(self._numbers)}"
            home = directory / name
            home.mkdir(mode=0o711)  # as /run and /var/lib are
            return Host(sim, name, home, plugin)

        threads = [threading.Thread(target=self._work, args=(take,)) for _ in range(WORKERS)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.stop()
            for thread in threads:
                thread.join()

    def _work(self, take: NewHost) -> None:
        while time.monotonic() < self._end:
            try:
                case = self._waiting.get_nowait()
            except queue.Empty:
                return
            outcome = self._attempt(case, Scene(take))
            self.outcomes.append(outcome)
            words = "BROKEN" if outcome.broken else "held"
            self._console.print(f"{words:7} {case.group} {case.name} ({outcome.seconds:.1f} s)", highlight=False)

    def _attempt(self, case: Case, scene: Scene) -> Outcome:
        begun, broken = time.monotonic(), ""
        try:
            case.attack(scene)
            scene.check_attackers()
        except AssertionError as err:
            broken = str(err) or traceback.format_exc(limit=-1)
        except Exception:  # noqa: BLE001 - the case is broken, whatever the reason
            broken = traceback.format_exc(limit=-3)
        scene.close()
        if broken:
            for host in scene.hosts:
                kept = self._logs / case.name / host.name
                kept.mkdir(parents=True, exist_ok=True)
                for file in host.directory.glob("agent-*"):
                    shutil.copy(file, kept)
        return Outcome(case, time.monotonic() - begun, broken)


def run_cases(cases: Sequence[Case], seconds: float, console: Console, logs: Path) -> bool:
    """Whether all held that were begun within *seconds*."""
    hosts = min(2 * len(cases), MOST_HOSTS)
    attacks = AttackRun(cases, time.monotonic() + seconds, console, logs)
    with tempfile.TemporaryDirectory(prefix="a") as scratch, running_sim("--hosts", str(hosts)) as sim:
        attacks.run(sim, Path(scratch))
    _show(cases, attacks.outcomes, console)
    broken = sum(bool(outcome.broken) for outcome in attacks.outcomes)
    left = f"; {attacks.left} not begun within {seconds:.0f} s" if attacks.left else ""
    logs_are = f"; logs: {logs}" if broken else ""
    console.print(f"{len(attacks.outcomes)} attacks: {broken or 'none'} broken{left}{logs_are}", soft_wrap=True)
    return not broken


def _show(cases: Sequence[Case], outcomes: Sequence[Outcome], console: Console) -> None:
    table = Table("", "what was tried, and what must hold", "", "s", title="Attacks")
    by_case = {outcome.case.name: outcome for outcome in outcomes}
    for group, sentence in GROUPS.items():
        table.add_row(group, sentence, style="bold")
        for case in cases:
            if case.group == group and (outcome := by_case.get(case.name)):
                words, style = (f"BROKEN: {outcome.broken}", "red") if outcome.broken else ("held", "")
                table.add_row("", f"{case.name}: {case.sentence}", words, f"{outcome.seconds:.1f}", style=style)
        table.add_section()
    console.print(table)
