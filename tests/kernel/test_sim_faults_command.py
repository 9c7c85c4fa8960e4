"""The commands that set, list and clear the faults of a running simulator."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machines.simulator import QINGCLOUD_SIM, Sim, needs_root, run, running_sim, unique_name

pytestmark = needs_root


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--hosts", "1") as running:
        yield running


def faults(sim: Sim) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(
        run(QINGCLOUD_SIM, "faults", "list", "--name", sim.name, "-o", "json").stdout
    )
    return told


def test_a_list_replaces_the_one_before_it_strikes_and_is_cleared(sim: Sim, tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text("faults:\n  - {action: DescribeNics, effect: clock-skew, times: 2}\n")
    assert "clock-skew" in run(QINGCLOUD_SIM, "faults", "set", "--name", sim.name, str(file)).stdout
    with pytest.raises(AssertionError, match="1300"):
        sim.call("DescribeNics")
    assert [(row["effect"], row["left"]) for row in faults(sim)] == [("clock-skew", 1)]
    bare = '[{"action": "*", "effect": "reset"}]'
    run(QINGCLOUD_SIM, "faults", "set", "--name", sim.name, "-", input=bare)
    assert [(row["action"], row["left"]) for row in faults(sim)] == [("*", 1)]
    run(QINGCLOUD_SIM, "faults", "clear", "--name", sim.name)
    assert faults(sim) == []
    assert "no faults" in run(QINGCLOUD_SIM, "faults", "list", "--name", sim.name).stdout
    assert sim.call("DescribeNics")["total_count"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[{action: '*', effect: explode}]", "'explode' is none of"),
        ("[", "faults in"),
        ("[" * 5000, "not valid YAML"),
        ("[{action: '*', effect: reset, lasts: 2026-01-01}]", "faults[0].lasts: "),
        ("[{action: '*', effect: reset, lasts: 2026-13-45}]", "not valid YAML"),
        ("- &again [*again]", "faults[0]: Expected `object`"),
    ],
    ids=["effect", "no end", "too deep", "date", "no date", "in itself"],
)
def test_a_bad_list_is_refused_and_the_old_one_stays(sim: Sim, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    before = faults(sim)
    done = run(QINGCLOUD_SIM, "faults", "set", "--name", sim.name, str(file), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert str(file) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert faults(sim) == before


def test_a_file_with_nothing_in_it_is_an_empty_list(sim: Sim) -> None:
    run(QINGCLOUD_SIM, "faults", "set", "--name", sim.name, "-", input='[{"action": "*", "effect": "reset"}]')
    assert "no faults" in run(QINGCLOUD_SIM, "faults", "set", "--name", sim.name, "-", input="# none\n").stdout
    assert faults(sim) == []


def test_without_a_simulator_the_command_fails() -> None:
    done = run(QINGCLOUD_SIM, "faults", "clear", "--name", unique_name(), check=False)
    assert done.returncode == 1
    assert "request failed: no answer at" in done.stderr
