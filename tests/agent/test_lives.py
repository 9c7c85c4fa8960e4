"""Whatever happens whenever, nothing is lost, given twice or left behind: whole lives from seeds (`make sim`)."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from lives import scenario
from lives.__main__ import batches, report
from lives.life import live
from lives.scenario import CONDITIONS, QUIET, SCRIPTS, TROUBLES, Plan, plan
from lives.shrink import shrunk

SEEDS = range(360)
EVERY = 7  # in CI; `make sim` takes all crash points


@pytest.mark.defect("others-15")
@pytest.mark.parametrize("seeds", [*batches(SEEDS)], ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_no_life_breaks_an_invariant(seeds: range) -> None:
    for seed in seeds:
        life = live(plan(seed))
        if life.error is not None:
            pytest.fail(report(plan(seed), 0, life), pytrace=False)


@pytest.mark.defect("others-5")
@pytest.mark.timeout(600)  # some hundred lives each, and the machine may be busy
@pytest.mark.parametrize("first", range(1, EVERY + 1))
def test_a_crash_at_any_step_loses_nothing(first: int) -> None:
    script = SCRIPTS["short"]
    steps = live(script).steps
    for point in range(first, steps, EVERY * EVERY):
        life = live(script, crash_after=point)
        if life.error is not None:
            pytest.fail(report(script, point, life), pytrace=False)


def test_the_scripted_life_has_all_that_an_agent_does() -> None:
    story = "\n".join(live(SCRIPTS["short"]).story)
    for event in (
        "CreateNics", "AttachNics", "DetachNics", "DeleteNics", "nic.gateway", "nic.missing", "idle-ttl",
        "to attach it again", "drained", "its link has left the container", "DEL", "nic.rested",
    ):  # fmt: skip
        assert event in story, event


@pytest.mark.parametrize("seed", [3, 5])
def test_a_seed_has_the_same_story_in_every_process(seed: int) -> None:
    """In whatever order sets of strings happen to be: that differs from process to process."""
    told = []
    for hash_seed in ("1", "2"):
        script = (
            "import sys; from lives import life, scenario; print(life.live(scenario.plan(int(sys.argv[1]))).digest)"
        )
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
        command = [sys.executable, "-c", script, str(seed)]
        told.append(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert told[0] == told[1] == f"{live(plan(seed)).digest}\n"


def test_every_step_and_condition_is_drawn() -> None:
    drawn = [plan(seed) for seed in SEEDS]
    kinds = {step.kind for chosen in drawn for step in chosen.steps}
    assert kinds == QUIET.keys() | {kind for trouble in TROUBLES.values() for kind in trouble}
    assert {name for chosen in drawn for name in chosen.conditions} == set(CONDITIONS)


def fails_with(*kinds: str, condition: str) -> Callable[[Plan], str]:
    def failure_of(chosen: Plan) -> str:
        there = [step.kind for step in chosen.steps]
        is_there = all(kind in there for kind in kinds) and condition in chosen.conditions
        return f"InvariantBroken: c{len(there)} lost its NIC" if is_there else ""

    return failure_of


def test_a_failing_plan_is_reduced_as_far_as_possible() -> None:
    seed = next(
        s for s in SEEDS if len(plan(s).conditions) > 3 and fails_with("kill", "crash", condition="disk")(plan(s))
    )
    small = shrunk(plan(seed), fails_with("kill", "crash", condition="disk"))
    assert sorted(step.kind for step in small.steps) == ["crash", "kill"]
    assert small.conditions == {"disk"}
    assert shrunk(plan(seed), lambda _plan: "") == plan(seed)


def test_a_part_of_a_plan_happens_as_in_the_whole() -> None:
    whole = plan(1)
    part = replace(whole, steps=whole.steps[5:], conditions=frozenset())
    assert part.rng(whole.steps[5].number).random() == whole.rng(5).random()
    assert scenario.plan(1) == whole
