"""Output of a run: on the terminal, as JSON, and in docs/performance.md."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import MS, Figure
from bench.measures import Record

BEGIN, END = "<!-- last run: written by `make bench ARGS=--write` -->", "<!-- end of last run -->"


def show(record: Record, console: Console) -> None:
    """Tables on the terminal."""
    times = Table("what", "p50 ms", "p99 ms", "least", "n", title="Measured, in turn within one run")
    for name in record.samples:
        times.add_row(*_time_row(record, name))
    console.print(times)
    if record.phases:
        phases = Table("verb", *next(iter(record.phases.values())), title="Where the agent's time goes, mean ms")
        for verb, by_phase in record.phases.items():
            phases.add_row(verb, *(f"{seconds * MS:.2f}" for seconds in by_phase.values()))
        console.print(phases)
    figures = Table("figure", "target", "limit", "measured", "", title="Targets")
    for figure in record.figures:
        figures.add_row(*_figure_row(figure), style="" if figure.is_met else "yellow")
    console.print(figures)


def as_json(record: Record, facts: dict[str, str]) -> dict[str, Any]:
    return {
        "run": facts,
        "milliseconds": {
            name: {"p50": sample.p50 * MS, "p99": sample.p99 * MS, "least": sample.least * MS, "n": len(values)}
            for name, values in record.samples.items()
            for sample in [record.sample(name)]
        },
        "phases_mean_milliseconds": {
            verb: {phase: seconds * MS for phase, seconds in phases.items()} for verb, phases in record.phases.items()
        },
        "figures": [
            {
                "name": figure.name,
                "target": figure.target,
                "limit": figure.limit,
                "measured": figure.measured,
                "unit": figure.unit,
                "met": figure.is_met,
            }
            for figure in record.figures
        ],
    }


def machine(python: str, command: str) -> dict[str, str]:
    """The run, and the properties of the machine that explain its figures; not its name."""
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "processors": str(os.cpu_count()),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "plugin's interpreter": python,
        "agent's interpreter": platform.python_version(),
    }


def save_json(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def write_page(page: Path, record: Record, facts: dict[str, str]) -> None:
    """Write the run into the page, between its marks."""
    text = page.read_text()
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n\n{markdown(record, facts)}\n{END}{tail}")


def markdown(record: Record, facts: dict[str, str]) -> str:
    told = "; ".join(f"{name} {value}" for name, value in facts.items() if name != "command")
    blocks = [
        f"`{facts['command']}`: {told}.",
        _table(("Figure", "Target", "Limit", "Measured", ""), [_figure_row(figure) for figure in record.figures]),
        "Times in ms:",
        _table(("What", "p50", "p99", "least", "n"), [_time_row(record, name) for name in record.samples]),
    ]
    if record.phases:
        phases = list(next(iter(record.phases.values())))
        rows = [
            (verb, *(f"{seconds * MS:.2f}" for seconds in by_phase.values()))
            for verb, by_phase in record.phases.items()
        ]
        blocks += ["The agent's time by phase, mean, in ms:", _table(("Verb", *phases), rows)]
    return "\n\n".join(blocks) + "\n"


def _time_row(record: Record, name: str) -> tuple[str, ...]:
    sample = record.sample(name)
    return (
        name,
        *(f"{value * MS:.1f}" for value in (sample.p50, sample.p99, sample.least)),
        str(len(sample.seconds)),
    )


def _figure_row(figure: Figure) -> tuple[str, ...]:
    limit, measured = (f"{value:.3g} {figure.unit}".strip() for value in (figure.limit, figure.measured))
    return figure.name, figure.target, limit, measured, "met" if figure.is_met else "not met"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
