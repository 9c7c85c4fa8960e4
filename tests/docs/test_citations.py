"""What code, tests and pages cite is in this checkout."""

import re
from collections.abc import Iterator
from pathlib import Path

from pages import ROOT, SOURCE

FOLDERS = ("src", "tests", "tools", "bench", "examples", "deploy", "docs", "requirements")
SUFFIXES = {".py", ".md", ".toml", ".service", ".conf", ".conflist", ".sh", ".in"}
TEXTS = (
    *sorted(ROOT.glob("*.md")), ROOT / "Makefile", ROOT / "pyproject.toml",
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES),
)  # fmt: skip
PAGE = re.compile(r"(?<![\w/>])\w[\w./-]*\w\.md\b|\.\.?/[\w./-]*\.md\b")
DECISION = re.compile(r"\bdecisions?/(\d{4})\b")
MODULE = re.compile(r"`((?:[\w-]+/)+[\w-]+\.(?:py|sh))`")
OUTSIDE = re.compile(
    r"\b(?:design|seed|style)(?:\.md)? (?:section|§) ?\d|\bdesign §|(?:cni|qingcloud-api)\.md section"
)
BASES = (ROOT, ROOT / "docs", ROOT / "docs" / "reference", ROOT / "docs" / "decisions", SOURCE)


def is_missing(path: Path, cited: str) -> bool:
    return not any((base / cited).exists() for base in (path.parent, *BASES))


def broken(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    urls = re.sub(r"https?://\S+", "", text)
    yield from (cited for cited in PAGE.findall(urls) if is_missing(path, cited))
    yield from (number for number in DECISION.findall(text) if not list(ROOT.glob(f"docs/decisions/{number}-*.md")))
    yield from (match[0] for match in OUTSIDE.finditer(text))
    if path.suffix == ".md":
        yield from (cited for cited in MODULE.findall(text) if is_missing(path, cited))


def test_every_citation_can_be_followed() -> None:
    found = {str(path.relative_to(ROOT)): list(broken(path)) for path in TEXTS if path != Path(__file__)}
    assert not {path: cited for path, cited in found.items() if cited}
