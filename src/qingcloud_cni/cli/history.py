"""What has happened on this host, as commands print it: events, and the stories they make up."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import click
import msgspec

from qingcloud_cni.cli import show
from qingcloud_cni.core.errors import AgentError, Unavailable
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.timeline import Operation, Story, StoryStep, stories

MOST = 20_000  # events in one answer; the agent keeps fewer
POLL = 0.5  # seconds between questions for more
_STEPS = {"AT (UTC)": "at", "AFTER": "after", "WHAT": "name", "JOB": "job", "DETAIL": "detail"}
_CALLS = {"AT (UTC)": "at", "TOOK": "took", "CALL": "kind", "OPERATION": "op", "JOB": "job", "TROUBLE": "why"}
Ask = Callable[[str], Any]  # asks the agent for a target of its API


def show_events(ask: Ask, wanted: Mapping[str, object], output: str, *, follow: bool) -> None:
    """*wanted* are parameters of the API; with *follow* until interrupted, one line each."""
    found = ask(_target(wanted))
    if output == "json" and not follow:
        show.as_json(found)
        return
    tell = json.dumps if output == "json" else _line
    last = 0
    while True:
        for event in found:
            click.echo(tell(event))
            last = event["seq"]
        if not follow:
            return
        time.sleep(POLL)
        found = _ask_patiently(ask, _target({**wanted, "limit": MOST, "after": last}))


def show_stories(ask: Ask, of: str, output: str) -> None:
    """What became of a container, pod, NIC or operation; AgentError if no event speaks of it."""
    known = msgspec.convert(ask(_target({"limit": MOST})), list[Event])
    found = stories(known, of)
    if not found:
        since = f"; they reach back to {_moment(known[0].at)} (UTC)" if known else ""
        raise AgentError(f"no event speaks of a container, pod, NIC or operation {of!r}{since}")
    if output == "json":
        show.as_json(msgspec.to_builtins(found))
    else:
        _tell(found)


def _target(wanted: Mapping[str, object]) -> str:
    return f"/v1/events?{urlencode({name: value for name, value in wanted.items() if value})}"


def _ask_patiently(ask: Ask, target: str) -> Any:
    """Ask until the agent answers: it may be restarted meanwhile."""
    told = ""
    while True:
        try:
            return ask(target)
        except Unavailable as err:
            if str(err) != told:
                click.echo(f"qingagent: {err}", err=True)
                told = str(err)
            time.sleep(POLL)


def _line(event: Mapping[str, Any]) -> str:
    pod = f"({event['pod']})" if event["pod"] else ""
    words = filter(None, (event["nic_id"], event["subject"], event["job_id"], pod, event["detail"]))
    return f"{_moment(event['at'])}  {event['name']:22} {'  '.join(words)}".rstrip()


def _tell(found: Sequence[Story]) -> None:
    for number, story in enumerate(found):
        if number:
            click.echo()
        title = [story.subject]
        title += [f"pod {story.pod}"] if story.pod else []
        title += [f"NIC {story.nic_id}"] if story.nic_id not in ("", story.subject) else []
        click.echo(", ".join(title) + ("" if story.is_over else ", goes on"))
        _table([_step_row(step) for step in story.steps], _STEPS, "nothing")
        click.echo()
        unknown = "no calls of the cloud are known: none was needed, or the events do not reach back so far"
        _table([_call_row(operation) for operation in story.operations], _CALLS, unknown)


def _table(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str], empty: str) -> None:
    """Without the columns that have nothing to say."""
    show.as_table(rows, {title: key for title, key in columns.items() if any(row[key] for row in rows)}, empty)


def _step_row(step: StoryStep) -> dict[str, str]:
    return {
        "at": _moment(step.at),
        "after": _span(step.seconds),
        "name": step.name,
        "job": step.job_id,
        "detail": step.detail,
    }


def _call_row(operation: Operation) -> dict[str, str]:
    return {
        "at": _moment(operation.at),
        "took": _span(operation.seconds) + ("" if operation.is_over else " …"),
        "kind": operation.kind,
        "op": operation.op_id,
        "job": operation.job_id,
        "why": "; ".join(operation.troubles),
    }


def _moment(at: float) -> str:
    """A time, as the log has it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _span(seconds: float) -> str:
    """A duration, in the largest unit that fits twice."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s"
