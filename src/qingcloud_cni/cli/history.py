"""Prints what has happened on this host: events, and the timelines made from them."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec

from qingcloud_cni.cli import show
from qingcloud_cni.core.errors import AgentError, Unavailable
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.timeline import Operation, Timeline, TimelineStep, timelines

MOST = 20_000  # events in one answer; the agent stores fewer
POLL = 0.5  # seconds between requests for more
_STEPS = {"AT (UTC)": "at", "AFTER": "after", "WHAT": "name", "JOB": "job", "DETAIL": "detail"}
_CALLS = {"AT (UTC)": "at", "TOOK": "took", "CALL": "kind", "OPERATION": "op", "JOB": "job", "FAULT": "why"}
Ask = Callable[[str], Any]  # asks the agent for a target of its API


def show_events(ask: Ask, query: Mapping[str, object], output: str, *, follow: bool) -> None:
    """*query* are parameters of the API. With *follow* runs until interrupted, and prints one line each."""
    found = ask(_target(query))
    if output == "json" and not follow:
        show.as_json(found)
        return
    formatted = json.dumps if output == "json" else _line
    last = 0
    while True:
        for event in found:
            show.say(formatted(event))
            last = event["seq"]
        if not follow:
            return
        time.sleep(POLL)
        found = _ask_until_answered(ask, _target({**query, "limit": MOST, "after": last}))


def show_timelines(ask: Ask, of: str, output: str) -> None:
    """Print the timelines of a container, pod, NIC or operation; AgentError if no event has it."""
    known = msgspec.convert(ask(_target({"limit": MOST})), list[Event])
    found = timelines(known, of)
    if not found:
        since = f"; the oldest is of {_moment(known[0].at)} (UTC)" if known else ""
        raise AgentError(f"no event has a container, pod, NIC or operation {of!r}{since}")
    states = [[] if timeline.is_over else _differences(ask, timeline.nic_id) for timeline in found]
    if output == "json":
        as_json = zip(msgspec.to_builtins(found), states, strict=True)
        show.as_json([timeline | {"differences": state} for timeline, state in as_json])
    else:
        _show(found, states)


def _differences(ask: Ask, nic_id: str) -> list[str]:
    """How a NIC differs from the state in which the cloud plugged it in."""
    if not nic_id:
        return []
    try:
        found: list[str] = ask(f"/v1/nic-state?{urlencode({'nic': nic_id})}")["differences"]
    except AgentError as err:
        return [str(err)]
    return found


def _target(query: Mapping[str, object]) -> str:
    return f"/v1/events?{urlencode({name: value for name, value in query.items() if value})}"


def _ask_until_answered(ask: Ask, target: str) -> Any:
    """The agent may be restarting."""
    last = ""
    while True:
        try:
            return ask(target)
        except Unavailable as err:
            if str(err) != last:
                show.say(f"qingagent: {err}", err=True)
                last = str(err)
            time.sleep(POLL)


def _line(event: Mapping[str, Any]) -> str:
    pod = f"({event['pod']})" if event["pod"] else ""
    words = filter(None, (event["nic_id"], event["subject"], event["job_id"], pod, event["detail"]))
    return f"{_moment(event['at'])}  {event['name']:22} {'  '.join(words)}".rstrip()


def _show(found: Sequence[Timeline], states: Sequence[Sequence[str]]) -> None:
    for number, (timeline, differences) in enumerate(zip(found, states, strict=True)):
        if number:
            show.say()
        title = [timeline.subject]
        title += [f"pod {timeline.pod}"] if timeline.pod else []
        title += [f"NIC {timeline.nic_id}"] if timeline.nic_id not in ("", timeline.subject) else []
        show.say(", ".join(title) + ("" if timeline.is_over else ", continues"))
        _table([_step_row(step) for step in timeline.steps], _STEPS, "nothing")
        show.say()
        unknown = "no calls of the cloud: none was needed, or their events are no longer stored"
        _table([_call_row(operation) for operation in timeline.operations], _CALLS, unknown)
        for difference in differences:
            show.say(f"not as the cloud plugged it in: {difference}")


def _table(rows: Sequence[Mapping[str, str]], columns: Mapping[str, str], empty: str) -> None:
    """Without empty columns."""
    show.as_table(rows, {title: key for title, key in columns.items() if any(row[key] for row in rows)}, empty)


def _step_row(step: TimelineStep) -> dict[str, str]:
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
