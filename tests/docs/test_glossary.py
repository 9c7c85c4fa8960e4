"""docs/glossary.md explains the words in the code's names."""

import ast
import re
from collections.abc import Iterator

from pages import SOURCE, page, table
from qingcloud_cni.core.budget import Urgency
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.drift.differences import DifferenceKind
from qingcloud_cni.core.nics.model import NicState, OpKind

GLOSSARY = page("docs/glossary.md")
WORDS = {word for cells in table(GLOSSARY, "Word", "Meaning") for word in re.findall(r"[\w-]+", cells[0].lower())}
PLAIN = set(GLOSSARY.split("in their plain sense:")[1].split(".")[0].replace(",", "").split())
RETIRED = {
    "cure", "departure", "errand", "evidence", "gate", "growth", "nameless", "outlook", "premise", "shrinking",
    "sighting", "stray", "turn",
}  # fmt: skip


def test_words_of_states_kinds_verbs_and_urgencies_are_explained() -> None:
    words = {*NicState, *DifferenceKind, *(verb.lower() for verb in Verb), *(u.word for u in Urgency), *OpKind}
    assert words <= WORDS


def test_rooms_and_modules_have_names_that_are_explained_or_plain() -> None:
    """A new word goes into a table of the glossary, or into the list at its end."""
    names = {part for path in SOURCE.rglob("*.py") for part in path.relative_to(SOURCE).with_suffix("").parts}
    words = {word for name in names - {"__init__"} for word in name.split("_")}
    explained = WORDS | PLAIN
    assert not {w for w in words if not {w, w.removesuffix("s"), w.removesuffix("ies") + "y"} & explained}


def test_no_public_name_has_a_retired_word() -> None:
    names = {name for path in SOURCE.rglob("*.py") for name in _public_names(ast.parse(path.read_text()))}
    names |= {path.stem for path in SOURCE.rglob("*.py")}
    words = {name: re.findall(r"[A-Z]?[a-z]+", name) for name in names}
    assert not {name for name, parts in words.items() if {part.lower().removesuffix("s") for part in parts} & RETIRED}


def _public_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name
