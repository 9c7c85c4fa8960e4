"""`make bench`: its arithmetic, and that it runs through. No test depends on what it measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import against, report
from bench.environment import BenchFailed, peers_directory
from bench.figures import Figure, burst_bound, parallel_bound, percentile
from bench.measures import Record, mean_phases
from machines.simulator import needs_root
from pages import ROOT, page
from qingcloud_cni.agent.base.phases import Phase


def has_peers() -> bool:
    try:
        return peers_directory().is_dir()
    except BenchFailed:
        return False


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 0.5, 3.0),
        ([4.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([0.0, 10.0], 0.99, 9.9),
        ([1, 2], 1, 2),
    ],
)
def test_a_percentile_lies_between_values_in_proportion(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


def test_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_bounds_are_those_of_the_design() -> None:
    assert parallel_bound(moves=0.4, start=0.1) == pytest.approx(0.6)
    assert burst_bound(pods=50, move=0.02, create_and_attach=3.0) == pytest.approx(5.3)


def test_a_figure_at_its_limit_is_met() -> None:
    assert Figure("RSS", "at most 60", 60.0, 60.0, "MiB").is_met
    assert not Figure("RSS", "at most 60", 60.1, 60.0, "MiB").is_met


def test_phases_are_averaged_over_the_requests_between_two_readings() -> None:
    def reading(count: float, seconds: float) -> dict[tuple[str, str, str], float]:
        return {
            (verb, phase, kind): value
            for verb in ("ADD", "DEL")
            for phase in Phase
            for kind, value in (("count", count), ("sum", seconds))
        }

    means = mean_phases(reading(2, 5.0), reading(6, 7.0))
    assert means == {verb: dict.fromkeys(Phase, 0.5) for verb in ("ADD", "DEL")}


def test_a_run_is_written_between_the_marks_of_the_page_and_nowhere_else(tmp_path: Path) -> None:
    record = Record()
    record.add("a move", 0.019)
    record.expect("memory", "at most 60 MB", 48.6, 60.0, "MiB")
    copy = tmp_path / "performance.md"
    copy.write_text(page("docs/performance.md"))
    report.write_page(copy, record, {"command": "make bench", "processors": "2"})
    once = copy.read_text()
    report.write_page(copy, record, {"command": "make bench", "processors": "2"})
    assert copy.read_text() == once
    assert "| a move | 19.0 | 19.0 | 19.0 | 1 |" in once
    assert "| memory | at most 60 MB | 60 MiB | 48.6 MiB | met |" in once
    before, after = (
        page("docs/performance.md").split(report.BEGIN)[0],
        page("docs/performance.md").split(report.END)[1],
    )
    assert once.startswith(before)
    assert once.endswith(after)


def test_a_ratio_is_that_of_medians_and_the_median_of_the_runs_counts() -> None:
    records = []
    for old in (0.010, 0.020, 0.040):
        records.append(Record())
        for what in against.MEASURED:
            for name, seconds in ((against.NEW, (0.02, 0.02, 9.0)), (against.OLD, (old, old, 0.0))):
                for each in seconds:
                    records[-1].add(f"{what}, {name}", each)
    assert against.rows(records) == [
        (what, "20.00", "10.00", "2.000", "1.000", "0.500", "1.000") for what in against.MEASURED
    ]


@needs_root
def test_a_checkout_is_compared_with_itself() -> None:
    done = bench("--quick", "--against", str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(what in done.stdout for what in (*against.MEASURED, "median ratio"))


def test_a_checkout_that_is_not_set_up_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchFailed, match="not found; run `make bench AGAINST="):
        against.program_of(tmp_path)


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


NEEDS_PEERS = pytest.mark.skipif(not has_peers(), reason="the plugins that qingcni is compared with are missing")


@needs_root
@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        pytest.param("serial", "warm ADD, p50", marks=NEEDS_PEERS),
        ("burst", "cloud calls per pod, cold burst"),
        ("rest", "processor, idle"),
        ("crowded", "ADD, p50, crowd elsewhere"),
    ],
)
def test_a_quick_run_reports_its_figures(measure: str, expected: str, tmp_path: Path) -> None:
    kept = tmp_path / "figures.json"
    done = bench("--quick", "--only", measure, "--json", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {figure["name"]: figure for figure in json.loads(kept.read_text())["figures"]}
    assert isinstance(figures[expected]["measured"], float)
    assert isinstance(figures[expected]["met"], bool)
