"""Output of the commands: tables for people, JSON for programs."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

PIPE_WIDTH = 1000  # columns if the output is not a terminal: no line is folded


def as_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2))


def as_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str) -> None:
    """*columns* maps headings to keys of the rows; *empty* replaces a table without rows."""
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
    """The `config_report`, and what only a start can check."""
    cloud = report["cloud"]
    click.echo(f"config file: {report['file'] or 'none'}")
    click.echo(f"cloud:       {cloud['endpoint']}{cloud['uri']}")
    if cloud["unknown_keys"]:
        click.echo(f"ignored in the access file: {', '.join(cloud['unknown_keys'])}")
    click.echo()
    rows = [row | {"value": _setting(row["value"])} for row in report["settings"]]
    as_table(rows, {"SETTING": "name", "VALUE": "value", "FROM": "source"}, "")
    click.echo("\nChecked only by a start:")
    for sentence in checked_at_start:
        click.echo(f"  - {sentence}")


def as_plan(found: Mapping[str, Any]) -> None:
    """The answer of GET /v1/plan."""
    lines = {
        "mode": found["mode"],
        "pool": f"{found['idle']} idle, {found['coming']} on their way, {found['waiting']} ADDs wait;"
        f" min-idle {found['min_idle']}, max-idle {found['max_idle']}",
        "held": f"{found['held']} of {found['limit']} NICs ({found['limited_by']})",
        "attach": f"takes about {found['attach_seconds']:.1f} s",
        "vxnets": f"chosen by {found['policy']}",
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':9}{value}")
    click.echo()
    rows = [action | {"which": _which(action["vxnets"], action["nic_ids"])} for action in found["actions"]]
    columns = {"ACTION": "kind", "NICS": "count", "WHICH": "which", "WHY": "why"}
    as_table(rows, columns, f"nothing to do: {found['reason']}")
    if found["holds"]:
        click.echo()
        as_table(
            [{"until": until(hold["until"] or 0.0), "what": hold["what"]} for hold in found["holds"]],
            {"UNTIL": "until", "WAITS FOR": "what"},
            "",
        )
    click.echo()
    vxnets = [
        {
            "vxnet": vxnet["vxnet_id"],
            "next": "yes" if vxnet["is_next"] else "",
            "room": "?" if vxnet["room"] is None else vxnet["room"],
            "rests": until(vxnet["rests_until"]),
        }
        for vxnet in found["vxnets"]
    ]
    as_table(vxnets, {"VXNET": "vxnet", "NEXT": "next", "ROOM": "room", "RESTS UNTIL": "rests"}, "")


def _which(vxnets: Mapping[str, int], nic_ids: Sequence[str]) -> str:
    """NICs per vxnet, or the first two NICs."""
    more = f" and {len(nic_ids) - 2} more" if len(nic_ids) > 2 else ""
    return ", ".join((*(f"{count} in {vxnet_id}" for vxnet_id, count in vxnets.items()), *nic_ids[:2])) + more


def _setting(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}s"  # every float is a duration
        case list() | tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


def age(since: float) -> str:
    return duration(float(int(max(time.time() - since, 0.0))))


def until(at: float) -> str:
    """Time left; "-" if unknown."""
    return f"in {duration(float(int(max(at - time.time(), 0.0))))}" if at else "-"


def duration(seconds: float) -> str:
    """In the largest unit that fits twice."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 2 or seconds == int(seconds) else f"{seconds * 1000:.0f}ms"
