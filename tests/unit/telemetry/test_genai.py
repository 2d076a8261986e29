"""A model call as a span and as metrics, named by OpenTelemetry's conventions."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import parser

from nexus.core import principals
from nexus.telemetry import genai, metrics, model_metrics, otlp_metrics, traces

ADMIN = principals.Principal(id="key_1", tenant="acme", roles=frozenset({principals.Role.ADMIN}))
CALL: Any = {
    "kind": "model", "id": "call_1", "run_id": "run_1", "tenant": "acme", "principal": "ins_1", "agent": "hello", "version": "2",
    "environment": "production", "instance_id": "ins_1", "session_id": "ses_1", "model": "fast", "requested": "quick",
    "upstream_model": "gpt-x-2026", "provider": "azure", "path": "chat/completions", "dialect": "openai", "input_tokens": 9,
    "output_tokens": 4, "cached_tokens": 6, "reasoning_tokens": 2, "cost_nano": 1_500_000, "outcome": "completed", "status": 200,
    "started_at": 1000.5, "duration_s": 0.25, "ttft_s": 0.05, "stream": True, "trace_id": "a" * 32, "parent_span_id": "b" * 16,
}  # fmt: skip


def attributes(span: Any) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in span["attributes"]}


def test_a_span_says_what_the_conventions_ask_for() -> None:
    span = genai.render_span(CALL)
    assert (span["name"], span["kind"], span["traceId"], span["parentSpanId"]) == ("chat quick", 3, "a" * 32, "b" * 16)
    assert int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) == 250_000_000
    assert attributes(span) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "azure.ai.openai", "gen_ai.request.model": "quick",
        "gen_ai.response.model": "gpt-x-2026", "gen_ai.request.stream": True, "gen_ai.response.time_to_first_chunk": 0.05,
        "gen_ai.conversation.id": "ses_1", "gen_ai.agent.name": "hello", "gen_ai.agent.version": "2",
        "gen_ai.usage.input_tokens": "9", "gen_ai.usage.output_tokens": "4", "gen_ai.usage.cache_read.input_tokens": "6",
        "gen_ai.usage.reasoning.output_tokens": "2", "http.response.status_code": "200", "nexus.run.id": "run_1",
        "nexus.model.call.id": "call_1", "nexus.model.cost_usd": 0.0015,
    }  # fmt: skip
    assert "status" not in span


def test_a_failed_call_is_an_error_and_one_without_a_trace_begins_its_own() -> None:
    failed = {**CALL, "status": 504, "outcome": "failed", "code": "model.timeout", "trace_id": "nonsense", "parent_span_id": "x"}
    span = genai.render_span(failed)
    assert (span["status"], attributes(span)["error.type"]) == ({"code": 2}, "model.timeout")
    assert len(span["traceId"]) == 32
    assert "parentSpanId" not in span
    assert genai.render_span(failed) == span


def test_the_request_is_otlp() -> None:
    value = json.loads(genai.render_spans([CALL, {**CALL, "id": "call_2", "agent": ""}]))
    for entry in value["resourceSpans"]:  # protobuf's own JSON has base64 where OTLP has hexadecimal
        for span in entry["scopeSpans"][0]["spans"]:
            for name in ("traceId", "spanId", "parentSpanId"):
                span[name] = "AAAA"
    request = json_format.ParseDict(value, ExportTraceServiceRequest())
    names = [one.resource.attributes[0].value.string_value for one in request.resource_spans]
    assert names == ["hello", "nexus"]


def samples(found: metrics.Metrics) -> dict[str, float]:
    """Values by name and the labels that do not say whose they are."""
    hidden = ("tenant", "agent", "environment")
    named = {}
    for family in parser.text_string_to_metric_families(found.render(ADMIN, {}).decode()):
        for sample in family.samples:
            labels = ",".join(value for name, value in sorted(sample.labels.items()) if name not in hidden)
            named[f"{sample.name}{{{labels}}}"] = sample.value
    return named


def test_tokens_cost_and_times_are_counted_by_kind_and_model() -> None:
    found = metrics.Metrics()
    found.count_model_calls([CALL, {**CALL, "cached": True, "input_tokens": 0, "output_tokens": 0, "cost_nano": 0}])
    counted = samples(found)
    assert counted["agent_tokens_total{input}"] == 9
    assert counted["agent_tokens_total{cached}"] == 12
    assert counted["agent_cost_usd_total{fast}"] == 0.0015
    assert counted["agent_model_calls_total{false,fast,200}"] == 1
    assert counted["agent_model_calls_total{true,fast,200}"] == 1
    assert counted["gen_ai_client_inference_usage_output_tokens_total{chat,azure.ai.openai,fast}"] == 4
    assert counted["gen_ai_client_operation_duration_seconds_count{,chat,azure.ai.openai,fast}"] == 2
    assert counted["gen_ai_client_operation_time_to_first_chunk_seconds_sum{chat,azure.ai.openai,fast}"] == 0.1


def test_names_that_callers_choose_make_a_bounded_number_of_series() -> None:
    found = metrics.Metrics()
    for number in range(model_metrics.MOST_MODELS + 50):
        found.count_model_calls([{**CALL, "model": f"m{number}"}])
    counted = samples(found)
    assert counted["agent_cost_usd_total{_other}"] > 0
    assert sum(name.startswith("agent_cost_usd_total{") for name in counted) == model_metrics.MOST_MODELS + 1


def test_metrics_are_otlp_under_the_conventions_own_names() -> None:
    found = metrics.Metrics()
    found.count_model_calls([CALL, {**CALL, "duration_s": 3.0, "outcome": "failed", "status": 504, "code": "model.timeout"}])
    body = otlp_metrics.render(found.families(), started_at=1000.0, now=1060.0)
    request = json_format.ParseDict(json.loads(body), ExportMetricsServiceRequest())
    told = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    duration = told["gen_ai.client.operation.duration"]
    assert duration.unit == "s"
    points = {
        next((one.value.string_value for one in point.attributes if one.key == "error.type"), ""): point
        for point in duration.histogram.data_points
    }
    assert set(points) == {"", "model.timeout"}
    good = points[""]
    assert (good.count, good.sum, sum(good.bucket_counts)) == (1, 0.25, 1)
    assert len(good.bucket_counts) == len(good.explicit_bounds) + 1
    assert good.bucket_counts[list(good.explicit_bounds).index(0.32)] == 1
    assert {one.key for one in good.attributes} >= {"gen_ai.provider.name", "gen_ai.request.model", "gen_ai.agent.name"}
    tokens = told["gen_ai.client.inference.usage.input_tokens"].sum
    assert (tokens.is_monotonic, tokens.data_points[0].as_double) == (True, 18)
    assert "agent_tokens" in told


def test_there_is_nothing_to_tell_before_anything_happened() -> None:
    assert otlp_metrics.render(metrics.Metrics().families(), started_at=0, now=1) == b""


def test_where_and_how_often_metrics_go() -> None:
    def read(**given: str) -> traces.MetricSettings:
        asked = {"endpoint": None, "metrics_endpoint": None, "headers": None, "interval_ms": None, **given}
        return traces.parse_metric_settings(**asked)

    assert read().endpoint is None
    assert (read(endpoint="http://c:4318/").endpoint, read(endpoint="http://c").every_s) == ("http://c:4318/v1/metrics", 60)
    assert read(endpoint="http://c", metrics_endpoint="http://m/x", interval_ms="500").endpoint == "http://m/x"
    for wrong in ("soon", "1", "nan"):
        with pytest.raises(ValueError, match="milliseconds"):
            read(endpoint="http://c", interval_ms=wrong)
