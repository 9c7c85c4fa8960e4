"""The demo's output: numbered steps, command lines, and a line of progress while it waits."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MARGIN = " " * 6


class Reporter:
    """Writes to stdout, with colours and a moving line on a terminal that supports them."""

    def __init__(self) -> None:
        self._moves = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._has_colours = self._moves and not os.environ.get("NO_COLOR")
        self._progress = ""  # the progress line
        self._began = time.monotonic()

    def section(self, text: str) -> None:
        """Lines without a margin: before the first step and after the last."""
        self._write(f"{text}\n")

    def headline(self, number: int, count: int, title: str, why: str) -> None:
        self._began = time.monotonic()
        self._write(f"\n{self._paint('1', f'[{number}/{count}] {title}')}\n{MARGIN}{self._paint('2', why)}\n")

    def held(self) -> None:
        """Report the success of a step."""
        self._write(f"{MARGIN}{self._paint('32', 'ok')} ({time.monotonic() - self._began:.1f} s)\n")

    def command(self, words: Sequence[str | Path], settings: dict[str, str], stdin: Path | None = None) -> None:
        """A command line to type; the package's programs without the path of their environment."""
        own = Path(sys.executable).parent
        short = [word.name if isinstance(word, Path) and word.parent == own else str(word) for word in words]
        parts = [" ".join(f"{key}={shlex.quote(value)}" for key, value in settings.items()), shlex.join(short)]
        parts += [f"< {stdin}"] if stdin else []
        glue = " \\\n" + MARGIN + "    " if stdin else " "
        self._write(f"{MARGIN}{self._paint('36', '$ ' + glue.join(filter(None, parts)))}\n")

    def say(self, text: str = "") -> None:
        self._write(f"{MARGIN}{text}\n" if text else "\n")

    def show(self, output: str) -> None:
        """A command's output, indented and without empty lines."""
        for line in filter(str.strip, output.splitlines()):
            self._write(f"{MARGIN}  {line.rstrip()}\n")

    def waiting(self, text: str) -> None:
        """The cause of a wait: one moving line on a terminal, else a line for each change."""
        if self._moves:
            self._clear()
            sys.stdout.write(f"{MARGIN}{self._paint('33', f'... {text} ({time.monotonic() - self._began:.0f} s)')}")
            sys.stdout.flush()
        elif text != self._progress:
            self._write(f"{MARGIN}... {text}\n")
        self._progress = text

    def failure(self, text: str) -> None:
        for line in text.splitlines():
            self._write(f"{MARGIN}{self._paint('31', line)}\n")

    def _write(self, text: str) -> None:
        if self._moves and self._progress:
            self._clear()
        self._progress = ""
        sys.stdout.write(text)
        sys.stdout.flush()

    def _clear(self) -> None:
        sys.stdout.write("\r\x1b[K")

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._has_colours else text
