"""Logs: JSON lines, or plain text on a terminal; events have fixed names."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

from qingcloud_cni.cloud import CallSeen
from qingcloud_cni.core.events import EVENTS, EventKind, Level
from qingcloud_cni.core.nics.model import Event
from qingcloud_cni.core.text import escaped

_LEVELS = {level: logging.getLevelNamesMapping()[level.name] for level in Level}
_FIELDS = "fields"  # attribute of a record that holds what belongs to its event
LINES: Mapping[str, EventKind] = MappingProxyType(  # what is only logged, never recorded
    {
        "agent.started": EventKind(Level.INFO, "The agent listens."),
        "agent.stopped": EventKind(Level.INFO, "The agent ended on a signal."),
        "agent.cut-off": EventKind(Level.WARN, "The agent ended in time on a signal, although something hung."),
        "lock.name-taken": EventKind(
            Level.WARN,
            "Another program holds the abstract name `qingcloud-cni/agent`: an agent of an earlier version, or one"
            " without rights. The agent starts, since its lock is a file.",
        ),
        "port.missing": EventKind(
            Level.WARN, "The agent cannot listen at a TCP address yet. It serves its unix socket, and retries."
        ),
        "port.recovered": EventKind(Level.INFO, "The agent listens at all its addresses."),
        "instance.unfound": EventKind(
            Level.WARN, "The agent asks the cloud for the id of its instance, as no file has it. It retries."
        ),
        "store.unsaved": EventKind(Level.ERROR, "The agent ended while the disk rejected writes: changes are lost."),
        "cni.request": EventKind(Level.INFO, "A request; `warn` with a code, `debug` for a STATUS that succeeds."),
        "cni.bug": EventKind(Level.ERROR, "A request met a bug. A traceback follows."),
        "cloud.call": EventKind(Level.DEBUG, "A call of the cloud."),
        "connections.refused": EventKind(
            Level.WARN, "The agent closed connections of such peers at accept: they had their share. Once a minute."
        ),
        "connections.shortage": EventKind(
            Level.WARN, "The agent accepted no connection, for want of descriptors or memory. Once a minute."
        ),
        "budget.lowered": EventKind(Level.WARN, "The cloud rejected a call for its quota. The budget shrinks."),
        "access-file.unknown-keys": EventKind(Level.WARN, "The access file has keys that the agent ignores."),
    }
)
LINE_INTERVAL = 60.0  # seconds between lines that peers without rights can cause
log = logging.getLogger("qingagent")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII, so that a path that is not UTF-8 is logged as well


class PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, _FIELDS, {}).items())
        text = f"{_time(record)} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join(map(escaped, (text, *trace)))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up(level: str, stream: TextIO) -> None:
    """Once per process; *level* as in --loglevel."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if stream.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[Level(level)])


def write(name: str, *, level: Level | None = None, **fields: Any) -> None:
    """Log one of LINES, at its level if none is given; empty *fields* are left out."""
    kind = LINES[name]
    _write(level or kind.level, name, fields)


class RateLimited:
    """Logs one of LINES at most once a minute, with the number of times since the last line."""

    def __init__(self, name: str, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._now = now
        self._next = 0.0
        self._times = 0

    def write(self, **fields: Any) -> None:
        self._times += 1
        if self._now() >= self._next:
            write(self._name, times=self._times, **fields)
            self._next, self._times = self._now() + LINE_INTERVAL, 0


def bug() -> None:
    """Log the exception that is being handled, with its traceback."""
    log.exception("cni.bug")


def event(seen: Event) -> None:
    """Listener of the journal."""
    fields = {"nic": seen.nic_id, "subject": seen.subject, "detail": seen.detail, "job": seen.job_id, "pod": seen.pod}
    _write(EVENTS[seen.name].level, seen.name, fields)


def _write(level: Level, name: str, fields: Mapping[str, object]) -> None:
    log.log(_LEVELS[level], name, extra={_FIELDS: {k: v for k, v in fields.items() if v not in ("", None)}})


def calls_refused(rate: float) -> None:
    write("budget.lowered", calls_per_hour=round(rate, 1))


def cloud_call(call: CallSeen) -> None:
    write(
        "cloud.call", action=call.action, urgency=call.urgency.word, outcome=str(call.outcome),
        ret_code=call.ret_code or None, seconds=round(call.seconds, 3),
    )  # fmt: skip
