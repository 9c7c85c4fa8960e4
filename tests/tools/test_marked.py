"""The tool behind the pages that name tests: it finds every mark, and lets nothing pass that does not fit."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.cni_claims import SUBJECTS
from tools.earlier_defects import PROGRAMS
from tools.marked import ROOT, Mark, Proof, ProvedBy, faults

MARKED = """
import pytest

@pytest.mark.cni(7, 42)
@pytest.mark.defect("seven")
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.cni(43))])
def test_one(n): ...

class TestGroup:
    @pytest.mark.cni(7)
    async def test_two(self): ...

def test_three(): ...
"""


@dataclass(frozen=True, slots=True)
class Line:
    key: int
    text: str
    reason: str = ""


def test_marks_of_tests_and_of_their_parameters_are_found(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(MARKED)
    (tmp_path / "other.py").write_text(MARKED)
    found = [(proof.key, proof.test) for proof in Mark("cni", int).proofs(tmp_path)]
    assert sorted(found) == [(7, "test_one"), (7, "test_two"), (42, "test_one"), (43, "test_one")]
    assert Mark("defect", str).proofs(tmp_path) == (Proof("seven", file, "test_one"),)


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.cni(NUMBER)\ndef test_x(): ...",
        "pytestmark = pytest.mark.cni(1)",
        "@pytest.mark.cni('1')\ndef test_x(): ...",
        "@pytest.mark.cni(1)\ndef no_test(): ...",
    ],
)
def test_a_mark_that_cannot_be_read_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "test_some.py").write_text(f"import pytest\n{source}\n")
    with pytest.raises(SystemExit, match=r"test_some\.py:2: `cni`"):
        Mark("cni", int).proofs(tmp_path)


def test_unknown_keys_and_those_without_or_with_several_claims_are_reported() -> None:
    claims = (Line(1, "One."), Line(2, "Two."), Line(3, "Three.", "It cannot be."), Line(3, "Three again.", "No."))
    found = (Proof(1, Path("test_a.py"), "test_one"), Proof(4, Path("test_a.py"), "test_four"))
    told = list(faults(claims, found))
    assert len(told) == 4
    assert "test_four is marked with 4" in told[0]
    assert "claim 2 has neither a test nor a reason: Two." in told[1]
    assert "claim 3 occurs 2 times: Three again." in told[3]


def test_the_page_names_each_test_once_and_the_reason_with_it() -> None:
    here = Path(__file__)
    claims = (Line(1, "One."), Line(2, "Two.", "It cannot be."))
    found = [Proof(1, here, "test_x"), Proof(1, here, "test_x"), Proof(2, here, "test_x")]
    proved_by = ProvedBy(ROOT / "docs" / "decisions" / "0003-sqlite-with-one-connection.md", claims, found)
    link = "[`test_x`](../../tests/tools/test_marked.py)"
    assert [proved_by(claim) for claim in claims] == [link, f"It cannot be.<br>{link}"]


def test_claims_are_numbered_from_one_on() -> None:
    keys = [claim.key for claims in SUBJECTS.values() for claim in claims]
    assert keys == list(range(1, len(keys) + 1))


def test_defects_are_numbered_program_by_program() -> None:
    keys = [defect.key.rpartition("-") for defects in PROGRAMS.values() for defect in defects]
    for program, rows in itertools.groupby(keys, key=lambda key: key[0]):
        assert [int(number) for _, _, number in rows] == list(range(1, len([k for k in keys if k[0] == program]) + 1))
