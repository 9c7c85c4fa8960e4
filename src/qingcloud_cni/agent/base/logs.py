"""Logs: JSON lines for machines, plain ones on a terminal; events have fixed names."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, TextIO

from qingcloud_cni.cloud import CallSeen
from qingcloud_cni.core.nics.model import Event

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_FIELDS = "fields"  # attribute of a record that holds what belongs to its event
_TROUBLE = (  # ends of event names
    ".refused",
    ".unanswered",
    ".missing",
    ".gone",
    "-failed",
    "not-adopted",
    "set-aside",
    ".quarantined",
    ".duplicate",
    ".distrusted",
    "flows.kept",
    ".leaving",
)
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
        return json.dumps(line, default=str)  # plain ASCII: a path that is no UTF-8 costs no line


class PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, _FIELDS, {}).items())
        text = f"{_time(record)} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def set_up(level: str, stream: TextIO) -> None:
    """Once per process; *level* as in --loglevel."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if stream.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])


def say(level: int, name: str, **fields: Any) -> None:
    """One line; *fields* with no value are left out."""
    log.log(level, name, extra={_FIELDS: {k: v for k, v in fields.items() if v not in ("", None)}})


def event(seen: Event) -> None:
    """Listener of the journal."""
    level = logging.WARNING if seen.name.endswith(_TROUBLE) else logging.INFO
    say(level, seen.name, nic=seen.nic_id, subject=seen.subject, detail=seen.detail, job=seen.job_id, pod=seen.pod)


def calls_refused(rate: float) -> None:
    """The cloud has said that there are too many calls."""
    say(logging.WARNING, "budget.lowered", calls_per_hour=round(rate, 1))


def cloud_call(call: CallSeen) -> None:
    say(
        logging.DEBUG, "cloud.call", action=call.action, urgency=call.urgency.word, outcome=str(call.outcome),
        ret_code=call.ret_code or None, seconds=round(call.seconds, 3),
    )  # fmt: skip
