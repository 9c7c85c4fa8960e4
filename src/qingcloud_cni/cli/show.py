"""What commands print: tables for people, JSON for programs."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

PIPE_WIDTH = 200  # columns where nobody folds lines


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


def age(since: float) -> str:
    """How long ago, in the largest unit that fits twice."""
    seconds = max(time.time() - since, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
