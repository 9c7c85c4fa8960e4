"""Parts of pages that are written from what the program itself knows, so that the two cannot differ."""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Part:
    """The lines between two marks of *page*, written by the tool *module*; *name* tells several parts apart."""

    page: Path
    module: str
    lines: Callable[[], Iterable[str]]
    name: str = ""

    def _mark(self, word: str) -> str:
        return f"<!-- {word}{' ' + self.name if self.name else ''}: written by `python -m {self.module}` -->\n"

    @property
    def begin(self) -> str:
        return self._mark("begin")

    @property
    def end(self) -> str:
        return self._mark("end")

    def filled(self, text: str) -> str:
        """*text* of the page with this part as it must be."""
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not (begin and end):
            raise SystemExit(f"{self.page}: the marks of {self.module} {self.name} are missing")
        return before + begin + "\n" + "\n".join(self.lines()) + "\n\n" + end + after


def main(*parts: Part) -> int:
    """Write the parts; with `--check` return 1 if that would change a page."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is out of date")
    is_check = parser.parse_args().check
    is_stale = False
    for part in parts:
        text = part.page.read_text(encoding="utf-8")
        wanted = part.filled(text)
        if is_check and text != wanted:
            print(f"{part.page} is out of date: run `python -m {part.module}`", file=sys.stderr)
            is_stale = True
        if not is_check:
            part.page.write_text(wanted, encoding="utf-8")
    return int(is_stale)
