"""Metrics of the periodic tasks, and of what they have found to differ."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.core.drift.differences import DifferenceKind, Seen


class TaskCollector(Collector):
    """Read when it is asked for, in another thread than the agent's: asking changes nothing."""

    def __init__(
        self, records: Callable[[], Iterable[TaskRecord]], differences: Callable[[], Iterable[Seen]]
    ) -> None:
        self._records = records
        self._differences = differences

    def collect(self) -> Iterable[Metric]:
        success = GaugeMetricFamily(
            "qingagent_task_last_success_seconds",
            "When a periodic task last succeeded, in seconds since the epoch; 0: not yet.",
            labels=["task"],
        )
        duration = GaugeMetricFamily("qingagent_task_duration_seconds", "What its last run took.", labels=["task"])
        failures = CounterMetricFamily("qingagent_task_failures", "Runs of it that failed.", labels=["task"])
        for record in self._records():
            success.add_metric([record.name], record.last_success)
            duration.add_metric([record.name], record.duration)
            failures.add_metric([record.name], record.all_failures)
        yield from (success, duration, failures)
        drift = GaugeMetricFamily(
            "qingagent_drift", "What differs between table, kernel and cloud at the moment.", labels=["kind"]
        )
        kinds = [seen.difference.kind for seen in self._differences()]
        for kind in DifferenceKind:
            drift.add_metric([kind.value], kinds.count(kind))
        yield drift
