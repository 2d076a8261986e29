"""What model calls add to the metrics: tokens by kind, cost, and the instruments of OpenTelemetry's GenAI conventions.

In Prometheus' spelling; labels are bounded: models beyond `MOST_MODELS` are counted under `_other`.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import prometheus_client
from prometheus_client.registry import CollectorRegistry

from nexus.telemetry import genai
from nexus.wire import runs

MOST_MODELS = 500
OTHER = "_other"
Lane = tuple[str, str, str]
_LANE = ("tenant", "agent", "environment")
_TYPES = {
    "input_tokens": "input", "output_tokens": "output", "cached_tokens": "cached", "cache_written_tokens": "cache_write",
    "reasoning_tokens": "reasoning",
}  # fmt: skip


class ModelMetrics:
    """`lane_of` bounds tenants, agents and environments."""

    def __init__(self, registry: CollectorRegistry, lane_of: Callable[[Lane], Lane]) -> None:
        counter, histogram = prometheus_client.Counter, prometheus_client.Histogram
        labels = (*_LANE, *genai.LABELS)
        self._lane_of = lane_of
        self._models: set[str] = set()
        self._tokens = counter(
            "agent_tokens_total",
            "Tokens of model calls that passed the models door. cached and cache_write are parts of input, reasoning of output.",
            (*_LANE, "type"),
            registry=registry,
        )
        self._cost = counter(
            "agent_cost_usd_total", "What model calls cost at known prices, in US dollars.", (*_LANE, "model"), registry=registry
        )
        self._calls = counter(
            "agent_model_calls_total", "Model calls, by how they ended.", (*_LANE, "model", "status", "cached"), registry=registry
        )
        self._kinds = {
            kind: counter(name, f"Tokens of model calls: {_TYPES[kind]}.", labels, registry=registry)
            for kind, name in genai.TOKENS.items()
        }
        self._duration = histogram(
            genai.DURATION, "Time from a model call's request to its end.", (*labels, "error_type"), buckets=genai.BUCKETS,
            registry=registry,
        )  # fmt: skip
        self._first_chunk = histogram(
            genai.FIRST_CHUNK, "Time from a model call's request to its answer's first byte.", labels, buckets=genai.BUCKETS,
            registry=registry,
        )  # fmt: skip
        self._children: dict[tuple[Any, ...], Any] = {}

    def count(self, records: Sequence[runs.ModelRecord]) -> None:
        sums: collections.Counter[tuple[Any, ...]] = collections.Counter()
        for record in records:
            lane = self._lane_of((record["tenant"], record["agent"], record["environment"]))
            model = self._model(record["model"])
            names = (genai.operation_of(record), genai.provider_of(record), model)
            for kind, type_ in _TYPES.items():
                number = record.get(kind, 0)
                if isinstance(number, int) and number > 0:
                    sums[(self._tokens, *lane, type_)] += number
                    sums[(self._kinds[kind], *lane, *names)] += number
            sums[(self._calls, *lane, model, str(record["status"]), str(bool(record.get("cached"))).lower())] += 1
            if (cost := record.get("cost_nano", 0)) > 0:
                sums[(self._cost, *lane, model)] += cost
            failed = (record.get("code") or str(record["status"])) if genai.failed(record) else ""
            self._child(self._duration, *lane, *names, failed).observe(max(0.0, record["duration_s"]))
            if record.get("stream") and (ttft_s := record.get("ttft_s")) is not None:
                self._child(self._first_chunk, *lane, *names).observe(max(0.0, ttft_s))
        for (family, *values), number in sums.items():
            self._child(family, *values).inc(number / 1e9 if family is self._cost else number)

    def _child(self, family: Any, *values: str) -> Any:
        """The series of these labels; looking it up in the library costs more than counting."""
        key = (family, *values)
        child = self._children.get(key)
        if child is None:
            if len(self._children) > 20_000:
                self._children.clear()
            child = self._children[key] = family.labels(*values)
        return child

    def _model(self, name: str) -> str:
        if name not in self._models and len(self._models) >= MOST_MODELS:
            return OTHER
        self._models.add(name)
        return name
