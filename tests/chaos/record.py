"""The record of a run: lines as they happen, counts and times; a broken claim ends the run."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import TextIO


@dataclass(frozen=True)
class Broken:
    """A claim that failed."""

    at: float  # seconds since the begin
    claim: str
    subjects: tuple[str, ...]  # names of containers, ids of NICs: whose stories are wanted


class Record:
    """Written to by all threads."""

    def __init__(self, out: TextIO, log: Path) -> None:
        self._begun = time.monotonic()
        self._out = out
        self._log = log.open("w")
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}  # of what succeeded, by verb
        self.broken: list[Broken] = []
        self.over = threading.Event()  # something is broken: all stop

    @property
    def now(self) -> float:
        return time.monotonic() - self._begun

    def tell(self, what: str) -> None:
        """Write a line to the terminal and the log."""
        self._write(what, self._out, self._log)

    def note(self, what: str) -> None:
        """Write a line to the log only."""
        self._write(what, self._log)

    def _write(self, what: str, *namespaces: TextIO) -> None:
        with self._lock:
            for place in namespaces:
                print(f"{self.now:7.2f}  {what}", file=place, flush=True)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def took(self, verb: str, seconds: float) -> None:
        with self._lock:
            self.seconds.setdefault(verb, []).append(seconds)

    def fail(self, claim: str, *subjects: str) -> None:
        """End the run: a claim does not hold. Ignored after the end of the run."""
        if self.over.is_set() and not self.broken:
            return
        self.tell(f"BROKEN: {claim}")
        with self._lock:
            self.broken.append(Broken(self.now, claim, subjects))
        self.over.set()

    def close(self) -> None:
        self._log.close()

    def summary(self) -> list[str]:
        """Counts, and durations of successful requests in milliseconds."""
        lines = [f"{count:6} {what}" for what, count in sorted(self.counts.items())]
        for verb, seconds in sorted(self.seconds.items()):
            cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
            lines.append(f"{verb:5} p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms of {len(seconds)}")
        return lines
