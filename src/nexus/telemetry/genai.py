"""OpenTelemetry's GenAI conventions: every name of theirs that we use, and a model call's span. Pure.

Source: opentelemetry.io, semantic conventions for generative AI, as of their repository's main in November 2026. All of them are
still in development, so they stand in this file and nowhere else.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

PROVIDERS = {
    "azure": "azure.ai.openai", "bedrock": "aws.bedrock", "google": "gcp.gemini", "mistral": "mistral_ai",
}  # fmt: skip
OPERATIONS = {
    "chat/completions": "chat", "responses": "chat", "messages": "chat", "completions": "text_completion",
    "embeddings": "embeddings", "messages/count_tokens": "count_tokens",
}  # fmt: skip
DURATION = "gen_ai_client_operation_duration_seconds"
FIRST_CHUNK = "gen_ai_client_operation_time_to_first_chunk_seconds"
TOKENS = {
    "input_tokens": "gen_ai_client_inference_usage_input_tokens",
    "output_tokens": "gen_ai_client_inference_usage_output_tokens",
    "cached_tokens": "gen_ai_client_inference_usage_cache_read_input_tokens",
    "cache_written_tokens": "gen_ai_client_inference_usage_cache_write_input_tokens",
    "reasoning_tokens": "gen_ai_client_inference_usage_reasoning_output_tokens",
}
OTLP_NAMES = {
    DURATION: ("gen_ai.client.operation.duration", "s"),
    FIRST_CHUNK: ("gen_ai.client.operation.time_to_first_chunk", "s"),
    TOKENS["input_tokens"]: ("gen_ai.client.inference.usage.input_tokens", "{token}"),
    TOKENS["output_tokens"]: ("gen_ai.client.inference.usage.output_tokens", "{token}"),
    TOKENS["cached_tokens"]: ("gen_ai.client.inference.usage.cache_read.input_tokens", "{token}"),
    TOKENS["cache_written_tokens"]: ("gen_ai.client.inference.usage.cache_write.input_tokens", "{token}"),
    TOKENS["reasoning_tokens"]: ("gen_ai.client.inference.usage.reasoning.output_tokens", "{token}"),
}
"""Name and unit by Prometheus' spelling."""
LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_CLIENT, _ERROR = 3, 2
_TRACE, _SPAN = re.compile(r"(?!0{32})[0-9a-f]{32}"), re.compile(r"(?!0{16})[0-9a-f]{16}")
_USAGE = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_written_tokens": "gen_ai.usage.cache_write.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}


def operation_of(record: Mapping[str, Any]) -> str:
    return OPERATIONS.get(str(record.get("path", "")), "chat")


def provider_of(record: Mapping[str, Any]) -> str:
    provider = str(record.get("provider") or "")
    return PROVIDERS.get(provider, provider or "_other")


def failed(record: Mapping[str, Any]) -> bool:
    return bool(record.get("outcome", "completed") != "completed" or record["status"] >= 400)


def render_spans(records: Iterable[Mapping[str, Any]]) -> bytes:
    """An OTLP trace request (JSON) with a span for each call, under the run's trace where that is known."""
    resources = []
    for record in records:
        resource = [_attribute(name, value) for name, value in _owner(record).items() if value]
        scope = {"scope": {"name": "nexus.models"}, "spans": [render_span(record)]}
        resources.append({"resource": {"attributes": resource}, "scopeSpans": [scope]})
    return json.dumps({"resourceSpans": resources}, separators=(",", ":")).encode()


def render_span(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same record makes the same span, however often it is reported."""
    seed = hashlib.sha256(f"{record.get('id') or ''}/{record['tenant']}/{record['started_at']!r}".encode()).hexdigest()
    given = str(record.get("trace_id") or "")
    known = _TRACE.fullmatch(given) is not None
    begun = int(record["started_at"] * 1e9)
    operation, asked = operation_of(record), record.get("requested") or record["model"]
    found = _attributes(record, operation, asked)
    span: dict[str, Any] = {
        "traceId": given if known else seed[:32],
        "spanId": seed[32:48],
        "name": f"{operation} {asked}",
        "kind": _CLIENT,
        "startTimeUnixNano": str(begun),
        "endTimeUnixNano": str(begun + max(0, int(record["duration_s"] * 1e9))),
        "attributes": [_attribute(name, value) for name, value in found.items() if value is not None],
    }
    parent = str(record.get("parent_span_id") or "")
    if known and _SPAN.fullmatch(parent):
        span["parentSpanId"] = parent
    if failed(record):
        span["status"] = {"code": _ERROR}
    return span


def _attributes(record: Mapping[str, Any], operation: str, asked: str) -> dict[str, Any]:
    cost = record.get("cost_nano")
    streams = True if record.get("stream") else None
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider_of(record),
        "gen_ai.request.model": asked,
        "gen_ai.response.model": record.get("upstream_model") or None,
        "gen_ai.request.stream": streams,
        "gen_ai.response.time_to_first_chunk": record.get("ttft_s") if streams else None,
        "gen_ai.conversation.id": record.get("session_id") or None,
        "gen_ai.agent.name": record.get("agent") or None,
        "gen_ai.agent.version": record.get("version") or None,
        **{name: record.get(kind) for kind, name in _USAGE.items()},
        "http.response.status_code": record["status"] or None,
        "error.type": (record.get("code") or str(record["status"])) if failed(record) else None,
        "nexus.run.id": record.get("run_id") or None,
        "nexus.model.call.id": record.get("id") or None,
        "nexus.model.cost_usd": None if cost is None else cost / 1e9,
        "nexus.model.cached": True if record.get("cached") else None,
        "nexus.model.usage_estimated": True if record.get("estimated") else None,
    }


def _owner(record: Mapping[str, Any]) -> dict[str, str]:
    """The same names as for an agent's own spans (`telemetry.traces`)."""
    return {
        "service.name": record.get("agent") or "nexus",
        "service.version": record.get("version") or "",
        "service.instance.id": record.get("instance_id") or "",
        "nexus.tenant": record["tenant"],
        "nexus.agent": record.get("agent") or "",
        "nexus.environment": record.get("environment") or "",
    }


def _attribute(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": name, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": name, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": name, "value": {"doubleValue": value}}
    return {"key": name, "value": {"stringValue": str(value)}}
