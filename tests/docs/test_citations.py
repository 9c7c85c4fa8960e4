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
TEST = re.compile(r"`(?:([\w/]+\.py)::(\w+)|(test_\w+))`")
DEFINED = re.compile(r"^ *(?:async )?def (\w+)\(", re.MULTILINE)
OUTSIDE = re.compile(
    r"\b(?:design|seed|style)(?:\.md)? (?:section|§) ?\d|\bdesign §|(?:cni|qingcloud-api)\.md section"
)
FUNCTIONS = {
    str(path.relative_to(ROOT / "tests")): set(DEFINED.findall(path.read_text(encoding="utf-8")))
    for path in (ROOT / "tests").rglob("*.py")
}
BASES = (ROOT, ROOT / "docs", ROOT / "docs" / "reference", ROOT / "docs" / "decisions", SOURCE)


def is_missing(path: Path, cited: str) -> bool:
    return not any((base / cited).exists() for base in (path.parent, *BASES))


def missing_tests(text: str) -> Iterator[str]:
    """Cited as `file::name`, with the file below tests/, or as `test_name`."""
    every = {name for names in FUNCTIONS.values() for name in names}
    for file, name, bare in TEST.findall(text):
        if bare not in every if bare else name not in FUNCTIONS.get(file.removeprefix("tests/"), ()):
            yield bare or f"{file}::{name}"


def broken(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    urls = re.sub(r"https?://\S+", "", text)
    yield from (cited for cited in PAGE.findall(urls) if is_missing(path, cited))
    yield from (number for number in DECISION.findall(text) if not list(ROOT.glob(f"docs/decisions/{number}-*.md")))
    yield from (match[0] for match in OUTSIDE.finditer(text))
    if path.suffix == ".md":
        yield from (cited for cited in MODULE.findall(text) if is_missing(path, cited))
        yield from missing_tests(text)


def test_every_citation_can_be_followed() -> None:
    found = {str(path.relative_to(ROOT)): list(broken(path)) for path in TEXTS if path != Path(__file__)}
    assert not {path: cited for path, cited in found.items() if cited}


def test_a_test_that_is_not_there_is_noticed() -> None:
    name = test_a_test_that_is_not_there_is_noticed.__name__
    there = f"`docs/test_citations.py::{name}` `tests/docs/test_citations.py::{name}` `{name}` `test_citations.py`"
    assert list(missing_tests(there)) == []
    cited = (f"docs/test_glossary.py::{name}", f"docs/no.py::{name}", f"{name}_either")
    assert list(missing_tests(" ".join(f"`{each}`" for each in cited))) == list(cited)


def test_each_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in ROOT.glob("docs/decisions/*.md")]
    assert sorted(numbers) == sorted(set(numbers))
    for path in ROOT.glob("docs/decisions/*.md"):
        assert path.read_text(encoding="utf-8").startswith(f"# {path.name[:4]}: ")
