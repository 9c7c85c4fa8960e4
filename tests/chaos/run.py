"""One run: runtimes, disturbances and watcher in threads; the main thread waits for the end or a signal."""

import random
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TextIO

from chaos.disturbances import Disturbances
from chaos.environment import Environment, running_environment
from chaos.final_check import FinalCheck
from chaos.promises import Promises
from chaos.record import Record
from chaos.runtimes import Plugins, Runtime
from chaos.watcher import Watcher


@dataclass(frozen=True)
class Size:
    seconds: float = 180.0
    containers: int = 30
    hosts: int = 2


class ChaosRun:
    def __init__(self, environment: Environment, record: Record, seed: int, size: Size) -> None:
        self._record = record
        self._size = size
        self._quiet = threading.Event()  # no more disturbances
        self._calm = threading.Event()  # no new containers either
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self._promises = Promises()
        self._plugins = Plugins(record)

        def drawn(who: object) -> random.Random:
            return random.Random(f"{seed} {who}")

        hosts = [environment.hosts[n % size.hosts] for n in range(size.containers)]
        self._runtimes = [
            Runtime(host, self._plugins, self._promises, record, drawn(n)) for n, host in enumerate(hosts)
        ]
        self._disturbances = Disturbances(environment, self._plugins, self._promises, record, drawn("trouble"))
        self._watcher = Watcher(self._promises, record, environment.namespaces, drawn("watcher"))
        self._final_check = FinalCheck(environment, self._promises, record, self._runtimes)

    def run(self) -> None:
        """Leaves no thread in any case."""
        try:
            self._begin("watcher", self._watcher.run, self._end)
            runtimes = [
                self._begin(f"runtime {n}", runtime.run, self._calm) for n, runtime in enumerate(self._runtimes)
            ]
            disturbances = self._begin("trouble", self._disturbances.run, self._quiet)
            self._record.over.wait(self._size.seconds)
            self._quiet.set()
            self._await(disturbances)  # first: no disturbance may hit the containers that stay
            self._calm.set()
            for thread in runtimes:
                self._await(thread)
            if not self._record.over.is_set():
                self._await(self._begin("accounts", lambda _: self._final_check.settle(), self._end))
        finally:
            self._record.over.set()
            self._quiet.set()
            self._calm.set()
            self._end.set()
            for thread in self._threads:
                while thread.is_alive():
                    self._plugins.kill_all()
                    thread.join(0.2)

    def _begin(self, name: str, act: Callable[[threading.Event], None], until: threading.Event) -> threading.Thread:
        def guarded() -> None:
            try:
                act(until)
            except Exception:  # noqa: BLE001 - of any thread: the run has failed, and says why
                self._record.fail(f"{name}: {traceback.format_exc()}")

        thread = threading.Thread(target=guarded, name=name)
        self._threads.append(thread)
        thread.start()
        return thread

    def _await(self, thread: threading.Thread) -> None:
        while thread.is_alive() and not self._record.over.is_set():
            thread.join(0.2)


def run_chaos(seed: int, size: Size, out: TextIO, logs: Path) -> bool:
    """Whether all claims held. If not, it prints the events of the subjects and copies all logs to *logs*."""
    with tempfile.TemporaryDirectory(prefix="c") as scratch:
        directory = Path(scratch)
        record = Record(out, directory / "chaos.log")
        try:
            record.tell(f"seed {seed}: {size.containers} containers on {size.hosts} hosts for {size.seconds:.0f} s")
            with redirect_stdout(StringIO()), running_environment(directory, record, size.hosts) as environment:
                record.tell("cloud and agents are up")
                ChaosRun(environment, record, seed, size).run()
                if record.broken:
                    _explain(record, environment, logs)
            for line in record.summary():
                record.tell(line)
            if not record.broken:
                record.tell("all held")
        finally:
            record.close()
    return not record.broken


def _explain(record: Record, environment: Environment, logs: Path) -> None:
    for subject in dict.fromkeys(name for broken in record.broken for name in broken.subjects):
        record.tell(f"the story of {subject}:\n{environment.story(subject)}")
    environment.keep(logs)
    record.tell(f"logs and state files: {logs}")
    for broken in record.broken:
        record.tell(f"BROKEN at {broken.at:.2f}: {broken.claim}")
