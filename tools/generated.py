"""Parts of pages that are written from what the program itself knows, so that the two cannot part."""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Part:
    """What stands between two marks of *page*; *module* is the tool that writes it."""

    page: Path
    module: str
    lines: Callable[[], Iterable[str]]

    @property
    def begin(self) -> str:
        return f"<!-- begin: written by `python -m {self.module}` -->\n"

    @property
    def end(self) -> str:
        return f"<!-- end: written by `python -m {self.module}` -->\n"

    def filled(self, text: str) -> str:
        """*text* of the page with this part as it must be."""
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not (begin and end):
            raise SystemExit(f"{self.page}: the marks of {self.module} are missing")
        return before + begin + "\n" + "\n".join(self.lines()) + "\n\n" + end + after

    def main(self) -> int:
        """Write the part; with `--check` say by the exit status whether that is needed."""
        parser = argparse.ArgumentParser(description=f"Write the generated part of {self.page.name}.")
        parser.add_argument("--check", action="store_true", help="change nothing; fail if the page is out of date")
        is_check = parser.parse_args().check
        text = self.page.read_text(encoding="utf-8")
        wanted = self.filled(text)
        if is_check and text != wanted:
            print(f"{self.page} is out of date: run `python -m {self.module}`", file=sys.stderr)
            return 1
        if not is_check:
            self.page.write_text(wanted, encoding="utf-8")
        return 0
