"""Metrics for Prometheus: the statistics of the agent's parts, and what is counted as it happens."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from qingcloud_cni.agent.agent import AgentStatistics
from qingcloud_cni.agent.base.phases import Phase
from qingcloud_cni.cloud import CallSeen
from qingcloud_cni.core.cni.protocol import Verb
from qingcloud_cni.core.errors import Unavailable, shortage_as
from qingcloud_cni.core.metrics import Metric, MetricKind, counter, gauge, histogram, metrics_of, values_of
from qingcloud_cni.core.nics.model import Event

_FINE = (0.0005, 0.001, 0.002, 0.003)  # seconds that a phase takes on a quiet host
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
PAGE_AGE = 1.0  # seconds
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

CNI_REQUESTS = counter("qingagent_cni_requests_total", "CNI requests; code 0 is success.", "verb", "code")
CNI_SECONDS = histogram("qingagent_cni_request_seconds", "Time from a CNI request to its answer.", "verb")
CNI_PHASES = histogram("qingagent_cni_phase_seconds", "What a CNI request spent its time on.", "verb", "phase")
CLOUD_CALLS = counter("qingagent_cloud_calls_total", "Calls of the QingCloud API.", "action", "outcome")
CLOUD_URGENCIES = counter(
    "qingagent_cloud_calls_by_urgency_total", "Calls of the QingCloud API by what needs them.", "urgency"
)
CLOUD_SECONDS = histogram("qingagent_cloud_call_seconds", "Duration of a call of the QingCloud API.", "action")
CALLS_PER_POD = gauge("qingagent_cloud_calls_per_pod", "Calls since the start for each ADD that was answered.")
EVENTS_SEEN = counter("qingagent_events_total", "Recorded events.", "name")
REFUSED = counter("qingagent_connections_refused_total", "Connections closed at accept.", "peer")


METRICS: Sequence[Metric] = (
    *metrics_of(AgentStatistics),
    CNI_REQUESTS, CNI_SECONDS, CNI_PHASES, CLOUD_CALLS, CLOUD_URGENCIES, CLOUD_SECONDS, CALLS_PER_POD, EVENTS_SEEN,
    REFUSED,
)  # fmt: skip


class _Statistics(Collector):
    def __init__(self, statistics: AgentStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterable[Family]:
        for metric, value in values_of(self._statistics):
            family = GaugeMetricFamily if metric.kind is MetricKind.GAUGE else CounterMetricFamily
            shown = family(metric.name, metric.help, labels=metric.labels)
            numbers = {(label,): n for label, n in value.items()} if metric.labels else {(): value}
            for labels, number in numbers.items():
                shown.add_metric(labels, number)
            yield shown


class Metrics:
    """Counts what happens in one agent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._cni = self._counter(CNI_REQUESTS)
        self._cni_seconds = self._histogram(CNI_SECONDS, _SECONDS)
        self._phases = self._histogram(CNI_PHASES, _FINE + _SECONDS)
        self._cloud = self._counter(CLOUD_CALLS)
        self._urgencies = self._counter(CLOUD_URGENCIES)
        self._cloud_seconds = self._histogram(CLOUD_SECONDS, _SECONDS)
        self._calls = 0
        self._pods = 0
        per_pod = Gauge(CALLS_PER_POD.name, CALLS_PER_POD.help, registry=self._registry)
        per_pod.set_function(lambda: self._calls / max(self._pods, 1))
        self._events = self._counter(EVENTS_SEEN)
        self._connections = self._counter(REFUSED)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def _histogram(self, metric: Metric, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=buckets, registry=self._registry)

    def event(self, event: Event) -> None:
        self._events.labels(event.name).inc()

    def refused(self, peer: str) -> None:
        self._connections.labels(peer).inc()

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

    def render(self, statistics: AgentStatistics) -> bytes:
        """The exposition format."""
        shown = CollectorRegistry()
        shown.register(_Statistics(statistics))
        return generate_latest(shown) + generate_latest(self._registry)


class MetricsPage:
    """The rendered metrics, at most PAGE_AGE old. A thread renders them, at most that often, for all clients."""

    def __init__(self, metrics: Metrics, statistics: Callable[[], AgentStatistics]) -> None:
        self._metrics = metrics
        self._statistics = statistics
        self._rendering = asyncio.Lock()
        self._stale_at = -inf  # by the loop's clock
        self._page = b""

    async def latest(self) -> bytes:
        async with self._rendering:
            now = asyncio.get_running_loop().time()
            if now >= self._stale_at:
                with shortage_as(Unavailable, "metrics"):
                    self._page = await asyncio.to_thread(self._metrics.render, self._statistics())
                self._stale_at = now + PAGE_AGE
            return self._page
