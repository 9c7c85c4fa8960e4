"""`make attack` in its short form, and that what does not hold is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from attack.registry import CASES, GROUPS, Case
from attack.run import run_cases
from attack.scene import Scene
from machines.simulator import needs_root

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(400)


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "attack", *words],
        env=os.environ | {"PYTHONPATH": str(TESTS), "COLUMNS": "150"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_cases_have_names_of_their_own_and_two_sentences() -> None:
    """What is tried, and what must hold."""
    assert len({case.name for case in CASES}) == len(CASES)
    assert [case.name for case in CASES if case.sentence.count(". ") < 1 or case.sentence[-1] != "."] == []
    assert {case.group for case in CASES} <= GROUPS.keys()


@needs_root
def test_what_is_tried_in_short_holds(tmp_path: Path) -> None:
    with start("--short", f"--logs={tmp_path}") as attack:
        said, _ = attack.communicate()
    assert attack.returncode == 0, said
    assert f"{sum(case.is_short for case in CASES)} attacks: none broken" in said


def broken(_scene: Scene) -> None:
    """Something is tried. It must hold."""
    raise AssertionError("it did not hold")


@needs_root
def test_what_does_not_hold_is_told(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w") as file:
        console = Console(file=file, width=150)
        assert not run_cases([Case("A", broken, is_short=False)], 60.0, console, tmp_path)
    said = (tmp_path / "said").read_text()
    assert "BROKEN: it did not hold" in said
    assert "1 attacks: 1 broken" in said


@needs_root
def test_interrupted_it_takes_all_away() -> None:
    """The session's end checks that nothing is left on this machine."""
    with start("--only=D") as attack:
        assert attack.stdout is not None
        first = attack.stdout.readline()
        os.killpg(attack.pid, signal.SIGINT)  # as a terminal does
        said, _ = attack.communicate()
    assert first.startswith("held")
    assert attack.returncode == 130, said
