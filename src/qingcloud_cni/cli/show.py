"""What commands print: tables for people, JSON for programs."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

PIPE_WIDTH = 1000  # columns where nobody folds lines


def as_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2))


def as_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str) -> None:
    """*columns* maps headings to keys of the rows; *empty* is said where there are none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo(empty)
        return
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            *(Text(str(row.get(key, ""))) for key in columns.values())
        )  # rich reads ":ab:" in a str as emoji
    console.print(table)


def as_config(report: Mapping[str, Any], checked_at_start: Sequence[str]) -> None:
    """What `config_report` found, and what only a start can tell."""
    cloud = report["cloud"]
    click.echo(f"config file: {report['file'] or 'none'}")
    click.echo(f"cloud:       {cloud['endpoint']}{cloud['uri']}")
    if cloud["unknown_keys"]:
        click.echo(f"ignored in the access file: {', '.join(cloud['unknown_keys'])}")
    click.echo()
    rows = [row | {"value": _setting(row["value"])} for row in report["settings"]]
    as_table(rows, {"SETTING": "name", "VALUE": "value", "FROM": "source"}, "")
    click.echo("\nWhat only a start can tell:")
    for sentence in checked_at_start:
        click.echo(f"  - {sentence}")


def _setting(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}s"  # the durations
        case list() | tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


def age(since: float) -> str:
    """How long ago."""
    return duration(float(int(max(time.time() - since, 0.0))))


def until(at: float) -> str:
    """How long until then; "-" where nobody knows."""
    return f"in {duration(float(int(max(at - time.time(), 0.0))))}" if at else "-"


def duration(seconds: float) -> str:
    """In the largest unit that fits twice, and below two seconds in milliseconds."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 2 or seconds == int(seconds) else f"{seconds * 1000:.0f}ms"
