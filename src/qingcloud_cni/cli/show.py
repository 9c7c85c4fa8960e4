"""Output of the commands: tables for people, JSON for programs."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from qingcloud_cni.core.text import escaped

PIPE_WIDTH = 1000  # columns if the output is not a terminal: no line is folded


def say(text: str = "", *, err: bool = False) -> None:
    """Print one line. Commands print no other way: words of containers and cloud may have control characters."""
    click.echo(escaped(text), err=err)


def as_json(content: Any) -> None:
    """JSON in ASCII, whose strings escape the rest."""
    click.echo(json.dumps(content, indent=2))


def as_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str) -> None:
    """*columns* maps headings to keys of the rows; *empty* replaces a table without rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        say(empty)
        return
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            *(Text(escaped(str(row.get(key, "")))) for key in columns.values())
        )  # rich reads ":ab:" in a str as emoji
    console.print(table)


def as_status(found: Mapping[str, Any]) -> None:
    nics = ", ".join(f"{count} {state}" for state, count in found["nics"].items()) or "none"
    lines = {
        "instance": found["instance_id"],
        "version": found["version"],
        "pid": found["pid"],
        "ready": "yes" if found["ready"] else "no",
        "draining": "yes" if found["draining"] else "",
        "NICs": nics + (f", {found['asked']} asked for" if found["asked"] else ""),
        "outside": ", ".join(f"{count} in {vxnet}, not in --vxnet" for vxnet, count in found["outside"].items()),
        "attachments": found["attachments"],
        "waiting": found["waiting"],
        "operations": ", ".join(found["operations"]),
        "calls": _calls(found["calls"]),
        "cloud": found["cloud_error"] or ("fine" if found["cloud_compared"] else "not compared yet"),
        "port": found["port_error"],
        "Services": found["gateway_error"],
        "disk": found["store_error"] and f"{found['store_error']} ({found['unsaved']} changes wait for it)",
    }
    for name, value in lines.items():
        if value != "":
            say(f"{name + ':':13}{value}")
    for text in found["set_aside"]:
        say(f"{'set aside:':13}{text}")
    for lack in found["lacks"]:
        say(f"{'lacks:':13}{lack}")
    for difference in found["differences"]:
        whose = f" ({difference['attachment']})" if difference["attachment"] else ""
        seen = f"for {age(difference['since'])}, {'to be fixed' if difference['is_cured'] else 'reported only'}"
        say(f"{'drift:':13}{difference['nic_id']}{whose}: {difference['detail']} ({seen})")


def _calls(calls: Mapping[str, Any]) -> str:
    text = f"{calls['tokens']:.0f} left, {calls['rate']:.0f} of {calls['per_hour']} an hour"
    queued = ", ".join(f"{count} {urgency}" for urgency, count in calls["waiting"].items())
    text += f"; wait: {queued}" if queued else ""
    return f"{text}; {calls['obstacle']}" if calls["obstacle"] else text


def as_nics(found: Sequence[dict[str, Any]]) -> None:
    rows = [
        nic
        | {
            "age": age(nic["since"]),
            "attachment": _whose(nic),
        }
        for nic in found
    ]
    columns = {"NIC": "nic_id", "STATE": "state", "FOR": "age", "ADDRESS": "address", "VXNET": "vxnet_id",
               "ATTACHMENT": "attachment"}  # fmt: skip
    as_table(rows, columns, "no NICs")


def _whose(nic: Mapping[str, Any]) -> str:
    claim = f"address used by {nic['claimant']}" if nic["claimant"] else nic["attachment"]
    return "; ".join(filter(None, (claim, f"out of use: {nic['soil']}" if nic["soil"] else "")))


def as_attachments(found: Sequence[dict[str, Any]]) -> None:
    rows = [a | {"age": age(a["since"]), "pod": _pod(a["pod"])} for a in found]
    columns = {"POD": "pod", "CONTAINER": "container_id", "NETWORK": "network", "IFNAME": "ifname",
               "ADDRESS": "address", "NIC": "nic_id", "FOR": "age", "NETNS": "netns"}  # fmt: skip
    as_table(rows, columns, "no containers")


def _pod(pod: Mapping[str, str]) -> str:
    return "/".join(filter(None, (pod["namespace"], pod["name"]))) or "-"


def as_tasks(found: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        {
            "name": task["name"],
            "every": duration(task["period"]) if task["period"] else "on change",
            "success": f"{age(task['last_success'])} ago" if task["last_success"] else "-",
            "took": duration(task["duration"]),
            "next": until(task["next_run"]),
            "failures": f"{task['failures']} of {task['all_failures']}" if task["failures"] else task["all_failures"],
            "error": task["last_error"] or "-",
        }
        for task in found
    ]
    columns = {"TASK": "name", "EVERY": "every", "SUCCEEDED": "success", "TOOK": "took", "NEXT": "next",
               "FAILURES": "failures", "ERROR": "error"}  # fmt: skip
    as_table(rows, columns, "no tasks")


def as_config(report: Mapping[str, Any], checked_at_start: Sequence[str]) -> None:
    """The `config_report`, and what only a start can check."""
    cloud = report["cloud"]
    say(f"config file: {report['file'] or 'none'}")
    through = f" through the proxy {cloud['proxy']}" if cloud["proxy"] else ""
    say(f"cloud:       {cloud['endpoint']}{cloud['uri']}{through}")
    if cloud["unknown_keys"]:
        say(f"ignored in the access file: {', '.join(cloud['unknown_keys'])}")
    say()
    rows = [row | {"value": _setting(row["value"])} for row in report["settings"]]
    as_table(rows, {"SETTING": "name", "VALUE": "value", "FROM": "source"}, "")
    say()
    say("Checked only by a start:")
    for sentence in checked_at_start:
        say(f"  - {sentence}")


def as_plan(found: Mapping[str, Any]) -> None:
    lines = {
        "mode": found["mode"],
        "pool": f"{found['idle']} idle, {found['coming']} on their way, {found['waiting']} ADDs wait;"
        f" min-idle {found['min_idle']}, max-idle {found['max_idle']}",
        "held": f"{found['held']} of {found['limit']} NICs ({found['limited_by']})",
        "attach": f"takes about {found['attach_seconds']:.1f} s",
        "vxnets": f"chosen by {found['policy']}",
    }
    for name, value in lines.items():
        say(f"{name + ':':9}{value}")
    say()
    rows = [action | {"which": _which(action["vxnets"], action["nic_ids"])} for action in found["actions"]]
    columns = {"ACTION": "kind", "NICS": "count", "WHICH": "which", "WHY": "why"}
    as_table(rows, columns, f"nothing to do: {found['reason']}")
    if found["holds"]:
        say()
        as_table(
            [{"until": until(hold["until"] or 0.0), "what": hold["what"]} for hold in found["holds"]],
            {"UNTIL": "until", "WAITS FOR": "what"},
            "",
        )
    say()
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


VIEWS: Mapping[str, Callable[[Any], None]] = {  # by the path of the API below /v1
    "status": as_status,
    "nics": as_nics,
    "attachments": as_attachments,
    "tasks": as_tasks,
    "plan": as_plan,
}
