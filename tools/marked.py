"""Reads the marks in the source of the tests: which tests prove which claims.

Pages that list claims with their tests are made from the marks, so they follow every renaming of a test.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"


class Claim(Protocol):
    """Something that must hold; with *reason* if no test can prove all of it."""

    @property
    def key(self) -> int | str: ...
    @property
    def text(self) -> str: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Proof:
    """A test that proves the claim of this key."""

    key: int | str
    file: Path
    test: str


@dataclass(frozen=True, slots=True)
class Mark:
    """The mark `@pytest.mark.<name>(key, …)`; its keys are of one type."""

    name: str
    of: type[int] | type[str]

    def proofs(self, folder: Path) -> tuple[Proof, ...]:
        """All tests below *folder* with this mark, in the order of files and lines."""
        return tuple(proof for path in sorted(folder.rglob("test_*.py")) for proof in self._of_file(path))

    def _of_file(self, path: Path) -> Iterator[Proof]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        loose = set(self._calls(tree))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in (found for found in functions if found.name.startswith("test_")):
            # includes marks of single parameters
            for call in (mark for decorator in function.decorator_list for mark in self._calls(decorator)):
                loose.discard(call)
                for argument in call.args:
                    if not isinstance(argument, ast.Constant) or not isinstance(argument.value, self.of):
                        keys = "numbers" if self.of is int else "texts"
                        raise SystemExit(f"{path}:{call.lineno}: `{self.name}` takes {keys}, written out")
                    yield Proof(argument.value, path, function.name)
        if loose:
            line = min(call.lineno for call in loose)
            raise SystemExit(f"{path}:{line}: `{self.name}` marks test functions, nothing else")

    def _calls(self, tree: ast.AST) -> Iterator[ast.Call]:
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="mark"), attr=name)) if name == self.name:
                    yield node


def faults(claims: Sequence[Claim], found: Iterable[Proof]) -> Iterator[str]:
    """Keys of no claim or of several, and claims with neither test nor reason."""
    times = Counter(claim.key for claim in claims)
    proved = set()
    for proof in found:
        proved.add(proof.key)
        if proof.key not in times:
            yield f"{proof.file}: {proof.test} is marked with {proof.key}, which is not a claim"
    for claim in claims:
        if times[claim.key] > 1:
            yield f"claim {claim.key} occurs {times[claim.key]} times: {claim.text}"
        if claim.key not in proved and not claim.reason:
            yield f"claim {claim.key} has neither a test nor a reason: {claim.text}"


class ProvedBy:
    """The last column of a page: for each claim its reason and its tests; SystemExit on faults."""

    def __init__(self, page: Path, claims: Sequence[Claim], found: Sequence[Proof]) -> None:
        if misfits := list(faults(claims, found)):
            raise SystemExit("\n".join(misfits))
        self._up = "../" * len(page.parent.relative_to(ROOT).parts)
        self._found = found

    def __call__(self, claim: Claim) -> str:
        links = dict.fromkeys(self._link(proof) for proof in self._found if proof.key == claim.key)
        return "<br>".join((claim.reason, *links) if claim.reason else links)

    def _link(self, proof: Proof) -> str:
        return f"[`{proof.test}`]({self._up}{proof.file.relative_to(ROOT).as_posix()})"
