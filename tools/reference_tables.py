"""Writes the tables of settings and events in docs/ from those of the program.

`python -m tools.reference_tables` rewrites the pages, `--check` says with its exit status whether that is needed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from qingcloud_cni.agent.base.logs import LINES
from qingcloud_cni.agent.settings.settings import SETTINGS
from qingcloud_cni.core.events import EVENTS, EventKind
from tools.generated import Part, main

DOCS = Path(__file__).parents[1] / "docs"
NONE = "\u2013"


def table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def settings() -> Iterator[str]:
    rows = (
        (f"`{s.name}`", f"`{s.variable}`", s.kind.wanted, f"`{s.default}`" if s.default != "" else NONE, s.help)
        for s in SETTINGS
    )
    return table(("Setting", "Environment variable", "Value", "Default", "Meaning"), rows)


def events() -> Iterator[str]:
    return _kinds("Event", EVENTS)


def log_lines() -> Iterator[str]:
    return _kinds("Log line", LINES)


def _kinds(title: str, kinds: Mapping[str, EventKind]) -> Iterator[str]:
    return table((title, "Level", "Meaning"), ((f"`{name}`", k.level.value, k.meaning) for name, k in kinds.items()))


def _part(page: str, lines: Callable[[], Iterable[str]]) -> Part:
    return Part(DOCS / page, "tools.reference_tables", lines, lines.__name__.replace("_", " "))


PARTS = (
    _part("configuration.md", settings),
    _part("operations.md", events),
    _part("operations.md", log_lines),
)

if __name__ == "__main__":
    sys.exit(main(*PARTS))
