"""One run: everybody in a thread of their own, and the main one waits for the end, or for a signal."""

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

from chaos.accounts import Accounts
from chaos.ledger import Ledger
from chaos.record import Record
from chaos.runtimes import Plugins, Runtime
from chaos.stage import Stage, staged
from chaos.trouble import Trouble
from chaos.watcher import Watcher


@dataclass(frozen=True)
class Size:
    seconds: float = 180.0
    containers: int = 30
    hosts: int = 2


class Play:
    def __init__(self, stage: Stage, record: Record, seed: int, size: Size) -> None:
        self._record = record
        self._size = size
        self._quiet = threading.Event()  # no more trouble
        self._calm = threading.Event()  # and no new containers
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ledger = Ledger()
        self._plugins = Plugins(record)

        def drawn(who: object) -> random.Random:
            return random.Random(f"{seed} {who}")

        hosts = [stage.hosts[n % size.hosts] for n in range(size.containers)]
        self._runtimes = [
            Runtime(host, self._plugins, self._ledger, record, drawn(n)) for n, host in enumerate(hosts)
        ]
        self._trouble = Trouble(stage, self._plugins, self._ledger, record, drawn("trouble"))
        self._watcher = Watcher(self._ledger, record, stage.places, drawn("watcher"))
        self._accounts = Accounts(stage, self._ledger, record, self._runtimes)

    def run(self) -> None:
        """Whatever happens, no thread is left at the end."""
        try:
            self._begin("watcher", self._watcher.run, self._end)
            runtimes = [
                self._begin(f"runtime {n}", runtime.run, self._calm) for n, runtime in enumerate(self._runtimes)
            ]
            trouble = self._begin("trouble", self._trouble.run, self._quiet)
            self._record.over.wait(self._size.seconds)
            self._quiet.set()
            self._await(trouble)  # first: nobody may meddle with a container that is left as it is
            self._calm.set()
            for thread in runtimes:
                self._await(thread)
            if not self._record.over.is_set():
                self._await(self._begin("accounts", lambda _: self._accounts.settle(), self._end))
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
                self._record.breaks(f"{name}: {traceback.format_exc()}")

        thread = threading.Thread(target=guarded, name=name)
        self._threads.append(thread)
        thread.start()
        return thread

    def _await(self, thread: threading.Thread) -> None:
        while thread.is_alive() and not self._record.over.is_set():
            thread.join(0.2)


def play(seed: int, size: Size, out: TextIO, logs: Path) -> bool:
    """Whether all held. If not, stories of what is concerned are told, and all logs kept in *logs*."""
    with tempfile.TemporaryDirectory(prefix="c") as scratch:
        directory = Path(scratch)
        record = Record(out, directory / "chaos.log")
        try:
            record.tell(f"seed {seed}: {size.containers} containers on {size.hosts} hosts for {size.seconds:.0f} s")
            with redirect_stdout(StringIO()), staged(directory, record, size.hosts) as stage:
                record.tell("cloud and agents are up")
                Play(stage, record, seed, size).run()
                if record.broken:
                    _tell_why(record, stage, logs)
            for line in record.summary():
                record.tell(line)
            if not record.broken:
                record.tell("all held")
        finally:
            record.close()
    return not record.broken


def _tell_why(record: Record, stage: Stage, logs: Path) -> None:
    for subject in dict.fromkeys(name for broken in record.broken for name in broken.subjects):
        record.tell(f"the story of {subject}:\n{stage.story(subject)}")
    stage.keep(logs)
    record.tell(f"logs and state files: {logs}")
    for broken in record.broken:
        record.tell(f"BROKEN at {broken.at:.2f}: {broken.claim}")
