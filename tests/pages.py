"""The Markdown pages and the source of this checkout, as tests read them."""

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "qingcloud_cni"
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_CELL = re.compile(r"(?<!\\)\|")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, dedented."""

    page: Path
    language: str
    text: str


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def table(text: str, *titles: str) -> list[tuple[str, ...]]:
    """The rows of every table whose header begins with *titles*; cells without blanks and backticks around them."""
    rows: list[tuple[str, ...]] = []
    is_inside = False
    for line in text.splitlines():
        if not line.strip().startswith("|"):
            is_inside = False
            continue
        cells = tuple(cell.strip() for cell in _CELL.split(line.strip())[1:-1])
        if cells[: len(titles)] == titles:
            is_inside = True
        elif is_inside and set(cells[0]) != {"-"}:
            rows.append(cells)
    assert rows, f"there is no table that begins with {titles}"
    return rows


def column(text: str, *titles: str) -> list[str]:
    """The first cells of these rows, each a word in backticks."""
    return [cells[0].strip("`") for cells in table(text, *titles)]


def blocks(path: Path) -> Iterator[Block]:
    for _, language, text in _FENCE.findall(path.read_text(encoding="utf-8")):
        yield Block(path, language, textwrap.dedent(text))


def links(path: Path) -> Iterator[str]:
    """Targets of the links of a page, except in code."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", path.read_text(encoding="utf-8")))
    yield from _LINK.findall(prose)


def anchors(path: Path) -> set[str]:
    """Anchors of a page: its headings as GitHub spells them."""
    prose = _FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def source_trees(*folders: str) -> Iterator[ast.Module]:
    for folder in folders:
        for path in sorted((SOURCE / folder).rglob("*.py")):
            yield ast.parse(path.read_text(encoding="utf-8"))
