"""Writes docs/cni-conformance.md: what a CNI plugin must do (`cni_claims`), and the tests that prove it.

A test carries the numbers of its claims as `@pytest.mark.cni(7, 42)`. `python -m tools.cni_conformance` rewrites the
page, `--check` says with its exit status whether that is needed. Marks and claims that do not fit are refused.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

from tools.cni_claims import SUBJECTS, Claim
from tools.generated import Part, main
from tools.marked import ROOT, TESTS, Mark, Proof, ProvedBy

MARK = Mark("cni", int)
PATH = ROOT / "docs" / "cni-conformance.md"


def table(subjects: Mapping[str, tuple[Claim, ...]], found: Sequence[Proof]) -> Iterator[str]:
    proved_by = ProvedBy(PATH, [claim for group in subjects.values() for claim in group], found)
    for n, (subject, claims) in enumerate(subjects.items()):
        yield from ("",) * bool(n)
        yield from (f"## {subject}", "", "| No. | What must hold | Source | Proved by |", "|---|---|---|---|")
        for claim in claims:
            yield f"| {claim.key} | {claim.text} | {claim.source} | {proved_by(claim)} |"


def lines() -> Iterator[str]:
    return table(SUBJECTS, MARK.proofs(TESTS))


PAGE = Part(PATH, "tools.cni_conformance", lines)

if __name__ == "__main__":
    sys.exit(main(PAGE))
