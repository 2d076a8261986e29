"""The metrics of `/metrics` as an OTLP metrics request (JSON). Pure.

Names of OpenTelemetry's GenAI conventions are written as they stand there, with their units; others keep Prometheus' names. Sums
and histograms are cumulative since this process began. Source: OpenTelemetry Protocol 1.x, metrics data model.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import metrics_core

from nexus.telemetry import genai

_CUMULATIVE = 2
_LABELS = {
    "error_type": "error.type", "tenant": "nexus.tenant", "agent": "gen_ai.agent.name", "environment": "nexus.environment",
    **dict(zip(genai.LABELS, ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"), strict=True)),
}  # fmt: skip


def render(families: Iterable[metrics_core.Metric], *, started_at: float, now: float) -> bytes:
    """Times are seconds since the epoch. Empty when there is nothing to tell yet."""
    times = {"startTimeUnixNano": str(int(started_at * 1e9)), "timeUnixNano": str(int(now * 1e9))}
    metrics = [made for family in families if (made := _metric(family, times)) is not None]
    if not metrics:
        return b""
    scope = {"scope": {"name": "nexus"}, "metrics": metrics}
    resource = {"attributes": [_attribute("service.name", "nexus")]}
    return json.dumps({"resourceMetrics": [{"resource": resource, "scopeMetrics": [scope]}]}, separators=(",", ":")).encode()


def _metric(family: metrics_core.Metric, times: Mapping[str, str]) -> dict[str, Any] | None:
    name, unit = genai.OTLP_NAMES.get(family.name, (family.name, ""))
    head = {"name": name, "description": family.documentation, "unit": unit}
    if family.type == "histogram":
        points = _histograms(family, times)
        return {**head, "histogram": {"dataPoints": points, "aggregationTemporality": _CUMULATIVE}} if points else None
    plain = [
        {"attributes": _attributes(sample.labels), "asDouble": sample.value, **times}
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    if not plain:
        return None
    if family.type == "counter":
        return {**head, "sum": {"dataPoints": plain, "aggregationTemporality": _CUMULATIVE, "isMonotonic": True}}
    return {**head, "gauge": {"dataPoints": plain}}


def _histograms(family: metrics_core.Metric, times: Mapping[str, str]) -> list[dict[str, Any]]:
    """A point for each set of labels; Prometheus' buckets hold what is below, OTLP's what is between."""
    series: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        one = series.setdefault(tuple(sorted(labels.items())), {"labels": labels, "below": [], "count": 0.0, "sum": 0.0})
        if sample.name.endswith("_bucket"):
            one["below"].append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith(("_count", "_sum")):
            one[sample.name.rpartition("_")[2]] = sample.value
    points = []
    for one in series.values():
        below = sorted(one["below"])
        counts = [int(value - before) for (_, value), (_, before) in zip(below, [(0.0, 0.0), *below], strict=False)]
        points.append(
            {
                "attributes": _attributes(one["labels"]),
                "count": str(int(one["count"])),
                "sum": one["sum"],
                "bucketCounts": [str(count) for count in counts],
                "explicitBounds": [bound for bound, _ in below if bound != float("inf")],
                **times,
            }
        )
    return points


def _attributes(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    return [_attribute(_LABELS.get(name, name), value) for name, value in labels.items() if value]


def _attribute(name: str, value: str) -> dict[str, Any]:
    return {"key": name, "value": {"stringValue": value}}
