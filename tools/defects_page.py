"""Writes the table of docs/decisions/0020-defects-of-earlier-programs.md: each defect, and what keeps us from it.

A test carries the keys of what it would show as `@pytest.mark.defect("hostnic-7")`. `python -m tools.defects_page`
rewrites the table, `--check` says with its exit status whether that is needed.
"""

import sys
from collections.abc import Iterator

from tools.earlier_defects import PROGRAMS
from tools.generated import Part, main
from tools.marked import ROOT, TESTS, Mark, ProvedBy

MARK = Mark("defect", str)
PATH = ROOT / "docs" / "decisions" / "0020-defects-of-earlier-programs.md"


def lines() -> Iterator[str]:
    defects = [defect for group in PROGRAMS.values() for defect in group]
    kept_out_by = ProvedBy(PATH, defects, MARK.proofs(TESTS))
    for n, (program, group) in enumerate(PROGRAMS.items()):
        yield from ("",) * bool(n)
        yield from (f"### {program}", "", "| Key | What went wrong | Kept out by |", "|---|---|---|")
        for defect in group:
            yield f"| {defect.key} | {defect.text} | {kept_out_by(defect)} |"


PAGE = Part(PATH, "tools.defects_page", lines)

if __name__ == "__main__":
    sys.exit(main(PAGE))
