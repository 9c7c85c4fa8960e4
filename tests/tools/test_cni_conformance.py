"""The tool behind the conformance page: it finds every mark, and lets nothing pass that does not fit."""

from pathlib import Path

import pytest

from tools.cni_claims import SUBJECTS, Claim
from tools.cni_conformance import Proof, faults, page, proofs

MARKED = """
import pytest

@pytest.mark.cni(7, 42)
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.cni(43))])
def test_one(n): ...

class TestGroup:
    @pytest.mark.cni(7)
    async def test_two(self): ...

def test_three(): ...
"""


def test_marks_of_tests_and_of_their_parameters_are_found(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(MARKED)
    (tmp_path / "other.py").write_text(MARKED)
    found = [(proof.number, proof.test) for proof in proofs(tmp_path)]
    assert sorted(found) == [(7, "test_one"), (7, "test_two"), (42, "test_one"), (43, "test_one")]


@pytest.mark.parametrize(
    "source",
    [
        "@pytest.mark.cni(NUMBER)\ndef test_x(): ...",
        "pytestmark = pytest.mark.cni(1)",
        "@pytest.mark.cni('1')\ndef t(): ...",
    ],
)
def test_a_mark_that_cannot_be_read_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "test_some.py").write_text(f"import pytest\n{source}\n")
    with pytest.raises(SystemExit, match=r"test_some\.py:2: `cni`"):
        proofs(tmp_path)


def test_unknown_numbers_and_claims_without_proof_are_told() -> None:
    claims = (Claim(1, "One.", "spec"), Claim(2, "Two.", "spec"), Claim(3, "Three.", "spec", "It cannot be."))
    found = (Proof(1, Path("test_a.py"), "test_one"), Proof(4, Path("test_a.py"), "test_four"))
    told = list(faults(claims, found))
    assert len(told) == 2
    assert "test_four is marked with 4" in told[0]
    assert "claim 2 has neither a test nor a reason: Two." in told[1]


def test_the_page_names_each_test_once_and_the_reason_with_it() -> None:
    here = Path(__file__)
    claims = {"All": (Claim(1, "One.", "spec 5"), Claim(2, "Two.", "ours", "It cannot be."))}
    link = "[`test_x`](../tests/tools/test_cni_conformance.py)"
    rows = list(page(claims, [Proof(1, here, "test_x"), Proof(1, here, "test_x"), Proof(2, here, "test_x")]))
    assert rows[-2:] == [f"| 1 | One. | spec 5 | {link} |", f"| 2 | Two. | ours | It cannot be.<br>{link} |"]


def test_claims_are_numbered_from_one_to_eighty() -> None:
    assert [claim.number for claims in SUBJECTS.values() for claim in claims] == list(range(1, 81))
