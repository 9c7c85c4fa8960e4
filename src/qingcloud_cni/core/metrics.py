"""Metrics as data: each holder of numbers has frozen statistics, whose fields say which metrics they are."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, get_type_hints


class MetricKind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A field `Annotated` with it holds a number, or with one label a mapping from the label's values to numbers."""

    kind: MetricKind
    name: str
    help: str
    labels: tuple[str, ...] = ()  # closed sets: never pod names, NIC ids or addresses


def gauge(name: str, help: str, *labels: str) -> Metric:  # noqa: A002 - as in the exposition format
    return Metric(MetricKind.GAUGE, name, help, labels)


def counter(name: str, help: str, *labels: str) -> Metric:  # noqa: A002
    return Metric(MetricKind.COUNTER, name, help, labels)


def histogram(name: str, help: str, *labels: str) -> Metric:  # noqa: A002
    return Metric(MetricKind.HISTOGRAM, name, help, labels)


@cache
def metrics_of(kind: type) -> tuple[Metric, ...]:
    """Of the statistics *kind*, and of those it holds."""
    hints = get_type_hints(kind, include_extras=True)
    found: list[Metric] = []
    for hint in hints.values():
        found += [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Metric)]
        found += metrics_of(hint) if isinstance(hint, type) and is_dataclass(hint) else ()
    return tuple(found)


def values_of(statistics: Any) -> Iterator[tuple[Metric, Any]]:
    """Each metric of *statistics* and of those it holds, with its value."""
    hints = get_type_hints(type(statistics), include_extras=True)
    for field in fields(statistics):
        value = getattr(statistics, field.name)
        if is_dataclass(value):
            yield from values_of(value)
        for found in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(found, Metric):
                yield found, value
