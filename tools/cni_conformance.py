"""Writes docs/cni-conformance.md: what a CNI plugin must do (`cni_claims`), and the tests that prove it.

A test carries the numbers of its claims as `@pytest.mark.cni(7, 42)`. The marks are read from the tests' source,
nothing is run. `python -m tools.cni_conformance` rewrites the page, `--check` says with its exit status whether that
is needed. Marks and claims that do not fit each other are refused.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.cni_claims import SUBJECTS, Claim
from tools.generated import Part

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"


@dataclass(frozen=True, slots=True)
class Proof:
    """A test, and the claim it proves."""

    number: int
    file: Path
    test: str

    @property
    def link(self) -> str:
        return f"[`{self.test}`](../{self.file.relative_to(ROOT).as_posix()})"


def proofs(folder: Path) -> tuple[Proof, ...]:
    """All marks below *folder*, in the order of files and lines."""
    return tuple(proof for path in sorted(folder.rglob("test_*.py")) for proof in _of_file(path))


def _of_file(path: Path) -> Iterator[Proof]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    loose = set(_marks(tree))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions:
        # marks of single parameters stand in a decorator too
        for call in (mark for decorator in function.decorator_list for mark in _marks(decorator)):
            loose.discard(call)
            for argument in call.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, int):
                    raise SystemExit(f"{path}:{call.lineno}: `cni` takes numbers, written out")
                yield Proof(argument.value, path, function.name)
    if loose:
        raise SystemExit(f"{path}:{min(call.lineno for call in loose)}: `cni` marks test functions, nothing else")


def _marks(tree: ast.AST) -> Iterator[ast.Call]:
    """Every `pytest.mark.cni(…)` in *tree*."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="mark"), attr="cni")):
                yield node


def faults(claims: Iterable[Claim], found: Iterable[Proof]) -> Iterator[str]:
    """What does not fit: numbers that are nobody's, and claims without a test or a reason."""
    by_number = {claim.number: claim for claim in claims}
    proved = set()
    for proof in found:
        proved.add(proof.number)
        if proof.number not in by_number:
            yield f"{proof.file}: {proof.test} is marked with {proof.number}, and there is no such claim"
    for number, claim in by_number.items():
        if number not in proved and not claim.reason:
            yield f"claim {number} has neither a test nor a reason: {claim.text}"


def page(subjects: Mapping[str, tuple[Claim, ...]], found: Iterable[Proof]) -> Iterator[str]:
    links: dict[int, list[str]] = {}
    for proof in found:
        others = links.setdefault(proof.number, [])
        if proof.link not in others:
            others.append(proof.link)
    for n, (subject, claims) in enumerate(subjects.items()):
        yield from ("",) * bool(n)
        yield from (f"## {subject}", "", "| No. | What must hold | Source | Proved by |", "|---|---|---|---|")
        for claim in claims:
            cells = (str(claim.number), claim.text, claim.source)
            proved_by = "<br>".join(
                (claim.reason, *links.get(claim.number, ())) if claim.reason else links[claim.number]
            )
            yield f"| {' | '.join(cells)} | {proved_by} |"


def lines() -> Iterator[str]:
    claims = [claim for group in SUBJECTS.values() for claim in group]
    found = proofs(TESTS)
    if misfits := list(faults(claims, found)):
        raise SystemExit("\n".join(misfits))
    return page(SUBJECTS, found)


PAGE = Part(ROOT / "docs" / "cni-conformance.md", "tools.cni_conformance", lines)

if __name__ == "__main__":
    sys.exit(PAGE.main())
