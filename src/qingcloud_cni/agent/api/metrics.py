"""Metrics for Prometheus. Labels are closed sets: never pod names, NIC ids or addresses."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qingcloud_cni.agent.api.task_metrics import TaskCollector
from qingcloud_cni.agent.base.journal import Journal
from qingcloud_cni.agent.base.phases import Phase
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.cloud import CallSeen
from qingcloud_cni.core.budget import Spending, Urgency
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.drift.differences import Seen
from qingcloud_cni.core.nics.model import Event, NicState, OpKind
from qingcloud_cni.core.nics.table import Table

_FINE = (0.0005, 0.001, 0.002, 0.003)  # what a phase takes in good times
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Sources:
    """What gauges ask, in another thread than the agent's: asking changes nothing."""

    waiting: Callable[[], int]  # ADDs that wait for a NIC
    kept: Callable[[], int]  # DELs in the spool
    is_ready: Callable[[], bool]
    spending: Callable[[], Spending]


class _TableCollector(Collector):
    """Gauges read when they are asked for, in another thread than changes the table: rows are copied at once."""

    def __init__(self, table: Table, journal: Journal, sources: Sources, calls_per_pod: Callable[[], float]) -> None:
        self._table = table
        self._journal = journal
        self._sources = sources
        self._calls_per_pod = calls_per_pod

    def collect(self) -> Iterable[Metric]:
        nics = GaugeMetricFamily("qingagent_nics", "NICs of this host by state.", labels=["state"])
        states = [n.state for n in tuple(self._table.nics.values())]
        for state in NicState:
            nics.add_metric([state.value], states.count(state))
        yield nics
        asked = sum(i.count for i in tuple(self._table.intents.values()) if i.kind is OpKind.CREATE)
        yield GaugeMetricFamily("qingagent_nics_asked", "NICs asked of the cloud, unanswered.", asked)
        yield GaugeMetricFamily("qingagent_attachments", "Containers that have a NIC.", len(self._table.attachments))
        sources = self._sources
        yield GaugeMetricFamily("qingagent_adds_waiting", "ADDs that wait for a NIC.", sources.waiting())
        yield GaugeMetricFamily("qingagent_spooled", "DELs in the spool that could not be done yet.", sources.kept())
        yield GaugeMetricFamily("qingagent_ready", "1 while ADDs are served.", float(sources.is_ready()))
        journal = self._journal
        yield CounterMetricFamily("qingagent_store_refusals", "Writes the disk did not take.", journal.refusals)
        yield GaugeMetricFamily("qingagent_store_unsaved_changes", "Changes that are not on disk.", journal.unsaved)
        yield GaugeMetricFamily("qingagent_store_behind_seconds", "How long it takes nothing.", journal.behind)
        spending = sources.spending()
        yield GaugeMetricFamily("qingagent_cloud_call_tokens", "Calls that may go at once.", spending.tokens)
        yield GaugeMetricFamily("qingagent_cloud_call_rate", "Calls an hour that may go now.", spending.rate)
        queued = GaugeMetricFamily("qingagent_cloud_calls_waiting", "Calls not permitted yet.", labels=["urgency"])
        for urgency in Urgency:
            queued.add_metric([urgency.word], spending.queued.count(urgency))
        yield queued
        yield GaugeMetricFamily(
            "qingagent_cloud_calls_per_pod", "Calls since the start for each ADD answered.", self._calls_per_pod()
        )


class Metrics:
    """One registry per agent, fed by its events."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._cni = Counter(
            "qingagent_cni_requests", "CNI requests by verb and CNI code (0 is success).", ["verb", "code"],
            registry=self._registry,
        )  # fmt: skip
        self._cni_seconds = Histogram(
            "qingagent_cni_request_seconds", "Time from a CNI request to its answer.", ["verb"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._phases = Histogram(
            "qingagent_cni_phase_seconds", "What the time of a CNI request went to.", ["verb", "phase"],
            buckets=_FINE + _SECONDS, registry=self._registry,
        )  # fmt: skip
        self._cloud = Counter(
            "qingagent_cloud_calls", "Calls of the QingCloud API by action and outcome.", ["action", "outcome"],
            registry=self._registry,
        )  # fmt: skip
        self._urgencies = Counter(
            "qingagent_cloud_calls_by_urgency", "Calls of the QingCloud API by what they were for.", ["urgency"],
            registry=self._registry,
        )  # fmt: skip
        self._cloud_seconds = Histogram(
            "qingagent_cloud_call_seconds", "Time a call of the QingCloud API took.", ["action"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._events = Counter("qingagent_events", "Events by name.", ["name"], registry=self._registry)

        self._calls = 0
        self._pods = 0

    def watch(self, table: Table, journal: Journal, sources: Sources) -> None:
        """Show the state of an agent."""
        per_pod = lambda: self._calls / max(self._pods, 1)  # noqa: E731
        self._registry.register(_TableCollector(table, journal, sources, per_pod))

    def watch_tasks(
        self, records: Callable[[], Iterable[TaskRecord]], differences: Callable[[], Iterable[Seen]]
    ) -> None:
        self._registry.register(TaskCollector(records, differences))

    def event(self, event: Event) -> None:
        self._events.labels(event.name).inc()

    def cloud_call(self, call: CallSeen) -> None:
        self._calls += 1
        self._cloud.labels(call.action, str(call.outcome)).inc()
        self._urgencies.labels(call.urgency.word).inc()
        self._cloud_seconds.labels(call.action).observe(call.seconds)

    def cni_request(self, verb: str, code: int, seconds: float, phases: Mapping[Phase, float]) -> None:
        self._pods += verb == Verb.ADD and code == 0
        self._cni.labels(verb, str(code)).inc()
        self._cni_seconds.labels(verb).observe(seconds)
        for phase, spent in phases.items():
            self._phases.labels(verb, phase).observe(spent)

    def render(self) -> bytes:
        """The exposition format; takes some milliseconds, so not for the loop's thread."""
        return generate_latest(self._registry)
