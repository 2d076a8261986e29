"""Prometheus metrics of agents. Counters live in this process: after a restart of control they begin at 0, as Prometheus expects.

Each series names its tenant; `render` gives a tenant's keys only their own. Labels come from records, so their number is bounded:
what exceeds the bound is counted under `_other`.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence

import prometheus_client
from prometheus_client import metrics_core
from prometheus_client.registry import Collector, CollectorRegistry

from nexus.core import principals
from nexus.ports import session_usage
from nexus.telemetry import model_metrics
from nexus.wire import runs

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
OTHER = "_other"
MOST_LANES = 2000
MOST_CODES = 200
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 28800.0)
_LANE = ("tenant", "agent", "environment")
_LATENCY, _DURATION = "agent_latency_seconds", "agent_request_duration_seconds"
Lane = tuple[str, str, str]


class Metrics:
    """Document 1's five and document 3's duration. `count_*` are called with records that were not counted before."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        counter, histogram = prometheus_client.Counter, prometheus_client.Histogram
        self._requests = counter(
            "agent_requests_total", "Runs that ended, by how.", (*_LANE, "outcome", "status"), registry=self._registry
        )
        self._latency = histogram(
            _LATENCY, "Time from a run's request to its end.", _LANE, buckets=_BUCKETS, registry=self._registry
        )
        self._errors = counter(
            "agent_errors_total", "Runs that failed, by error code.", (*_LANE, "code"), registry=self._registry
        )
        self._bytes = counter(
            "agent_bytes_total",
            "Bytes of runs' requests (in) and answers (out), and of sessions' ways out.",
            (*_LANE, "direction", "way"),
            registry=self._registry,
        )
        self._cpu = counter("agent_cpu_seconds_total", "CPU that sessions' workers used.", _LANE, registry=self._registry)
        self._memory = counter(
            "agent_memory_byte_seconds_total", "Memory of sessions' workers over time.", _LANE, registry=self._registry
        )
        self._lanes: set[Lane] = set()
        self._codes: set[str] = set()
        self._models = model_metrics.ModelMetrics(self._registry, self._lane)

    def count_runs(self, records: Sequence[runs.RunRecord]) -> None:
        ended: collections.Counter[tuple[str, ...]] = collections.Counter()
        failed: collections.Counter[tuple[str, ...]] = collections.Counter()
        passed: collections.Counter[tuple[str, ...]] = collections.Counter()
        latencies: dict[Lane, prometheus_client.Histogram] = {}
        for record in records:
            lane = self._lane((record["tenant"], record["agent"], record["environment"]))
            ended[(*lane, record["outcome"], str(record["status"]))] += 1
            passed[(*lane, "in", "runs")] += record.get("bytes_in", 0)
            passed[(*lane, "out", "runs")] += record.get("bytes_out", 0)
            if (latency := latencies.get(lane)) is None:
                latency = latencies[lane] = self._latency.labels(*lane)
            latency.observe(max(0.0, record["duration_s"]))
            if record["outcome"] in ("failed", "refused"):
                failed[(*lane, self._code(record.get("code") or f"status.{record['status']}"))] += 1
        for labels, number in ended.items():
            self._requests.labels(*labels).inc(number)
        for labels, number in failed.items():
            self._errors.labels(*labels).inc(number)
        for labels, number in passed.items():
            self._bytes.labels(*labels).inc(number)

    def count_usage(self, grown: Sequence[session_usage.Grown]) -> None:
        for one in grown:
            lane = self._lane((one.tenant, one.agent, one.environment))
            self._cpu.labels(*lane).inc(max(0.0, one.cpu_s))
            self._memory.labels(*lane).inc(max(0.0, one.memory_byte_seconds))
            self._bytes.labels(*lane, "in", "network").inc(max(0, one.bytes_in))
            self._bytes.labels(*lane, "out", "network").inc(max(0, one.bytes_out))

    def count_model_calls(self, records: Sequence[runs.ModelRecord]) -> None:
        self._models.count(records)

    def families(self) -> list[metrics_core.Metric]:
        """All there is, for the host's own collector."""
        return list(self._registry.collect())

    def render(self, caller: principals.Principal, queue: Mapping[Lane, int], *, dispatchers: int | None = None) -> bytes:
        """The exposition text (0.0.4) of what the caller may see. `queue`: waiting tasks by tenant, agent and environment;
        `dispatchers`: how many run tasks on this database, which only those who manage the host see."""
        caller.require(principals.Action.READ)
        families = self.families()
        families = [*families, *_render_durations(families), self._queue_size(queue)]
        if dispatchers is not None:
            known = metrics_core.GaugeMetricFamily("nexus_dispatchers", "Dispatchers that run tasks.", value=dispatchers)
            families.append(known)
        view = _View(families=families, caller=caller)
        return prometheus_client.generate_latest(view)

    def _queue_size(self, queue: Mapping[Lane, int]) -> metrics_core.Metric:
        gauge = metrics_core.GaugeMetricFamily("agent_queue_size", "Tasks that wait to be run.", labels=_LANE)
        for lane in sorted(self._lanes | queue.keys()):
            if lane[1] != OTHER:
                gauge.add_metric(lane, queue.get(lane, 0))
        return gauge

    def _lane(self, lane: Lane) -> Lane:
        if lane in self._lanes:
            return lane
        if len(self._lanes) >= MOST_LANES:
            return (lane[0] if any(known[0] == lane[0] for known in self._lanes) else OTHER, OTHER, OTHER)
        self._lanes.add(lane)
        return lane

    def _code(self, code: str) -> str:
        if code not in self._codes and len(self._codes) >= MOST_CODES:
            return OTHER
        self._codes.add(code)
        return code


def _render_durations(families: Iterable[metrics_core.Metric]) -> Iterable[metrics_core.Metric]:
    """`agent_request_duration_seconds`, which document 3's alerts use: the latency under its other name."""
    for family in families:
        if family.name == _LATENCY:
            twin = metrics_core.Metric(_DURATION, f"The same as {_LATENCY}.", family.type)
            twin.samples = [sample._replace(name=sample.name.replace(_LATENCY, _DURATION)) for sample in family.samples]
            yield twin


class _View(Collector):
    """The registry as one caller may see it: samples of other tenants, agents and environments are left out."""

    def __init__(self, *, families: Sequence[metrics_core.Metric], caller: principals.Principal) -> None:
        self._families = families
        self._caller = caller

    def collect(self) -> Iterable[metrics_core.Metric]:
        for family in self._families:
            shown = metrics_core.Metric(family.name, family.documentation, family.type)
            shown.samples = [sample for sample in family.samples if self._may_see(sample.labels)]
            yield shown

    def _may_see(self, labels: Mapping[str, str]) -> bool:
        caller = self._caller
        if caller.may(principals.Action.MANAGE_HOST):
            return True
        return (
            labels.get("tenant") == caller.tenant
            and (caller.agents is None or labels.get("agent") in caller.agents)
            and caller.environment in (None, labels.get("environment"))
        )
